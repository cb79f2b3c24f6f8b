"""Surfaces of the lung: fissures, and the wall beside it (pleura, fat, muscle, ribs; mediastinum)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.description import Label
from CTMicroSRLib.simulation.raster import Box, Grid, SmoothField, coverage_from_distance, sheet_coverage
from CTMicroSRLib.simulation.trees import unit

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]

MARGIN_MM = 40.0
"""How far outside the block surfaces can be asked for; trees are grown there."""

PLEURA_MM = 0.3
"""Parietal pleura with the endothoracic fascia and a film of fluid (Webb, High-Resolution CT of the
Lung: 0.2 to 0.4 mm)."""


@dataclass(frozen=True)
class Surface:
    """A gently curved, slightly wavy sheet through the block; ``normal`` is where distances are positive."""

    point_mm: Float
    normal: Float
    curvature_per_mm: float
    wave_mm: float
    waves: SmoothField

    def distance_on(self, grid: Grid, box: Box | None = None) -> Float32:
        """Signed distance at a box's (or all) voxel centres, in mm, shape (k, j, i)."""
        whole = tuple(slice(0, n) for n in grid.shape_kji)
        box = (whole[0], whole[1], whole[2]) if box is None else box
        dx, dy, dz = grid.centred_axes_mm(box, self.point_mm)
        n = self.normal.astype(np.float32)
        along = dx * n[0] + dy * n[1] + dz * n[2]
        bend = (dx * dx + dy * dy + dz * dz - along * along) * np.float32(self.curvature_per_mm / 2.0)
        x, y, z = (axis[part] for axis, part in zip(grid.axes_mm(), box[::-1], strict=True))
        waves = self.waves.on_axes(x, y, z) * np.float32(self.wave_mm)
        return np.asarray(along + bend + waves, dtype=np.float32)

    def distance_at(self, points_mm: Float) -> Float:
        """Signed distance at points ``(n, 3)``."""
        offset = points_mm - self.point_mm
        along = offset @ self.normal
        bend = (np.sum(offset * offset, axis=1) - along * along) * (self.curvature_per_mm / 2.0)
        return np.asarray(along + bend + self.wave_mm * self.waves.at(points_mm), dtype=np.float64)


def make_surface(
    rng: np.random.Generator, grid: Grid, normal: Float, offset_mm: float, *, curvature_per_mm: float, wave_mm: float
) -> Surface:
    """A surface that passes ``offset_mm`` from the block's centre along its normal."""
    normal = unit(normal)
    waves = SmoothField(rng, np.full(3, -MARGIN_MM), grid.extent_mm + MARGIN_MM, 12.0)
    return Surface(grid.extent_mm / 2.0 + offset_mm * normal, normal, curvature_per_mm, wave_mm, waves)


def random_surface(rng: np.random.Generator, grid: Grid, offset_mm: float, wave_mm: float) -> Surface:
    """A surface of any direction, mostly across the slices, bent by up to a radius of 60 mm."""
    normal = rng.standard_normal(3) * (1.0, 1.0, 0.45)
    bend = float(rng.uniform(-1.0, 1.0)) / 60.0
    return make_surface(rng, grid, normal, offset_mm, curvature_per_mm=bend, wave_mm=wave_mm)


def draw_fissure(
    rng: np.random.Generator, grid: Grid, hu: Float32, labels: NDArray[np.uint8], surface: Surface
) -> None:
    """Two layers of visceral pleura, 0.1 to 0.3 mm in all, drawn into the block."""
    thickness, level = float(rng.uniform(0.1, 0.3)), float(rng.uniform(-50.0, 30.0))
    coverage = sheet_coverage(surface.distance_on(grid), thickness, grid.width_mm(surface.normal))
    hu += coverage * (np.float32(level) - hu)
    labels[coverage >= 0.5] = Label.PLEURA


@dataclass(frozen=True)
class Wall:
    """What borders the lung on one side; positive distances of ``surface`` are outside the lung."""

    kind: Literal["chest wall", "mediastinum"]
    surface: Surface


def draw_wall(rng: np.random.Generator, grid: Grid, hu: Float32, labels: NDArray[np.uint8], wall: Wall) -> None:
    """Chest wall (pleura, fat, muscle, ribs, fat, skin, air) or mediastinum (fat and vessels) drawn over the block."""
    depth = wall.surface.distance_on(grid)
    tissue = np.full(grid.shape_kji, rng.uniform(40.0, 65.0), dtype=np.float32)
    kinds = np.full(grid.shape_kji, Label.SOFT_TISSUE, dtype=np.uint8)
    width = grid.width_mm(wall.surface.normal)
    draw = _draw_chest_wall if wall.kind == "chest wall" else _draw_mediastinum
    draw(rng, grid, tissue, kinds, depth, width)
    pleura = sheet_coverage(depth - np.float32(PLEURA_MM / 2.0), PLEURA_MM, width)
    tissue += pleura * (np.float32(30.0) - tissue)
    kinds[pleura >= 0.5] = Label.PLEURA
    inside = coverage_from_distance(-depth, width)
    hu += inside * (tissue - hu)
    labels[inside >= 0.5] = kinds[inside >= 0.5]


