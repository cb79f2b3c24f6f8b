"""A simulated block of lung at micro-CT scale: the high-resolution truth.

Space-filling airways with walls, the arteries beside them and veins between, lobules with septa, alveoli at the human
scale, fissure, wall, nodules and disease, in HU, from a seed. It stands in for the human lung micro-CT that can't be
had; nothing measured on it is a clinical finding.

Every structure draws from random numbers of its own, so that the same specimen can be had with and without any of them.
Air of the lung is -1000 HU, tissue and blood about +40 HU. What sizes come from is said where they are used: trees,
vasculature, lobules, parenchyma, nodules, surfaces.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from CTMicroSRLib.errors import ResourceError, UsageError
from CTMicroSRLib.simulation.description import Description, Label, Nodule, Specimen, Tubes
from CTMicroSRLib.simulation.lobules import SEPTUM_HU, septa_coverage
from CTMicroSRLib.simulation.nodules import draw_nodules
from CTMicroSRLib.simulation.parenchyma import draw_emphysema, draw_ground_glass, parenchyma
from CTMicroSRLib.simulation.raster import Grid, draw_tubes
from CTMicroSRLib.simulation.surfaces import (
    Surface,
    Wall,
    draw_fissure,
    draw_wall,
    make_surface,
    random_surface,
)
from CTMicroSRLib.simulation.trees import unit
from CTMicroSRLib.simulation.vasculature import Bounds, LungTrees, grow_lung_trees
from CTMicroSRLib.volume import Geometry, Volume

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]

Structure = Literal[
    "airways", "arteries", "veins", "septa", "texture", "emphysema", "ground glass", "fissure", "nodules", "wall"
]
STRUCTURES: tuple[Structure, ...] = (
    "airways",
    "arteries",
    "veins",
    "septa",
    "texture",
    "emphysema",
    "ground glass",
    "fissure",
    "nodules",
    "wall",
)

BYTES_PER_VOXEL = 28


@dataclass(frozen=True)
class SpecimenSettings:
    """Size of a block and what is in it.

    ``size_mm`` is (x, y, z); ``voxel_mm`` the in-plane voxel (0.078 = 0.625 / 8); ``slice_mm`` the distance of the
    slices, a multiple of the voxel (None: the voxel). The shares are the probabilities that a block has a structure;
    ``without`` leaves structures out and all else as it is.

    Raises:
        UsageError: a size that is not positive, a block of fewer than 8 voxels along an axis, or an unknown structure.
    """

    size_mm: tuple[float, float, float] = (40.0, 40.0, 10.0)
    voxel_mm: float = 0.078125
    slice_mm: float | None = None
    wall_share: float = 0.45
    fissure_share: float = 0.3
    nodule_share: float = 0.45
    emphysema_share: float = 0.2
    ground_glass_share: float = 0.2
    thick_wall_share: float = 0.25
    contrast_share: float = 0.35
    without: frozenset[Structure] = frozenset()

    def __post_init__(self) -> None:
        lengths_mm = (*self.size_mm, self.voxel_mm, self.spacing_mm[2])
        if not all(math.isfinite(length) and length > 0 for length in lengths_mm):
            raise UsageError("A specimen's sizes must be positive; give millimetres above zero.")
        merged = self.spacing_mm[2] / self.voxel_mm
        if abs(merged - round(merged)) > 1e-6 or round(merged) < 1:
            raise UsageError(
                f"A specimen's slices of {self.slice_mm} mm are no multiple of its voxel ({self.voxel_mm} mm); "
                "change one."
            )
        if min(self.grid.shape_kji) < 8:
            raise UsageError(f"A specimen of {self.size_mm} mm has fewer than 8 voxels along an axis; make it larger.")
        shares = (self.wall_share, self.fissure_share, self.nodule_share, self.emphysema_share)
        if not all(0 <= s <= 1 for s in (*shares, self.ground_glass_share, self.thick_wall_share, self.contrast_share)):
            raise UsageError("A specimen's shares are probabilities; give them between 0 and 1.")
        unknown = sorted(self.without - set(STRUCTURES))
        if unknown:
            raise UsageError(f"A specimen has no structure {unknown[0]!r}; choose from: {', '.join(STRUCTURES)}.")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing (x, y, z)."""
        return (self.voxel_mm, self.voxel_mm, self.voxel_mm if self.slice_mm is None else self.slice_mm)

    @property
    def grid(self) -> Grid:
        """The block's voxels."""
        x, y, z = (round(length / step) for length, step in zip(self.size_mm, self.spacing_mm, strict=True))
        return Grid((z, y, x), self.spacing_mm)

    @property
    def memory_bytes(self) -> int:
        """About what making the block takes."""
        merged = round(self.spacing_mm[2] / self.voxel_mm)
        return math.prod(self.grid.shape_kji) * (BYTES_PER_VOXEL + 12 * (merged - 1))


