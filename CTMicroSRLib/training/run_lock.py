"""One training at a time in a run's folder: a lock that the system holds for the process and lets go when it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.training.launching import is_first_process
from CTMicroSRLib.whole_files import writing

logger = logging.getLogger(__name__)

LOCK_FILE = ".training.lock"
_LOCKED_BYTE = 1 << 30
"""Windows locks bytes against reading too; far behind the text, which another process reads."""

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

_held: set[Path] = set()


@contextmanager
def only_training(run: Path) -> Iterator[None]:
    """Hold a run's folder for this process; its own further calls, and the other processes of its training, pass.

    The lock is the operating system's: it ends with the process, however that ends, and a file that a killed process
    left holds nobody up. A folder that is made for it goes again where nothing was put into it.

    Raises:
        UsageError: another training holds it, or the folder can't be made.
        ResourceError: the disk is full.
    """
    place = run.resolve()
    if place in _held or not is_first_process():
        yield
        return
    made = [path for path in (run, *run.parents) if not path.exists()]
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _locked(run)
        _held.add(place)
        try:
            yield
        finally:
            _held.discard(place)
            _let_go(run / LOCK_FILE, descriptor)
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _locked(run: Path) -> int:
    """The descriptor of the run's lock file, locked."""
    path = run / LOCK_FILE
    while True:
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, run)
            # A training that ended meanwhile may have removed the file that was opened.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, run: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise UsageError(
                f"Another training is running in {run}{_holder(descriptor)}; wait for it to end, or choose another "
                "folder."
            ) from None
        logger.warning("%s can't be locked (%s); let no second training run in it.", run, error.strerror or error)


def _holder(descriptor: int) -> str:
    """Which process wrote the lock file, where it can be read."""
    with contextlib.suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        text = os.read(descriptor, 200).decode(errors="replace").strip()
        return f" ({text})" if text else ""
    return ""


def _let_go(path: Path, descriptor: int) -> None:
    if sys.platform == "win32":  # which removes no open file
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        return
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)
