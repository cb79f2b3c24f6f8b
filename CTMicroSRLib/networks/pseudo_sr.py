"""Pseudo-supervised super-resolution (Maeda, CVPR 2020): an RCAN that cleans the coarse image, one that enlarges.

The way back, clean to clinical, is a small network that is also given noise, so that one clean image has many scans.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.clean_then_enlarge import CleanThenEnlarge
from CTMicroSRLib.networks.norms import Norm
from CTMicroSRLib.networks.rcan import Rcan

SLOPE = 0.2
NOISE_STRIDE = 4
"""Coarse voxels per voxel of the noise."""
NOISE_CHANNELS = 8

TransferNorm = Literal["batch", "instance", "none"]


class PseudoSrGenerator(CleanThenEnlarge):
    """Clinical CT to micro-CT: G_xy cleans on the coarse grid, U enlarges.

    Args:
        channels: width of both (64).
        groups: residual groups of both (5).
        clean_blocks: attention blocks in each group of G_xy (10).
        enlarge_blocks: those of U (20).
        reduction: of the attention (16).
        scale: fine voxels per coarse voxel, a power of two.
        norm: of the attention's means: ``instance`` takes those of the image itself, ``frozen`` has them measured once
            for exact tiles, ``none`` has no attention.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        groups: int = 5,
        clean_blocks: int = 10,
        enlarge_blocks: int = 20,
        reduction: int = 16,
        scale: int = 8,
        norm: Norm = "instance",
    ) -> None:
        clean = Rcan(channels=channels, groups=groups, blocks=clean_blocks, reduction=reduction, norm=norm)
        enlarge = Rcan(
            channels=channels, groups=groups, blocks=enlarge_blocks, reduction=reduction, scale=scale, norm=norm
        )
        super().__init__(clean, enlarge, scale, clean.reach + enlarge.reach)
        self.whole_slice_only = norm == "instance"


class TransferNetwork(nn.Module):
    """G_yx: a clean coarse image and noise to a clinical one.

    5x5 convolutions with LeakyReLU 0.2: one to half the width, a residual block, then the noise, enlarged by two
    transposed convolutions, joins by a 1x1 convolution; residual blocks; three 1x1 convolutions.

    Args:
        channels: width (64).
        blocks: residual blocks after the noise has joined (6).
        norm: in the residual blocks and the first layer; batch norm in the paper. It makes an image depend on the rest
            of its batch, and on how a batch is shared between processes.
    """

    def __init__(self, *, channels: int = 64, blocks: int = 6, norm: TransferNorm = "batch") -> None:
        super().__init__()
        half, quarter = channels // 2, max(1, channels // 4)
        self.head = _convolution(1, half, norm)
        self.first = TransferBlock(half, norm)
        self.noise_first = nn.ConvTranspose2d(1, NOISE_CHANNELS, 2, 2)
        self.noise_second = nn.ConvTranspose2d(NOISE_CHANNELS, 2 * NOISE_CHANNELS, 2, 2)
        self.merge = nn.Conv2d(half + 2 * NOISE_CHANNELS, channels, 1)
        self.blocks = nn.Sequential(*(TransferBlock(channels, norm) for _ in range(blocks)))
        self.tail = nn.Sequential(
            nn.Conv2d(channels, half, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(half, quarter, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(quarter, 1, 1),
        )

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """``(b, 1, rows, columns)`` of an image of that size and noise as :meth:`draw_noise` makes it."""
        features = self.first(functional.leaky_relu(self.head(image), SLOPE))
        noise = functional.leaky_relu(self.noise_first(noise), SLOPE)
        noise = functional.leaky_relu(self.noise_second(noise), SLOPE)
        rows, columns = image.shape[-2:]
        joined = torch.cat([features, noise[..., :rows, :columns]], dim=1)
        result: Tensor = self.tail(self.blocks(self.merge(joined)))
        return result

    @staticmethod
    def draw_noise(image: Tensor) -> Tensor:
        """N(0, 1) noise for an image, one voxel for every 4 x 4 (8x8 for 32x32)."""
        rows, columns = (-(-size // NOISE_STRIDE) for size in image.shape[-2:])
        return torch.randn((len(image), 1, rows, columns), device=image.device, dtype=image.dtype)


class TransferBlock(nn.Module):
    """x + norm(conv(lrelu(norm(conv(x))))), 5x5, zero-padded."""

    def __init__(self, channels: int, norm: TransferNorm) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, norm)
        self.second = _convolution(channels, channels, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same size."""
        result: Tensor = features + self.second(functional.leaky_relu(self.first(features), SLOPE))
        return result


def _convolution(inputs: int, outputs: int, norm: TransferNorm) -> nn.Sequential:
    """5x5 convolution and norm."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 5, padding=2, bias=norm != "batch")]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(outputs))
    elif norm == "instance":
        layers.append(nn.InstanceNorm2d(outputs))
    elif norm != "none":
        raise ValueError(f"the transfer network's norm is {norm!r}")
    return nn.Sequential(*layers)
