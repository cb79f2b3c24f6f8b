"""Commands, one after another, in child processes: what they report, cancelling, and tidying up. No Qt, no Slicer."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import CTMicroSRLib
from CTMicroSRLib.errors import (
    CancelledError,
    CTMicroSRError,
    ModelError,
    RefusedInputError,
    ResourceError,
    UsageError,
)
from CTMicroSRSlicer.runfolder import RunFolder

logger = logging.getLogger(__name__)

WORKER = Path(__file__).resolve().with_name("worker.py")
SECONDS_UNTIL_KILLED = 2.0
ERRORS: dict[int, type[CTMicroSRError]] = {
    error.exit_status: error for error in (UsageError, RefusedInputError, ResourceError, ModelError, CancelledError)
}


@dataclass(frozen=True)
class Progress:
    """How far something is: a stage of the engine, the part that is done, and the seconds it still takes.

    A child run tells part and seconds of the stage, the logic those of the whole run.
    """

    stage: str
    fraction: float
    secondsLeft: float | None = None


@dataclass(frozen=True)
class Step:
    """One command. ``check`` looks at its results before the next one starts, and raises to end the run.

    With ``withoutIt``, a warning, the run goes on although the command refused its input.
    """

    arguments: Sequence[str]
    check: Callable[[dict[str, Any]], None] | None = None
    withoutIt: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the final event of each step, or the error."""

    results: tuple[dict[str, Any], ...] = ()
    error: CTMicroSRError | None = None


class Child(Protocol):
    """A process that was started."""

    def kill(self) -> None:
        """End it and all it has started, at once."""

    def wait(self, seconds: float) -> bool:
        """Wait for its end without an event loop; whether it has ended."""


