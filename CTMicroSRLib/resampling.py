"""Ways between the coarse and the fine grid: the papers' shrinking and enlarging, differentiable.

All take and return ``(batch, channels, rows, columns)``; a fine image's rows and columns are multiples of the scale.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.interpolation import REACH, phase_kernels

PYRAMID_TAPS = (1.0, 4.0, 6.0, 4.0, 1.0)
"""Burt and Adelson's 5-tap filter (IEEE Trans Commun 1983), times 16."""


def block_mean(image: Tensor, scale: int) -> Tensor:
    """Mean of every ``scale`` x ``scale`` block: A of the MMSR loss (P1 eq 4, average pooling)."""
    return functional.avg_pool2d(image, scale)


def repeat(image: Tensor, scale: int) -> Tensor:
    """Every voxel repeated ``scale`` times along rows and columns: U of the MMSR loss (P1 eq 5, nearest)."""
    return functional.interpolate(image, scale_factor=scale, mode="nearest")


def gaussian_pyramid(image: Tensor, levels: int) -> Tensor:
    """Burt and Adelson's pyramid, with which the two-stage paper (P0, section 2.2) makes coarse micro-CT, centred.

    Each level filters rows and columns by [1 4 6 4 1] / 16 (mirrored at the border without repeating the edge) and
    takes the mean of every two voxels. The usual pyramid keeps the first of the two instead; its coarse voxels sit on
    their blocks' first fine voxel, and a generator trained on such pairs would put everything half a coarse voxel
    beside its place.

    Args:
        image: ``(b, c, rows, columns)``, at least 3 voxels wide and even before each level.
        levels: how often to halve; 3 for 8x.
    """
    channels = image.shape[1]
    taps = functional.conv1d(image.new_tensor([[PYRAMID_TAPS]]), image.new_ones(1, 1, 2), padding=1).flatten()
    taps = taps / taps.sum()
    across = taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    along = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    for _ in range(levels):
        padded = functional.pad(image, (2, 2, 2, 2), mode="reflect")
        rows = functional.conv2d(padded, across, stride=(1, 2), groups=channels)
        image = functional.conv2d(rows, along, stride=(2, 1), groups=channels)
    return image


def point_sampled(image: Tensor, scale: int) -> Tensor:
    """The image at few points, without any filter against aliasing: what SR-CycleGAN's code (P1) calls shrinking.

    The code asks scipy for ``zoom(image, 1 / scale)``: a cubic spline through the voxels, read where coarse voxel n
    of N sits at fine position n (M - 1) / (N - 1), from the first fine voxel to the last (0, 8.226, ... 255 for 256
    to 32) instead of at the blocks' centres. Where scipy's rounding steps beyond the last voxel and it writes zeros
    into the last row and column, this returns the last voxel's value.
    """
    rows, columns = image.shape[-2:]
    along = torch.from_numpy(_spline_sampling(rows, rows // scale)).to(image)
    across = torch.from_numpy(_spline_sampling(columns, columns // scale)).to(image)
    return along @ image @ across.mT


def bicubic(image: Tensor, scale: int) -> Tensor:
    """Cubic interpolation onto the grid that is ``scale`` times finer, edge voxels repeated beyond the border."""
    batch, channels, rows, columns = image.shape
    padded = functional.pad(image, (REACH, REACH, REACH, REACH), mode="replicate")
    kernels = torch.from_numpy(phase_kernels(scale)).to(image)
    phases = functional.conv2d(padded.flatten(0, 1)[:, None], kernels)
    return functional.pixel_shuffle(phases, scale).view(batch, channels, rows * scale, columns * scale)


@lru_cache(maxsize=16)
def _spline_sampling(fine: int, coarse: int) -> NDArray[np.float64]:
    """Matrix ``(coarse, fine)`` from voxel values to the cubic spline through them, end to end, mirrored outside."""
    at_voxels = _spline_basis(np.arange(fine, dtype=np.float64), fine)
    at_points = _spline_basis(np.linspace(0.0, fine - 1.0, coarse), fine)
    return np.asarray(np.linalg.solve(at_voxels.T, at_points.T).T)


def _spline_basis(positions: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Weights ``(positions, count)`` of cubic B-spline coefficients, the coefficients mirrored about the end voxels."""
    first = np.floor(positions).astype(np.int64) - 1
    basis = np.zeros((len(positions), count))
    for tap in range(4):
        index = first + tap
        distance = np.abs(positions - index)
        near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
        far = np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0
        period = max(1, 2 * (count - 1))
        folded = np.abs((index + count - 1) % period - (count - 1)) if count > 1 else np.zeros_like(index)
        np.add.at(basis, (np.arange(len(positions)), folded), np.where(distance <= 1.0, near, far))
    return basis
