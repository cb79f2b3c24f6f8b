"""UNIT and SR-UNIT: variational autoencoders of two domains that share their latent space (P2; Liu et al., NIPS 2017).

The paper of SR-UNIT (SPIE 2020) gives no table of layers. Layers are those of UNIT's published code: 7x7 and 4x4
convolutions, four residual blocks, instance norm in the encoders, layer norm where the decoders enlarge, ReLU, tanh;
padding is by reflection. ``interpolated`` is the original, which keeps the image's size and therefore sees cubically
interpolated clinical CT. Otherwise the latent grid is the clinical CT's own: the clinical encoder does not shrink, the
micro-CT decoder doubles by pixel shuffle, and the other direction mirrors both. The encoders' last and the decoders'
first residual blocks are one for both domains, as the NIPS paper has it (its later code has not).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.interpolation import REACH, phase_kernels
from CTMicroSRLib.networks.context import PaddingGenerator, whole_halo
from CTMicroSRLib.networks.fine_grid import onto_fine_grid
from CTMicroSRLib.networks.generator import doublings_of
from CTMicroSRLib.networks.norms import VARIANCE_EPSILON, FoldingLayer, FrozenNorm, Norm, make_norm
from CTMicroSRLib.networks.winograd import WideConvolution

Enlarging = Literal["nearest", "shuffle"]

WIDEST = 4
"""The latent code has this many times the first layer's channels."""


class LayerNorm(nn.Module):
    """(x - mean) / std over channels, rows and columns of each image, then a factor and an offset by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features."""
        return functional.group_norm(features, 1, self.weight, self.bias, VARIANCE_EPSILON)


