"""What a simulated specimen is: its voxels, its label volume, and every structure drawn in it, by numbers.

Positions are millimetres of the block, (x, y, z), the same as the physical points of its volumes: the block
is ``[0, extent_mm]`` and the first voxel's centre lies half a voxel inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.volume import Volume

Float = NDArray[np.float64]
Int = NDArray[np.int64]

NoduleKind = Literal["solid", "part-solid", "ground-glass", "spiculated", "calcified"]


class Label(IntEnum):
    """What fills at least half of a voxel; a voxel of ``MIXED`` holds several tissues."""

    MIXED = 0
    PARENCHYMA = 1
    AIRWAY_LUMEN = 2
    AIRWAY_WALL = 3
    ARTERY = 4
    VEIN = 5
    SEPTUM = 6
    PLEURA = 7
    NODULE = 8
    EMPHYSEMA = 9
    GROUND_GLASS = 10
    SOFT_TISSUE = 11
    FAT = 12
    BONE = 13
    OUTSIDE_AIR = 14


OUTSIDE_LUNG = (Label.SOFT_TISSUE, Label.FAT, Label.BONE, Label.OUTSIDE_AIR)


@dataclass(frozen=True)
class Tubes:
    """Straight round pieces of branches, each with round ends; consecutive pieces share their end points.

    ``start_mm`` and ``end_mm`` have shape ``(n, 3)``; the rest shape ``(n,)``: ``radius_mm`` of the lumen (a
    vessel's whole radius), ``wall_mm`` the wall's thickness around it (0 for vessels), ``branch`` the number of the
    branch a piece belongs to, ``parent`` that of the branch it springs from (-1: none).
    """

    start_mm: Float
    end_mm: Float
    radius_mm: Float
    wall_mm: Float
    branch: Int
    parent: Int

    def __len__(self) -> int:
        return len(self.radius_mm)

    @property
    def length_mm(self) -> Float:
        """Each piece's length."""
        return np.asarray(np.linalg.norm(self.end_mm - self.start_mm, axis=1))

    def select(self, chosen: NDArray[np.bool_] | Int) -> Tubes:
        """The chosen pieces (a mask or indices)."""
        return Tubes(
            self.start_mm[chosen],
            self.end_mm[chosen],
            self.radius_mm[chosen],
            self.wall_mm[chosen],
            self.branch[chosen],
            self.parent[chosen],
        )

    @staticmethod
    def join(parts: Sequence[Tubes]) -> Tubes:
        """All pieces of several sets; branches are numbered on, so that they stay apart."""
        if not parts:
            none = np.zeros(0)
            return Tubes(np.zeros((0, 3)), np.zeros((0, 3)), none, none, none.astype(int), none.astype(int))
        offsets = np.cumsum([0, *(1 + int(part.branch.max(initial=-1)) for part in parts[:-1])])
        parents = [np.where(part.parent < 0, -1, part.parent + n) for part, n in zip(parts, offsets, strict=True)]
        return Tubes(
            np.concatenate([part.start_mm for part in parts]),
            np.concatenate([part.end_mm for part in parts]),
            np.concatenate([part.radius_mm for part in parts]),
            np.concatenate([part.wall_mm for part in parts]),
            np.concatenate([part.branch + n for part, n in zip(parts, offsets, strict=True)]),
            np.concatenate(parents),
        )


@dataclass(frozen=True)
class Nodule:
    """A nodule; ``volume_mm3`` is what was drawn inside the block, ``radius_mm`` that of a ball of the whole volume."""

    kind: NoduleKind
    centre_mm: tuple[float, float, float]
    radius_mm: float
    volume_mm3: float
    density_hu: float


@dataclass(frozen=True)
class Description:
    """The structures of a block; ``conditions`` names the diseases and densities it was made with."""

    extent_mm: tuple[float, float, float]
    airways: Tubes
    arteries: Tubes
    veins: Tubes
    nodules: tuple[Nodule, ...] = ()
    conditions: dict[str, float | bool | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Specimen:
    """A block of lung: ``volume`` (float32 HU) and ``labels`` (uint8 :class:`Label`) on one grid, and its contents."""

    volume: Volume
    labels: Volume
    description: Description
    seed: int
