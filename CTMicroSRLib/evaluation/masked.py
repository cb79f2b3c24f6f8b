"""Image quality against the truth inside a mask (the lungs, a tissue), and the checks that image yardsticks share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.metrics import PEAK_HU, Quality, psnr_db
from CTMicroSRLib.intensity import LUNG_WINDOW_HU

Float = NDArray[np.float64]
Bools = NDArray[np.bool_]

SSIM_SIGMA = 1.5
SSIM_BORDER = 5
"""Half the width of the SSIM's Gaussian window, cut at 3.5 standard deviations."""


def masked_quality(image_hu: NDArray[Any], truth_hu: NDArray[Any], mask: NDArray[Any]) -> Quality:
    """PSNR (peak 3500 HU), SSIM (clinical range and lung window) and mean absolute error inside a mask.

    All voxels of the mask count alike, whatever slice they lie in: PSNR comes from their mean squared error, SSIM is
    the mean of the slices' SSIM maps over them. As in scikit-image's own mean, the SSIM of voxels within 5 voxels of
    the image's border is left out, since its window reaches over it. So with every voxel of one slice in the mask the
    result is that of :func:`CTMicroSRLib.evaluation.metrics.quality`. The SSIM windows of voxels at the mask's border
    reach up to 5 voxels beyond it.

    Args:
        image_hu: HU, shape (k, j, i) or (j, i).
        truth_hu: HU, the same shape.
        mask: the voxels that count, the same shape.

    Returns:
        The quality; the SSIMs are NaN where the mask lies wholly within 5 voxels of the border.

    Raises:
        ValueError: shapes differ, a value that is not finite (in or outside the mask), an empty mask, or slices that
            are smaller than the SSIM's 11 voxels.
    """
    image, truth = checked_pair(image_hu, truth_hu)
    inside = checked_mask(mask, image.shape)
    if not inside.any():
        raise ValueError("The mask is empty.")
    if min(image.shape[1:]) <= 2 * SSIM_BORDER:
        raise ValueError(f"Slices of {image.shape[1:]} voxels are smaller than the SSIM's window of 11.")
    low, high = LUNG_WINDOW_HU
    return Quality(
        psnr_db=psnr_db(image[inside], truth[inside]),
        ssim=_masked_ssim(image, truth, inside, PEAK_HU),
        ssim_lung_window=_masked_ssim(image.clip(low, high), truth.clip(low, high), inside, high - low),
        mae_hu=float(np.mean(np.abs(image[inside] - truth[inside]))),
    )


def ssim_map(image_ji: Float, truth_ji: Float, data_range: float) -> Float:
    """SSIM of every voxel of a slice, with the window and constants of :func:`CTMicroSRLib.evaluation.metrics.ssim`."""
    from skimage.metrics import structural_similarity

    _, values = structural_similarity(
        image_ji,
        truth_ji,
        data_range=data_range,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    return np.asarray(values, dtype=np.float64)


def as_slices(array: NDArray[Any], name: str = "image") -> Float:
    """An image as float64 of shape (k, j, i); one of shape (j, i) becomes one slice.

    Raises:
        ValueError: another number of axes, no voxels, or a value that is not finite.
    """
    values = np.asarray(array, dtype=np.float64)
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(f"The {name} has shape {values.shape}, not (k, j, i) or (j, i).")
    if not np.isfinite(values).all():
        raise ValueError(f"The {name} holds values that are not finite.")
    return values.reshape((-1, *values.shape[-2:]))


def checked_pair(image_hu: NDArray[Any], truth_hu: NDArray[Any]) -> tuple[Float, Float]:
    """Image and truth as float64 of shape (k, j, i).

    Raises:
        ValueError: shapes differ, another number of axes, or a value that is not finite.
    """
    if np.shape(image_hu) != np.shape(truth_hu):
        raise ValueError(f"The image has shape {np.shape(image_hu)} but the truth {np.shape(truth_hu)}.")
    return as_slices(image_hu), as_slices(truth_hu, "truth")


def checked_mask(mask: NDArray[Any] | None, shape_kji: tuple[int, ...]) -> Bools:
    """The mask as booleans of shape (k, j, i); every voxel without one.

    Raises:
        ValueError: it has another shape.
    """
    if mask is None:
        return np.ones(shape_kji, dtype=np.bool_)
    inside = np.asarray(mask, dtype=np.bool_)
    if inside.shape not in (shape_kji, shape_kji[1:]) or inside.size != np.prod(shape_kji):
        raise ValueError(f"The mask has shape {inside.shape} but the image {shape_kji}.")
    return inside.reshape(shape_kji)


def _masked_ssim(image: Float, truth: Float, inside: Bools, data_range: float) -> float:
    interior = inside[:, SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER]
    count, total = int(interior.sum()), 0.0
    for k in np.flatnonzero(interior.any(axis=(1, 2))):
        values = ssim_map(image[k], truth[k], data_range)[SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER]
        total += float(values[interior[k]].sum())
    return total / count if count else float("nan")
