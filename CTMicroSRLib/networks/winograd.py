"""3x3 convolution of wide layers by Winograd's minimal filtering, for training on a CPU.

Lavin and Gray (Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.3): F(4x4, 3x3) makes 4 x 4
results of 6 x 6 inputs with 36 products instead of 144. The same sums to rounding: about 1e-5 of the largest value. A
GPU's library does so by itself; torch's on a CPU does not, and most of the training time of CycleGAN and its
descendants goes into such layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

TILE = 4
"""Rows and columns of results that are made together."""

_SPAN = TILE + 2
_POINTS = _SPAN**2
_ONES = 7
"""The product that goes into every result with factor 1."""

LEAST_CHANNELS = 128
"""With fewer, transforming the features takes as long as it saves."""

TILES_AT_ONCE = 128
"""Few enough that their transformed features stay in the cache."""

_INPUTS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_WEIGHTS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_RESULTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


class WideConvolution(nn.Conv2d):
    """A 3x3 convolution of stride 1, padded or not: torch's, but for training on a CPU, where it is worth it."""

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(b, o, rows, columns)``."""
        if not fits(features, self):
            return super().forward(features)
        assert self.bias is not None
        return convolve_padded(self._padded(features), self.weight, self.bias)

    def _padded(self, features: Tensor) -> Tensor:
        if self.padding == (0, 0):
            return features
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(features, (1, 1, 1, 1), mode)


def fits(features: Tensor, layer: nn.Conv2d) -> bool:
    """Whether a convolution is better done here.

    In training, on a CPU, in float32, with a bias, of wide layers, onto whole tiles. Without gradients torch's own
    convolution stays: what a model makes of a voxel must not depend on where a tile begins.
    """
    border = layer.padding[0] if isinstance(layer.padding, tuple) else -1
    made = [size + 2 * border - 2 for size in features.shape[-2:]]
    return (
        torch.is_grad_enabled()
        and layer.weight.device.type == "cpu"
        and features.dtype == layer.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding in ((0, 0), (1, 1))
        and layer.bias is not None
        and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS
        and all(size > 0 and size % TILE == 0 for size in made)
    )


def convolve_padded(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Cross-correlation as torch's ``conv2d``.

    Args:
        padded: float32 ``(b, c, rows + 2, columns + 2)``, rows and columns multiples of 4.
        weight: ``(o, c, 3, 3)``.
        bias: ``(o,)``.

    Returns:
        ``(b, o, rows, columns)``, channels last.
    """
    result: Tensor = _Convolution.apply(padded, weight, bias)  # type: ignore[no-untyped-call]
    return result


