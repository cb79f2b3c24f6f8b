"""CycleGAN's generator with residual blocks (Zhu et al., ICCV 2017), on the interpolated image.

The baseline of P1 and P2, and the generator of the Bayesian CycleGAN (P3): the clinical image is interpolated onto the
fine grid first, and a network that keeps the grid does the rest. It works on ``scale^2`` fine voxels for every coarse
one, 64 channels wide: fifty times the work of SR-CycleGAN's generator, and 17 MB of features for every 32x32 coarse
voxels at 8x, so that whole slices of 512x512 do not fit into common memory before the norms are frozen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.interpolation import REACH, phase_kernels
from CTMicroSRLib.networks.context import aligned, whole_halo, without_context
from CTMicroSRLib.networks.generator import Border, Generator, Masks, apply_mask
from CTMicroSRLib.networks.norms import FrozenNorm, Norm, fold_norm, make_norm
from CTMicroSRLib.networks.winograd import WideConvolution

STRIDE = 4
"""The residual blocks work on every fourth row and column."""


class NormalisedLayer(nn.Module):
    """A convolution, padded by itself, and a norm."""

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d, norm: Norm) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = make_norm(norm, convolution.out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features."""
        result: Tensor = self.convolution(features)
        if self.norm is not None:
            result = self.norm(result)
        return result

    def fold(self) -> None:
        """Put frozen statistics into the convolution's weights."""
        if isinstance(self.norm, FrozenNorm):
            fold_norm(self.convolution, self.norm)
            self.norm = None


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


class ResnetGenerator(Generator):
    """See the module.

    Args:
        channels: width on the fine grid; the residual blocks are four times as wide.
        blocks: residual blocks (9; CycleGAN's rule for patches up to 128 voxels is 6).
        scale: fine voxels per coarse voxel; 1 for a network from a grid to itself, without interpolation.
        norm: ``instance`` as CycleGAN trains, ``frozen`` for exact tiles, or ``none``.
        dropout_rate: by channel after each block's first ReLU (CycleGAN's place, where it drops single values), in the
            last ``dropout_blocks`` blocks.
        dropout_blocks: how many of the last blocks have dropout.
    """

    interpolation_kernels: Tensor

    def __init__(
        self,
        *,
        channels: int = 64,
        blocks: int = 9,
        scale: int = 8,
        norm: Norm = "instance",
        dropout_rate: float = 0.0,
        dropout_blocks: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout_blocks <= blocks:
            raise ValueError(f"dropout_blocks is {dropout_blocks} of {blocks}")
        if scale < 1 or (scale > 2 and scale % STRIDE):
            raise ValueError(f"scale is {scale}")
        self.scale = scale
        self.align = max(1, STRIDE // scale)
        self.whole_slice_only = norm == "instance"
        self.smallest = EncodedBlocks.smallest(scale)
        self.dropout_rate = dropout_rate
        self.dropout_channels = (channels * STRIDE,) * dropout_blocks
        self.dropout_blocks = dropout_blocks
        self.body = EncodedBlocks(channels, blocks, norm)
        self.tail = reflecting(channels, 1, 7)
        reach: float = self.body.reach + 3
        if scale > 1:  # the cubic kernel's two coarse voxels on the far side of the outermost fine voxel
            reach = 1 + math.ceil((reach - 0.5) / scale + 0.5)
        self.halo = whole_halo(reach, self.align)
        if scale > 1:
            self.register_buffer("interpolation_kernels", torch.from_numpy(phase_kernels(scale)), persistent=False)

    def interpolate(self, coarse: Tensor) -> Tensor:
        """The coarse image ``(b, 1, rows, columns)`` on the fine grid, by cubic interpolation."""
        if self.scale == 1:
            return coarse
        padded = functional.pad(coarse, (REACH,) * 4, mode="replicate")
        with torch.autocast(coarse.device.type, enabled=False):  # the interpolated image is a target of the cycle too
            phases = functional.conv2d(padded, self.interpolation_kernels.to(coarse.dtype))
        return functional.pixel_shuffle(phases, self.scale)

    def on_fine_grid(self, image: Tensor) -> Tensor:
        """The network on an image that is on the fine grid already: no interpolation. In training dropout is drawn."""
        masks = self._training_masks(image) if self.training and self.dropout_rate > 0 else None
        rows, columns = image.shape[-2:]
        features = self.body.before(aligned(image, STRIDE), self.dropout_blocks)
        return self._finished(features, masks)[..., :rows, :columns]

    def prefix(self, tile: Tensor, border: Border) -> tuple[Tensor, ...]:
        """Features before the first block that has dropout, and the tile for its size."""
        fine = self.interpolate(aligned(tile[:, :1], self.align))
        return self.body.before(fine.to(self.tail.weight.dtype), self.dropout_blocks), tile

    def suffix(self, state: tuple[Tensor, ...], border: Border, masks: Masks | None) -> Tensor:
        """The fine image of the tile without its halo."""
        features, tile = state
        size = (tile.shape[-2], tile.shape[-1])
        return without_context(self._finished(features, masks), size, border, self.halo, self.scale)

    def fold(self) -> None:
        """Fold frozen statistics into the convolutions."""
        for layer in normalised_layers(self):
            layer.fold()

    def _finished(self, features: Tensor, masks: Masks | None) -> Tensor:
        return torch.tanh(self.tail(self.body.after(features, masks, self.dropout_blocks)).float())


def normalised_layers(network: nn.Module) -> Iterable[NormalisedLayer]:
    """Every convolution that a norm follows, in the order in which they were made."""
    return (module for module in network.modules() if isinstance(module, NormalisedLayer))
