"""The generator of SR-CycleGAN, clinical CT to micro-CT (Zheng et al., J Med Imaging 2022, G1).

Layer by layer as in the authors' published code, whose parameter count it has (802,222): 7x7 and 3x3
kernels, nine residual blocks of 64 channels, three times convolution, norm, pixel shuffle by 2, PReLU,
and a 7x7 convolution with tanh; instance norm without affine parameters, convolutions with bias.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.generator import WHOLE, Border, Generator, Masks, apply_mask, pad_border, shrink

Norm = Literal["instance", "frozen", "none"]

VARIANCE_EPSILON = 1e-5
STRIP_ROWS = 16
"""Coarse rows that the up-stages enlarge at a time: few enough that a strip's features stay near the cache."""


class FrozenNorm(nn.Module):
    """(x - mean) / std by channel with statistics measured once; folds into the convolution before it."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features."""
        std = torch.sqrt(self.variance + VARIANCE_EPSILON)
        result: Tensor = (features - self.mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
        return result


class NormalisedConvolution(nn.Module):
    """Padding on the image's border, convolution, norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        norm: Norm,
        padding: Literal["reflect", "constant"] = "reflect",
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel)
        self.norm = make_norm(norm, outputs)
        self.padding = padding
        self.reach = kernel // 2

    def forward(self, features: Tensor, border: Border) -> Tensor:
        """Features, smaller by the kernel's reach on inner sides."""
        padded = pad_border(features, border, self.reach, self.padding)
        result: Tensor = self.convolution(padded)
        if self.norm is not None:
            result = self.norm(result)
        return result

    def fold(self) -> None:
        """Put frozen statistics into the convolution's weights."""
        if not isinstance(self.norm, FrozenNorm):
            return
        std = torch.sqrt(self.norm.variance.double() + VARIANCE_EPSILON)
        weight, bias = self.convolution.weight, self.convolution.bias
        assert bias is not None
        with torch.no_grad():
            bias.copy_((bias.double() - self.norm.mean.double()) / std)
            weight.copy_(weight.double() / std.view(-1, 1, 1, 1))
        self.norm = None


def make_norm(norm: Norm, channels: int) -> nn.Module | None:
    """The norm layer of a kind; None for ``none``."""
    if norm not in ("instance", "frozen", "none"):
        raise ValueError(f"norm is {norm!r}")
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=False, eps=VARIANCE_EPSILON)
    return FrozenNorm(channels) if norm == "frozen" else None


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
        norm: Norm = "instance",
        dropout_rate: float = 0.0,
        dropout_blocks: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout_blocks <= blocks:
            raise ValueError(f"dropout_blocks is {dropout_blocks} of {blocks}")
        self.smallest = 4  # reflecting three voxels needs four
        self.scale = 2**doublings
        self.whole_slice_only = norm == "instance"
        self.dropout_rate = dropout_rate
        self.dropout_channels = (channels,) * dropout_blocks
        self.head = NormalisedConvolution(1, channels, 7, norm)
        self.head_activation = nn.PReLU()
        self.blocks = nn.ModuleList(ResidualBlock(channels, norm) for _ in range(blocks))
        self.middle = NormalisedConvolution(channels, channels, 3, norm)
        self.middle_activation = nn.PReLU()
        widths = [channels // 2**n for n in range(doublings)]
        self.up = nn.ModuleList(UpStage(width, norm) for width in widths)
        self.tail = nn.Conv2d(channels // self.scale, 1, 7)
        self.dropout_blocks = dropout_blocks
        self.halo = self._halo(doublings, blocks)

    @staticmethod
    def _halo(doublings: int, blocks: int) -> int:
        """Coarse voxels the layers consume on an inner side, rounded up."""
        coarse = 3.0 + 2.0 * blocks + 1.0 + sum(0.5**n for n in range(doublings)) + 3.0 * 0.5**doublings
        return -int(-coarse // 1)

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
        rows = features.shape[-2]
        if self.training or self.whole_slice_only or rows < 2 * STRIP_ROWS:
            return shrink(self._enlarge(features, border), border, self._spare)
        edges = [*range(0, rows - STRIP_ROWS + 1, STRIP_ROWS), rows]
        strips = [self._strip(features, border, *edge) for edge in pairwise(edges)]
        return shrink(torch.cat(strips, dim=-2), border, self._spare)

    def _enlarge(self, features: Tensor, border: Border) -> Tensor:
        """Up-stages and tail: the fine image of the trunk's features."""
        for stage in self.up:
            features = stage(features, border)
        return torch.tanh(self.tail(pad_border(features, border, 3, "reflect")).float())

    def _strip(self, features: Tensor, border: Border, first: int, last: int) -> Tensor:
        """The fine rows of coarse rows ``first:last``: a strip at a time stays in the cache, the whole does not.

        Strips carry what the up-stages consume, so that together they are the whole.
        """
        rows = features.shape[-2]
        halo = -(-self._consumed_above // self.scale)
        spare = halo * self.scale - self._consumed_above
        inner_top, inner_bottom = first > 0, last < rows
        part = features[..., first - halo * inner_top : last + halo * inner_bottom, :]
        own = border._replace(top=border.top and not inner_top, bottom=border.bottom and not inner_bottom)
        image = self._enlarge(part, own)
        return image[..., spare * inner_top : image.shape[-2] - spare * inner_bottom, :]

    @property
    def _consumed_above(self) -> int:
        """Fine voxels that up-stages and tail consume on an inner side."""
        return sum(self.scale >> n for n in range(len(self.up))) + 3

    @property
    def _spare(self) -> int:
        """Fine voxels that the rounding of the halo leaves on an inner side."""
        used = (3 + 2 * len(self.blocks) + 1) * self.scale
        return self.halo * self.scale - used - self._consumed_above

    def fold(self) -> None:
        """Fold frozen statistics into the convolutions."""
        for layer in self.normalised_convolutions():
            layer.fold()

    def normalised_convolutions(self) -> Iterable[NormalisedConvolution]:
        """Every convolution that a norm follows, in order of the forward pass."""
        return (module for module in self.modules() if isinstance(module, NormalisedConvolution))


def freeze_norms(network: ClinicalToMicroGenerator, calibration: Iterable[Tensor]) -> ClinicalToMicroGenerator:
    """Replace instance norms by the mean of their statistics over calibration images.

    Args:
        network: a generator with instance norms; it is not changed.
        calibration: normalised images ``(1, 1, rows, columns)``, typical of what the network will see.

    Returns:
        The same weights with frozen norms, for exact tiles.
    """
    frozen = ClinicalToMicroGenerator(
        channels=network.head.convolution.out_channels,
        blocks=len(network.blocks),
        doublings=len(network.up),
        norm="frozen",
        dropout_rate=network.dropout_rate,
        dropout_blocks=network.dropout_blocks,
    )
    frozen.load_state_dict(network.state_dict(), strict=False)
    sums = {n: torch.zeros(2, c.convolution.out_channels) for n, c in enumerate(network.normalised_convolutions())}
    count = 0

    def record(index: int, output: Tensor) -> None:
        variance, mean = torch.var_mean(output, dim=(0, 2, 3), correction=0)
        sums[index] += torch.stack([mean, variance])

    handles = [
        layer.convolution.register_forward_hook(lambda _module, _input, output, n=n: record(n, output))
        for n, layer in enumerate(network.normalised_convolutions())
    ]
    with torch.inference_mode():
        for image in calibration:
            network(image, WHOLE)
            count += 1
    for handle in handles:
        handle.remove()
    for n, layer in enumerate(frozen.normalised_convolutions()):
        assert isinstance(layer.norm, FrozenNorm)
        layer.norm.mean.copy_(sums[n][0] / count)
        layer.norm.variance.copy_(sums[n][1] / count)
    return frozen.eval()
