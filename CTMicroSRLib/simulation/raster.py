"""Drawing shapes into a block of voxels with partial volume.

A shape's coverage of a voxel is a linear ramp of its signed distance at the voxel's centre, as wide as the voxel's
own extent across the surface (of the same variance as the voxel's box). It is exact for flat surfaces along the axes
and within 5 % of a voxel's volume for any other flat one; radii are corrected so that a tube's cross-section keeps
its area, however thin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.description import Tubes

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """Voxels of a block: ``shape_kji`` and ``spacing_mm`` (x, y, z); voxel centres at (index + 1/2) spacing."""

    shape_kji: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def extent_mm(self) -> Float:
        """Edge lengths (x, y, z)."""
        return np.asarray(np.multiply(self.shape_kji[::-1], self.spacing_mm), dtype=np.float64)

    def axes_mm(self) -> tuple[Float32, Float32, Float32]:
        """Voxel centres along x, y and z."""
        x, y, z = (
            ((np.arange(n) + 0.5) * d).astype(np.float32)
            for n, d in zip(self.shape_kji[::-1], self.spacing_mm, strict=True)
        )
        return x, y, z

    def box(self, low_mm: Float, high_mm: Float) -> Box | None:
        """Voxels whose centres lie between two corners (x, y, z), as slices of (k, j, i); None where there are none."""
        parts = []
        for n, d, low, high in zip(
            self.shape_kji, self.spacing_mm[::-1], low_mm[::-1].tolist(), high_mm[::-1].tolist(), strict=True
        ):
            first, last = max(0, int(np.ceil(low / d - 0.5))), min(n, int(np.floor(high / d - 0.5)) + 1)
            if first >= last:
                return None
            parts.append(slice(first, last))
        return (parts[0], parts[1], parts[2])

    def centred_axes_mm(self, box: Box, centre_mm: Float) -> tuple[Float32, Float32, Float32]:
        """Offsets (x, y, z) from a point of a box's voxel centres, shaped to be broadcast over (k, j, i)."""
        x, y, z = (
            ((np.arange(part.start, part.stop) + 0.5) * d - c).astype(np.float32)
            for part, d, c in zip(box[::-1], self.spacing_mm, centre_mm.tolist(), strict=True)
        )
        return x[None, None, :], y[None, :, None], z[:, None, None]

    def width_mm(self, normal: Float) -> float:
        """Width of the ramp across a flat surface with a unit normal (x, y, z)."""
        return float(np.sqrt(np.sum((normal * self.spacing_mm) ** 2)))


def coverage_from_distance(distance_mm: Float32, width_mm: float | Float32) -> Float32:
    """Share of each voxel inside the surface ``distance_mm == 0`` (negative inside)."""
    return np.asarray(np.clip(np.float32(0.5) - distance_mm / np.float32(width_mm), 0.0, 1.0), dtype=np.float32)


def sheet_coverage(distance_mm: Float32, thickness_mm: float | Float32, width_mm: float | Float32) -> Float32:
    """Share of each voxel inside a sheet about the surface ``distance_mm == 0``, also one thinner than a voxel."""
    half = np.float32(0.5) * np.float32(thickness_mm)
    inner = coverage_from_distance(distance_mm - half, width_mm)
    return np.asarray(inner - coverage_from_distance(distance_mm + half, width_mm), dtype=np.float32)


def draw_tubes(grid: Grid, tubes: Tubes, outer_kji: Float32, lumen_kji: Float32 | None = None) -> None:
    """Draw tubes into coverages in place (the larger coverage wins).

    Args:
        grid: the block.
        tubes: the pieces to draw.
        outer_kji: share of each voxel inside the tubes with their walls, [0, 1].
        lumen_kji: share inside the lumina; None where only the whole tube is asked for.
    """
    outer_mm = tubes.radius_mm + tubes.wall_mm
    reach_mm = outer_mm + float(max(grid.spacing_mm))
    low = np.minimum(tubes.start_mm, tubes.end_mm) - reach_mm[:, None]
    high = np.maximum(tubes.start_mm, tubes.end_mm) + reach_mm[:, None]
    near = (high > 0).all(axis=1) & (low < grid.extent_mm).all(axis=1)
    for n in np.flatnonzero(near).tolist():
        box = grid.box(low[n], high[n])
        if box is None:
            continue
        distance, width = _distance_to_axis(grid, box, tubes.start_mm[n], tubes.end_mm[n])
        _draw(outer_kji[box], distance, width, float(outer_mm[n]))
        if lumen_kji is not None:
            _draw(lumen_kji[box], distance, width, float(tubes.radius_mm[n]))


def _draw(coverage: Float32, distance: Float32, width: float | Float32, radius_mm: float) -> None:
    np.maximum(coverage, coverage_from_distance(distance - drawn_radius(radius_mm, width), width), out=coverage)