class _Convolution(torch.autograd.Function):
    """Images are ``(b, rows, columns, c)`` in here; a strip is some rows of tiles of one of them."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ANN401 - torch's context has no public type
        ctx.save_for_backward(padded, weight)
        images, filters = _channels_last(padded), _to_points(weight)
        batch, rows, columns, _ = images.shape
        # Not returned as a view, which a custom function's caller may not change in place (``relu(inplace=True)``).
        shape, kind = (batch, len(weight), rows - 2, columns - 2), torch.channels_last
        result = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=kind)
        made_last = result.permute(0, 2, 3, 1)
        for image, first, last in _strips(images):
            products = torch.bmm(_inputs_to_points(images[image], first, last), filters)
            products[_ONES] += bias
            made = _transformed(_RESULTS, products.view(_POINTS, -1))
            _tiles(made_last[image], first, last).copy_(made.view(TILE, TILE, last - first, -1, len(weight)))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        padded, weight = ctx.saved_tensors
        images, filters, gradients = _channels_last(padded), _to_points(weight), _channels_last(gradient)
        for_input, for_weight, for_bias = ctx.needs_input_grad
        from_input = _without_borders(images) if for_input else None
        from_filters = torch.zeros_like(filters)
        for image, first, last in reversed([*_strips(images)]):  # what a strip shares with the next is added to it
            tiles = _tiles(gradients[image], first, last)
            products = _transformed(_RESULTS.T, tiles.reshape(TILE**2, -1)).view(_POINTS, -1, len(weight))
            if for_weight:
                points = _inputs_to_points(images[image], first, last)
                torch.baddbmm(from_filters, points.transpose(1, 2), products, out=from_filters)
            if from_input is not None:
                spread = _transformed(_INPUTS.T, torch.bmm(products, filters.transpose(1, 2)).view(_POINTS, -1))
                _add_spans(from_input[image], first, last, spread)
        return (
            None if from_input is None else from_input.permute(0, 3, 1, 2),
            _from_points(from_filters, weight) if for_weight else None,
            gradient.sum(dim=(0, 2, 3)) if for_bias else None,
        )


def _channels_last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).contiguous()


def _transformed(matrix: np.ndarray[Any, Any], values: Tensor) -> Tensor:
    """A matrix ``(p, q)`` applied to rows and columns of ``(q * q, n)``: ``(p * p, n)``."""
    factors = torch.from_numpy(matrix.astype(np.float32))
    made, seen = factors.shape
    rows = torch.mm(factors, values.reshape(seen, -1)).view(made, seen, -1)
    return torch.bmm(factors.expand(made, made, seen), rows).view(made * made, -1)


def _to_points(weight: Tensor) -> Tensor:
    """Weights ``(o, c, 3, 3)`` as 36 matrices ``(c, o)``."""
    outputs, inputs = weight.shape[:2]
    flat = weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
    return _transformed(_WEIGHTS, flat).view(_POINTS, inputs, outputs)


def _from_points(matrices: Tensor, weight: Tensor) -> Tensor:
    """The reverse, for gradients."""
    outputs, inputs = weight.shape[:2]
    flat = _transformed(_WEIGHTS.T, matrices.view(_POINTS, -1))
    return flat.view(3, 3, inputs, outputs).permute(3, 2, 0, 1).contiguous()


def _strips(images: Tensor) -> Iterator[tuple[int, int, int]]:
    """Number of the image, first row of tiles and the one after the last."""
    batch, rows, columns, _ = images.shape
    tile_rows, step = (rows - 2) // TILE, max(1, TILES_AT_ONCE // ((columns - 2) // TILE))
    for image in range(batch):
        for first in range(0, tile_rows, step):
            yield image, first, min(first + step, tile_rows)


def _windows(image: Tensor, first: int, last: int, size: tuple[int, int], start: tuple[int, int] = (0, 0)) -> Tensor:
    """View ``size + (tile rows, tile columns, c)`` of an image's windows, one every 4 rows and columns."""
    columns, (row, column, _) = image.shape[1] // TILE, image.stride()
    return image.as_strided(
        (*size, last - first, columns, image.shape[2]),
        (row, column, TILE * row, TILE * column, 1),
        image.storage_offset() + (TILE * first + start[0]) * row + start[1] * column,
    )


def _tiles(image: Tensor, first: int, last: int) -> Tensor:
    return _windows(image, first, last, (TILE, TILE))


def _inputs_to_points(padded: Tensor, first: int, last: int) -> Tensor:
    """``(36, tiles, c)``."""
    spans = _windows(padded, first, last, (_SPAN, _SPAN))
    return _transformed(_INPUTS, spans.reshape(_POINTS, -1)).view(_POINTS, -1, padded.shape[2])


def _without_borders(images: Tensor) -> Tensor:
    """Memory of the images' size in which what lies below and to the right of all tiles is 0."""
    made = torch.empty_like(images)
    made[:, -2:].zero_()
    made[:, :, -2:].zero_()
    return made


def _add_spans(padded: Tensor, first: int, last: int, spread: Tensor) -> None:
    """Put ``(36, tiles * c)`` into a padded image from the bottom up; two rows and columns of each span are shared."""
    spans = spread.view(_SPAN, _SPAN, last - first, -1, padded.shape[2])
    own, shared = slice(0, TILE), slice(TILE, _SPAN)
    for rows, columns in ((own, own), (own, shared), (shared, own), (shared, shared)):
        part = spans[rows, columns]
        place = _windows(padded, first, last, (len(part), part.shape[1]), (rows.start, columns.start))
        if rows is columns is own:
            place.copy_(part)
        else:
            place.add_(part)
