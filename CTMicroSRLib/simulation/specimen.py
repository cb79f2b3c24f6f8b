"""A simulated block of lung at micro-CT scale: the high-resolution truth.

Airways with walls, the arteries beside them, veins, alveolar texture, fissure, chest wall with fat
and ribs, nodules and disease, in HU, from a seed. It stands in for the human lung micro-CT that can't
be had; nothing measured on it is a clinical finding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.simulation.raster import Grid, coverage_from_distance, draw_tubes, smooth_field
from CTMicroSRLib.simulation.trees import Segments, grow_tree
from CTMicroSRLib.volume import Geometry, Volume

Float32 = NDArray[np.float32]

ALVEOLAR_CELL_MM = 0.25
ALVEOLAR_CONTRAST_HU = (34.0, 56.0)
"""Standard deviation of the texture in a 0.078 x 0.078 x 0.25 mm voxel: that of a foam of 0.2 to 0.3 mm cells with
the lung's mean density (a test makes such a foam)."""


@dataclass(frozen=True)
class SpecimenSettings:
    """Size of a block and what is in it.

    ``size_mm`` is (x, y, z); ``voxel_mm`` the in-plane voxel (0.078 = 0.625 / 8), ``slice_mm`` the
    distance of its slices. The shares are the probabilities that a block has a structure.

    Raises:
        UsageError: a size that is not positive, or a block of fewer than 8 voxels along an axis.
    """

    size_mm: tuple[float, float, float] = (40.0, 40.0, 10.0)
    voxel_mm: float = 0.078125
    slice_mm: float = 0.25
    wall_share: float = 0.6
    fissure_share: float = 0.35
    nodule_share: float = 0.45
    disease_share: float = 0.3

    def __post_init__(self) -> None:
        lengths_mm = (*self.size_mm, self.voxel_mm, self.slice_mm)
        if not all(math.isfinite(length) and length > 0 for length in lengths_mm):
            raise UsageError("A specimen's sizes must be positive; give millimetres above zero.")
        if min(self.grid.shape_kji) < 8:
            raise UsageError(f"A specimen of {self.size_mm} mm has fewer than 8 voxels along an axis; make it larger.")

    @property
    def grid(self) -> Grid:
        """The block's voxels."""
        x, y, z = (
            round(length / step)
            for length, step in zip(self.size_mm, (self.voxel_mm, self.voxel_mm, self.slice_mm), strict=True)
        )
        return Grid((z, y, x), (self.voxel_mm, self.voxel_mm, self.slice_mm))


@dataclass(frozen=True)
class Specimen:
    """A block of lung: ``volume`` in HU (float32) and the trees drawn in it (``*_mm`` in the block)."""

    volume: Volume
    airways: Segments
    airway_wall_mm: NDArray[np.float64]
    vessels: Segments
    seed: int


def make_specimen(settings: SpecimenSettings, seed: int) -> Specimen:
    """Grow a block of lung from a seed; the same seed gives the same voxels."""
    rng = np.random.default_rng([seed, 0x4C554E47])
    grid = settings.grid
    airways, wall_mm = _grow_airways(rng, grid)
    arteries = _beside_airways(rng, airways, wall_mm)
    vessels = Segments.join([arteries, _grow_vessels(rng, grid)])

    hu = _parenchyma(rng, grid)
    if rng.random() < settings.disease_share:
        _add_disease(rng, grid, hu)
    _add_tubes(rng, grid, hu, airways, wall_mm, vessels)
    if rng.random() < settings.fissure_share:
        _add_fissure(rng, grid, hu)
    if rng.random() < settings.nodule_share:
        for _ in range(rng.integers(1, 4)):
            _add_nodule(rng, grid, hu)
    if rng.random() < settings.wall_share:
        _add_wall(rng, grid, hu)
    geometry = Geometry(size_ijk=(grid.shape_kji[2], grid.shape_kji[1], grid.shape_kji[0]), spacing_mm=grid.spacing_mm)
    return Specimen(Volume(hu, geometry), airways, wall_mm, vessels, seed)


