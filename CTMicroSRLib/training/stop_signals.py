"""Signals that stop a training after its step instead of in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noticed_signals() -> Iterator[threading.Event]:
    """Inside the block the first SIGINT or SIGTERM is only noticed, so that a step ends; the next acts as before."""
    noticed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noticed
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGBREAK"):
        numbers.append(signal.SIGBREAK)

    def notice(_number: int, _frame: FrameType | None) -> None:
        noticed.set()
        give_back()

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, notice) for number in numbers}
    try:
        yield noticed
    finally:
        give_back()
