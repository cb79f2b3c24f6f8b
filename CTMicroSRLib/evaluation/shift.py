"""How far an image lies beside its truth in-plane: half a coarse voxel is the usual slip of an upsampling network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.masked import checked_mask, checked_pair
from CTMicroSRLib.evaluation.spectra import hann

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

STEPS_PER_VOXEL = 20
"""Shifts are found to that part of a fine voxel."""

FINEST_DETAIL, COARSEST_DETAIL = 0.5, 2.0
"""Deviations, in coarse voxels, of the Gaussians that what is finer or coarser is taken away with: scans show little
of the former, and the latter is too broad to be placed."""

REACH = 2
"""Coarse voxels: a best match further away than that is chance, and no shift."""

LEAST_CORRELATION = 0.3
"""An image that correlates less with its truth, at the best match, doesn't show it; by chance it can be 0.2."""

LEAST_SHARE = 0.05
"""Slices with less of the mask are not looked at."""


@dataclass(frozen=True)
class Shift:
    """In-plane shifts of an image against its truth in fine voxels, slice by slice, shape (n, 2) as (row, column).

    Positive: the image shows things further down, or further right, than they are. NaN where no shift was found.
    """

    slices_ji: Float

    @property
    def row(self) -> float:
        """Median over the slices; NaN where none was found in any."""
        return _median(self.slices_ji[:, 0])

    @property
    def column(self) -> float:
        """Median over the slices; NaN where none was found in any."""
        return _median(self.slices_ji[:, 1])

    @property
    def length(self) -> float:
        """Length of the median shift, as the median of the lengths would count their scatter as shift."""
        return math.hypot(self.row, self.column)

    @staticmethod
    def pool(cases: Sequence[Shift]) -> Shift:
        """The slices of several cases together."""
        return Shift(np.concatenate([case.slices_ji for case in cases]) if cases else np.zeros((0, 2)))


def shift_of(image_hu: NDArray[Any], truth_hu: NDArray[Any], scale: int, mask: NDArray[Any] | None = None) -> Shift:
    """Measure how far an image is shifted against its truth.

    Of each slice of both the details between half and two coarse voxels are kept, and the mask with a soft edge; then
    their cross-correlation is searched for its peak, in steps of 1/20 voxel (Guizar-Sicairos, Thurman, Fienup, Opt.
    Lett. 33, 2008; scikit-image's ``phase_cross_correlation``). The correlation is not whitened, so that detail which
    an image has none of does not count: a symmetric blur moves nothing, and texture that is not the truth's only
    scatters. A slice of interpolated lung scatters by about 0.1 voxel.

    Args:
        image_hu: HU, shape (k, j, i) or (j, i).
        truth_hu: HU, the same shape.
        scale: fine voxels per coarse one.
        mask: the voxels that count (the lungs), the same shape; all by default.

    Returns:
        The slices' shifts; NaN where the best match is poor or further away than 2 coarse voxels, or there is nothing
        to match.

    Raises:
        ValueError: shapes differ, a value that is not finite, or a scale below 1.
    """
    image, truth = checked_pair(image_hu, truth_hu)
    inside = checked_mask(mask, image.shape)
    if scale < 1:
        raise ValueError(f"A scale of {scale} is not possible.")
    found = [_slice_shift(*planes, scale) for planes in zip(image, truth, inside, strict=True)]
    return Shift(np.asarray(found, dtype=np.float64).reshape(-1, 2))


def _slice_shift(image: Float, truth: Float, inside: Bools, scale: int) -> tuple[float, float]:
    from skimage.registration import phase_cross_correlation

    nothing = (math.nan, math.nan)
    if inside.mean() < LEAST_SHARE:
        return nothing
    weight = _weight(inside, scale)
    fine, coarse = (_local_means(image, truth, inside, sigma * scale) for sigma in (FINEST_DETAIL, COARSEST_DETAIL))
    moved, fixed = (weight * (near - far) for near, far in zip(fine, coarse, strict=True))
    if not (moved.any() and fixed.any()):
        return nothing
    back, error, _ = phase_cross_correlation(fixed, moved, upsample_factor=STEPS_PER_VOXEL, normalization=None)
    # The error is the relative one that the best gain leaves: what is not correlated.
    correlation = math.sqrt(max(0.0, 1.0 - float(error) ** 2))
    row, column = (-float(value) for value in back)
    found = correlation >= LEAST_CORRELATION and math.hypot(row, column) <= REACH * scale
    return (row, column) if found else nothing


def _weight(inside: Bools, scale: int) -> Float:
    """Smooth in the mask, 0 at its border and outside, and fading to the slice's."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] / (2.0 * scale)
    return np.asarray(np.clip(depth, 0.0, 1.0) * hann(*inside.shape))


def _local_means(image: Float, truth: Float, inside: Bools, sigma_voxels: float) -> tuple[Float32, Float32]:
    """Means of both around each voxel, of what lies in the mask."""
    from scipy.ndimage import gaussian_filter

    share = np.maximum(gaussian_filter(inside.astype(np.float32), sigma_voxels), np.float32(1e-6))
    image_mean, truth_mean = (
        gaussian_filter(np.where(inside, plane, 0.0).astype(np.float32), sigma_voxels) / share
        for plane in (image, truth)
    )
    return np.asarray(image_mean), np.asarray(truth_mean)


def _median(values: Float) -> float:
    kept = values[np.isfinite(values)]
    return float(np.median(kept)) if len(kept) else math.nan
