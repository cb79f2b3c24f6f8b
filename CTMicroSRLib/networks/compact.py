"""The compact generator for daily use: all work at the input's resolution, one pixel shuffle at the end.

Residual blocks without normalisation on the coarse grid, a cubic-interpolated skip, and one
convolution to scale^2 phases. Dropout by channel stands in the last blocks and before the last,
linear convolution, where another pass costs a fraction of a whole one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.interpolation import REACH, phase_kernels
from CTMicroSRLib.networks.generator import Border, Generator, Masks, apply_mask, pad_border, shrink


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), 3x3, without normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3)
        self.second = nn.Conv2d(channels, channels, 3)

    def forward(self, features: Tensor, border: Border, masks: Masks | None = None, index: int = 0) -> Tensor:
        """Features with two voxels less on inner sides; dropout after the first ReLU."""
        inner = functional.relu(convolve(self.first, features, border), inplace=True)
        inner = apply_mask(inner, masks, index)
        return convolve(self.second, inner, border).add_(shrink(features, border, 2))


class CompactGenerator(Generator):
    """See the module. ``planes`` constant input planes follow the image (the scan's blur and noise).

    Args:
        channels: width of the trunk.
        blocks: residual blocks.
        scale: fine voxels per coarse voxel.
        planes: constant input planes.
        dropout_rate: probability that a channel is dropped.
        dropout_blocks: how many of the last blocks have a dropout layer.
    """

    skip_kernels: Tensor

    def __init__(
        self,
        *,
        channels: int = 48,
        blocks: int = 8,
        scale: int = 8,
        planes: int = 0,
        dropout_rate: float = 0.1,
        dropout_blocks: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= dropout_blocks <= blocks:
            raise ValueError(f"dropout_blocks is {dropout_blocks} of {blocks}")
        self.scale = scale
        self.halo = 2 * blocks + 2
        self.planes = planes
        self.dropout_rate = dropout_rate
        self.dropout_channels = (channels,) * (dropout_blocks + 1)
        self.dropout_blocks = dropout_blocks
        self.head = nn.Conv2d(1 + planes, channels, 3)
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(blocks))
        self.tail = nn.Conv2d(channels, scale * scale, 3)
        # Training starts from cubic interpolation: the trunk adds next to nothing at first.
        nn.init.normal_(self.tail.weight, std=1e-3)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)
        self.register_buffer("skip_kernels", torch.from_numpy(phase_kernels(scale)), persistent=False)

    def prefix(self, tile: Tensor, border: Border) -> tuple[Tensor, ...]:
        """Interpolated skip as phases, and the features before the first dropout layer."""
        skip = functional.conv2d(pad_border(tile[:, :1], border, REACH, "replicate"), self.skip_kernels.float())
        padded = _padded_axes(border)
        features = convolve(self.head, tile.to(self.head.weight.dtype), padded)
        for block in self.blocks[: len(self.blocks) - self.dropout_blocks]:
            features = block(features, padded)
        return shrink(skip, border, self.halo - REACH), features

    def suffix(self, state: tuple[Tensor, ...], border: Border, masks: Masks | None) -> Tensor:
        """``scale^2`` phases per coarse voxel."""
        skip, features = state
        padded = _padded_axes(border)
        for index, block in enumerate(self.blocks[len(self.blocks) - self.dropout_blocks :]):
            features = block(features, padded, masks, index)
        phases = convolve(self.tail, apply_mask(features, masks, self.dropout_blocks), padded)
        halo_is_left = Border(*(not before or after for before, after in zip(padded, border, strict=True)))
        return skip + shrink(phases, halo_is_left, self.halo).float()


def _padded_axes(border: Border) -> Border:
    """The border with both ends of an axis taken for the image's where one of them is.

    Convolutions pad both ends alike; padding one of them first would copy all features for every layer. What zeros do
    at an inner side goes as far as the halo there, which is then cut off at the end instead of being consumed.
    """
    across, along = border.left or border.right, border.top or border.bottom
    return Border(across, across, along, along)


def convolve(layer: nn.Conv2d, features: Tensor, border: Border) -> Tensor:
    """3x3 convolution, zero-padded on the axes that have the image's border at both ends."""
    return functional.conv2d(features, layer.weight, layer.bias, padding=(int(border.top), int(border.left)))