class Launcher(Protocol):
    """Starts processes and brings what they say to the main thread."""

    def start(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        onLine: Callable[[str], None],
        onFinished: Callable[[int], None],
    ) -> Child:
        """Start a process; ``onFinished`` gets its exit status, after the last ``onLine``."""

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some time."""


@dataclass
class ChildRun:
    """Runs steps one after another and calls ``onFinished`` exactly once, after the last process has ended.

    The folder is deleted after ``onFinished`` returns, so that it can take the results.
    """

    steps: Sequence[Step]
    folder: RunFolder
    launcher: Launcher
    python: str
    onProgress: Callable[[Progress], None]
    onFinished: Callable[[Outcome], None]
    isFinished: bool = False
    _results: list[dict[str, Any]] = field(default_factory=list)
    _child: Child | None = None
    _last: dict[str, Any] = field(default_factory=dict)
    _log: list[str] = field(default_factory=list)
    _cancelled: CTMicroSRError | None = None

    def start(self) -> None:
        """Start the first step."""
        self._startStep()

    def cancel(self, reason: str = "Cancelled; nothing was changed.") -> None:
        """Ask the child to end; ``onFinished`` follows when it has."""
        if self.isFinished or self._cancelled is not None:
            return
        self._cancelled = CancelledError(reason)
        self.folder.keepRunning.unlink(missing_ok=True)
        self.launcher.later(SECONDS_UNTIL_KILLED, self._killLate)

    def close(self) -> None:
        """End now, without waiting for events: Slicer or the module is about to go."""
        if self.isFinished:
            return
        self.cancel("Slicer or the module was closed; nothing was changed.")
        # A QProcess tells of its end while it is waited for.
        if self._child is not None and not self._child.wait(SECONDS_UNTIL_KILLED):
            self._child.kill()
            self._child.wait(SECONDS_UNTIL_KILLED)
        self._finish(Outcome(error=self._cancelled))

    def _startStep(self) -> None:
        step = self.steps[len(self._results)]
        self._last, self._log = {}, []
        command = [self.python, str(WORKER), libraryFolder(), str(self.folder.keepRunning), str(os.getpid())]
        environment = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
        logger.info("CTMicroSR: %s", " ".join(step.arguments))
        try:
            self._child = self.launcher.start(
                [*command, *step.arguments], environment, self._onLine, self._onProcessFinished
            )
        except OSError as error:
            self._finish(
                Outcome(
                    error=ResourceError(
                        f"The computation could not be started ({error.strerror or error}); check that {self.python} "
                        "exists and may be run."
                    )
                )
            )

    def _onLine(self, line: str) -> None:
        if self.isFinished:
            return
        event = parseEvent(line)
        if event is None:
            if line.strip():
                self._log.append(line)
                logger.debug("CTMicroSR: %s", line)
        elif event["event"] == "progress":
            if self._cancelled is None:
                self.onProgress(Progress(str(event["stage"]), float(event["fraction"]), event.get("seconds_left")))
        else:
            self._last = event

    def _onProcessFinished(self, status: int) -> None:
        if self.isFinished:
            return
        if self._cancelled is not None:
            self._finish(Outcome(error=self._cancelled))
        elif status == 0 and self._last.get("event") == "done":
            self._endStep()
        elif self._isDispensable:
            self._goOn({"event": "done", "warnings": [self.steps[len(self._results)].withoutIt]})
        else:
            self._finish(Outcome(error=self._childError(status)))

    @property
    def _isDispensable(self) -> bool:
        """Whether the step's input was refused and the run can do without what it would have found."""
        refused = self._last.get("event") == "error" and self._last.get("status") == RefusedInputError.exit_status
        return refused and self.steps[len(self._results)].withoutIt is not None

    def _endStep(self) -> None:
        step = self.steps[len(self._results)]
        try:
            if step.check is not None:
                step.check(self._last)
        except CTMicroSRError as error:
            self._finish(Outcome(error=error))
            return
        self._goOn(self._last)

    def _goOn(self, result: dict[str, Any]) -> None:
        self._results.append(result)
        if len(self._results) < len(self.steps):
            self._startStep()
        else:
            self._finish(Outcome(results=tuple(self._results)))

    def _childError(self, status: int) -> CTMicroSRError:
        if self._last.get("event") == "error":
            kind = ERRORS.get(int(self._last["status"]), CTMicroSRError)
            return kind(str(self._last["message"]))
        return explainCrash(status, self._log)

    def _killLate(self) -> None:
        if not self.isFinished and self._child is not None:
            self._child.kill()

    def _finish(self, outcome: Outcome) -> None:
        if self.isFinished:
            return
        self.isFinished = True
        try:
            self.onFinished(outcome)
        finally:
            self.folder.remove()


def parseEvent(line: str) -> dict[str, Any] | None:
    """The event of a line, or None where the line is something else."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or event.get("event") not in ("progress", "done", "error"):
        return None
    if event["event"] == "progress" and not {"stage", "fraction"} <= event.keys():
        return None
    return event


def explainCrash(status: int, log: Sequence[str]) -> CTMicroSRError:
    """A sentence for a process that ended without one."""
    text = "\n".join(log)
    if "No module named" in text:
        missing = text.rsplit("No module named", 1)[1].split("\n")[0].strip(" '\"")
        return ResourceError(f"The Python package {missing} is missing; click Super-resolve again to install it.")
    if status in (-9, 137) or "MemoryError" in text or "bad_alloc" in text:
        return ResourceError(
            "The system ended the computation, most likely because memory ran out; choose a smaller region or tile, or "
            "close other programs."
        )
    last = log[-1].strip() if log else "no message"
    return CTMicroSRError(
        f"The computation ended unexpectedly (exit status {status}: {last}); use Copy diagnostics and report it."
    )


def libraryFolder() -> str:
    """The folder to import CTMicroSRLib from."""
    return str(Path(CTMicroSRLib.__file__).resolve().parents[1])


def currentPythonIsUsable() -> bool:
    """Whether this process is a Python interpreter, rather than Slicer with one inside."""
    return "python" in Path(sys.executable or "").name.lower()
