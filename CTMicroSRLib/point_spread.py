"""The scanner's in-plane blur: Gaussian point spread, then the mean over each coarse voxel.

Both the simulated scanner and the consistency of a result with its input are this one linear
operator, so that what the one makes the other can check.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian with standard deviation 1."""

SUPPORT_SIGMAS = 4.0
"""Where the Gaussian is cut: its tails beyond hold 6e-5 of its mass."""


def scan_weights(scale: int, psf_fwhm_fine: float) -> NDArray[np.float64]:
    """Weights with which the fine voxels around a coarse voxel enter it, along one axis.

    Args:
        scale: fine voxels per coarse voxel.
        psf_fwhm_fine: full width at half maximum of the Gaussian point spread in fine voxels; 0 is
            the plain mean.

    Returns:
        Odd or even number of weights with sum 1, centred on the coarse voxel's centre; their number
        has the parity of ``scale``.
    """
    sigma = psf_fwhm_fine / FWHM_PER_SIGMA
    reach = math.ceil(SUPPORT_SIGMAS * sigma)
    offsets = np.arange(-reach, reach + 1, dtype=np.float64)
    gaussian = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else np.ones(1)
    weights = np.convolve(gaussian, np.ones(scale))
    return np.asarray(weights / weights.sum())


def scan_matrix(coarse_size: int, scale: int, psf_fwhm_fine: float) -> NDArray[np.float32]:
    """Matrix of one axis of the scan: ``(coarse_size, coarse_size * scale)``, each row summing to 1.

    Where the point spread reaches over the border the edge voxel is taken to go on.
    """
    weights = scan_weights(scale, psf_fwhm_fine)
    before = (len(weights) - scale) // 2
    fine_size = coarse_size * scale
    matrix = np.zeros((coarse_size, fine_size), dtype=np.float64)
    columns = np.arange(coarse_size)[:, None] * scale - before + np.arange(len(weights))[None, :]
    rows = np.broadcast_to(np.arange(coarse_size)[:, None], columns.shape)
    np.add.at(matrix, (rows, columns.clip(0, fine_size - 1)), np.broadcast_to(weights, columns.shape))
    return matrix.astype(np.float32)


def scan_slice(fine_ji: NDArray[np.float32], scale: int, psf_fwhm_fine: tuple[float, float]) -> NDArray[np.float32]:
    """Scan one fine slice: point spread, then the mean of every ``scale`` x ``scale`` block.

    Args:
        fine_ji: slice of shape ``(J * scale, I * scale)`` in HU.
        scale: fine voxels per coarse voxel along each axis.
        psf_fwhm_fine: point spread's width along j and i, in fine voxels.

    Returns:
        The slice as the scanner shows it, without noise, shape ``(J, I)`` in HU.
    """
    rows = scan_matrix(fine_ji.shape[0] // scale, scale, psf_fwhm_fine[0])
    columns = scan_matrix(fine_ji.shape[1] // scale, scale, psf_fwhm_fine[1])
    return np.asarray((rows @ fine_ji) @ columns.T, dtype=np.float32)
