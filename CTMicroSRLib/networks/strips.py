"""Up-stages on some rows at a time: few enough that their features stay small beside the image they make."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from CTMicroSRLib.networks.generator import Border

STRIP_ROWS = 16
"""Coarse rows of a strip."""


def in_strips(
    enlarge: Callable[[Tensor, Border], Tensor], features: Tensor, border: Border, scale: int, consumed: int
) -> Tensor:
    """What ``enlarge`` makes of the features, computed in strips of coarse rows where no gradient is wanted.

    Args:
        enlarge: from ``(b, c, rows, columns)`` to an image ``scale`` times finer, less ``consumed`` fine voxels on
            inner sides; on the image's own border it pads.
        features: ``(b, c, rows, columns)``, on the coarse grid.
        border: which sides are the image's own.
        scale: of ``enlarge``.
        consumed: fine voxels that ``enlarge`` uses up on an inner side.

    Returns:
        The same as ``enlarge(features, border)``: neighbouring strips share the rows that ``enlarge`` consumes.
    """
    rows = features.shape[-2]
    if torch.is_grad_enabled() or rows < 2 * STRIP_ROWS:
        return enlarge(features, border)
    halo = -(-consumed // scale)
    spare = halo * scale - consumed
    strips = []
    for first, last in pairwise([*range(0, rows - STRIP_ROWS + 1, STRIP_ROWS), rows]):
        above, below = first > 0, last < rows
        part = features[..., first - halo * above : last + halo * below, :]
        image = enlarge(part, border._replace(top=border.top and not above, bottom=border.bottom and not below))
        strips.append(image[..., spare * above : image.shape[-2] - spare * below, :])
    return torch.cat(strips, dim=-2)
