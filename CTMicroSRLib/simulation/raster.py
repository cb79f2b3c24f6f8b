"""Drawing shapes into a block of voxels with partial volume.

A shape's coverage of a voxel is taken from its signed distance at the voxel's centre: a linear ramp
one voxel wide, exact for flat surfaces along the axes and within 3 % of a voxel's volume for any
flat surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.trees import Segments

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Voxels of a block: ``shape_kji`` and ``spacing_mm`` (x, y, z); voxel centres at (index + 1/2) spacing."""

    shape_kji: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def extent_mm(self) -> NDArray[np.float64]:
        """Edge lengths (x, y, z)."""
        return np.asarray(np.multiply(self.shape_kji[::-1], self.spacing_mm), dtype=np.float64)

    def axes_mm(self) -> tuple[Float32, Float32, Float32]:
        """Voxel centres along x, y and z."""
        x, y, z = (
            ((np.arange(n) + 0.5) * d).astype(np.float32)
            for n, d in zip(self.shape_kji[::-1], self.spacing_mm, strict=True)
        )
        return x, y, z


def coverage_from_distance(distance_mm: Float32, voxel_mm: float) -> Float32:
    """Share of each voxel inside the surface ``distance_mm == 0`` (negative inside)."""
    return np.asarray(np.clip(0.5 - distance_mm / np.float32(voxel_mm), 0.0, 1.0), dtype=np.float32)


def draw_tubes(coverage_kji: Float32, grid: Grid, segments: Segments, extra_radius_mm: Float32) -> None:
    """Add tubes to a coverage in place (the larger coverage wins).

    Args:
        coverage_kji: share of each voxel covered so far, [0, 1].
        grid: the block.
        segments: the tubes' pieces.
        extra_radius_mm: added to every piece's radius, shape ``(n,)`` (an airway's wall).
    """
    x, y, z = grid.axes_mm()
    voxel = float(min(grid.spacing_mm))
    for n in range(len(segments)):
        radii = (
            float(segments.start_radius_mm[n] + extra_radius_mm[n]),
            float(segments.end_radius_mm[n] + extra_radius_mm[n]),
        )
        start, end = segments.start_mm[n], segments.end_mm[n]
        reach = max(radii) + voxel
        low, high = np.minimum(start, end) - reach, np.maximum(start, end) + reach
        box = tuple(
            slice(*np.searchsorted(axis, (lo, hi)).tolist())
            for axis, lo, hi in zip((z, y, x), low[::-1], high[::-1], strict=True)
        )
        if any(part.start == part.stop for part in box):
            continue
        distance = _distance_to_tube(x[box[2]], y[box[1]], z[box[0]], start, end, radii)
        np.maximum(coverage_kji[box], coverage_from_distance(distance, voxel), out=coverage_kji[box])


def _distance_to_tube(
    x: Float32,
    y: Float32,
    z: Float32,
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    radii: tuple[float, float],
) -> Float32:
    """Signed distance to a tapering tube with round ends, on the box's voxel centres."""
    axis = (end - start).astype(np.float32)
    dx = x[None, None, :] - np.float32(start[0])
    dy = y[None, :, None] - np.float32(start[1])
    dz = z[:, None, None] - np.float32(start[2])
    along = (dx * axis[0] + dy * axis[1] + dz * axis[2]) / np.float32(max(float(axis @ axis), 1e-12))
    along = np.clip(along, 0.0, 1.0)
    squared = (dx - along * axis[0]) ** 2 + (dy - along * axis[1]) ** 2 + (dz - along * axis[2]) ** 2
    radius = np.float32(radii[0]) + along * np.float32(radii[1] - radii[0])
    return np.asarray(np.sqrt(squared) - radius, dtype=np.float32)


def smooth_field(rng: np.random.Generator, grid: Grid, scale_mm: float) -> Float32:
    """A random field of mean 0 and standard deviation 1 that varies over about ``scale_mm``.

    Made on a coarse grid of cubic-interpolated normal numbers, so that it costs little.
    """
    coarse = [max(2, int(np.ceil(length / scale_mm)) + 3) for length in grid.extent_mm[::-1]]
    field = rng.standard_normal(coarse).astype(np.float32)
    for axis, (count, spacing) in enumerate(zip(grid.shape_kji, grid.spacing_mm[::-1], strict=True)):
        position = (np.arange(count) + 0.5) * spacing / scale_mm + rng.uniform(0.0, 1.0)
        field = np.moveaxis(_interpolate_first_axis(np.moveaxis(field, axis, 0), position), 0, axis)
    field -= field.mean()
    return np.asarray(field / max(float(field.std()), 1e-6), dtype=np.float32)


def _interpolate_first_axis(values: Float32, position: NDArray[np.floating]) -> Float32:
    low = np.clip(np.floor(position).astype(int), 0, len(values) - 2)
    share = np.clip(position - low, 0.0, 1.0)
    share = (share * share * (3.0 - 2.0 * share)).astype(np.float32)
    share = share.reshape(-1, *([1] * (values.ndim - 1)))
    return np.asarray(values[low] * (1.0 - share) + values[low + 1] * share, dtype=np.float32)
