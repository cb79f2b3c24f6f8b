"""What a run will do, before it does it: region, grid of the result, cells, and what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.tiles import (
    CELL_VOXELS,
    FADE_VOXELS,
    GROWN_VOXELS,
    Rectangle,
    fade_weights,
    merge_cells,
    needed_cells,
)
from CTMicroSRLib.volume import Geometry, Region, check_pixels_are_clinical

CONTEXT_VOXELS = CELL_VOXELS
"""Voxels around the region that are computed too, so that consistency at its edge is that of the whole."""

LARGEST_TILE_VOXELS = 256

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
RegionChoice = Literal["lungs", "whole"] | Region


@dataclass(frozen=True)
class SlicePlan:
    """One slice: where the network runs and how much its result counts (None: everywhere in full)."""

    rectangles: list[Rectangle]
    weights_ji: Float32 | None


@dataclass(frozen=True)
class Plan:
    """A run over ``region``; ``window`` is the region with the context that is computed around it.

    ``mask_kji`` is the mask the network runs on (None: everywhere).
    """

    input_geometry: Geometry
    region: Region
    window: Region
    mask_kji: Bool | None
    scale: int
    halo: int
    largest_tile: int

    @property
    def output_geometry(self) -> Geometry:
        """The result's grid: the region's, ``scale`` times finer in-plane."""
        return self.input_geometry.crop(self.region).refine((self.scale, self.scale, 1))

    def slice_plan(self, k: int) -> SlicePlan:
        """What to do in slice ``k`` of the input."""
        _, rows, columns = self.input_geometry.shape_kji
        weights = None if self.mask_kji is None else fade_weights(self.mask_kji[k])
        everywhere = np.ones((rows, columns), dtype=np.float32)
        cells = needed_cells(everywhere if weights is None else weights)
        cells &= _cells_touching(self.window, cells.shape)
        return SlicePlan(merge_cells(cells, (rows, columns), self.halo, self.largest_tile), weights)

    def slice_plans(self) -> Iterator[tuple[int, SlicePlan]]:
        """Every slice of the region with its plan."""
        same = self.slice_plan(self.region.k[0]) if self.mask_kji is None else None
        for k in range(*self.region.k):
            yield k, same or self.slice_plan(k)

    def network_voxels(self) -> int:
        """Coarse voxels the network will run on, halos not counted."""
        return sum(rectangle.area for _, plan in self.slice_plans() for rectangle in plan.rectangles)


def make_plan(
    geometry: Geometry,
    choice: RegionChoice,
    mask_kji: Bool | None,
    *,
    scale: int,
    halo: int,
    tile: int | None = None,
) -> Plan:
    """Plan a run.

    Args:
        geometry: the input's grid.
        choice: ``lungs`` is the bounding box of the mask, ``whole`` the grid, a Region itself.
        mask_kji: where the network runs; None is everywhere. Needed for ``lungs``.
        scale: the model's.
        halo: the model's.
        tile: edge of the largest rectangle in voxels, a multiple of 32; None lets the software choose.

    Raises:
        UsageError: the region is not inside the scan, or the tile not a positive multiple of 32.
        RefusedInputError: the mask is empty, or the input is already finer than 0.2 mm.
    """
    check_pixels_are_clinical(geometry)
    check_tile(tile)
    if mask_kji is not None and not mask_kji.any():
        raise RefusedInputError("The mask is empty; give a mask that marks the lungs, or choose --region whole.")
    if isinstance(choice, Region):
        region = choice
    elif choice == "whole" or mask_kji is None:
        region = Region.whole(geometry.size_ijk)
    else:
        margin = GROWN_VOXELS + FADE_VOXELS
        region = bounding_region(mask_kji).grow(margin, geometry.size_ijk)
    region.check_inside(geometry.size_ijk)
    return Plan(
        input_geometry=geometry,
        region=region,
        window=region.grow(CONTEXT_VOXELS, geometry.size_ijk),
        mask_kji=mask_kji,
        scale=scale,
        halo=halo,
        largest_tile=tile or LARGEST_TILE_VOXELS,
    )


def check_tile(tile: int | None) -> None:
    """Raise UsageError unless a tile's edge is None or a positive multiple of 32 voxels."""
    if tile is not None and (tile < CELL_VOXELS or tile % CELL_VOXELS):
        raise UsageError(f"The tile {tile} is not a positive multiple of {CELL_VOXELS}; for example 128.")


def bounding_region(mask_kji: Bool) -> Region:
    """The smallest region that holds a mask that is not empty."""
    spans = []
    for axis in (2, 1, 0):
        others = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero(mask_kji.any(axis=others))
        spans.append((int(used[0]), int(used[-1]) + 1))
    return Region(*spans)


def _cells_touching(window: Region, shape: tuple[int, ...]) -> Bool:
    cells = np.zeros(shape, dtype=bool)
    rows = slice(window.j[0] // CELL_VOXELS, -(-window.j[1] // CELL_VOXELS))
    columns = slice(window.i[0] // CELL_VOXELS, -(-window.i[1] // CELL_VOXELS))
    cells[rows, columns] = True
    return cells
