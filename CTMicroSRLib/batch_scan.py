"""One scan of a batch in a process of its own: what it is told, and what became of it.

A scan that crashes or is killed for want of memory takes no other with it, and frees all it had.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from CTMicroSRLib.run_progress import NETWORK_STAGE
from CTMicroSRLib.workers import THREAD_VARIABLES

COMMAND = (sys.executable, "-m", "CTMicroSRLib", "superres")

LASTING_STATUSES = (0, 2, 3, 5, 130)
"""Exit statuses that another try would end with too: done, wrong use, refused input, model problem, cancelled."""

SECONDS_TO_END = 10.0

_NONE: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScanTask:
    """A scan and how to call ``ctmicrosr superres`` for it.

    Attributes:
        input: the scan, as an absolute path.
        arguments: of ``ctmicrosr superres``, without progress.
        tries: how often at most.
        threads: of the processor; None for all.
    """

    input: str
    arguments: tuple[str, ...]
    tries: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class ScanOutcome:
    """What became of a scan: the exit status, one sentence where it is not 0, and the run's warnings."""

    input: str
    exit_status: int
    seconds: float
    message: str = ""
    warnings: tuple[str, ...] = ()


class RunningScans:
    """The processes of a batch's scans, so that all of them can be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[str]] = set()
        self._ended = False

    @contextmanager
    def process(self, command: list[str], **settings: Any) -> Iterator[subprocess.Popen[str]]:  # noqa: ANN401 - Popen's
        """A process that ends when the block does, or all are ended."""
        with self._lock:
            if self._ended:
                raise InterruptedError
            process = subprocess.Popen(command, **settings)
            self._processes.add(process)
        try:
            yield process
        finally:
            _end(process)
            with self._lock:
                self._processes.discard(process)

    def end(self) -> None:
        """End all processes and start no more."""
        with self._lock:
            self._ended = True
            processes = list(self._processes)
        for process in processes:
            process.terminate()


def run_scan(
    task: ScanTask, listen: Callable[[float], None] | None = None, running: RunningScans | None = None
) -> ScanOutcome:
    """Super-resolve a scan in a process of its own, again where that may help.

    Args:
        task: the scan.
        listen: hears which part of the network's work is done.
        running: where the process is kept; None keeps it here.
    """
    start = time.monotonic()
    status, message, warnings = 1, "", _NONE
    for _ in range(task.tries):
        try:
            status, message, warnings = _run_once(task, listen or (lambda _: None), running or RunningScans())
        except InterruptedError:
            status, message, warnings = 130, "Cancelled; no output was written.", _NONE
        if status in LASTING_STATUSES:
            break
    return ScanOutcome(task.input, status, round(time.monotonic() - start, 3), message, warnings)


def _run_once(
    task: ScanTask, listen: Callable[[float], None], running: RunningScans
) -> tuple[int, str, tuple[str, ...]]:
    command = [*COMMAND, *task.arguments, "--progress", "json"]
    environment = dict(os.environ)
    if task.threads is not None:
        environment |= dict.fromkeys(THREAD_VARIABLES, str(task.threads))
    # A file, since a pipe that nobody reads would fill up and stop the process.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        with running.process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as process:
            assert process.stdout is not None
            warnings = _follow(process.stdout, listen)
            status = process.wait()
        if status == 0:
            return 0, "", warnings
        complaints.seek(0)
        lines = complaints.read().splitlines()
    if status < 0:
        return 1, f"The process was ended by signal {-status}, perhaps for want of memory; use fewer --workers.", ()
    told = next((line for line in reversed(lines) if line.startswith("ctmicrosr: ")), "")
    return status, told.removeprefix("ctmicrosr: ") or f"The process ended with status {status} and said nothing.", ()


def _follow(lines: IO[str], listen: Callable[[float], None]) -> tuple[str, ...]:
    """Listen to a run's events to its end; returns its warnings."""
    for line in lines:
        event = None
        with contextlib.suppress(ValueError):
            event = json.loads(line)
        if not isinstance(event, dict):
            continue
        if event.get("event") == "done":
            return tuple(event["report"]["warnings"])
        if event.get("event") == "progress" and event.get("stage") == NETWORK_STAGE:
            listen(float(event["fraction"]))
    return ()


def _end(process: subprocess.Popen[str]) -> None:
    """End a process that has not ended by itself: first so that it tidies up, then at once."""
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
