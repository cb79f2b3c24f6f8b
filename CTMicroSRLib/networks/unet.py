"""The U-Net (Ronneberger et al., MICCAI 2015) on the interpolated image, a baseline of the Bayesian CycleGAN (P3).

Two 3x3 convolutions with ReLU at every depth, maximum of 2x2 downwards, 2x2 transposed convolution upwards, the
features of the same depth beside them, and a 1x1 convolution. Unlike the original it pads, so that the image keeps its
size; there is no norm. It works on the fine grid throughout: a tile of 256 voxels at 8x takes gigabytes, so choose
small tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.interpolation import REACH, phase_kernels
from CTMicroSRLib.networks.context import PaddingGenerator, whole_halo
from CTMicroSRLib.networks.fine_grid import onto_fine_grid
from CTMicroSRLib.networks.winograd import WideConvolution


class Pair(nn.Module):
    """Two 3x3 convolutions, each with ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = WideConvolution(inputs, outputs, 3, padding=1)
        self.second = WideConvolution(outputs, outputs, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same size."""
        return functional.relu(self.second(functional.relu(self.first(features), inplace=True)), inplace=True)


class UnetGenerator(PaddingGenerator):
    """See the module. 31,030,593 parameters at the defaults.

    Args:
        channels: of the first depth; each further one has twice as many (64).
        depth: how often the image is halved (4).
        scale: fine voxels per coarse voxel.
    """

    kernels: Tensor

    def __init__(self, *, channels: int = 64, depth: int = 4, scale: int = 8) -> None:
        super().__init__()
        self.scale = scale
        widths = [channels * 2**n for n in range(depth + 1)]
        self.down = nn.ModuleList(Pair(a, b) for a, b in zip([1, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1]))
        self.joined = nn.ModuleList(Pair(2 * width, width) for width in reversed(widths[:-1]))
        self.tail = nn.Conv2d(channels, 1, 1)
        self.align = alignment(scale, 2**depth)
        self.halo = whole_halo(reach(scale, depth), self.align)
        self.register_buffer("kernels", torch.from_numpy(phase_kernels(scale)), persistent=False)

    def fine_image(self, tile: Tensor) -> Tensor:
        """The network on the interpolated tile, whose fine grid is a multiple of the stride; float32."""
        features = onto_fine_grid(tile[:, :1], self.kernels, self.scale).to(self.tail.weight.dtype)
        beside: list[Tensor] = []
        for pair in self.down:
            if beside:
                features = functional.max_pool2d(features, 2)
            features = pair(features)
            beside.append(features)
        for up, pair, skip in zip(self.up, self.joined, reversed(beside[:-1]), strict=True):
            features = pair(torch.cat([skip, up(features)], dim=1))
        image: Tensor = self.tail(features)
        return image.float()


def alignment(scale: int, stride: int) -> int:
    """Coarse voxels between positions that are multiples of ``stride`` fine voxels."""
    return max(1, stride // scale)


def reach(scale: int, depth: int) -> int:
    """Coarse voxels that a fine voxel depends on, at most, on either side: followed down to the last depth and back.

    Raises:
        ValueError: the scale is not a power of 2, so that strides and coarse voxels don't meet.
    """
    if scale < 2 or scale & (scale - 1):
        raise ValueError(f"scale is {scale}, not a power of 2")
    farthest = 0
    block = max(scale, 2**depth)
    for first in range(block):
        low = high = first
        for _ in range(depth):
            low, high = (low - 2) // 2, (high + 2) // 2
        low, high = low - 2, high + 2
        for _ in range(depth):
            low, high = 2 * low - 2, 2 * high + 3
        own = first // scale
        farthest = max(farthest, own - low // scale, high // scale - own)
    return farthest + REACH
