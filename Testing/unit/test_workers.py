"""Tasks shared among processes: their order, their threads, and what a stopped process or a cancelled run does."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from CTMicroSRLib.errors import CancelledError, ResourceError
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.workers import THREAD_VARIABLES, WORKER_MEMORY_BYTES, results_of, worker_count


class Cancelled(SilentProgress):
    """Asks to stop at once."""

    def cancelled(self):
        return True


def square_and_process(number):
    return number * number, os.getpid()


def threads(_task):
    return [os.environ.get(name) for name in THREAD_VARIABLES]


def killed(_task):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_results_come_in_the_tasks_order_whoever_made_them(workers):
    found = list(results_of(square_and_process, range(6), SilentProgress(), workers=workers))
    assert [square for square, _ in found] == [0, 1, 4, 9, 16, 25]
    assert (os.getpid() in {process for _, process in found}) == (workers == 1)


def test_a_single_task_needs_no_process():
    assert list(results_of(square_and_process, [3], SilentProgress(), workers=4)) == [(9, os.getpid())]


def test_processes_have_one_thread_each_and_the_callers_environment_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    found = list(results_of(threads, range(2), SilentProgress(), workers=2))
    assert found == [["1"] * len(THREAD_VARIABLES)] * 2
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_a_process_that_is_stopped_is_told_in_a_sentence():
    with pytest.raises(ResourceError, match="want of memory"):
        list(results_of(killed, range(2), SilentProgress(), workers=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_cancelling_ends_it(workers):
    with pytest.raises(CancelledError):
        list(results_of(square_and_process, range(4), Cancelled(), workers=workers))


def test_there_are_no_more_workers_than_cores_or_memory_for_them(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(16)), raising=False)
    for free, count in ((100 * WORKER_MEMORY_BYTES, 16), (5.5 * WORKER_MEMORY_BYTES, 5), (0, 1)):
        monkeypatch.setattr("CTMicroSRLib.devices.free_memory_bytes", lambda free=free: int(free))
        assert worker_count() == count