def _grow_airways(rng: np.random.Generator, grid: Grid) -> tuple[Segments, NDArray[np.float64]]:
    area = float(grid.extent_mm[0] * grid.extent_mm[1])
    trees = []
    for _ in range(rng.poisson(area / 800.0)):
        root, direction = _root(rng, grid)
        radius = float(np.exp(rng.uniform(np.log(0.35), np.log(2.2))))
        trees.append(grow_tree(rng, root, direction, radius, stop_radius_mm=0.25, extent_mm=grid.extent_mm))
    airways = Segments.join(trees)
    thickening = rng.uniform(1.0, 2.0) if rng.random() < 0.25 else rng.uniform(0.8, 1.2)
    return airways, (0.25 * airways.start_radius_mm + 0.1) * thickening


def _beside_airways(rng: np.random.Generator, airways: Segments, wall_mm: NDArray[np.float64]) -> Segments:
    scale = np.full(len(airways), rng.uniform(0.8, 1.25))
    gap = airways.start_radius_mm * (1.0 + scale) + wall_mm + 0.1
    return airways.beside(gap, scale)


def _grow_vessels(rng: np.random.Generator, grid: Grid) -> Segments:
    area = float(grid.extent_mm[0] * grid.extent_mm[1])
    trees = []
    for low, high, per_area in ((0.5, 3.0, 700.0), (0.2, 0.6, 70.0)):
        for _ in range(rng.poisson(area / per_area)):
            root, direction = _root(rng, grid)
            radius = float(np.exp(rng.uniform(np.log(low), np.log(high))))
            trees.append(grow_tree(rng, root, direction, radius, stop_radius_mm=0.12, extent_mm=grid.extent_mm))
    return Segments.join(trees)


