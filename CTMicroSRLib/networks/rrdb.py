"""The generator of ESRGAN (Wang et al., ECCV Workshops 2018): residual-in-residual dense blocks without norm.

Layer by layer as in its public implementation: a 3x3 convolution; blocks of three dense blocks of five 3x3
convolutions with LeakyReLU 0.2, every residual scaled by 0.2; a 3x3 convolution and a skip around all blocks; then for
every doubling nearest-neighbour enlargement, a 3x3 convolution and LeakyReLU; two more 3x3 convolutions. The published
network enlarges 4x; 8x has a third doubling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.generator import Border, Generator, Masks, doublings_of, shrink
from CTMicroSRLib.networks.srresnet import convolve
from CTMicroSRLib.networks.strips import in_strips

SLOPE = 0.2
RESIDUAL_SCALE = 0.2
DENSE_LAYERS = 5
DENSE_BLOCKS = 3
START_GAIN = 0.1
"""Weights of the dense blocks start at this share of Kaiming's, so that a deep trunk starts near the identity."""


def _activated(layer: nn.Conv2d, features: Tensor, border: Border) -> Tensor:
    return functional.leaky_relu(convolve(layer, features, border), SLOPE, inplace=True)


class DenseBlock(nn.Module):
    """x + 0.2 f(x), where every convolution of f sees the results of all before it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        widths = [channels + n * growth for n in range(DENSE_LAYERS)]
        outputs = [growth] * (DENSE_LAYERS - 1) + [channels]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in zip(widths, outputs, strict=True))
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight)
            with torch.no_grad():
                layer.weight.mul_(START_GAIN)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, border: Border) -> Tensor:
        """Features with five voxels less on inner sides."""
        known = features
        *inner, last = self.layers
        for layer in inner:
            assert isinstance(layer, nn.Conv2d)
            known = torch.cat([shrink(known, border, 1), _activated(layer, known, border)], dim=1)
        assert isinstance(last, nn.Conv2d)
        return shrink(features, border, DENSE_LAYERS) + RESIDUAL_SCALE * convolve(last, known, border)


class ResidualBlock(nn.Module):
    """x + 0.2 f(x), f three dense blocks."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList(DenseBlock(channels, growth) for _ in range(DENSE_BLOCKS))

    def forward(self, features: Tensor, border: Border) -> Tensor:
        """Features with fifteen voxels less on inner sides."""
        inner = features
        for block in self.dense:
            inner = block(inner, border)
        return shrink(features, border, DENSE_BLOCKS * DENSE_LAYERS) + RESIDUAL_SCALE * inner


class RrdbGenerator(Generator):
    """See the module. 16,732,609 parameters at the defaults, whose halo of 349 voxels is the receptive field's.

    Args:
        channels: width of the trunk (64).
        growth: channels that each dense layer adds (32).
        blocks: residual-in-residual blocks (23).
        scale: a power of 2.
    """

    def __init__(self, *, channels: int = 64, growth: int = 32, blocks: int = 23, scale: int = 8) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(1, channels, 3)
        self.blocks = nn.ModuleList(ResidualBlock(channels, growth) for _ in range(blocks))
        self.middle = nn.Conv2d(channels, channels, 3)
        self.up = nn.ModuleList(nn.Conv2d(channels, channels, 3) for _ in range(doublings_of(scale)))
        self.fine = nn.Conv2d(channels, channels, 3)
        self.tail = nn.Conv2d(channels, 1, 3)
        self._blocks_reach = blocks * DENSE_BLOCKS * DENSE_LAYERS
        self._consumed_above = sum((scale // 2) >> n for n in range(len(self.up))) + 2
        self.halo = 2 + self._blocks_reach - (-self._consumed_above // scale)

    def prefix(self, tile: Tensor, border: Border) -> tuple[Tensor, ...]:
        """Features on the coarse grid."""
        features = head = convolve(self.head, tile[:, :1].to(self.tail.weight.dtype), border)
        for block in self.blocks:
            features = block(features, border)
        return (shrink(head, border, self._blocks_reach + 1) + convolve(self.middle, features, border),)

    def suffix(self, state: tuple[Tensor, ...], border: Border, masks: Masks | None) -> Tensor:
        """The fine image."""
        image = in_strips(self._enlarge, state[0], border, self.scale, self._consumed_above)
        spare = (self.halo - self._blocks_reach - 2) * self.scale - self._consumed_above
        return shrink(image, border, spare)

    def _enlarge(self, features: Tensor, border: Border) -> Tensor:
        for layer in self.up:
            assert isinstance(layer, nn.Conv2d)
            features = _activated(layer, functional.interpolate(features, scale_factor=2, mode="nearest"), border)
        return convolve(self.tail, _activated(self.fine, features, border), border).float()
