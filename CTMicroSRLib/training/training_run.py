"""The state of a training on one process: its steps, what they leave on disk, and how it is taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from CTMicroSRLib.errors import CancelledError, CTMicroSRError
from CTMicroSRLib.progress import Progress
from CTMicroSRLib.signals import noticed_signals
from CTMicroSRLib.training.checkpoints import (
    CHECKPOINT_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    damaged,
    save_tensors,
    space_advice,
    write_checkpoint,
)
from CTMicroSRLib.training.gradients import average_over_processes, clip_gradients, gradient_norm
from CTMicroSRLib.training.image_pool import ImagePools, PoolSettings
from CTMicroSRLib.training.method import Batch, Losses, Method
from CTMicroSRLib.training.optimisers import build_optimisers
from CTMicroSRLib.training.samples import sample_picture
from CTMicroSRLib.training.settings import TrainerSettings
from CTMicroSRLib.training.training_log import TrainingLog, Watch
from CTMicroSRLib.training.weight_average import WeightAverage
from CTMicroSRLib.whole_files import write_file, writing

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BatchSource: TypeAlias = Callable[[int, int, int], Batch]
"""Batch of a step, for a process of so many: ``batches(step, process, processes)``; called in a thread."""

STEPS_BETWEEN_LOOKS = 10
"""Steps after which an accelerator's losses are looked at, and its processes ask each other whether to stop."""


