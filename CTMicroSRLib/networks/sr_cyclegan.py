"""The generator of SR-CycleGAN, clinical CT to micro-CT (Zheng et al., J Med Imaging 2022, G1).

Layer by layer as in the authors' published code, whose parameter count it has (802,222): 7x7 and 3x3
kernels, nine residual blocks of 64 channels, three times convolution, norm, pixel shuffle by 2, PReLU,
and a 7x7 convolution with tanh; instance norm without affine parameters, convolutions with bias.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.generator import Border, Generator, Masks, apply_mask, pad_border, shrink
from CTMicroSRLib.networks.norms import FoldingLayer, Norm, make_norm
from CTMicroSRLib.networks.strips import in_strips


class NormalisedConvolution(FoldingLayer):
    """Padding on the image's border, convolution, norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        norm: Norm,
        padding: Literal["reflect", "constant"] = "reflect",
    ) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, kernel), make_norm(norm, outputs))
        self.padding = padding
        self.reach = kernel // 2

    def forward(self, features: Tensor, border: Border) -> Tensor:
        """Features, smaller by the kernel's reach on inner sides."""
        return self.normalised(pad_border(features, border, self.reach, self.padding))


class ResidualBlock(nn.Module):
    """x + norm(conv(dropout(relu(norm(conv(x)))))), reflect-padded 3x3."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = NormalisedConvolution(channels, channels, 3, norm)
        self.second = NormalisedConvolution(channels, channels, 3, norm)

    def forward(self, features: Tensor, border: Border, masks: Masks | None = None, index: int = 0) -> Tensor:
        """Features with two voxels less on inner sides."""
        inner = apply_mask(functional.relu(self.first(features, border), inplace=True), masks, index)
        result: Tensor = shrink(features, border, 2) + self.second(inner, border)
        return result


class UpStage(nn.Module):
    """Convolution to twice the channels, norm, pixel shuffle by 2 (half the channels), PReLU."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.convolution = NormalisedConvolution(channels, 2 * channels, 3, norm, padding="constant")
        self.activation = nn.PReLU()

    def forward(self, features: Tensor, border: Border) -> Tensor:
        """Features at twice the resolution."""
        result: Tensor = self.activation(functional.pixel_shuffle(self.convolution(features, border), 2))
        return result


class ClinicalToMicroGenerator(Generator):
    """See the module.

    Args:
        channels: width of the trunk (64 in the paper).
        blocks: residual blocks (9).
        doublings: up-stages; the scale is 2 to that power (3).
        first_kernel: edge of the first convolution's kernel (7 in the code, whose parameter count is the paper's; 3 in
            the paper's Fig 15).
        middle_kernel: edge of the kernel after the residual blocks (3 in the code, 7 in Fig 15).
        norm: ``instance`` as trained by the authors, ``frozen`` for exact tiles, or ``none``.
        dropout_rate: by channel after each block's first ReLU, in the last ``dropout_blocks`` blocks.
        dropout_blocks: how many of the last blocks have dropout.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        blocks: int = 9,
        doublings: int = 3,
        first_kernel: int = 7,
        middle_kernel: int = 3,
        norm: Norm = "instance",
        dropout_rate: float = 0.0,
        dropout_blocks: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout_blocks <= blocks:
            raise ValueError(f"dropout_blocks is {dropout_blocks} of {blocks}")
        if not all(kernel % 2 == 1 and kernel > 0 for kernel in (first_kernel, middle_kernel)):
            raise ValueError(f"the kernels {first_kernel} and {middle_kernel} are not odd")
        self.smallest = max(first_kernel // 2, middle_kernel // 2, 3) + 1  # reflecting three voxels needs four
        self.scale = 2**doublings
        self.whole_slice_only = norm == "instance"
        self.dropout_rate = dropout_rate
        self.dropout_channels = (channels,) * dropout_blocks
        self.head = NormalisedConvolution(1, channels, first_kernel, norm)
        self.head_activation = nn.PReLU()
        self.blocks = nn.ModuleList(ResidualBlock(channels, norm) for _ in range(blocks))
        self.middle = NormalisedConvolution(channels, channels, middle_kernel, norm)
        self.middle_activation = nn.PReLU()
        widths = [channels // 2**n for n in range(doublings)]
        self.up = nn.ModuleList(UpStage(width, norm) for width in widths)
        self.tail = nn.Conv2d(channels // self.scale, 1, 7)
        self.dropout_blocks = dropout_blocks
        self.trunk_reach = self.head.reach + 2 * blocks + self.middle.reach
        self.halo = self.trunk_reach - (-self._consumed_above // self.scale)  # rounded up

    def prefix(self, tile: Tensor, border: Border) -> tuple[Tensor, ...]:
        """Features before the first block that has dropout."""
        features = self.head_activation(self.head(tile[:, :1].to(self.tail.weight.dtype), border))
        for block in self.blocks[: len(self.blocks) - self.dropout_blocks]:
            features = block(features, border)
        return (features,)

    def suffix(self, state: tuple[Tensor, ...], border: Border, masks: Masks | None) -> Tensor:
        """The fine image, cropped to the tile without its halo."""
        (features,) = state
        for index, block in enumerate(self.blocks[len(self.blocks) - self.dropout_blocks :]):
            features = block(features, border, masks, index)
        features = self.middle_activation(self.middle(features, border))
        if self.whole_slice_only:
            image = self._enlarge(features, border)
        else:
            image = in_strips(self._enlarge, features, border, self.scale, self._consumed_above)
        return shrink(image, border, self._spare)

    def _enlarge(self, features: Tensor, border: Border) -> Tensor:
        """Up-stages and tail: the fine image of the trunk's features."""
        for stage in self.up:
            features = stage(features, border)
        return torch.tanh(self.tail(pad_border(features, border, 3, "reflect")).float())

    @property
    def _consumed_above(self) -> int:
        """Fine voxels that up-stages and tail consume on an inner side."""
        return sum(self.scale >> n for n in range(len(self.up))) + 3

    @property
    def _spare(self) -> int:
        """Fine voxels that the rounding of the halo leaves on an inner side."""
        return (self.halo - self.trunk_reach) * self.scale - self._consumed_above
