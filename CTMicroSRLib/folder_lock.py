"""One training, one batch at a time in a folder: a lock that the system holds for the process, however that ends."""

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
from CTMicroSRLib.whole_files import writing

logger = logging.getLogger(__name__)

_LOCKED_BYTE = 1 << 30
"""Windows locks bytes against reading too; far behind the text, which another process reads."""

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)

_held: set[Path] = set()


@contextmanager
def only_one(folder: Path, work: str) -> Iterator[None]:
    """Hold a folder for this process and one kind of work; its own further calls pass.

    The lock is the operating system's: it ends with the process, however that ends, and a file that a killed process
    left holds nobody up. A folder that is made for it goes again where nothing was put into it.

    Args:
        folder: made where it is not there.
        work: one word for what is done in it, ``training`` say.

    Raises:
        UsageError: another process does such work in it, or the folder can't be made.
        ResourceError: the disk is full.
    """
    path = lock_file(folder, work)
    place = path.resolve()
    if place in _held:
        yield
        return
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _locked(path, work)
        _held.add(place)
        try:
            yield
        finally:
            _held.discard(place)
            _let_go(path, descriptor)
    finally:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()


def lock_file(folder: Path, work: str) -> Path:
    """The file that is locked while the work goes on."""
    return folder / f".{work}.lock"


def _locked(path: Path, work: str) -> int:
    """The descriptor of the lock file, locked."""
    while True:
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path.parent, work)
            # Work that ended meanwhile may have removed the file that was opened.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, work: str) -> None:
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
                f"Another {work} is running in {folder}{_holder(descriptor)}; wait for it to end, or choose another "
                "folder."
            ) from None
        logger.warning("%s can't be locked (%s); let no second %s run in it.", folder, error.strerror or error, work)


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
