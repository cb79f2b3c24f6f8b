"""What SIGINT, SIGTERM and SIGHUP do: cancel at once, end a step first, or wait until files are complete.

Signals are the main thread's: in another thread nothing here changes anything.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def cancel_on_signals(*, process_ends: bool = False) -> Iterator[None]:
    """Inside the block SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, once.

    It is not CancelledError, because that is an Exception, which other libraries catch and go on.

    Args:
        process_ends: the process ends after the block, and more signals do not disturb that.
    """
    if not _in_main_thread():
        yield
        return

    def cancel(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = _numbers()
    before = {number: signal.signal(number, cancel) for number in numbers}
    try:
        yield
    finally:
        cancelled = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if not (cancelled and process_ends):
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def noticed_signals() -> Iterator[threading.Event]:
    """Inside the block the first of the signals is only noticed, so that a step ends; the next acts as before."""
    noticed = threading.Event()
    if not _in_main_thread():
        yield noticed
        return

    def notice(_number: int, _frame: FrameType | None) -> None:
        noticed.set()
        give_back()

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, notice) for number in _numbers()}
    try:
        yield noticed
    finally:
        give_back()


@contextmanager
def held_signals() -> Iterator[None]:
    """Inside the block the signals wait; the first of them acts when it ends."""
    if not _in_main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda came_now, _frame: came.append(came_now)) for number in _numbers()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _numbers() -> list[int]:
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    # The terminal was closed; nohup has it ignored, and so it stays.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) not in (signal.SIG_IGN, None):
        numbers.append(signal.SIGHUP)
    if hasattr(signal, "SIGBREAK"):
        numbers.append(signal.SIGBREAK)
    return numbers