def _root(rng: np.random.Generator, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A root on a face of the block (or inside, for a vessel that comes through the slices)."""
    root = rng.uniform(0.0, 1.0, 3)
    axis = int(rng.choice(3, p=(0.35, 0.35, 0.3)))
    root[axis] = rng.choice((0.0, 1.0))
    root = root * grid.extent_mm
    target = rng.uniform(0.2, 0.8, 3) * grid.extent_mm
    return root, target - root + 1e-3


def _parenchyma(rng: np.random.Generator, grid: Grid) -> Float32:
    mean = rng.normal(-885.0, 30.0)
    hu: Float32 = smooth_field(rng, grid, 6.0) * np.float32(rng.uniform(5.0, 25.0))
    height = np.linspace(-1.0, 1.0, grid.shape_kji[1], dtype=np.float32)
    hu += height[None, :, None] * np.float32(rng.uniform(0.0, 25.0)) + np.float32(mean)
    hu += _alveoli(rng, grid) * np.float32(rng.uniform(*ALVEOLAR_CONTRAST_HU))
    np.maximum(hu, -1000.0, out=hu)
    return hu


def _alveoli(rng: np.random.Generator, grid: Grid) -> Float32:
    """Walls between air cells, standard deviation 1: ridges of a band-limited field, slice by slice."""
    planes, rows, columns = grid.shape_kji
    frequency = np.hypot(
        np.fft.fftfreq(rows, grid.spacing_mm[1])[:, None], np.fft.rfftfreq(columns, grid.spacing_mm[0])
    )
    centre = 1.0 / (2.0 * ALVEOLAR_CELL_MM)
    band = np.exp(-0.5 * ((frequency - centre) / (0.35 * centre)) ** 2)
    texture = np.empty(grid.shape_kji, dtype=np.float32)
    carry = float(np.exp(-((grid.spacing_mm[2] / ALVEOLAR_CELL_MM) ** 2)))
    previous = np.zeros((rows, columns), dtype=np.float32)
    for k in range(planes):
        white = rng.standard_normal((rows, columns), dtype=np.float32)
        field = np.fft.irfft2(np.fft.rfft2(white) * band, s=(rows, columns)).astype(np.float32)
        field /= field.std()
        previous = carry * previous + np.float32(np.sqrt(1.0 - carry * carry)) * field if k else field
        walls = np.exp(-np.abs(previous) * np.float32(2.5))
        texture[k] = (walls - walls.mean()) / walls.std()
    return texture


def _add_disease(rng: np.random.Generator, grid: Grid, hu: Float32) -> None:
    """Emphysema (holes of nearly air) or ground glass (denser parenchyma), over part of the block."""
    field = smooth_field(rng, grid, float(rng.uniform(2.0, 10.0)))
    share = np.clip((field - np.float32(rng.uniform(0.3, 1.2))) * np.float32(rng.uniform(2.0, 8.0)), 0.0, 1.0)
    level = -985.0 if rng.random() < 0.5 else rng.uniform(-780.0, -450.0)
    hu += share * (np.float32(level) - hu) * np.float32(0.85)


def _add_tubes(
    rng: np.random.Generator,
    grid: Grid,
    hu: Float32,
    airways: Segments,
    wall_mm: NDArray[np.float64],
    vessels: Segments,
) -> None:
    coverage = np.zeros(grid.shape_kji, dtype=np.float32)
    draw_tubes(coverage, grid, vessels, np.zeros(len(vessels), dtype=np.float32))
    _mix(hu, coverage, rng.uniform(100.0, 350.0) if rng.random() < 0.35 else rng.uniform(25.0, 65.0))
    coverage[:] = 0.0
    draw_tubes(coverage, grid, airways, wall_mm.astype(np.float32))
    _mix(hu, coverage, rng.uniform(-20.0, 50.0))
    coverage[:] = 0.0
    draw_tubes(coverage, grid, airways, np.zeros(len(airways), dtype=np.float32))
    _mix(hu, coverage, -1000.0)


def _mix(hu: Float32, coverage: Float32, level_hu: float) -> None:
    hu += coverage * (np.float32(level_hu) - hu)


def _surface(rng: np.random.Generator, grid: Grid, offset_mm: float, wobble_mm: float) -> Float32:
    """Signed distance to a gently curved random surface that passes ``offset_mm`` from the centre."""
    x, y, z = grid.axes_mm()
    centre = grid.extent_mm / 2.0
    normal = rng.standard_normal(3) * (1.0, 1.0, 0.45)
    normal /= np.linalg.norm(normal)
    dx, dy, dz = (
        (axis - np.float32(c)).reshape(shape)
        for axis, c, shape in zip((x, y, z), centre, ((1, 1, -1), (1, -1, 1), (-1, 1, 1)), strict=True)
    )
    along = dx * np.float32(normal[0]) + dy * np.float32(normal[1]) + dz * np.float32(normal[2])
    curvature = np.float32(rng.uniform(-1.0, 1.0) / 60.0)
    bend = (dx * dx + dy * dy + dz * dz - along * along) * curvature / 2.0
    wobble = smooth_field(rng, grid, 12.0) * np.float32(wobble_mm)
    distance: Float32 = along + bend + wobble - np.float32(offset_mm)
    return distance


def _add_fissure(rng: np.random.Generator, grid: Grid, hu: Float32) -> None:
    offset = rng.uniform(-0.35, 0.35) * grid.extent_mm[0]
    distance = np.abs(_surface(rng, grid, float(offset), 0.4)) - np.float32(rng.uniform(0.08, 0.4))
    _mix(hu, coverage_from_distance(distance, grid.spacing_mm[0]), rng.uniform(-150.0, 30.0))


def _add_nodule(rng: np.random.Generator, grid: Grid, hu: Float32) -> None:
    """A solid, part-solid, ground-glass or calcified nodule with a lobed or spiculated surface."""
    x, y, z = grid.axes_mm()
    centre = rng.uniform(0.1, 0.9, 3) * grid.extent_mm
    radius = float(np.exp(rng.uniform(np.log(1.2), np.log(7.0))))
    squeeze = rng.uniform(0.75, 1.3, 3)
    distance = np.sqrt(
        ((x[None, None, :] - centre[0]) * squeeze[0]) ** 2
        + ((y[None, :, None] - centre[1]) * squeeze[1]) ** 2
        + ((z[:, None, None] - centre[2]) * squeeze[2]) ** 2
    ).astype(np.float32)
    lobes = smooth_field(rng, grid, max(0.7, radius * float(rng.uniform(0.3, 0.9))))
    distance += lobes * np.float32(radius * rng.uniform(0.03, 0.22)) - np.float32(radius)
    kind = rng.choice(("solid", "glass", "part-solid", "calcified"), p=(0.5, 0.2, 0.2, 0.1))
    level = {"solid": rng.uniform(0.0, 80.0), "calcified": rng.uniform(200.0, 900.0)}.get(
        kind, rng.uniform(-700.0, -400.0)
    )
    _mix(hu, coverage_from_distance(distance, grid.spacing_mm[0] * (1.0 if level > -100 else 8.0)), level)
    if kind == "part-solid":
        core = distance + np.float32(radius * rng.uniform(0.3, 0.6))
        _mix(hu, coverage_from_distance(core, grid.spacing_mm[0]), rng.uniform(0.0, 60.0))


def _add_wall(rng: np.random.Generator, grid: Grid, hu: Float32) -> None:
    """Chest wall (muscle, fat, ribs), mediastinum or diaphragm on one side of the block."""
    offset = rng.uniform(0.05, 0.45) * grid.extent_mm[0]
    depth = _surface(rng, grid, float(offset), 0.7)
    inside = coverage_from_distance(-depth, grid.spacing_mm[0])
    tissue = np.full(grid.shape_kji, rng.uniform(30.0, 70.0), dtype=np.float32)
    if rng.random() < 0.7:
        fat = np.clip((smooth_field(rng, grid, 4.0) - rng.uniform(-0.5, 1.0)) * 6.0, 0.0, 1.0)
        tissue += fat.astype(np.float32) * (np.float32(-100.0) - tissue)
    if rng.random() < 0.6:
        _add_rib(rng, grid, tissue, depth)
    elif rng.random() < 0.3:
        vessel = np.clip((smooth_field(rng, grid, 9.0) - 0.3) * 10.0, 0.0, 1.0).astype(np.float32)
        tissue += vessel * (np.float32(rng.uniform(100.0, 400.0)) - tissue)
    if rng.random() < 0.15:
        skin = depth - np.float32(rng.uniform(8.0, 20.0))
        tissue += coverage_from_distance(-skin, grid.spacing_mm[0]) * (np.float32(-1000.0) - tissue)
    hu += inside * (tissue - hu)


def _add_rib(rng: np.random.Generator, grid: Grid, tissue: Float32, depth: Float32) -> None:
    x, y, z = grid.axes_mm()
    centre = rng.uniform(0.0, 1.0, 3) * grid.extent_mm
    heading = rng.standard_normal(3)
    heading /= np.linalg.norm(heading)
    dx = x[None, None, :] - np.float32(centre[0])
    dy = y[None, :, None] - np.float32(centre[1])
    dz = z[:, None, None] - np.float32(centre[2])
    along = dx * np.float32(heading[0]) + dy * np.float32(heading[1]) + dz * np.float32(heading[2])
    thickness = np.sqrt(np.maximum(dx * dx + dy * dy + dz * dz - along * along, 0.0))
    radius, cortex = rng.uniform(3.0, 7.0), rng.uniform(0.5, 1.5)
    deep = np.float32(1.5) - depth
    outer = np.maximum(thickness - np.float32(radius), deep)
    inner = np.maximum(thickness - np.float32(radius - cortex), deep + np.float32(cortex))
    voxel = grid.spacing_mm[0]
    _mix(tissue, coverage_from_distance(outer, voxel), rng.uniform(500.0, 1500.0))
    _mix(tissue, coverage_from_distance(inner, voxel), rng.uniform(50.0, 300.0))
