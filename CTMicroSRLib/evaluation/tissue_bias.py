"""Mean error in HU by tissue, with a standard error that knows that neighbouring voxels err alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.masked import as_slices, checked_pair
from CTMicroSRLib.simulation.description import Label

Float = NDArray[np.float64]


@dataclass(frozen=True)
class TissueBias:
    """Error (image less truth) over the voxels of one tissue.

    ``mean_error_hu`` and ``deviation_hu`` (scatter of the voxels' errors) are over ``voxels``; ``standard_error_hu`` of
    the mean is taken between ``groups`` of voxels (blocks, or whole cases), NaN with fewer than two.
    """

    label: Label
    voxels: int
    groups: int
    mean_error_hu: float
    standard_error_hu: float
    deviation_hu: float


def bias_by_tissue(
    image_hu: NDArray[Any],
    truth_hu: NDArray[Any],
    labels: NDArray[Any],
    *,
    erode_voxels: int = 0,
    block_voxels: int = 64,
) -> tuple[TissueBias, ...]:
    """Bias of every tissue that the labels hold.

    The standard error treats the blocks of ``block_voxels`` x ``block_voxels`` of a slice as independent clusters
    (ratio estimator, Cochran, Sampling Techniques, 1977, chapter 9A): with mean m, and sum S and number N of a block
    ``sqrt(B / (B - 1) * sum((S - m N)^2)) / sum(N)``. Voxels taken as independent would make it far too small.

    Args:
        image_hu: HU, shape (k, j, i) or (j, i).
        truth_hu: HU, the same shape.
        labels: :class:`Label` values, the same shape.
        erode_voxels: a voxel counts if all of the square of this many voxels to each side in its slice has its
            label; at the image's border the square is cut.
        block_voxels: edge of the blocks; more than the errors' correlation reaches (64 fine voxels are 8 pixels of
            the clinical scan).

    Returns:
        One entry per tissue with voxels left, in the order of :class:`Label` (``MIXED`` included).

    Raises:
        ValueError: shapes differ, a value that is not finite, a label that is not a :class:`Label`, a negative
            erosion or a block below 1.
    """
    image, truth = checked_pair(image_hu, truth_hu)
    if np.shape(labels) != np.shape(image_hu):
        raise ValueError(f"The labels have shape {np.shape(labels)} but the image {np.shape(image_hu)}.")
    if erode_voxels < 0 or block_voxels < 1:
        raise ValueError(f"Erosion by {erode_voxels} and blocks of {block_voxels} voxels are not possible.")
    tissue = as_slices(labels, "labels").astype(np.int64)
    last = max(Label)
    if tissue.min() < 0 or tissue.max() > last:
        raise ValueError(f"The labels hold values out of 0 to {int(last)}.")
    kept = same_label_around(tissue, erode_voxels)
    block, blocks = _blocks(tissue.shape, block_voxels)
    key = tissue[kept] * blocks + block[kept]
    error = (image - truth)[kept]
    shape, length = (last + 1, blocks), (last + 1) * blocks
    counts, sums, squares = (
        np.bincount(key, weights, minlength=length).reshape(shape) for weights in (None, error, error**2)
    )
    return tuple(
        _bias(label, counts[label], sums[label], float(squares[label].sum())) for label in Label if counts[label].any()
    )


def pool_bias(cases: Sequence[Sequence[TissueBias]]) -> tuple[TissueBias, ...]:
    """Bias over several cases: all voxels count alike, the standard error is taken between cases.

    Args:
        cases: what :func:`bias_by_tissue` gave for each.
    """
    pooled = []
    for label in Label:
        found = [bias for case in cases for bias in case if bias.label == label]
        if found:
            counts = np.asarray([bias.voxels for bias in found], dtype=np.float64)
            means = np.asarray([bias.mean_error_hu for bias in found])
            spread = np.asarray([bias.deviation_hu for bias in found])
            pooled.append(_bias(label, counts, counts * means, float((counts * (spread**2 + means**2)).sum())))
    return tuple(pooled)


def same_label_around(labels_kji: NDArray[np.int64], reach_voxels: int) -> NDArray[np.bool_]:
    """Voxels whose label fills the square of ``reach_voxels`` to each side in their slice; the border's cut it."""
    from scipy.ndimage import maximum_filter, minimum_filter

    if reach_voxels == 0:
        return np.ones(labels_kji.shape, dtype=np.bool_)
    size, small = (1, 2 * reach_voxels + 1, 2 * reach_voxels + 1), labels_kji.astype(np.uint8)
    lowest, highest = minimum_filter(small, size, mode="nearest"), maximum_filter(small, size, mode="nearest")
    return np.asarray(lowest == highest)


def _blocks(shape_kji: tuple[int, ...], edge: int) -> tuple[NDArray[np.int64], int]:
    """The number of each voxel's block, and how many blocks there are."""
    k, j, i = shape_kji
    rows, columns = -(-j // edge), -(-i // edge)
    row, column = np.arange(j) // edge, np.arange(i) // edge
    plane = row[:, None] * columns + column[None, :]
    return np.arange(k)[:, None, None] * (rows * columns) + plane, k * rows * columns


def _bias(label: Label, counts: Float, sums: Float, square: float) -> TissueBias:
    """Bias from the number and sum of the errors of each group, and the sum of all squares."""
    used = counts > 0
    groups, voxels = int(used.sum()), float(counts.sum())
    mean = float(sums.sum()) / voxels
    residual = float(((sums - mean * counts)[used] ** 2).sum())
    standard = np.sqrt(residual * groups / (groups - 1)) / voxels if groups > 1 else float("nan")
    deviation = np.sqrt(max(0.0, square / voxels - mean**2))
    return TissueBias(label, int(voxels), groups, mean, float(standard), float(deviation))
