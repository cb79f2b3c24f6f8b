"""What every generator offers the engine: exact tiles, and passes under dropout that share their start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.norms import fold_norms


class Border(NamedTuple):
    """Which sides of a tile are the image's own border; the others carry the halo as context."""

    left: bool = True
    right: bool = True
    top: bool = True
    bottom: bool = True


WHOLE = Border()
"""A tile that is the whole image."""

Masks: TypeAlias = Sequence[Tensor]
"""One vector of channel factors (0 or 1 / (1 - p)) for every dropout layer, in order."""


class Generator(nn.Module, ABC):
    """A network that makes a finer image of a tile.

    A tile is ``(batch, channels, rows, columns)``: normalised intensities first, then the constant
    planes that the model's card asks for. On sides that are not the image's border the tile carries
    ``halo`` coarse voxels of context, which the layers consume instead of padding: a tile's result is
    then the whole image's, at no more work than the halo itself.

    Attributes:
        scale: fine voxels per coarse voxel along each in-plane axis.
        halo: context in coarse voxels on each inner side.
        whole_slice_only: True where a layer looks at the whole image (instance norm), so that tiles
            can't be exact and the engine runs whole slices.
        planes: constant planes that follow the image in a tile.
        smallest: rows and columns an image must have at least.
        dropout_channels: number of channels at each dropout layer.
        dropout_rate: their probability of being dropped.
    """

    scale: int
    halo: int
    whole_slice_only: bool = False
    smallest: int = 1
    planes: int = 0
    dropout_channels: tuple[int, ...] = ()
    dropout_rate: float = 0.0

    @abstractmethod
    def prefix(self, tile: Tensor, border: Border) -> tuple[Tensor, ...]:
        """The part before the first dropout layer, the same for every pass."""

    @abstractmethod
    def suffix(self, state: tuple[Tensor, ...], border: Border, masks: Masks | None) -> Tensor:
        """The rest, with dropout by channel where masks are given; see :meth:`to_image` for its layout."""

    def to_image(self, output: Tensor) -> Tensor:
        """What :meth:`suffix` returns as an image ``(batch, 1, rows * scale, columns * scale)``.

        The suffix may leave its result as ``scale^2`` phases per coarse voxel, so that statistics over
        passes are gathered before the shuffle.
        """
        return functional.pixel_shuffle(output, self.scale) if output.shape[1] > 1 else output

    def forward(self, tile: Tensor, border: Border = WHOLE) -> Tensor:
        """Result for the tile without its halo, normalised intensities. In training dropout is drawn."""
        masks = self._training_masks(tile) if self.training and self.dropout_rate > 0 else None
        return self.to_image(self.suffix(self.prefix(tile, border), border, masks))

    def fold(self) -> None:
        """Fold norms whose statistics are fixed into the convolutions before them, for use without training."""
        fold_norms(self)

    def _training_masks(self, tile: Tensor) -> Masks:
        keep = 1.0 - self.dropout_rate
        return [
            torch.bernoulli(torch.full((len(tile), channels, 1, 1), keep, device=tile.device)) / keep
            for channels in self.dropout_channels
        ]


def doublings_of(scale: int) -> int:
    """How often to double for a scale.

    Raises:
        ValueError: the scale is not a power of two above 1.
    """
    doublings = scale.bit_length() - 1
    if scale < 2 or 2**doublings != scale:
        raise ValueError(f"scale is {scale}, not a power of 2 above 1")
    return doublings


def apply_mask(features: Tensor, masks: Masks | None, index: int) -> Tensor:
    """Multiply channels by the mask of dropout layer ``index``."""
    if masks is None:
        return features
    mask = masks[index]
    return features * (mask if mask.dim() == 4 else mask.view(1, -1, 1, 1)).to(features.dtype)


def pad_border(features: Tensor, border: Border, width: int, mode: str) -> Tensor:
    """Pad by ``width`` on the image's own border only; inner sides shrink with the convolution."""
    sides = [width if side else 0 for side in border]
    if not any(sides):
        return features
    return functional.pad(features, sides, mode=mode)


def shrink(features: Tensor, border: Border, width: int) -> Tensor:
    """Cut ``width`` from the inner sides: what a convolution of that reach leaves of its input."""
    rows, columns = features.shape[-2:]
    left, right, top, bottom = (0 if side else width for side in border)
    return features[..., top : rows - bottom, left : columns - right]
