"""Where patches are cut: everywhere alike that enough of a patch lies inside a mask."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Int32: TypeAlias = NDArray[np.int32]
Float32: TypeAlias = NDArray[np.float32]


def draw_places(
    rng: np.random.Generator,
    inside_kji: NDArray[np.bool_] | Float32,
    patch_voxels: int,
    count: int,
    least_share: float,
) -> tuple[Int32, int]:
    """Draw places of square patches in the slices of a mask, each possible place with the same probability.

    No place is drawn twice where there are enough.

    Args:
        rng: random numbers.
        inside_kji: share of each voxel that lies inside, 0 to 1.
        patch_voxels: the patches' edge.
        count: how many to draw.
        least_share: least share of a patch that lies inside.

    Returns:
        ``(count, 3)`` slice, row and column of each patch's first voxel, in ascending order, and the number of possible
        places; ``(0, 3)`` and 0 where there is none.
    """
    possible = [np.flatnonzero(patch_shares(plane, patch_voxels) >= least_share - 1e-6) for plane in inside_kji]
    ends = np.cumsum([len(places) for places in possible])
    total = int(ends[-1])
    if not total:
        return np.zeros((0, 3), np.int32), 0
    chosen = np.sort(rng.choice(total, count, replace=total < count))
    slices = np.searchsorted(ends, chosen, side="right")
    columns = inside_kji.shape[2] - patch_voxels + 1
    found = [possible[k][n - (ends[k] - len(possible[k]))] for k, n in zip(slices, chosen, strict=True)]
    row, column = np.divmod(np.asarray(found), columns)
    return np.stack([slices, row, column], axis=1).astype(np.int32), total


def patch_shares(inside_ji: NDArray[np.generic], patch_voxels: int) -> NDArray[np.float64]:
    """Mean of every square patch of a slice, ``(rows - P + 1, columns - P + 1)``; empty where none fits."""
    rows, columns = inside_ji.shape
    if min(rows, columns) < patch_voxels:
        return np.zeros((0, 0))
    sums = np.zeros((rows + 1, columns + 1))
    sums[1:, 1:] = np.asarray(inside_ji, dtype=np.float64).cumsum(axis=0).cumsum(axis=1)
    p = patch_voxels
    boxes = sums[p:, p:] - sums[:-p, p:] - sums[p:, :-p] + sums[:-p, :-p]
    return np.asarray(boxes / p**2)


def block_shares(inside_ji: NDArray[np.generic], scale: int) -> Float32:
    """Mean of every ``scale`` x ``scale`` block of a slice; what is left at its end is cut off."""
    rows, columns = (size // scale for size in inside_ji.shape)
    blocks = inside_ji[: rows * scale, : columns * scale].reshape(rows, scale, columns, scale)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)
