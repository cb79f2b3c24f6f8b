"""Progress as a terminal or a parent process sees it."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

from CTMicroSRLib.progress import Progress, SilentProgress

SECONDS_BETWEEN_LINES = 0.1


class BarProgress:
    """One tqdm bar for each stage, on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def update(self, stage: str, done: float, total: float) -> None:
        """Move the stage's bar."""
        from tqdm import tqdm

        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(
                total=total, desc=stage, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def cancelled(self) -> bool:
        """Cancelling comes by signal."""
        return False

    def close(self) -> None:
        """End the open bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class JsonProgress:
    """One JSON object a line on a stream: ``event``, ``stage``, ``fraction``, ``seconds_left``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = ""
        self._started = 0.0
        self._last = 0.0

    def update(self, stage: str, done: float, total: float) -> None:
        """Write a line, at most ten a second, and always the first and last of a stage."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started, self._last = stage, now, 0.0
        fraction = done / total if total else 1.0
        if now - self._last < SECONDS_BETWEEN_LINES and fraction < 1.0:
            return
        self._last = now
        elapsed = now - self._started
        left = elapsed * (1.0 - fraction) / fraction if fraction > 0 else None
        self.event(
            "progress",
            stage=stage,
            fraction=round(fraction, 4),
            seconds_left=None if left is None else round(left, 1),
        )

    def cancelled(self) -> bool:
        """Cancelling comes by signal."""
        return False

    def event(self, event: str, **content: object) -> None:
        """Write one line."""
        self._stream.write(json.dumps({"event": event, **content}) + "\n")
        self._stream.flush()


def make_progress(kind: str) -> Progress:
    """The progress of ``--progress``: ``auto`` is a bar on a terminal and nothing elsewhere."""
    if kind == "json":
        return JsonProgress(sys.stdout)
    if kind == "auto" and sys.stderr.isatty():
        return BarProgress()
    return SilentProgress()
