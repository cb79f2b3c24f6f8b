"""How a long computation tells how far it is and hears that it should stop."""

from __future__ import annotations

from typing import Protocol

from CTMicroSRLib.errors import CancelledError


class Progress(Protocol):
    """Receives progress; the command's bar, the panel's and a test's recorder are all one of these."""

    def update(self, stage: str, done: float, total: float) -> None:
        """Called as ``stage`` goes from 0 to ``total`` (in units of the stage's own)."""

    def cancelled(self) -> bool:
        """Asked often; True stops the computation with :class:`CancelledError`."""


class SilentProgress:
    """Progress that nobody watches and nobody cancels."""

    def update(self, stage: str, done: float, total: float) -> None:
        """Ignore it."""

    def cancelled(self) -> bool:
        """Never."""
        return False


def check_cancelled(progress: Progress) -> None:
    """Raise CancelledError when the user asked to stop."""
    if progress.cancelled():
        raise CancelledError("Cancelled; no output was written.")
