"""Where a batch's scans run: in threads of this process that wait for theirs, or on the workers of a Dask cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from CTMicroSRLib.batch_scan import RunningScans, ScanOutcome, ScanTask, run_scan
from CTMicroSRLib.errors import ResourceError, UsageError
from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.workers import usable_cores

STAGE = "scans"
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_ANSWER = 10


class LocalWorkers:
    """So many scans at a time on this machine, which share its cores.

    Raises:
        UsageError: fewer than one, or more than cores.
    """

    def __init__(self, count: int = 1) -> None:
        cores = usable_cores()
        if not 1 <= count <= cores:
            raise UsageError(f"{count} workers are not possible on {cores} cores; give 1 to {cores}.")
        self.count = count
        self.threads: int | None = cores // count if count > 1 else None

    def run(self, tasks: Sequence[ScanTask], progress: Progress, finished: Callable[[ScanOutcome], None]) -> None:
        """See ``batch.Workers``."""
        running, parts = RunningScans(), dict.fromkeys((task.input for task in tasks), 0.0)
        pool = ThreadPoolExecutor(self.count)
        try:
            pending = {pool.submit(run_scan, task, partial(parts.__setitem__, task.input), running) for task in tasks}
            while pending:
                progress.update(STAGE, sum(parts.values()), len(tasks))
                check_cancelled(progress)
                done, pending = wait(pending, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
                for future in done:
                    outcome = future.result()
                    parts[outcome.input] = 1.0
                    finished(outcome)
            progress.update(STAGE, len(tasks), len(tasks))
        except BaseException:
            running.end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


class DaskWorkers:
    """The workers of a Dask cluster, which see the scans and the results' folder under the same paths.

    A scan that a worker has begun goes on to its end when the batch is cancelled.
    """

    threads: int | None = None

    def __init__(self, address: str) -> None:
        self.address = address

    def run(self, tasks: Sequence[ScanTask], progress: Progress, finished: Callable[[ScanOutcome], None]) -> None:
        """See ``batch.Workers``."""
        client = self._client()
        try:
            pending = {client.submit(run_scan, task, pure=False): task for task in tasks}
            while pending:
                progress.update(STAGE, len(tasks) - len(pending), len(tasks))
                check_cancelled(progress)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for future in [future for future in pending if future.done()]:
                    finished(_outcome_of(future, pending.pop(future)))
            progress.update(STAGE, len(tasks), len(tasks))
        except BaseException:
            client.cancel(list(pending))
            raise
        finally:
            client.close()

    def _client(self) -> Any:  # noqa: ANN401 - distributed's Client, which is imported here only
        try:
            from distributed import Client
        except ImportError:
            raise ResourceError(
                "A Dask cluster needs dask.distributed; install it (pip install 'ctmicrosr[batch]')."
            ) from None
        try:
            return Client(self.address, timeout=SECONDS_TO_ANSWER)
        except (OSError, TimeoutError, ValueError):
            raise ResourceError(
                f"No Dask scheduler answers at {self.address}; start one (dask scheduler) or give its address."
            ) from None


def _outcome_of(future: Any, task: ScanTask) -> ScanOutcome:  # noqa: ANN401 - distributed's Future
    """What a worker made of a scan; a worker that broke is a scan that failed."""
    try:
        outcome: ScanOutcome = future.result()
    except Exception as error:  # whatever stopped the worker
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return ScanOutcome(task.input, 4, 0.0, f"The Dask worker could not run it ({reason}).")
    return outcome
