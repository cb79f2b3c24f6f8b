"""Which air of a scan lies inside the body: open air, padding, table and bedding are told apart from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.lungs.working_grid import BoolArray, WorkingGrid, components, dilate, erode
from CTMicroSRLib.volume import AIR_HU

_OUTSIDE_HU = -950
_OUTSIDE_SMALLEST_SHARE = 0.005
_BODY_HU = -300
_BODY_OPENING_MM = 2.5
_SMALLEST_BODY_SHARE = 0.1
_SMALLEST_BODY_SHARE_OF_SLICE = 0.02
_OPEN_SIDES = 1
_THINNEST_VIEW_MM = 20.0


@dataclass(frozen=True)
class Surroundings:
    """What lies around each voxel within its axial slice (on its left, right, front and back).

    ``enclosed_air``: air that has open air without body behind it on at most one side. A lung cut off by the
    edge of the image or of the field of view sees no open air there, so it stays.
    ``body_sides``, ``open_sides``: on how many sides there is body, or open air without body.
    ``cut``: where the image or the field of view ends.
    ``padding``: beyond the field of view; ``padding_rim``: voxels that mix with the padding.
    ``shows_outside``: whether the scan shows open air.
    """

    enclosed_air: BoolArray
    body_sides: NDArray[np.uint8]
    open_sides: NDArray[np.uint8]
    cut: BoolArray
    padding: BoolArray
    padding_rim: BoolArray
    shows_outside: bool


def look_around(grid: WorkingGrid, threshold_hu: float) -> Surroundings:
    """Find the body, the open air and the padding, and look from every voxel to the four sides.

    Args:
        grid: the scan on its working grid.
        threshold_hu: air is darker than this.
    """
    hu = grid.array_zyx
    # Along a thin axis (a single coronal or sagittal slice) there is nothing to see: no side, no open air.
    in_view = [axis for axis in (1, 2) if grid.extent_zyx_mm[axis] >= _THINNEST_VIEW_MM]
    sides = np.zeros(hu.shape, dtype=bool)
    for axis in in_view:
        sides[(slice(None),) * axis + ([0, -1],)] = True
    padding = _touching(hu <= AIR_HU, sides, 1)
    padding_rim = dilate(padding, (0, 1, 1)) & ~padding
    cut = sides | padding_rim | padding
    outside = _touching((hu < _OUTSIDE_HU) & ~padding, cut, int(_OUTSIDE_SMALLEST_SHARE * hu.size))
    body = _body(grid, is_slice=len(in_view) < 2)
    open_sides = np.zeros(hu.shape, dtype=np.uint8)
    body_sides = np.full(hu.shape, 4 - 2 * len(in_view), dtype=np.uint8)
    for axis in in_view:
        for direction in (slice(None), slice(None, None, -1)):
            order = (slice(None),) * axis + (direction,)
            seen_body = np.logical_or.accumulate(body[order], axis=axis)[order]
            seen_open = np.logical_or.accumulate(outside[order], axis=axis)[order]
            body_sides += seen_body
            open_sides += seen_open & ~seen_body
    enclosed = (hu < threshold_hu) & ~padding & (open_sides <= _OPEN_SIDES)
    # Tissue mixed with padding looks like lung: the rim counts only where air reaches it from inside.
    enclosed &= ~padding_rim | dilate(enclosed & ~padding_rim, (0, 1, 1))
    if len(in_view) < 2:
        cut = np.zeros_like(cut)
    return Surroundings(enclosed, body_sides, open_sides, cut, padding, padding_rim, bool(outside.any()))


def _touching(mask: BoolArray, place: BoolArray, minimum_voxels: int) -> BoolArray:
    """Components of a mask that reach a place."""
    labels = components(mask, minimum_voxels)
    touching = np.zeros(int(labels.max()) + 1, dtype=bool)
    touching[labels[place]] = True
    touching[0] = False
    reached: BoolArray = touching[labels]
    return reached


def _body(grid: WorkingGrid, *, is_slice: bool) -> BoolArray:
    """The large pieces of tissue, after an opening that cuts off table, tubes and blankets.

    Where the image cuts through the lungs they part the chest wall from the rest, so one piece isn't enough;
    in a coronal or sagittal slice the pieces are small, and the opening is wider instead.
    """
    _, y, x = grid.radius_voxels(_BODY_OPENING_MM * (2 if is_slice else 1))
    tissue = grid.array_zyx > _BODY_HU
    pieces = components(dilate(erode(tissue, (0, y, x)), (0, y, x)), 1)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    smallest = (_SMALLEST_BODY_SHARE_OF_SLICE if is_slice else _SMALLEST_BODY_SHARE) * sizes.max()
    body: BoolArray = (sizes > smallest)[pieces]
    return body
