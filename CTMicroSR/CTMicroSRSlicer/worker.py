"""The child process: runs the ``ctmicrosr`` command and ends when its parent no longer wants it.

Slicer starts it as ``PythonSlicer worker.py LIBRARY_FOLDER KEEP_RUNNING_FILE PARENT_PID ARGUMENT...``. PythonSlicer is
a launcher that does not hand signals on, so the parent cancels by deleting the file, and a parent that has crashed is
noticed too: then the run's folder, which holds the scan, is deleted here. Standard output has JSON lines only for the
parent to read; anything else on it is log text.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_TIDY_UP = 0.3
CANCELLED = 130
RUN_FOLDER_PREFIX = "CTMicroSR-"
"""As in runfolder.py: nothing else is ever deleted."""


def main(arguments: list[str]) -> None:
    """Run the command and end the process with its exit status."""
    libraryFolder, file, parent, *command = arguments
    keepRunning, isAlive = Path(file), _parentCheck(int(parent))
    status = CANCELLED
    try:
        if keepRunning.exists() and isAlive():
            threading.Thread(target=_watch, args=(keepRunning, isAlive), daemon=True).start()
            status = _run(libraryFolder, command)
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        if isAlive():  # otherwise nobody reads what it says
            raise
    end(status, keepRunning, isAlive)


def _run(libraryFolder: str, command: list[str]) -> int:
    """The command, whose exit status is returned."""
    # Python has put this file's folder first, whose modules could hide others of the same name
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [libraryFolder, *(folder for folder in sys.path if folder != here)]
    from CTMicroSRLib import cli

    if "--json" not in command:
        return cli.main(command)
    # `info` prints one object on many lines and its errors on standard error: make it one line like the others
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = cli.main(command)
    if status == 0:
        _say(event="done", facts=json.loads(output.getvalue()))
    else:
        lines = errors.getvalue().strip().splitlines() or ["ctmicrosr: no message"]
        _say(event="error", status=status, message=lines[-1].removeprefix("ctmicrosr: "))
    return status


def _say(**content: object) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def _watch(keepRunning: Path, isAlive: Callable[[], bool]) -> None:
    """Interrupt the command when it is no longer wanted, and end the process when it does not react."""
    while keepRunning.exists() and isAlive():
        time.sleep(SECONDS_BETWEEN_LOOKS)
    with contextlib.suppress(ValueError, OSError):
        signal.raise_signal(signal.SIGINT)
    time.sleep(SECONDS_TO_TIDY_UP)
    # all that this process writes is in a folder that the parent deletes, so nothing half-written is left
    end(CANCELLED, keepRunning, isAlive)


def end(status: int, keepRunning: Path, isAlive: Callable[[], bool]) -> None:
    """End the process, and delete the run's folder where no parent is left to do it."""
    if not isAlive() and keepRunning.parent.name.startswith(RUN_FOLDER_PREFIX):
        shutil.rmtree(keepRunning.parent, ignore_errors=True)
    # torch takes up to a second to be torn down, in which a cancelled run would still hold its memory
    os._exit(status)


def _parentCheck(parent: int) -> Callable[[], bool]:
    if os.name != "nt":
        return lambda: _exists(parent)
    try:
        import psutil

        process = psutil.Process(parent)
    except ImportError:  # the engine says what is missing
        return lambda: True
    except psutil.NoSuchProcess:
        return lambda: False
    except psutil.Error:
        return lambda: True
    return process.is_running


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
