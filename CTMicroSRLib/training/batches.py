"""Batches of patches: what a step trains on depends on the seed and the step alone, not on the number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.training.method import Batch, Domain
from CTMicroSRLib.training.patches import Float32, Int16, Patches, from_stored

DOMAINS: tuple[Domain, ...] = ("clinical", "micro", "truth")


@dataclass(frozen=True)
class _Slot:
    """One place of the total batch: numbers of its patches, how they are turned, and whether it is mixed."""

    clinical: int
    micro: int
    clinical_turn: int
    micro_turn: int
    mixed: bool


class Batches:
    """Random batches of patches for all steps of a training.

    Clinical and micro-CT patches are drawn independently of each other, without repetition within a batch where there
    are enough of them. Each is turned by a multiple of 90 degrees and perhaps mirrored, truth as its clinical patch.

    Args:
        patches: opened patches.
        batch: patches of either domain per step, over all processes.
        seed: of all drawing.
        needs: domains that are filled; of the others a batch has no voxels, ``(b, 1, 0, 0)``, or no truth at all.
        mix_ratio: probability that a slot's clinical patch is the block means of its own micro-CT patch. The official
            code of SR-CycleGAN pairs every fourth item of its training so (``data/medical_2D_dataset.py``, shrunk by
            spline sampling there), which P1 does not say; 0, the default, is what "unpaired" means. Point spread and
            noise of such a slot are unknown, and its truth is the micro-CT patch.

    Raises:
        UsageError: a batch that is not positive, a ratio that is no probability, a domain that there is not, or truth
            that the patches don't have.
    """

    def __init__(
        self, patches: Patches, batch: int, seed: int, needs: Iterable[Domain] = DOMAINS[:2], mix_ratio: float = 0.0
    ) -> None:
        self.needs = frozenset(needs)
        unknown = self.needs - set(DOMAINS)
        if unknown:
            raise UsageError(f"There is no domain {sorted(unknown)[0]!r}; choose from: {', '.join(DOMAINS)}.")
        if batch != int(batch) or batch < 1:
            raise UsageError(f"A batch of {batch} patches is not possible; choose 1 or more.")
        if not 0 <= mix_ratio <= 1:
            raise UsageError(f"The mix ratio {mix_ratio} is no probability; choose 0 to 1.")
        if "truth" in self.needs and patches.truth is None:
            raise UsageError(
                "This method trains on pairs, and patches of real scans have no truth; leave out --clinical and "
                "--micro to train on simulated ones, or choose an unpaired method."
            )
        self.patches, self.batch, self.seed, self.mix_ratio = patches, int(batch), seed, mix_ratio

    def at(self, step: int, process: int = 0, processes: int = 1) -> Batch:
        """The part of a step's batch that a process trains on: consecutive slots of the total batch.

        Args:
            step: number of the step.
            process: number of this process.
            processes: how many there are; the total batch is a multiple of it.

        Returns:
            Patches as float32 in [-1, 1] on the CPU.

        Raises:
            UsageError: the total batch is no multiple of the number of processes.
        """
        if self.batch % processes:
            raise UsageError(
                f"A batch of {self.batch} can't be shared evenly by {processes} processes; choose a multiple of them."
            )
        own = self.batch // processes
        slots = self._slots(step)[process * own : (process + 1) * own]
        micro = {slot: self._micro(slot) for slot in slots if slot.mixed or "micro" in self.needs}
        return Batch(
            clinical=_stacked([self._clinical(s, micro) for s in slots] if "clinical" in self.needs else None, own),
            micro=_stacked([micro[s] for s in slots] if "micro" in self.needs else None, own),
            truth=_stacked([self._truth(s, micro) for s in slots], own) if "truth" in self.needs else None,
            psf_fwhm_voxels=self._scanner(slots, 0),
            noise_hu=self._scanner(slots, 1),
        )

    def _slots(self, step: int) -> list[_Slot]:
        rng = np.random.default_rng([self.seed, step, 0x42415443])
        clinical, micro = (
            rng.choice(count, self.batch, replace=self.batch > count)
            for count in (len(self.patches.clinical), len(self.patches.micro))
        )
        turns = rng.integers(0, 8, (2, self.batch))
        mixed = rng.random(self.batch) < self.mix_ratio
        return [
            _Slot(int(clinical[n]), int(micro[n]), int(turns[0, n]), int(turns[1, n]), bool(mixed[n]))
            for n in range(self.batch)
        ]

    def _micro(self, slot: _Slot) -> Float32:
        return _turned(self.patches.micro[slot.micro], slot.micro_turn)

    def _clinical(self, slot: _Slot, micro: dict[_Slot, Float32]) -> Float32:
        if not slot.mixed:
            return _turned(self.patches.clinical[slot.clinical], slot.clinical_turn)
        size, scale = self.patches.settings.patch_voxels, self.patches.settings.scale
        return np.asarray(micro[slot].reshape(size, scale, size, scale).mean(axis=(1, 3)))

    def _truth(self, slot: _Slot, micro: dict[_Slot, Float32]) -> Float32:
        if slot.mixed:
            return micro[slot]
        assert self.patches.truth is not None  # asked for in the constructor
        return _turned(self.patches.truth[slot.clinical], slot.clinical_turn)

    def _scanner(self, slots: list[_Slot], column: int) -> Tensor:
        known = self.patches.scanner
        return torch.tensor(
            [float("nan") if known is None or slot.mixed else float(known[slot.clinical, column]) for slot in slots],
            dtype=torch.float32,
        )


def _turned(stored: Int16, turn: int) -> Float32:
    """A patch turned by ``turn % 4`` quarters and, from 4 on, mirrored."""
    turned: NDArray[np.float32] = np.rot90(from_stored(stored), turn % 4)
    return turned[:, ::-1] if turn >= 4 else turned


def _stacked(images: list[Float32] | None, count: int) -> Tensor:
    if images is None:
        return torch.empty((count, 1, 0, 0))
    return torch.from_numpy(np.stack(images)[:, None])
