"""How far a result is from its own input, whatever the truth: scanned again, and as plain means of its blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.point_spread import scan_slice


@dataclass(frozen=True)
class InputResidual:
    """Root mean squares of input less result on the coarse grid.

    ``scan_residual_noise``: the result scanned again (point spread, then block means), in standard deviations of the
    noise; 1 is what the noise explains, NaN where it is unknown. ``block_residual_hu``: block means alone, in HU.
    """

    scan_residual_noise: float
    block_residual_hu: float


def input_residual(
    image_kji: NDArray[Any], coarse_kji: NDArray[Any], scale: int, *, psf_fwhm_voxels: float, noise_hu: float | None
) -> InputResidual:
    """Compare a result with its input.

    Args:
        image_kji: result in HU, ``scale`` times finer in-plane.
        coarse_kji: input in HU.
        scale: fine voxels per coarse voxel.
        psf_fwhm_voxels: width of the scanner's point spread in coarse voxels; 0 where it only takes means.
        noise_hu: standard deviation of the input's noise; None where it is unknown.
    """
    coarse = np.asarray(coarse_kji, dtype=np.float32)
    scanned = _rms(image_kji, coarse, scale, psf_fwhm_voxels * scale)
    means = scanned if psf_fwhm_voxels == 0 else _rms(image_kji, coarse, scale, 0.0)
    return InputResidual(scanned / noise_hu if noise_hu else math.nan, means)


def _rms(image_kji: NDArray[Any], coarse_kji: NDArray[np.float32], scale: int, psf_fwhm_fine: float) -> float:
    squares = [
        np.mean((coarse - scan_slice(np.asarray(fine, dtype=np.float32), scale, (psf_fwhm_fine, psf_fwhm_fine))) ** 2)
        for fine, coarse in zip(image_kji, coarse_kji, strict=True)
    ]
    return float(np.sqrt(np.mean(squares)))
