"""The Bayesian CycleGAN's post-processing (P3, "Whole-slice reconstruction"): histograms by patch, then a median.

P3 matches each generated patch's histogram to that of the clinical patch it was made from, and takes a median against
the grid that stitching leaves. Here the patches are the cells of a fixed 32x32 grid of the input's slice, so that the
result does not depend on how the network's work was cut into tiles. A cell's result is thus no brighter or darker than
the scan, but its contrast is the scan's too, which is lower than a finer image's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.tiles import CELL_VOXELS

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def match_histograms_by_cell(
    fine_ji: Float32,
    coarse_ji: Float32,
    scale: int,
    *,
    start_ji: tuple[int, int] = (0, 0),
    cells: Bool | None = None,
) -> Float32:
    """Give every cell of a fine slice the histogram that the coarse slice has there.

    Cells lie on the whole slice's grid; a cell of which the arrays hold a part is matched by that part.

    Args:
        fine_ji: HU, ``(rows * scale, columns * scale)``.
        coarse_ji: HU, ``(rows, columns)``: the same part of the input's slice.
        scale: fine voxels per coarse voxel.
        start_ji: row and column of the arrays' first voxel in the input's slice.
        cells: cells of the whole slice that are matched, the others stay; None matches all.

    Returns:
        The matched slice, a new array.
    """
    result: Float32 = fine_ji.copy()
    for cell_row, rows in _cell_spans(start_ji[0], coarse_ji.shape[0]):
        for cell_column, columns in _cell_spans(start_ji[1], coarse_ji.shape[1]):
            if cells is not None and not cells[cell_row, cell_column]:
                continue
            part = np.s_[rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale]
            result[part] = match_histogram(fine_ji[part], coarse_ji[rows, columns])
    return result


def match_histogram(values: Float32, wanted: Float32) -> Float32:
    """Values, in their order, with the histogram of others, as scikit-image's ``match_histograms`` but for plateaus.

    Every value counts as spread over one HU, so that the result changes little where a value does: ranks of nearly
    equal values, as tiles of different sizes give them, would not be so. A plateau thus gets the middle of its share.

    Args:
        values: HU, any shape.
        wanted: HU, any shape.
    """
    levels, counts = np.unique(wanted, return_counts=True)
    matched = np.interp(_smooth_quantiles(values), np.cumsum(counts) / wanted.size, levels)
    return np.asarray(matched, dtype=np.float32)


def median_filter(fine_ji: Float32, size: int) -> Float32:
    """Median over squares of ``size`` voxels (odd), the border's voxels repeated beyond it; a new array."""
    import SimpleITK as sitk

    radius = size // 2
    image = sitk.Median(sitk.GetImageFromArray(np.ascontiguousarray(fine_ji)), [radius, radius])
    return np.asarray(sitk.GetArrayFromImage(image), dtype=np.float32)


def _cell_spans(start: int, length: int) -> list[tuple[int, slice]]:
    """Cells of the whole slice that voxels ``start:start + length`` touch, and which of the voxels each holds."""
    return [
        (
            cell,
            slice(
                max(cell * CELL_VOXELS, start) - start,
                min((cell + 1) * CELL_VOXELS, start + length) - start,
            ),
        )
        for cell in range(start // CELL_VOXELS, -(-(start + length) // CELL_VOXELS))
    ]


def _smooth_quantiles(values: Float32) -> Float64:
    """Share of the values below each of them, when each is spread evenly over one HU around itself."""
    exact = values.astype(np.float64)
    first = int(np.floor(exact.min())) - 1
    position = exact - first
    # A value v adds to the distribution at whole number n as clip(n - v + 1/2, 0, 1).
    node = np.ceil(position - 0.5).astype(np.intp)
    share = node - position + 0.5
    length = int(node.max()) + 3
    steps = np.bincount(node.ravel(), share.ravel(), length) + np.bincount(
        node.ravel() + 1, 1.0 - share.ravel(), length
    )
    distribution = np.cumsum(steps) / values.size
    below = np.floor(position).astype(np.intp)
    rest = position - below
    return np.asarray(distribution[below] * (1.0 - rest) + distribution[below + 1] * rest)