@dataclass(frozen=True)
class _Contents:
    """What a block has, drawn once, whatever is left out later."""

    wall: Wall | None
    fissure: Surface | None
    nodules: int
    emphysema: float
    ground_glass: bool
    wall_thickening: float
    blood_hu: float
    airway_wall_hu: float
    mean_hu: float
    gradient_hu_per_mm: float
    hilum: Float

    def without(self, left_out: frozenset[Structure]) -> _Contents:
        """The same contents less what nothing else depends on (trees keep to a wall or fissure that isn't drawn)."""
        return replace(
            self,
            nodules=0 if "nodules" in left_out else self.nodules,
            emphysema=0.0 if "emphysema" in left_out else self.emphysema,
            ground_glass=self.ground_glass and "ground glass" not in left_out,
        )


def make_specimen(settings: SpecimenSettings, seed: int) -> Specimen:
    """Grow a block of lung from a seed; the same seed gives the same voxels.

    Raises:
        ResourceError: the block does not fit into memory.
    """
    _check_memory(settings)
    grid = settings.grid
    contents = _draw_contents(settings, grid, seed).without(settings.without)
    bounds = Bounds(None if contents.wall is None else contents.wall.surface, contents.fissure)
    trees = grow_lung_trees(_stream(seed, "trees"), grid, bounds, contents.hilum, contents.wall_thickening)
    drawn = {s for s in STRUCTURES if s not in settings.without}
    hu = parenchyma(
        _stream(seed, "texture"),
        grid,
        mean_hu=contents.mean_hu,
        gradient_hu_per_mm=contents.gradient_hu_per_mm,
        texture="texture" in drawn,
    )
    np.maximum(hu, -1000.0, out=hu)
    labels = np.full(grid.shape_kji, Label.PARENCHYMA, dtype=np.uint8)
    if "septa" in drawn:
        septa = septa_coverage(_stream(seed, "septa"), grid, trees.acini)
        hu += septa * (np.float32(SEPTUM_HU) - hu)
        labels[septa >= 0.5] = Label.SEPTUM
    if contents.ground_glass:
        draw_ground_glass(_stream(seed, "ground glass"), grid, hu, labels)
    if contents.emphysema:
        draw_emphysema(_stream(seed, "emphysema"), grid, hu, labels, trees.acini.centres_mm, contents.emphysema)
    _draw_trees(grid, hu, labels, trees, contents, drawn)
    if contents.fissure is not None and "fissure" in drawn:
        draw_fissure(_stream(seed, "fissure"), grid, hu, labels, contents.fissure)
    nodules = draw_nodules(_stream(seed, "nodules"), grid, hu, labels, contents.nodules)
    if contents.wall is not None and "wall" in drawn:
        draw_wall(_stream(seed, "wall"), grid, hu, labels, contents.wall)
    x, y, z = grid.spacing_mm
    geometry = Geometry(grid.shape_kji[::-1], grid.spacing_mm, origin_mm=(x / 2.0, y / 2.0, z / 2.0))
    description = _describe(grid, contents, trees, nodules, drawn)
    return Specimen(Volume(hu, geometry), Volume(labels, geometry), description, seed)


def _check_memory(settings: SpecimenSettings) -> None:
    free = psutil.virtual_memory().available
    if settings.memory_bytes > free:
        raise ResourceError(
            f"A specimen of {settings.size_mm} mm takes about {settings.memory_bytes / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free; make it smaller or its voxels larger."
        )


