"""Structural similarity (Wang et al., IEEE Trans Image Processing 2004), differentiable, with the papers' constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 11
SIGMA = 1.5


@dataclass(frozen=True)
class SsimConstants:
    """What keeps the quotients of luminance (``c1``) and of contrast (``c2``) finite; (K L)^2 for a range L."""

    c1: float
    c2: float


SSIM_CONSTANTS = {
    "standard": SsimConstants(0.02**2, 0.06**2),
    "paper": SsimConstants(0.02, 0.06),
    "code": SsimConstants(1e-4, 9e-4),
}
"""``standard``: K = .01 and .03 for images in [-1, 1] (L = 2). ``paper``: P0 and P2 state K L without the square.

``code``: what SR-CycleGAN's published code uses, the constants of a range of 1."""


def ssim(
    first: Tensor,
    second: Tensor,
    constants: SsimConstants = SSIM_CONSTANTS["standard"],
    *,
    padding: Literal["zero", "valid"] = "zero",
) -> Tensor:
    """Mean structural similarity of two batches of images, in the standard form (2 m1 m2 + C1; P1 eq 3 drops the 2).

    Args:
        first: ``(b, c, rows, columns)``.
        second: the same shape.
        constants: C1 and C2.
        padding: ``zero`` counts every voxel and sees zeros outside the image, as the papers' code does; ``valid``
            counts only voxels whose whole window is inside.

    Returns:
        A scalar, at most 1. The window is Gaussian, 11 voxels wide, sigma 1.5; on an image that is smaller than the
        window it is the largest odd width that fits. Half-precision input is computed in float32.
    """
    if first.dtype in (torch.float16, torch.bfloat16):
        first = first.float()
    second = second.to(first.dtype)
    # Local variances are small differences of large numbers: autocast would lose them.
    with torch.autocast(first.device.type, enabled=False):
        return _similarity(first, second, constants, padding)


def _similarity(first: Tensor, second: Tensor, constants: SsimConstants, padding: Literal["zero", "valid"]) -> Tensor:
    size = min(WINDOW, *first.shape[-2:])
    size -= 1 - size % 2
    taps = _gaussian(size, first)
    width = size // 2 if padding == "zero" else 0
    maps = torch.stack([first, second, first * first, second * second, first * second])
    images = maps.view(-1, 1, *first.shape[-2:])
    images = functional.conv2d(images, taps.view(1, 1, 1, -1), padding=(0, width))
    images = functional.conv2d(images, taps.view(1, 1, -1, 1), padding=(width, 0))
    mean_1, mean_2, square_1, square_2, product = images.view(5, -1)
    variance_1, variance_2 = square_1 - mean_1 * mean_1, square_2 - mean_2 * mean_2
    covariance = product - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + constants.c1) / (mean_1 * mean_1 + mean_2 * mean_2 + constants.c1)
    structure = (2 * covariance + constants.c2) / (variance_1 + variance_2 + constants.c2)
    similarity: Tensor = (luminance * structure).mean()
    return similarity


def _gaussian(size: int, like: Tensor) -> Tensor:
    offset = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    weights = torch.exp(-(offset**2) / (2 * SIGMA**2))
    return weights / weights.sum()
