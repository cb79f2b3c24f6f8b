"""Cubic interpolation onto a grid that is a whole factor finer, as a small convolution.

Fine voxel n of a coarse voxel sits at (n + 1/2) / scale - 1/2 coarse voxels from its centre. Each of the
scale x scale positions ("phases") has its own fixed weights over the neighbouring coarse voxels, so the
interpolated slice is one convolution with scale^2 output channels followed by a pixel shuffle.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KEYS_A = -0.5
"""Keys' parameter of the cubic kernel (IEEE Trans ASSP 1981): third-order accurate."""

REACH = 2
"""Coarse voxels on each side that an interpolated voxel depends on (at the image border: edge value)."""


def cubic_kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel at a distance in coarse voxels."""
    t = np.abs(distance)
    near = (KEYS_A + 2.0) * t**3 - (KEYS_A + 3.0) * t**2 + 1.0
    far = KEYS_A * t**3 - 5.0 * KEYS_A * t**2 + 8.0 * KEYS_A * t - 4.0 * KEYS_A
    return np.where(t <= 1.0, near, np.where(t < 2.0, far, 0.0))


def phase_weights(scale: int) -> NDArray[np.float64]:
    """Weights of one axis, shape ``(scale, 2 * REACH + 1)``: row n makes fine voxel n; rows sum to 1."""
    position = (np.arange(scale) + 0.5) / scale - 0.5
    offsets = np.arange(-REACH, REACH + 1)
    return cubic_kernel(offsets[None, :] - position[:, None])


def phase_kernels(scale: int) -> NDArray[np.float32]:
    """Convolution weights of both axes, shape ``(scale * scale, 1, 5, 5)``, in pixel-shuffle order."""
    one = phase_weights(scale)
    both = np.einsum("ax,by->abxy", one, one).reshape(scale * scale, 1, 2 * REACH + 1, 2 * REACH + 1)
    return np.asarray(both, dtype=np.float32)
