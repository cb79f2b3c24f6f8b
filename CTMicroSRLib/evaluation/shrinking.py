"""Fine slices to coarse ones, as the papers and their code do it; NumPy in HU around :mod:`CTMicroSRLib.resampling`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def whole_blocks(array: NDArray[Any], scale: int) -> NDArray[Any]:
    """The largest middle part of slices ``(..., rows, columns)`` that whole blocks of ``scale`` voxels cover."""
    rows, columns = (size // scale * scale for size in array.shape[-2:])
    top, left = (array.shape[-2] - rows) // 2, (array.shape[-1] - columns) // 2
    return array[..., top : top + rows, left : left + columns]


def block_means(fine_kji: NDArray[Any], scale: int) -> Float32:
    """Mean of every block of ``scale`` x ``scale`` voxels, ``(k, rows / scale, columns / scale)``."""
    slices, rows, columns = fine_kji.shape
    blocks = np.asarray(fine_kji, np.float64).reshape(slices, rows // scale, scale, columns // scale, scale)
    return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float32)


def point_samples(fine_kji: NDArray[Any], scale: int) -> Float32:
    """What SR-CycleGAN's code takes for shrinking: a cubic spline read at few points, from the first voxel to the last.

    The voxels between are not averaged and the points are not the blocks' centres.
    """
    import torch

    from CTMicroSRLib.resampling import point_sampled

    fine = torch.from_numpy(np.asarray(fine_kji, dtype=np.float64))[:, None]
    return np.asarray(point_sampled(fine, scale)[:, 0].numpy(), dtype=np.float32)


def pyramid_levels(fine_kji: NDArray[Any], levels: int) -> Float32:
    """Gaussian pyramid, each level half the size: what the two-stage paper's synthesize network is given."""
    import torch

    from CTMicroSRLib.resampling import gaussian_pyramid

    fine = torch.from_numpy(np.asarray(fine_kji, dtype=np.float32))[:, None]
    return np.asarray(gaussian_pyramid(fine, levels)[:, 0].numpy(), dtype=np.float32)
