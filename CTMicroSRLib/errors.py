"""What can go wrong for a user, each with the exit status the command ends with.

Every error that a user can cause is one of these. The message is one sentence that names the cause
and the next step; the command prints it as its only line on standard error.
"""

from __future__ import annotations

import reprlib


class CTMicroSRError(Exception):
    """Base of every error a user can cause; ``exit_status`` is the command's exit status."""

    exit_status = 1


class UsageError(CTMicroSRError):
    """The call itself is wrong: an option, a region, a path that can't be written."""

    exit_status = 2


class RefusedInputError(CTMicroSRError):
    """The input is not something that can be super-resolved honestly."""

    exit_status = 3


class ResourceError(CTMicroSRError):
    """Not enough memory, disk space or another resource of the machine."""

    exit_status = 4


class ModelError(CTMicroSRError):
    """A model is missing, damaged, altered or of an unknown kind."""

    exit_status = 5


class CancelledError(CTMicroSRError):
    """The user cancelled the run; nothing was left behind."""

    exit_status = 130


def user_error(error: BaseException) -> CTMicroSRError:
    """What to tell the user of an exception that ends a command."""
    if isinstance(error, CTMicroSRError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return CancelledError("Cancelled; no output was written.")
    if isinstance(error, MemoryError):
        return ResourceError("Not enough memory; choose a smaller region or scan.")
    if isinstance(error, ImportError):
        return ResourceError(
            f"Something is not installed ({error}); 'ctmicrosr doctor' lists what is missing and how to install it."
        )
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return ResourceError(f"The system refused a file or device: {error.strerror or error}{where}; check it.")
    return CTMicroSRError(
        f"Something unforeseen went wrong ({type(error).__name__}: {error}); run it again with --debug and report it."
    )


def shown(value: object) -> str:
    """A value of a wrong type in a sentence: itself where it is short."""
    if value is None or isinstance(value, bool | int | float | str):
        return reprlib.repr(value)
    return f"of type {type(value).__name__}"
