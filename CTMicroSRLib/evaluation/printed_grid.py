"""How many HU of an image's error repeat with every coarse voxel: the grid that upsampling prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.masked import checked_mask, checked_pair

Float = NDArray[np.float64]

GROUP = 8
"""Blocks of GROUP x GROUP coarse voxels err independently of one another; the same block of all slices does not, as
slices may overlap."""


@dataclass(frozen=True)
class PrintedGrid:
    """Mean squared grid in HU^2, from that many cells; without bias, so that it may be negative where there is none."""

    power_hu2: float
    cells: int

    @property
    def rms_hu(self) -> float:
        """Root mean square of the grid in HU; 0 where nothing is left beyond chance, NaN where nothing was measured."""
        return math.nan if math.isnan(self.power_hu2) else math.sqrt(max(0.0, self.power_hu2))

    @staticmethod
    def pool(cases: Sequence[PrintedGrid]) -> PrintedGrid:
        """The mean power over several cases, every cell counting alike; NaN where there is none."""
        measured = [case for case in cases if case.cells and math.isfinite(case.power_hu2)]
        cells = sum(case.cells for case in measured)
        power = sum(case.power_hu2 * case.cells for case in measured) / cells if cells else math.nan
        return PrintedGrid(power, cells)


def printed_grid(
    image_hu: NDArray[Any], truth_hu: NDArray[Any], scale: int, mask: NDArray[Any] | None = None
) -> PrintedGrid:
    """Measure the part of an image's error that repeats every ``scale`` voxels, whatever its pattern.

    The error of each whole cell of ``scale`` x ``scale`` voxels in the mask loses its mean; the mean of the cells is
    the grid. A mean of N cells that share nothing still has the N-th part of their power. That is left out by
    multiplying only sums of different blocks of :data:`GROUP` x :data:`GROUP` cells: with s the sums of the blocks and
    n their numbers of cells, the power is ``((sum s)^2 - sum s^2) / ((sum n)^2 - sum n^2)``, averaged over the places
    in a cell.

    Args:
        image_hu: HU, shape (k, j, i) or (j, i).
        truth_hu: HU, the same shape.
        scale: fine voxels per coarse one.
        mask: the voxels that count (the lungs), the same shape; all by default.

    Returns:
        The grid, with a power of NaN where fewer than two blocks lie in the mask.

    Raises:
        ValueError: shapes differ, a value that is not finite, or a scale below 2.
    """
    image, truth = checked_pair(image_hu, truth_hu)
    inside = checked_mask(mask, image.shape)
    if scale < 2:
        raise ValueError(f"A scale of {scale} has no grid.")
    slices, rows, columns = image.shape[0], image.shape[1] // scale, image.shape[2] // scale
    part = np.s_[:, : rows * scale, : columns * scale]
    cells = (image - truth)[part].reshape(slices, rows, scale, columns, scale).transpose(0, 1, 3, 2, 4)
    whole = inside[part].reshape(slices, rows, scale, columns, scale).all(axis=(2, 4))
    left = (cells - cells.mean(axis=(3, 4), keepdims=True))[whole]
    return _power(left.reshape(len(left), scale * scale), _blocks(whole.shape)[whole])


def _blocks(shape_kji: tuple[int, ...]) -> NDArray[np.int64]:
    """The number of each cell's block, the same in all slices."""
    _, j, i = np.indices(shape_kji)
    return np.asarray(j // GROUP * -(-shape_kji[2] // GROUP) + i // GROUP)


def _power(cells: Float, block: NDArray[np.int64]) -> PrintedGrid:
    counts = np.bincount(block).astype(np.float64)
    pairs = float(counts.sum() ** 2 - (counts**2).sum())
    if pairs <= 0.0:
        return PrintedGrid(math.nan, len(cells))
    sums = np.stack([np.bincount(block, place) for place in cells.T])
    products = sums.sum(axis=1) ** 2 - (sums**2).sum(axis=1)
    return PrintedGrid(float(products.mean()) / pairs, len(cells))