class FrozenLayerNorm(FrozenNorm):
    """A :class:`LayerNorm` with statistics measured once, one mean and one variance for all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(1)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features."""
        return super().forward(features) * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def fold_into(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
        """Put statistics, factors and offsets into the weights of the convolution before this norm."""
        super().fold_into(convolution)
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        with torch.no_grad():
            convolution.weight.mul_(self.weight.view(-1, 1, 1, 1))
            convolution.bias.mul_(self.weight).add_(self.bias)

    @staticmethod
    def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each image's features, averaged over the images, ``(1,)`` each, float64."""
        variance, mean = torch.var_mean(features.double(), dim=(1, 2, 3), correction=0)
        return mean.mean(dim=0, keepdim=True), variance.mean(dim=0, keepdim=True)


def make_layer_norm(norm: Norm, channels: int) -> nn.Module | None:
    """The layer norm that goes with instance norms of a kind; None for ``none``."""
    if norm == "none":
        return None
    return LayerNorm(channels) if norm == "instance" else FrozenLayerNorm(channels)


class Convolution(FoldingLayer):
    """Reflection, convolution, norm; an even kernel halves."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: nn.Module | None) -> None:
        kind = WideConvolution if kernel == 3 else nn.Conv2d
        super().__init__(kind(inputs, outputs, kernel, stride=2 - kernel % 2), norm)
        self.padding = (kernel - 1) // 2

    def forward(self, features: Tensor) -> Tensor:
        """``(b, outputs, rows, columns)``, half of both for an even kernel."""
        return self.normalised(functional.pad(features, (self.padding,) * 4, mode="reflect"))


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, 3, make_norm(norm, channels))
        self.second = Convolution(channels, channels, 3, make_norm(norm, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same size."""
        result: Tensor = features + self.second(functional.relu(self.first(features)))
        return result


class Encoder(nn.Module):
    """An image to the latent code's features before the shared block.

    Args:
        channels: of the first layer; the latent code has four times as many.
        halvings: how often the image is halved. There are at least two middle convolutions, of stride 1 where they
            don't halve.
        blocks: residual blocks.
        norm: see :class:`UnitGenerator`.
    """

    def __init__(self, channels: int, halvings: int, blocks: int, norm: Norm) -> None:
        super().__init__()
        count = max(2, halvings)
        widths = [channels * min(2**n, WIDEST) for n in range(count + 1)]
        kernels = [7] + [4 if n < halvings else 3 for n in range(count)]
        self.layers = nn.ModuleList(
            Convolution(a, b, kernel, make_norm(norm, b))
            for a, b, kernel in zip([1, *widths[:-1]], widths, kernels, strict=True)
        )
        self.blocks = nn.ModuleList(ResidualBlock(widths[-1], norm) for _ in range(blocks))

    def forward(self, image: Tensor) -> Tensor:
        """``(b, 4 * channels, rows / 2^halvings, columns / 2^halvings)``."""
        features = image.to(next(self.parameters()).dtype)
        for layer in self.layers:
            features = functional.relu(layer(features))
        for block in self.blocks:
            features = block(features)
        return features


class Decoder(nn.Module):
    """The latent code after the shared block to an image in [-1, 1].

    Args:
        channels: see :class:`Encoder`.
        doublings: how often the image is doubled. There are at least two convolutions, the first ones of which don't
            double where there are fewer doublings.
        blocks: residual blocks.
        norm: see :class:`UnitGenerator`.
        enlarging: ``nearest`` repeats voxels before a 5x5 convolution, as UNIT does; ``shuffle`` moves channels to
            voxels after a 3x3 convolution.
    """

    def __init__(self, channels: int, doublings: int, blocks: int, norm: Norm, enlarging: Enlarging) -> None:
        super().__init__()
        count = max(2, doublings)
        widths = [WIDEST * channels // 2**n for n in range(count + 1)]
        if widths[-1] < 1:
            raise ValueError(f"{channels} channels can't be halved {count} times")
        kernel, more = (5, 1) if enlarging == "nearest" else (3, 4)
        self.blocks = nn.ModuleList(ResidualBlock(widths[0], norm) for _ in range(blocks))
        self.doubles = [n >= count - doublings for n in range(count)]
        self.enlarging = enlarging
        self.layers = nn.ModuleList(
            Convolution(a, outputs, kernel, make_layer_norm(norm, outputs))
            for a, outputs in (
                (a, b * more if doubles else b)
                for a, b, doubles in zip(widths[:-1], widths[1:], self.doubles, strict=True)
            )
        )
        self.tail = Convolution(widths[-1], 1, 7, None)

    def forward(self, features: Tensor) -> Tensor:
        """``(b, 1, rows * 2^doublings, columns * 2^doublings)``."""
        for block in self.blocks:
            features = block(features)
        for layer, doubles in zip(self.layers, self.doubles, strict=True):
            if doubles and self.enlarging == "nearest":
                features = functional.interpolate(features, scale_factor=2, mode="nearest")
            features = layer(features)
            if doubles and self.enlarging == "shuffle":
                features = functional.pixel_shuffle(features, 2)
            features = functional.relu(features)
        return torch.tanh(self.tail(features).float())


def sampled(mean: Tensor) -> Tensor:
    """A latent code drawn from N(mean, I), as both autoencoders do in training."""
    return mean + torch.randn_like(mean)


class UnitGenerator(PaddingGenerator):
    """Clinical CT to micro-CT: the clinical encoder, the two shared blocks, the micro-CT decoder.

    In training the latent code is drawn from N(mean, I); otherwise it is the mean.

    Args:
        channels: of the first layer (64); the latent code has four times as many.
        blocks: residual blocks of encoder and of decoder, the shared one included (4).
        scale: fine voxels per coarse voxel, a power of two.
        norm: ``instance`` to train with (layer norm in the decoder's last convolutions), ``frozen`` for exact tiles,
            or ``none``.
        interpolated: the original UNIT on cubically interpolated input; else SR-UNIT.
    """

    kernels: Tensor

    def __init__(
        self,
        *,
        channels: int = 64,
        blocks: int = 4,
        scale: int = 8,
        norm: Norm = "instance",
        interpolated: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(channels, blocks)
        doublings = doublings_of(scale)
        self.scale = scale
        self.interpolated = interpolated
        self.whole_slice_only = norm == "instance"
        halvings, doublings = (2, 2) if interpolated else (0, doublings)
        self.encoder = Encoder(channels, halvings, blocks - 1, norm)
        self.encoder_last = ResidualBlock(WIDEST * channels, norm)
        self.decoder_first = ResidualBlock(WIDEST * channels, norm)
        self.decoder = Decoder(channels, doublings, blocks - 1, norm, "nearest" if interpolated else "shuffle")
        self.align = max(1, 4 // scale) if interpolated else 1
        self.smallest = -(-8 // scale) if interpolated else 4  # reflection: 3 voxels before a 7x7, 1 of the latent code
        self.halo = self._halo(blocks, doublings)
        if interpolated:
            self.register_buffer("kernels", torch.from_numpy(phase_kernels(scale)), persistent=False)

    def _halo(self, blocks: int, doublings: int) -> int:
        """The receptive field's reach in coarse voxels, rounded up to what the strides ask for."""
        if self.interpolated:  # in fine voxels: 7x7, two of stride 2, blocks, two repeats with 5x5, 7x7
            fine = 3 + (2 + 4) + 4 * 4 * blocks + (3 + 4) + (1 + 2) + 3
            return whole_halo(REACH + fine / self.scale, self.align)
        plain = max(2, doublings) - doublings
        up = sum(0.5**n for n in range(doublings))
        return whole_halo(3 + 2 + 4 * blocks + plain + up + 3 / self.scale, 1)

    def own_grid(self, tile: Tensor) -> Tensor:
        """The image that the encoder sees: of a coarse tile ``(b, 1, rows, columns)``, interpolated where it is."""
        image = tile[:, :1]
        return onto_fine_grid(image, self.kernels, self.scale) if self.interpolated else image

    def encode(self, image: Tensor) -> Tensor:
        """Mean of the latent code ``(b, 4 * channels, r, c)`` of a clinical image on its :meth:`own_grid`."""
        mean: Tensor = self.encoder_last(self.encoder(image))
        return mean

    def decode(self, latent: Tensor) -> Tensor:
        """Micro-CT ``(b, 1, rows, columns)`` of a latent code."""
        image: Tensor = self.decoder(self.decoder_first(latent))
        return image

    def fine_image(self, tile: Tensor) -> Tensor:
        """There through the latent code, float32."""
        mean = self.encode(self.own_grid(tile))
        return self.decode(sampled(mean) if self.training else mean)


class UnitReverse(nn.Module):
    """Micro-CT to clinical CT, for training only: the micro-CT encoder and the clinical decoder.

    The blocks next to the latent code are the partner's where they are shared. They are handed in with each call, so
    that they have one owner, and one place in a checkpoint.

    Args:
        channels: see :class:`UnitGenerator`, as the other arguments.
        blocks: residual blocks, shared ones included.
        scale: fine voxels per coarse voxel.
        norm: see :class:`UnitGenerator`.
        interpolated: of the same size on both sides; else the encoder shrinks to the coarse grid.
        shared: without own blocks next to the latent code.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        blocks: int = 4,
        scale: int = 8,
        norm: Norm = "instance",
        interpolated: bool = False,
        shared: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(channels, blocks)
        halvings, doublings = (2, 2) if interpolated else (doublings_of(scale), 0)
        self.encoder = Encoder(channels, halvings, blocks - 1, norm)
        self.encoder_last = None if shared else ResidualBlock(WIDEST * channels, norm)
        self.decoder_first = None if shared else ResidualBlock(WIDEST * channels, norm)
        self.decoder = Decoder(channels, doublings, blocks - 1, norm, "nearest" if interpolated else "shuffle")

    def encode(self, image: Tensor, partner: UnitGenerator) -> Tensor:
        """Mean of the latent code of a micro-CT image ``(b, 1, rows, columns)``."""
        last = partner.encoder_last if self.encoder_last is None else self.encoder_last
        mean: Tensor = last(self.encoder(image))
        return mean

    def decode(self, latent: Tensor, partner: UnitGenerator) -> Tensor:
        """Clinical CT of a latent code, on the grid that the partner's encoder sees."""
        first = partner.decoder_first if self.decoder_first is None else self.decoder_first
        image: Tensor = self.decoder(first(latent))
        return image


def _check_sizes(channels: int, blocks: int) -> None:
    if channels < 1 or blocks < 1:
        raise ValueError(f"{channels} channels and {blocks} blocks (the last of them is shared) are too few")
