"""Exact tiles of networks that pad every layer: run them on the tile with its halo, then cut the halo off.

A network with strides sees an image on grids that must lie on the same voxels for a tile as for the whole image:
tiles start at multiples of the alignment, and are padded at the bottom and the right to a multiple of it, as the
whole image is. What padding on inner sides changes reaches no further than the receptive field and is cut off.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.networks.generator import Border, Generator, Masks


def whole_halo(reach: float, align: int) -> int:
    """The smallest halo in coarse voxels, a multiple of ``align``, that is at least the network's reach."""
    steps = -int(-reach // align)
    return steps * align


def aligned(tile: Tensor, align: int) -> Tensor:
    """The tile with its last row and column repeated up to multiples of ``align``."""
    below, right = (-size % align for size in tile.shape[-2:])
    return functional.pad(tile, (0, right, 0, below), mode="replicate") if below or right else tile


def without_context(fine: Tensor, size: tuple[int, int], border: Border, halo: int, scale: int) -> Tensor:
    """The fine image of a tile of ``size`` coarse voxels without :func:`aligned`'s padding and without its halo."""
    rows, columns = (edge * scale for edge in size)
    left, right, top, bottom = (0 if side else halo * scale for side in border)
    return fine[..., top : rows - bottom, left : columns - right]


def run_with_context(
    function: Callable[[Tensor], Tensor], tile: Tensor, border: Border, halo: int, scale: int, align: int = 1
) -> Tensor:
    """``function`` of a tile, as it is within ``function`` of the whole image.

    Args:
        function: from ``(b, c, rows, columns)`` to ``(b, c', rows * scale, columns * scale)``, with rows and columns
            multiples of ``align``.
        tile: the tile with its halo on inner sides; it starts at a multiple of ``align`` of the image.
        border: which sides are the image's own border.
        halo: coarse voxels of context on inner sides: a multiple of ``align``, at least the function's reach.
        scale: fine voxels per coarse voxel.
        align: coarse voxels between the positions at which the function's strides agree.

    Returns:
        ``(b, c', rows' * scale, columns' * scale)``, rows' and columns' without the halo.
    """
    size = (tile.shape[-2], tile.shape[-1])
    return without_context(function(aligned(tile, align)), size, border, halo, scale)


class PaddingGenerator(Generator):
    """A generator that pads every layer and has no dropout: all of it runs on the tile with its halo.

    Attributes:
        align: coarse voxels between the positions at which its strides agree.
    """

    align: int = 1

    @abstractmethod
    def fine_image(self, tile: Tensor) -> Tensor:
        """``(b, 1, rows * scale, columns * scale)`` of a tile whose rows and columns are multiples of ``align``."""

    def prefix(self, tile: Tensor, border: Border) -> tuple[Tensor, ...]:
        """The tile itself: there is no dropout."""
        return (tile,)

    def suffix(self, state: tuple[Tensor, ...], border: Border, masks: Masks | None) -> Tensor:
        """The fine image, cropped to the tile without its halo."""
        (tile,) = state
        return run_with_context(self.fine_image, tile, border, self.halo, self.scale, self.align)