def _describe(
    grid: Grid, contents: _Contents, trees: LungTrees, nodules: tuple[Nodule, ...], drawn: set[Structure]
) -> Description:
    none, extent = Tubes.join([]), grid.extent_mm.tolist()
    return Description(
        (extent[0], extent[1], extent[2]),
        airways=trees.airways if "airways" in drawn else none,
        arteries=trees.arteries if "arteries" in drawn else none,
        veins=trees.veins if "veins" in drawn else none,
        nodules=nodules,
        conditions={
            "wall": contents.wall.kind if contents.wall is not None and "wall" in drawn else "",
            "fissure": contents.fissure is not None and "fissure" in drawn,
            "emphysema": contents.emphysema,
            "ground_glass": contents.ground_glass,
            "bronchial_wall_thickening": contents.wall_thickening,
            "blood_hu": contents.blood_hu,
            "airway_wall_hu": contents.airway_wall_hu,
            "parenchyma_hu": contents.mean_hu,
            "gradient_hu_per_mm": contents.gradient_hu_per_mm,
        },
    )


def _stream(seed: int, name: str) -> np.random.Generator:
    """A structure's own random numbers, so that leaving one out changes no other."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _draw_contents(settings: SpecimenSettings, grid: Grid, seed: int) -> _Contents:
    rng = _stream(seed, "contents")
    chances = rng.random(7)
    hilum = unit(rng.standard_normal(3) * (1.0, 1.0, 0.35))
    wall, fissure = None, None
    if chances[0] < settings.wall_share:
        kind: Literal["chest wall", "mediastinum"] = "chest wall" if rng.random() < 0.7 else "mediastinum"
        offset = float(rng.uniform(0.1, 0.42)) * min(grid.extent_mm[:2])
        if kind == "chest wall":
            normal = unit(-hilum + 0.35 * rng.standard_normal(3))
        else:  # the hilum lies on the lung's side of the mediastinum too
            normal = unit(np.cross(hilum, unit(rng.standard_normal(3))) + 0.3 * hilum)
        bend = float(rng.uniform(0.0, 1.0)) / (-80.0 if kind == "chest wall" else 80.0)
        surface = make_surface(rng, grid, normal, offset, curvature_per_mm=-bend, wave_mm=0.5)
        wall = Wall(kind, surface)
    if chances[1] < settings.fissure_share:
        fissure = random_surface(rng, grid, float(rng.uniform(-0.3, 0.3)) * min(grid.extent_mm[:2]), 0.5)
    return _Contents(
        wall=wall,
        fissure=fissure,
        nodules=int(rng.integers(1, 4)) if chances[2] < settings.nodule_share else 0,
        emphysema=float(rng.uniform(0.15, 0.7)) if chances[3] < settings.emphysema_share else 0.0,
        ground_glass=bool(chances[4] < settings.ground_glass_share),
        wall_thickening=float(rng.uniform(1.3, 2.2)) if chances[5] < settings.thick_wall_share else 1.0,
        blood_hu=float(rng.uniform(100.0, 350.0) if chances[6] < settings.contrast_share else rng.uniform(30.0, 55.0)),
        airway_wall_hu=float(rng.uniform(10.0, 50.0)),
        mean_hu=float(rng.normal(-922.0, 18.0)),
        gradient_hu_per_mm=float(rng.uniform(0.0, 0.9)),
        hilum=hilum,
    )


def _draw_trees(
    grid: Grid, hu: Float32, labels: NDArray[np.uint8], trees: LungTrees, contents: _Contents, drawn: set[Structure]
) -> None:
    coverage = np.zeros(grid.shape_kji, dtype=np.float32)
    for name, tubes, label in (("arteries", trees.arteries, Label.ARTERY), ("veins", trees.veins, Label.VEIN)):
        if name in drawn:
            coverage[:] = 0.0
            draw_tubes(grid, tubes, coverage)
            hu += coverage * (np.float32(contents.blood_hu) - hu)
            labels[coverage >= 0.5] = label
    if "airways" in drawn:
        coverage[:] = 0.0
        lumen = np.zeros_like(coverage)
        draw_tubes(grid, trees.airways, coverage, lumen)
        # Outer coverage and lumen may share a voxel; the wall is what lies between them.
        hu += coverage * (np.float32(contents.airway_wall_hu) - hu)
        hu += lumen * np.float32(-1000.0 - contents.airway_wall_hu)
        labels[coverage >= 0.5] = Label.AIRWAY_WALL
        labels[lumen >= 0.5] = Label.AIRWAY_LUMEN