def _draw_chest_wall(
    rng: np.random.Generator, grid: Grid, tissue: Float32, kinds: NDArray[np.uint8], depth: Float32, width: float
) -> None:
    low, high = np.zeros(3), grid.extent_mm
    muscle_mm, fat_mm = float(rng.uniform(8.0, 14.0)), float(rng.uniform(3.0, 20.0))
    extrapleural = SmoothField(rng, low, high, 7.0).on_axes(*grid.axes_mm()) * np.float32(0.7) + np.float32(
        rng.uniform(-0.3, 1.2)
    )
    streaks = SmoothField(rng, low, high, 2.5).on_axes(*grid.axes_mm()) - np.float32(rng.uniform(0.8, 1.8))
    fat = np.maximum(
        coverage_from_distance(depth - np.float32(PLEURA_MM) - np.maximum(extrapleural, 0.0), width),
        np.maximum(coverage_from_distance(np.float32(muscle_mm) - depth, width), np.clip(streaks * 4.0, 0.0, 1.0)),
    )
    tissue += fat * (np.float32(rng.uniform(-115.0, -90.0)) - tissue)
    kinds[fat >= 0.5] = Label.FAT
    for _ in range(rng.integers(1, 3)):
        _draw_rib(rng, grid, tissue, kinds, depth)
    skin = sheet_coverage(depth - np.float32(muscle_mm + fat_mm + 1.0), 2.0, width)
    tissue += skin * (np.float32(40.0) - tissue)
    kinds[skin >= 0.5] = Label.SOFT_TISSUE
    outside = coverage_from_distance(np.float32(muscle_mm + fat_mm + 2.0) - depth, width)
    tissue += outside * (np.float32(-1000.0) - tissue)
    kinds[outside >= 0.5] = Label.OUTSIDE_AIR


def _draw_mediastinum(
    rng: np.random.Generator, grid: Grid, tissue: Float32, kinds: NDArray[np.uint8], depth: Float32, width: float
) -> None:
    low, high = np.zeros(3), grid.extent_mm
    fat = np.clip(
        (SmoothField(rng, low, high, 5.0).on_axes(*grid.axes_mm()) - np.float32(rng.uniform(-0.5, 1.0))) * 6.0, 0.0, 1.0
    )
    tissue += fat * (np.float32(-100.0) - tissue)
    kinds[fat >= 0.5] = Label.FAT
    great = np.clip((SmoothField(rng, low, high, 9.0).on_axes(*grid.axes_mm()) - np.float32(0.2)) * 8.0, 0.0, 1.0)
    tissue += great * (
        np.float32(rng.uniform(100.0, 350.0) if rng.random() < 0.35 else rng.uniform(35.0, 60.0)) - tissue
    )
    kinds[great >= 0.5] = Label.SOFT_TISSUE


def _draw_rib(rng: np.random.Generator, grid: Grid, tissue: Float32, kinds: NDArray[np.uint8], depth: Float32) -> None:
    """A rib: an elliptical bar with a dense cortex that runs along the wall, 2 mm behind the pleura."""
    centre = rng.uniform(0.0, 1.0, 3) * grid.extent_mm
    heading = unit(rng.standard_normal(3) * (1.0, 1.0, 0.7))
    whole = tuple(slice(0, n) for n in grid.shape_kji)
    dx, dy, dz = grid.centred_axes_mm((whole[0], whole[1], whole[2]), centre)
    h = heading.astype(np.float32)
    along = dx * h[0] + dy * h[1] + dz * h[2]
    half_height, half_depth = float(rng.uniform(5.0, 7.5)), float(rng.uniform(2.8, 4.2))
    middle = np.float32(half_depth + 2.0)
    sideways = np.sqrt(np.maximum(dx * dx + dy * dy + dz * dz - along * along, 0.0))
    distance = (np.hypot(sideways / half_height, (depth - middle) / half_depth) - 1.0) * np.float32(half_depth)
    cortex, width = float(rng.uniform(0.6, 1.4)), float(grid.spacing_mm[0])
    outer = coverage_from_distance(distance, width)
    tissue += outer * (np.float32(rng.uniform(600.0, 1500.0)) - tissue)
    inner = coverage_from_distance(distance + np.float32(cortex), width)
    tissue += inner * (np.float32(rng.uniform(50.0, 300.0)) - tissue)
    kinds[outer >= 0.5] = Label.BONE