def drawn_radius(radius_mm: float, width_mm: float | Float32) -> float | Float32:
    """Radius at which a ramp of a width encloses the area of a disc of ``radius_mm``.

    A disc drawn with a linear ramp of width w at radius R has the area pi (R^2 + w^2 / 12) while R > w / 2, and the
    cone below that pi (R + w / 2)^3 / (3 w).
    """
    thick = np.sqrt(np.maximum(radius_mm**2 - np.square(width_mm) / 12.0, 0.0))
    thin = np.cbrt(3.0 * np.asarray(width_mm) * radius_mm**2) - 0.5 * np.asarray(width_mm)
    drawn = np.where(3.0 * radius_mm**2 >= np.square(width_mm), thick, thin)
    return np.asarray(drawn, dtype=np.float32) if isinstance(width_mm, np.ndarray) else float(drawn)


def _distance_to_axis(grid: Grid, box: Box, start: Float, end: Float) -> tuple[Float32, float | Float32]:
    """Distance of a box's voxel centres to a straight piece, and the ramp's width there."""
    axis = (end - start).astype(np.float32)
    dx, dy, dz = grid.centred_axes_mm(box, start)
    along = (dx * axis[0] + dy * axis[1] + dz * axis[2]) / np.float32(max(float(axis @ axis), 1e-12))
    np.clip(along, 0.0, 1.0, out=along)
    x2, y2, z2 = np.square(dx - along * axis[0]), np.square(dy - along * axis[1]), np.square(dz - along * axis[2])
    squared = x2 + y2 + z2
    hx, hy, hz = (np.float32(h) for h in grid.spacing_mm)
    if hx == hy == hz:
        return np.sqrt(squared), float(hx)
    weighted = x2 * hx**2 + y2 * hy**2 + z2 * hz**2
    width = np.sqrt(weighted / np.maximum(squared, np.float32(1e-12)))
    return np.sqrt(squared), np.maximum(width, min(hx, hy, hz))


class SmoothField:
    """A random field of mean 0 and standard deviation 1 that varies over ``scale_mm``, anywhere in space.

    Normal numbers on a lattice of that spacing, joined by cubic B-splines, so that it costs little and a part of a
    block sees the same field as the whole.
    """

    _DEVIATION = (151.0 / 315.0) ** 1.5
    """Of a sum of normal numbers weighted by cubic B-splines along three axes:
    the root of their mean squared weight."""

    def __init__(self, rng: np.random.Generator, low_mm: Float, high_mm: Float, scale_mm: float) -> None:
        self._scale_mm = scale_mm
        self._origin_mm = np.asarray(low_mm, dtype=np.float64) - scale_mm * rng.uniform(1.0, 2.0, 3)
        counts = np.ceil((np.asarray(high_mm) - self._origin_mm) / scale_mm).astype(int) + 3
        self._values = (rng.standard_normal(counts[::-1]) / self._DEVIATION).astype(np.float32)

    def on_axes(self, x_mm: Float32, y_mm: Float32, z_mm: Float32) -> Float32:
        """The field at every combination of places along the axes, shape ``(len(z), len(y), len(x))``."""
        z, y, x = (self._weights(places, axis) for axis, places in ((2, z_mm), (1, y_mm), (0, x_mm)))
        field = np.einsum("zc,cba->zba", z, self._values)
        field = np.matmul(y, field)
        return np.asarray(field @ x.T, dtype=np.float32)

    def at(self, points_mm: Float) -> Float32:
        """The field at points ``(n, 3)``, shape ``(n,)``."""
        low, weights = zip(*(self._taps(points_mm[:, axis], axis) for axis in range(3)), strict=True)
        total = np.zeros(len(points_mm), dtype=np.float64)
        for dz, dy, dx in np.ndindex(4, 4, 4):
            values = self._values[low[2] + dz, low[1] + dy, low[0] + dx]
            total += weights[2][dz] * weights[1][dy] * weights[0][dx] * values
        return total.astype(np.float32)

    def _taps(self, places_mm: NDArray[np.floating], axis: int) -> tuple[NDArray[np.int64], Float]:
        """First of the four lattice points that matter to each place, and the four weights ``(4, n)``."""
        position = (np.asarray(places_mm, dtype=np.float64) - self._origin_mm[axis]) / self._scale_mm
        low = np.clip(np.floor(position).astype(int), 1, self._values.shape[2 - axis] - 3)
        s = np.clip(position - low, 0.0, 1.0)
        weights = np.stack([(1 - s) ** 3, 3 * s**3 - 6 * s**2 + 4, -3 * s**3 + 3 * s**2 + 3 * s + 1, s**3]) / 6.0
        return low - 1, weights

    def _weights(self, places_mm: Float32, axis: int) -> Float32:
        first, taps = self._taps(places_mm, axis)
        weights = np.zeros((len(places_mm), self._values.shape[2 - axis]), dtype=np.float32)
        for n in range(4):
            weights[np.arange(len(places_mm)), first + n] = taps[n]
        return weights
