"""A run's own temporary folder, which holds voxels of a patient: it goes with its run, or with its Slicer. No Qt."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import zlib
from pathlib import Path

from CTMicroSRLib.errors import ResourceError

logger = logging.getLogger(__name__)

PREFIX = "CTMicroSR-"


class RunFolder:
    """A folder whose name tells its machine and process, with the file whose deletion ends the child."""

    def __init__(self, parent: str | os.PathLike[str] | None = None) -> None:
        try:
            prefix = f"{PREFIX}{_machine()}-{os.getpid()}-"
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            self.keepRunning = self.path / "keep-running"
            self.keepRunning.touch()
        except OSError as error:
            raise ResourceError(
                f"No temporary folder could be made in {parent or tempfile.gettempdir()} ({error.strerror}); "
                "choose another one in Slicer's application settings."
            ) from None

    def remove(self) -> None:
        """Delete it; Windows refuses for a moment after a process has ended."""
        for _ in range(10):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                return
            time.sleep(0.05)
        logger.warning("The temporary folder %s could not be deleted; delete it by hand.", self.path)


def removeAbandoned(parent: str | os.PathLike[str]) -> None:
    """Delete what runs of this machine have left whose Slicer was killed; nothing of a process that lives."""
    pattern = re.compile(rf"{PREFIX}{_machine()}-(\d+)-\w+")
    try:
        folders = [path for path in Path(parent).iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return
    for path in folders:
        match = pattern.fullmatch(path.name)
        if match is not None and not isAlive(int(match[1])):
            logger.info("CTMicroSR: %s is left from a run whose Slicer was killed, and is deleted", path)
            shutil.rmtree(path, ignore_errors=True)


def isAlive(pid: int) -> bool:
    """Whether a process of this number runs; yes, where that can't be found out."""
    if sys.platform == "win32":
        try:
            import psutil
        except ImportError:
            return True
        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _machine() -> str:
    """Eight characters for this machine: a temporary folder may be shared by several."""
    return f"{zlib.crc32(platform.node().encode()):08x}"
