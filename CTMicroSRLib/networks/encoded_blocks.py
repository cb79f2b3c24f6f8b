"""CycleGAN's generator with residual blocks (Zhu et al., ICCV 2017), without its last layer, and what stands around it.

7x7 convolution, two halvings, residual blocks, two doublings: the trunk of the networks in
:mod:`~CTMicroSRLib.networks.resnet`, :mod:`~CTMicroSRLib.networks.down_blocks` and
:mod:`~CTMicroSRLib.networks.micro_to_clinical`.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.context import without_context
from CTMicroSRLib.networks.generator import Border, Generator, Masks, apply_mask
from CTMicroSRLib.networks.norms import FoldingLayer, Norm, make_norm
from CTMicroSRLib.networks.winograd import WideConvolution

STRIDE = 4
"""The residual blocks work on every fourth row and column."""


class NormalisedLayer(FoldingLayer):
    """A convolution, padded by itself, and a norm."""

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d, norm: Norm) -> None:
        super().__init__(convolution, make_norm(norm, convolution.out_channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features."""
        return self.normalised(features)


def reflecting(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the grid, reflected at the border."""
    kind = WideConvolution if kernel == 3 else nn.Conv2d
    return kind(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect")


def halving(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution of stride 2."""
    return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)


def doubling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """A transposed 3x3 convolution of stride 2: exactly twice the rows and columns."""
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)


class ResnetBlock(nn.Module):
    """x + norm(conv(dropout(relu(norm(conv(x)))))), reflect-padded 3x3."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = NormalisedLayer(reflecting(channels, channels, 3), norm)
        self.second = NormalisedLayer(reflecting(channels, channels, 3), norm)

    def forward(self, features: Tensor, masks: Masks | None = None, index: int = 0) -> Tensor:
        """Features on the same grid."""
        inner = apply_mask(functional.relu(self.first(features), inplace=True), masks, index)
        result: Tensor = features + self.second(inner)
        return result


class EncodedBlocks(nn.Module):
    """7x7 convolution, two halvings, residual blocks, two doublings: what all of CycleGAN's descendants share."""

    def __init__(self, channels: int, blocks: int, norm: Norm) -> None:
        super().__init__()
        self.head = NormalisedLayer(reflecting(1, channels, 7), norm)
        self.down = nn.ModuleList(NormalisedLayer(halving(channels * n, channels * n * 2), norm) for n in (1, 2))
        self.blocks = nn.ModuleList(ResnetBlock(channels * STRIDE, norm) for _ in range(blocks))
        self.up = nn.ModuleList(NormalisedLayer(doubling(channels * n * 2, channels * n), norm) for n in (2, 1))

    def before(self, image: Tensor, dropout_blocks: int = 0) -> Tensor:
        """Features before the first block that has dropout, on every fourth row and column."""
        features = functional.relu(self.head(image), inplace=True)
        for layer in self.down:
            features = functional.relu(layer(features), inplace=True)
        for block in self.blocks[: len(self.blocks) - dropout_blocks]:
            features = block(features)
        return features

    def after(self, features: Tensor, masks: Masks | None = None, dropout_blocks: int = 0) -> Tensor:
        """The remaining blocks, and the image's own grid again."""
        for index, block in enumerate(self.blocks[len(self.blocks) - dropout_blocks :]):
            features = block(features, masks, index)
        for layer in self.up:
            features = functional.relu(layer(features), inplace=True)
        return features

    @property
    def reach(self) -> int:
        """Voxels that a feature depends on, on each side."""
        halvings = doublings = 1 + STRIDE // 2
        return 3 + halvings + 2 * STRIDE * len(self.blocks) + doublings

    @staticmethod
    def smallest(scale: int = 1) -> int:
        """Rows and columns an image must have, so that two remain where the blocks reflect one."""
        return -(-(STRIDE + 1) // scale)


class EncodedGenerator(Generator):
    """A generator around :class:`EncodedBlocks`, with dropout in the last of them.

    Args:
        channels: width of the first layer; the residual blocks are four times as wide.
        blocks: residual blocks.
        norm: ``instance`` to train with, ``frozen`` for exact tiles, or ``none``.
        dropout_rate: by channel after each block's first ReLU, in the last ``dropout_blocks`` blocks.
        dropout_blocks: how many of the last blocks have dropout.
    """

    def __init__(self, channels: int, blocks: int, norm: Norm, dropout_rate: float, dropout_blocks: int) -> None:
        super().__init__()
        if not 0 <= dropout_blocks <= blocks:
            raise ValueError(f"dropout_blocks is {dropout_blocks} of {blocks}")
        self.whole_slice_only = norm == "instance"
        self.dropout_rate = dropout_rate
        self.dropout_channels = (channels * STRIDE,) * dropout_blocks
        self.dropout_blocks = dropout_blocks
        self.body = EncodedBlocks(channels, blocks, norm)

    @abstractmethod
    def enter(self, tile: Tensor) -> Tensor:
        """The image that the blocks see, ``(b, 1, rows, columns)`` with multiples of :data:`STRIDE`."""

    @abstractmethod
    def leave(self, features: Tensor) -> Tensor:
        """The fine image of what the blocks make, ``(b, 1, rows, columns)``, float32."""

    def prefix(self, tile: Tensor, border: Border) -> tuple[Tensor, ...]:
        """Features before the first block that has dropout, and the tile for its size."""
        return self.body.before(self.enter(tile), self.dropout_blocks), tile

    def suffix(self, state: tuple[Tensor, ...], border: Border, masks: Masks | None) -> Tensor:
        """The fine image of the tile without its halo."""
        features, tile = state
        fine = self.leave(self.body.after(features, masks, self.dropout_blocks))
        return without_context(fine, (tile.shape[-2], tile.shape[-1]), border, self.halo, self.scale)
