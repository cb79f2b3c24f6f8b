"""Writing files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from CTMicroSRLib.errors import ResourceError, UsageError


def write_file(path: Path, content: bytes, *, advice: str = "do it again") -> None:
    """Write a file under a temporary name, make sure that it is on the disk, and give it its name.

    Args:
        path: where; replaced where it exists.
        content: all of it.
        advice: what to do after freeing space where the disk is full.

    Raises:
        ResourceError: the disk is full; what was there before is still there.
        UsageError: the folder can't be written to.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path, advice=advice):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def replace_folder(folder: Path, new: Path) -> None:
    """Give a finished folder its name; what had the name goes only once that has worked, and comes back where it fails.

    Args:
        folder: the name.
        new: the finished folder, on the same disk.
    """
    old = aside(folder)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Take up what a killed :func:`replace_folder` left: the folder from before, where there is no new one."""
    old = aside(folder)
    if not old.exists():
        return
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(folder)


def aside(folder: Path) -> Path:
    """Where a folder lies while another takes its place."""
    return folder.with_name(f".{folder.name}.before")


@contextlib.contextmanager
def writing(path: Path, *, advice: str = "do it again") -> Iterator[None]:
    """Say what the system's error means while ``path`` is written.

    Raises:
        ResourceError: the disk is full.
        UsageError: any other reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(f"There is no space left to write {path}; free some space and {advice}.") from None
        raise UsageError(f"{path} cannot be written ({error.strerror or error}); choose another folder.") from None
