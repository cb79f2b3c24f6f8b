"""What a run tells while it goes on: ``log.jsonl``, TensorBoard, and sample pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from CTMicroSRLib.errors import ModelError, ResourceError
from CTMicroSRLib.training.checkpoints import CHECKPOINT_FILE, space_advice
from CTMicroSRLib.training.samples import png
from CTMicroSRLib.whole_files import write_file, writing

LOG_FILE = "log.jsonl"
SAMPLES_FOLDER = "samples"
TENSORBOARD_FOLDER = "tensorboard"


class Watch:
    """Losses and gradient norms of steps, left on the device until somebody asks: reading them makes a GPU wait."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._waiting: list[tuple[int, str, tuple[str, ...], Tensor]] = []
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, step: int, optimiser: str, names: tuple[str, ...], values: Tensor) -> None:
        """Keep the losses and, last in ``values``, the norm of their gradient."""
        self._waiting.append((step, optimiser, names, values))

    def settle(self) -> None:
        """Look at what was kept.

        Raises:
            ModelError: a loss or a gradient is not finite; it names the first and its step.
        """
        if not self._waiting:
            return
        numbers = torch.cat([values for *_, values in self._waiting]).tolist()
        for step, optimiser, names, values in self._waiting:
            *losses, norm = numbers[: len(values)]
            del numbers[: len(values)]
            for name, loss in zip(names, losses, strict=True):
                if not np.isfinite(loss):
                    raise self._not_finite(f"loss {optimiser}/{name}", step)
                total, count = self._sums.get(f"{optimiser}/{name}", (0.0, 0))
                self._sums[f"{optimiser}/{name}"] = (total + loss, count + 1)
            if not np.isfinite(norm):
                raise self._not_finite(f"gradient of {optimiser}", step)
        self._waiting.clear()

    def means(self) -> dict[str, float]:
        """Means of the losses since the last call, by ``OPTIMISER/LOSS``."""
        self.settle()
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        return means

    def _not_finite(self, what: str, step: int) -> ModelError:
        cure = "--set trainer.gradient_clip=1"
        kept = (
            f"the last checkpoint in {self._run} is kept: resume with {cure}, or train in a new folder with a lower "
            "learning rate"
            if (self._run / CHECKPOINT_FILE).exists()
            else f"there was no checkpoint yet: train again with {cure} or a lower learning rate"
        )
        return ModelError(f"The {what} stopped being finite in step {step + 1}; {kept}.")


class TrainingLog:
    """The files that one process writes for all; a resumed run's log goes on as if it had never stopped."""

    def __init__(self, run: Path, first_step: int) -> None:
        """Drop the records after ``first_step``, and open the log.

        Raises:
            ResourceError: TensorBoard is not installed, or the disk is full.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ResourceError("Training needs tensorboard; install it (pip install 'ctmicrosr[train]').") from None
        self._run = run
        self._path = run / LOG_FILE
        records = [record for record in read_log(run) if record["step"] <= first_step] if first_step else []
        self._seconds_before = float(records[-1]["seconds"]) if records else 0.0
        self._started = time.monotonic()
        self._last = (first_step, self._seconds_before)
        kept = "".join(json.dumps(record) + "\n" for record in records)
        write_file(self._path, kept.encode(), advice=space_advice(run))
        with self._writing(self._path):
            (run / SAMPLES_FOLDER).mkdir(exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
        with self._writing(run / TENSORBOARD_FOLDER):
            self._board: Any = SummaryWriter(str(run / TENSORBOARD_FOLDER), purge_step=first_step + 1)

    def record(self, step: int, losses: Mapping[str, float], learning_rates: Mapping[str, float]) -> None:
        """Write the losses' means since the last record, after ``step`` steps."""
        seconds = self._seconds_before + time.monotonic() - self._started
        steps, elapsed = step - self._last[0], seconds - self._last[1]
        if steps == 0:
            return
        self._last = (step, seconds)
        record = {
            "step": step,
            "losses": dict(losses),
            "learning_rates": dict(learning_rates),
            "seconds": seconds,
            "steps_per_second": steps / max(elapsed, 1e-9),
        }
        with self._writing(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        with self._writing(self._run / TENSORBOARD_FOLDER):
            scalars = {f"loss/{name}": value for name, value in losses.items()}
            scalars |= {f"learning_rate/{name}": value for name, value in learning_rates.items()}
            for name, value in {**scalars, "steps_per_second": record["steps_per_second"]}.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, picture: NDArray[np.uint8]) -> None:
        """Keep a sample picture of the weights after ``step`` steps."""
        path = self._run / SAMPLES_FOLDER / f"step-{step:07d}.png"
        write_file(path, png(picture), advice=space_advice(self._run))
        with self._writing(self._run / TENSORBOARD_FOLDER):
            self._board.add_image("sample", picture, step, dataformats="HW")

    def _writing(self, path: Path) -> AbstractContextManager[None]:
        return writing(path, advice=space_advice(self._run))

    def close(self) -> None:
        """End the files."""
        with self._writing(self._path):
            self._file.close()
        with self._writing(self._run / TENSORBOARD_FOLDER):
            self._board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of a run's log, in order; a last line that was cut off is left out."""
    try:
        lines = (run / LOG_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
