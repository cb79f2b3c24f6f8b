"""Independent tasks shared among processes: their results come in the tasks' order, whoever made them."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from CTMicroSRLib.errors import ResourceError
from CTMicroSRLib.progress import Progress, check_cancelled

Task = TypeVar("Task")
Result = TypeVar("Result")

WORKER_MEMORY_BYTES = 1_000_000_000
"""What a process needs that simulates a specimen and its scans (``make benchmark-simulation``: 0.96 GB)."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

SECONDS_BETWEEN_LOOKS = 0.5


def worker_count() -> int:
    """Processes to share tasks among: the cores that this process may use, as far as memory is free for them."""
    from CTMicroSRLib.devices import free_memory_bytes  # brings torch, which not every worker needs

    return max(1, min(usable_cores(), free_memory_bytes() // WORKER_MEMORY_BYTES))


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def results_of(
    function: Callable[[Task], Result], tasks: Sequence[Task], progress: Progress, *, workers: int
) -> Iterator[Result]:
    """``function`` of every task, in order; here if one worker is enough, else in processes of one thread each.

    Args:
        function: what can be pickled, with its tasks and results.
        tasks: independent of each other.
        progress: is asked whether to stop.
        workers: processes; more than the tasks are of no use and are not started.

    Raises:
        ResourceError: a process was stopped from outside.
        CancelledError: ``progress`` said so.
    """
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            check_cancelled(progress)
            yield function(task)
        return
    # No forks: a parent with threads, as torch's, may leave a forked child waiting for a lock forever.
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn"))
    try:
        with _one_thread_in_children():
            upcoming: deque[Future[Result]] = deque(pool.submit(function, task) for task in tasks)
        while upcoming:
            while not upcoming[0].done():
                check_cancelled(progress)
                wait([upcoming[0]], timeout=SECONDS_BETWEEN_LOOKS)
            yield upcoming.popleft().result()
    except BrokenProcessPool:
        raise ResourceError(
            "A process that shares the work was stopped, probably for want of memory; free some memory and run it "
            "again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_in_children() -> Iterator[None]:
    """Processes that start inside have one thread each: NumPy and torch read the environment as they load."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