class TrainingRun:
    """The state of a training on one process, and what is done with it."""

    def __init__(
        self, fabric: Fabric, method: Method, settings: TrainerSettings, described: Mapping[str, Any], run: Path
    ) -> None:
        self.fabric, self.settings, self.run = fabric, settings, run
        self._described = described
        # Convolutions are 15 to 30 % faster so on CPUs with vector units, and on tensor cores.
        self.method = method.to(fabric.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimisers = build_optimisers(self.method)
        self.average = WeightAverage(self.method.generator(), settings.average_decay)
        slots = settings.batch // fabric.world_size
        images = max(1, settings.pool_size // settings.batch) if settings.pool_size else 0
        self.pools = ImagePools(PoolSettings(settings.seed, fabric.global_rank * slots, slots, images))
        self.watch = Watch(run)
        self.done = 0
        self.clean = True
        self._saved: int | None = None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take the state of a checkpoint.

        Raises:
            ModelError: it does not fit.
        """
        try:
            self.method.load_state_dict(checkpoint.part("method"))
            self.average.network.load_state_dict(checkpoint.part("average"))
            for name, optimiser in self.optimisers.items():
                optimiser.restore(checkpoint.part(f"adam.{name}"))
            pools: dict[str, dict[str, Tensor]] = {}
            for key, value in checkpoint.part("pool").items():
                name, what = key.rsplit(".", 1)
                pools.setdefault(name, {})[what] = value
            self.pools.restore(pools, self.fabric.device)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise damaged(self.run / CHECKPOINT_FILE, error) from None
        self.done = checkpoint.step
        self._saved = checkpoint.step

    def go_on(self, batches: BatchSource, sample: Batch, last: int, progress: Progress) -> None:
        """Train up to step ``last``, with all files; ``sample`` is what the pictures show."""
        log: list[TrainingLog] = []
        self._first_process(lambda: log.append(self._open_files()))
        self._sample = self._here(sample)
        try:
            self._train_until(batches, last, log, progress)
        finally:
            for opened in log:
                opened.close()

    def _train_until(self, batches: BatchSource, last: int, log: list[TrainingLog], progress: Progress) -> None:
        try:
            finished = self._steps(batches, last, log, progress)
        except (KeyboardInterrupt, CancelledError):
            # Not by a signal, which waits for the step's end, and perhaps on this process alone.
            if self.fabric.world_size > 1:
                raise
            finished = False
        if finished and self._saved == self.done and (self.run / WEIGHTS_FILE).exists():
            return
        if not self.clean:
            before = f"the checkpoint of step {self._saved}" if self._saved is not None else "the beginning"
            raise CancelledError(f"Training was cancelled in the middle of step {self.done + 1}; go on from {before}.")
        self._record(log)
        self._save()
        if not finished:
            raise CancelledError(f"Training was cancelled after step {self.done}; go on from there with --resume.")

    def _steps(self, batches: BatchSource, last: int, log: list[TrainingLog], progress: Progress) -> bool:
        """Train, and write what is due; False where somebody asked to stop."""
        first, place = self.done, (self.fabric.global_rank, self.fabric.world_size)
        with noticed_signals() as stop, ThreadPoolExecutor(max_workers=1) as loader:
            # The next batch is made while this one is trained on.
            upcoming = loader.submit(batches, first, *place) if first < last else None
            while upcoming is not None:
                batch = upcoming.result()
                upcoming = loader.submit(batches, self.done + 1, *place) if self.done + 1 < last else None
                self._step(self._here(batch))
                progress.update("training", self.done - first, last - first)
                self._write_what_is_due(last, log)
                if self._all_stop(stop.is_set() or progress.cancelled()) and self.done < last:
                    return False
        return True

    def _step(self, batch: Batch) -> None:
        torch.manual_seed(_step_seed(self.settings.seed, self.done, self.fabric.global_rank))
        with self._precision():
            self.method.step(batch, _StepUpdate(self, self.done))
        self.average.follow(self.method.generator(), self.done)
        self.done += 1
        self.clean = True

    def _write_what_is_due(self, last: int, log: list[TrainingLog]) -> None:
        settings, end = self.settings, self.done == last
        if self._looks(settings.log_steps):
            self.watch.settle()
        saves = end or self.done % settings.checkpoint_steps == 0
        if saves or self.done % settings.log_steps == 0:
            self._record(log)
        if end or self.done % settings.image_steps == 0:
            self._first_process(lambda: log[0].picture(self.done, self._picture()))
        if saves:
            self._save()

    def _looks(self, log_steps: int) -> bool:
        return self.fabric.device.type == "cpu" or self.done % min(STEPS_BETWEEN_LOOKS, log_steps) == 0

    def _all_stop(self, asked: bool) -> bool:
        """Whether any process was asked to stop; all of them get the same answer, in the same step."""
        if self.fabric.world_size == 1:
            return asked
        if not self._looks(STEPS_BETWEEN_LOOKS):
            return False
        votes = self.fabric.all_reduce(torch.tensor(float(asked), device=self.fabric.device), reduce_op="sum")
        assert isinstance(votes, Tensor)
        return bool(votes > 0)

    def _record(self, log: list[TrainingLog]) -> None:
        losses = self.watch.means()
        progress = (self.done - 1) / self.settings.steps
        rates = {name: opt.learning_rate(self.settings, progress) for name, opt in self.optimisers.items()}
        self._first_process(lambda: log[0].record(self.done, losses, rates))

    def _save(self) -> None:
        self.watch.settle()
        pools = self._whole_pools()

        def write() -> None:
            weights = self.average.network.state_dict()
            tensors = {f"method.{key}": value for key, value in self.method.state_dict().items()}
            tensors |= {f"average.{key}": value for key, value in weights.items()}
            for name, optimiser in self.optimisers.items():
                tensors |= {f"adam.{name}.{key}": value for key, value in optimiser.state().items()}
            write_checkpoint(self.run, Checkpoint(self.done, self._described, tensors | pools))
            metadata = {"step": str(self.done), "method": str(self._described["method"])}
            write_file(self.run / WEIGHTS_FILE, save_tensors(weights, metadata), advice=space_advice(self.run))

        self._first_process(write)
        self._saved = self.done

    def _whole_pools(self) -> dict[str, Tensor]:
        """The lanes of all slots of the total batch, so that another number of processes can go on."""
        tensors: dict[str, Tensor] = {}
        for name, content in self.pools.state().items():
            for what, mine in content.items():
                if self.fabric.world_size > 1:
                    mine = mine.to(self.fabric.device).contiguous()
                    lanes = [torch.empty_like(mine) for _ in range(self.fabric.world_size)]
                    torch.distributed.all_gather(lanes, mine)
                    mine = torch.cat(lanes)
                tensors[f"pool.{name}.{what}"] = mine
        return tensors

    def _picture(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        with self._precision():
            return sample_picture(self.average.network, self._sample, self.method.card_fields().get("planes", ()))

    def _open_files(self) -> TrainingLog:
        advice = space_advice(self.run)
        with writing(self.run, advice=advice):
            self.run.mkdir(parents=True, exist_ok=True)
        write_file(self.run / SETTINGS_FILE, (json.dumps(self._described, indent=2) + "\n").encode(), advice=advice)
        return TrainingLog(self.run, self.done)

    def _first_process(self, action: Callable[[], None]) -> None:
        """Do it on process 0; where it fails, all processes raise its error instead of waiting for ever."""
        error: CTMicroSRError | None = None
        if self.fabric.is_global_zero:
            try:
                action()
            except CTMicroSRError as caught:
                error = caught
        if self.fabric.world_size > 1:
            error = self.fabric.broadcast(error)
        if error is not None:
            raise error

    def _here(self, batch: Batch) -> Batch:
        moved = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return replace(batch, **{name: self.fabric.to_device(v) for name, v in moved.items() if v is not None})

    @contextmanager
    def _precision(self) -> Iterator[None]:
        if self.settings.precision == "32-true":
            yield
            return
        with self.fabric.autocast():
            # Else it keeps the weights that it cast, also when the step has moved them since.
            torch.set_autocast_cache_enabled(False)
            yield


class _StepUpdate:
    """What one step of a method is offered: see :class:`~CTMicroSRLib.training.method.Update`."""

    def __init__(self, training: TrainingRun, step: int) -> None:
        self._training = training
        self._step = step

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        return self._step / self._training.settings.steps

    def __call__(self, optimiser: str, losses: Losses) -> None:
        """Move an optimiser's networks once; outside its span, nothing."""
        training, chosen = self._training, self._training.optimisers[optimiser]
        if not chosen.active(self.progress):
            return
        fabric, clip = training.fabric, training.settings.gradient_clip
        chosen.clear()
        with torch.autocast(fabric.device.type, enabled=False):
            fabric.backward(torch.stack([loss.float().reshape(()) for loss in losses.values()]).sum())
        gradients = chosen.gradients()
        values = torch.stack([loss.detach().float().reshape(()) for loss in losses.values()])
        values = average_over_processes(fabric, gradients, values)
        norm = gradient_norm(gradients, values)
        training.watch.add(self._step, optimiser, tuple(losses), torch.cat([values, norm[None]]))
        if fabric.device.type == "cpu":
            training.watch.settle()
        if clip is not None:
            clip_gradients(gradients, norm, clip)
        training.clean = False
        chosen.move(chosen.learning_rate(training.settings, self.progress))

    def pool(self, name: str, images: Tensor) -> Tensor:
        """Earlier images in place of some of these, without gradient."""
        self._training.clean = False
        return self._training.pools.swap(name, self._step, images)


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0] >> np.uint64(1))
