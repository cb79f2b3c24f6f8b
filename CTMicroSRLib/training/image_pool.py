"""Earlier images for a discriminator to see, so that the two networks don't chase each other in circles."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

IMAGES = "images"
COUNTS = "counts"


@dataclass(frozen=True)
class PoolSettings:
    """Which slots of the total batch a process pools for, and how many images each keeps.

    Attributes:
        seed: of the decisions.
        first_slot: the process's first slot of the total batch.
        slots: number of its slots.
        images: number of images that a slot keeps; 0: nothing is pooled.
    """

    seed: int
    first_slot: int
    slots: int
    images: int


@dataclass
class _Lanes:
    """One row of images for each slot, float32, and how many it holds."""

    images: Tensor
    counts: list[int]


@dataclass
class ImagePools:
    """The pools of a run by name (Shrivastava et al., CVPR 2017, section 2.3; the CycleGAN's variant).

    A slot of the total batch has a lane of its own. As long as the lane has room, an image is kept and goes through;
    then, half of the time, it goes through, and else an earlier image of the lane goes in its place and it is kept.
    Decisions depend on seed, step, name and slot alone, so that several processes together do what one would.
    """

    settings: PoolSettings
    _lanes: dict[str, _Lanes] = field(default_factory=dict)

    def swap(self, name: str, step: int, images: Tensor) -> Tensor:
        """Earlier images in place of some of these, without gradient.

        Args:
            name: of the pool.
            step: of the training.
            images: ``(slots, channels, rows, columns)``, one for each of the process's slots.
        """
        fresh = images.detach()
        if self.settings.images == 0:
            return fresh
        if len(fresh) != self.settings.slots:
            raise ValueError(f"{len(fresh)} images for the {self.settings.slots} slots of the pool {name!r}")
        lanes = self._lanes.get(name)
        if lanes is None:
            empty = fresh.new_zeros((len(fresh), self.settings.images, *fresh.shape[1:]), dtype=torch.float32)
            lanes = self._lanes[name] = _Lanes(empty, [0] * len(fresh))
        kept, places, swapped = self._decide(name, step, lanes)
        shown = fresh.clone()
        if swapped:
            old = lanes.images[swapped, [places[slot] for slot in swapped]]
            shown[swapped] = old.to(fresh.dtype)
        if kept:
            lanes.images[kept, [places[slot] for slot in kept]] = fresh[kept].float()
        return shown

    def _decide(self, name: str, step: int, lanes: _Lanes) -> tuple[list[int], list[int], list[int]]:
        """The slots that are kept, every slot's place in its lane, and the slots that get an earlier image."""
        kept, places, swapped = [], [], []
        for slot, count in enumerate(lanes.counts):
            key = [self.settings.seed, step, zlib.crc32(name.encode()), self.settings.first_slot + slot]
            rng = np.random.default_rng(key)
            if count < self.settings.images:
                kept.append(slot)
                places.append(count)
                lanes.counts[slot] += 1
                continue
            places.append(int(rng.integers(self.settings.images)))
            if rng.random() < 0.5:
                kept.append(slot)
                swapped.append(slot)
        return kept, places, swapped

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Name to the images ``(slots, images, channels, rows, columns)`` and counts ``(slots,)`` of this process."""
        return {
            name: {IMAGES: lanes.images, COUNTS: torch.tensor(lanes.counts, device=lanes.images.device)}
            for name, lanes in sorted(self._lanes.items())
        }

    def restore(self, state: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> None:
        """Take this process's lanes out of those of all slots of the total batch.

        Raises:
            ValueError: another number of slots or images.
        """
        mine = slice(self.settings.first_slot, self.settings.first_slot + self.settings.slots)
        self._lanes.clear()
        for name, content in state.items():
            images = content[IMAGES][mine].to(device, copy=True)
            counts = [int(count) for count in content[COUNTS][mine]]
            if images.shape[:2] != (self.settings.slots, self.settings.images) or len(counts) != len(images):
                raise ValueError(f"the pool {name} has the shape {tuple(content[IMAGES].shape)}")
            self._lanes[name] = _Lanes(images, counts)
