"""Total variation, for smoothness (CinCGAN: Yuan et al., CVPR Workshops 2018)."""

from __future__ import annotations

from torch import Tensor


def total_variation(image: Tensor) -> Tensor:
    """Mean squared difference of neighbours along rows plus that along columns.

    The public implementations of CinCGAN and SRGAN square the differences; the paper writes the 2-norm.

    Args:
        image: ``(b, c, rows, columns)``.
    """
    down = (image[..., 1:, :] - image[..., :-1, :]).square().mean()
    across = (image[..., 1:] - image[..., :-1]).square().mean()
    return down + across
