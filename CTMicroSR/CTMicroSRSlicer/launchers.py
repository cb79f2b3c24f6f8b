"""Starting child processes in Slicer without blocking it: its own launcher in 5.12 and newer, QProcess before."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import qt
import slicer

from CTMicroSRLib.errors import ResourceError
from CTMicroSRSlicer.childrun import Child, Launcher

MILLISECONDS = 1000


def makeLauncher() -> Launcher:
    """The launcher for this version of Slicer."""
    if "blocking" in inspect.signature(slicer.util.launchConsoleProcess).parameters:
        return ConsoleLauncher()
    return ProcessLauncher()


def findPython() -> str:
    """The interpreter that has Slicer's packages.

    Raises:
        ResourceError: there is none.
    """
    for name in ("PythonSlicer", "python-real"):
        found = shutil.which(name)
        if found:
            return found
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable
    raise ResourceError("Slicer's Python (PythonSlicer) was not found; install Slicer again, with all its files.")


def later(seconds: float, function: Callable[[], None]) -> None:
    """Call a function after some time."""
    qt.QTimer.singleShot(int(seconds * MILLISECONDS), function)


class ConsoleLauncher:
    """``slicer.util.launchConsoleProcess``, not blocking: a thread reads, a timer brings lines to the main thread."""

    def start(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        onLine: Callable[[str], None],
        onFinished: Callable[[int], None],
    ) -> Child:
        """See Launcher."""
        process = slicer.util.launchConsoleProcess(
            list(arguments),
            # as slicer.util.executePythonModule does: PythonSlicer sets its paths again, a bare interpreter needs them
            useStartupEnvironment=False,
            updateEnvironment=environment,
            blocking=False,
            logCallback=onLine,
            completedCallback=onFinished,
        )
        return PopenChild(process)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """See Launcher."""
        later(seconds, function)


class PopenChild:
    """A process of ``subprocess``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def kill(self) -> None:
        """See Child."""
        killTree(self._process.pid)
        with contextlib.suppress(OSError):
            self._process.kill()

    def wait(self, seconds: float) -> bool:
        """See Child."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class ProcessLauncher:
    """QProcess, for Slicer 5.10."""

    def start(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        onLine: Callable[[str], None],
        onFinished: Callable[[int], None],
    ) -> Child:
        """See Launcher."""
        return ProcessChild(arguments, environment, onLine, onFinished)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """See Launcher."""
        later(seconds, function)


class ProcessChild:
    """A QProcess whose output is handed on in whole lines."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        onLine: Callable[[str], None],
        onFinished: Callable[[int], None],
    ) -> None:
        self._onLine, self._onFinished = onLine, onFinished
        self._pending = b""
        self._process = qt.QProcess()
        variables = qt.QProcessEnvironment.systemEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        self._process.setProcessEnvironment(variables)
        self._process.setProcessChannelMode(qt.QProcess.MergedChannels)
        self._process.readyReadStandardOutput.connect(self._read)
        self._process.finished.connect(self._finish)
        self._process.start(arguments[0], list(arguments[1:]))
        if not self._process.waitForStarted(10 * MILLISECONDS):
            raise OSError(f"{arguments[0]} did not start")

    def kill(self) -> None:
        """See Child."""
        killTree(int(self._process.processId()))
        self._process.kill()

    def wait(self, seconds: float) -> bool:
        """See Child."""
        # waitForFinished is False for a process that has ended already
        ended = self._process.state() == qt.QProcess.NotRunning
        return ended or bool(self._process.waitForFinished(int(seconds * MILLISECONDS)))

    def _read(self) -> None:
        self._pending += _bytes(self._process.readAllStandardOutput())
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            self._onLine(line.decode("utf-8", errors="replace").rstrip("\r"))

    def _finish(self, status: int, *_exitStatus: object) -> None:
        self._read()
        if self._pending:
            self._onLine(self._pending.decode("utf-8", errors="replace"))
        self._onFinished(int(status))


def _bytes(data: qt.QByteArray) -> bytes:
    """The bytes of a QByteArray, whose ``data()`` gives bytes or, in some builds of PythonQt, text."""
    content = data if isinstance(data, (bytes, bytearray)) else data.data()
    return content.encode("utf-8") if isinstance(content, str) else bytes(content)


def killTree(pid: int) -> None:
    """Kill the children of a process: a launcher does not take the interpreter it has started with it."""
    if pid <= 0:
        return
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True, check=False)
        return
    try:
        import psutil

        children = psutil.Process(pid).children(recursive=True)
    except Exception:  # psutil is not installed yet, or the process is gone
        return
    for child in children:
        with contextlib.suppress(OSError, psutil.Error):
            os.kill(child.pid, signal.SIGKILL)
