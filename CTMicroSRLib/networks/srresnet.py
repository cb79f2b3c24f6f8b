"""The generator of SRGAN (Ledig et al., CVPR 2017, Fig 4), which the two-stage paper (P0) super-resolves with.

A 9x9 convolution, residual blocks of two 3x3 convolutions with batch norm and PReLU, a 3x3 convolution with batch norm
and a skip around all blocks; then for every doubling a 3x3 convolution to four times the channels, pixel shuffle and
PReLU; a 9x9 convolution. Every PReLU has one slope; zeros outside the image; nothing limits the result.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.generator import Border, Generator, Masks, doublings_of, pad_border, shrink
from CTMicroSRLib.networks.norms import FoldingLayer
from CTMicroSRLib.networks.strips import in_strips

Norm = Literal["batch", "none"]

END_REACH = 4
"""Voxels that the 9x9 convolutions see on each side."""


def convolve(layer: nn.Conv2d, features: Tensor, border: Border) -> Tensor:
    """Convolution, zero-padded on the image's own border only."""
    reach = layer.kernel_size[0] // 2
    if all(border):
        return functional.conv2d(features, layer.weight, layer.bias, padding=reach)
    return functional.conv2d(pad_border(features, border, reach, "constant"), layer.weight, layer.bias)


class NormalisedConvolution(FoldingLayer):
    """3x3 convolution and batch norm, which in use is one convolution."""

    convolution: nn.Conv2d

    def __init__(self, channels: int, norm: Norm) -> None:
        if norm not in ("batch", "none"):
            raise ValueError(f"norm is {norm!r}")
        super().__init__(nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels) if norm == "batch" else None)

    def forward(self, features: Tensor, border: Border) -> Tensor:
        """Features with a voxel less on inner sides."""
        result = convolve(self.convolution, features, border)
        return result if self.norm is None else self.norm(result)

    def fold(self) -> None:
        """Put the norm's running statistics and factors into the convolution."""
        if not isinstance(self.norm, nn.BatchNorm2d):
            return
        mean, variance, bias = self.norm.running_mean, self.norm.running_var, self.convolution.bias
        assert mean is not None
        assert variance is not None
        assert bias is not None
        factor = self.norm.weight.double() / torch.sqrt(variance.double() + self.norm.eps)
        with torch.no_grad():
            bias.copy_((bias.double() - mean.double()) * factor + self.norm.bias.double())
            self.convolution.weight.copy_(self.convolution.weight.double() * factor.view(-1, 1, 1, 1))
        self.norm = None


class ResidualBlock(nn.Module):
    """x + norm(conv(prelu(norm(conv(x)))))."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = NormalisedConvolution(channels, norm)
        self.activation = nn.PReLU()
        self.second = NormalisedConvolution(channels, norm)

    def forward(self, features: Tensor, border: Border) -> Tensor:
        """Features with two voxels less on inner sides."""
        inner = self.activation(self.first(features, border))
        result: Tensor = shrink(features, border, 2) + self.second(inner, border)
        return result


class UpStage(nn.Module):
    """Convolution to four times the channels, pixel shuffle by 2, PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 4 * channels, 3)
        self.activation = nn.PReLU()

    def forward(self, features: Tensor, border: Border) -> Tensor:
        """Features at twice the resolution, two of its voxels less on inner sides."""
        result: Tensor = self.activation(functional.pixel_shuffle(convolve(self.convolution, features, border), 2))
        return result


class SrResnetGenerator(Generator):
    """See the module. 1,676,437 parameters at the defaults.

    Args:
        channels: width everywhere (64 in the paper).
        blocks: residual blocks (16).
        scale: a power of 2; the paper's is 4.
        norm: ``batch`` as in the paper, whose running statistics make tiles exact in use, or ``none``.
    """

    def __init__(self, *, channels: int = 64, blocks: int = 16, scale: int = 8, norm: Norm = "batch") -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(1, channels, 2 * END_REACH + 1)
        self.head_activation = nn.PReLU()
        self.blocks = nn.ModuleList(ResidualBlock(channels, norm) for _ in range(blocks))
        self.middle = NormalisedConvolution(channels, norm)
        self.up = nn.ModuleList(UpStage(channels) for _ in range(doublings_of(scale)))
        self.tail = nn.Conv2d(channels, 1, 2 * END_REACH + 1)
        self._trunk_reach = END_REACH + 2 * blocks + 1
        self._consumed_above = sum(scale >> n for n in range(len(self.up))) + END_REACH
        self.halo = self._trunk_reach - (-self._consumed_above // scale)

    def prefix(self, tile: Tensor, border: Border) -> tuple[Tensor, ...]:
        """Features on the coarse grid."""
        image = tile[:, :1].to(self.tail.weight.dtype)
        features = head = self.head_activation(convolve(self.head, image, border))
        for block in self.blocks:
            features = block(features, border)
        return (shrink(head, border, 2 * len(self.blocks) + 1) + self.middle(features, border),)

    def suffix(self, state: tuple[Tensor, ...], border: Border, masks: Masks | None) -> Tensor:
        """The fine image."""
        image = in_strips(self._enlarge, state[0], border, self.scale, self._consumed_above)
        spare = (self.halo - self._trunk_reach) * self.scale - self._consumed_above
        return shrink(image, border, spare)

    def _enlarge(self, features: Tensor, border: Border) -> Tensor:
        for stage in self.up:
            features = stage(features, border)
        return convolve(self.tail, features, border).float()
