"""Against the pattern that one pixel shuffle can print: all voxels of a phase darker or brighter than the others."""

from __future__ import annotations

from torch import Tensor


def grid_power(difference: Tensor, scale: int) -> Tensor:
    """Power of the part of a difference that repeats every ``scale`` voxels.

    The mean over the batch of each of the ``scale^2`` phases, and of these means the variance: 0 where result and
    truth agree at every phase but for one constant.

    Args:
        difference: result minus truth, ``(b, 1, rows * scale, columns * scale)``.
        scale: fine voxels per coarse voxel.
    """
    batch, channels, rows, columns = difference.shape
    blocks = difference.view(batch, channels, rows // scale, scale, columns // scale, scale)
    return blocks.mean(dim=(0, 1, 2, 4)).var(correction=0)
