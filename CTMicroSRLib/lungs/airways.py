"""Trachea and main bronchi by region growing on the working grid."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.lungs.working_grid import (
    BoolArray,
    WorkingGrid,
    components,
    dilate,
    erode,
    grow_below,
    to_image,
)
from CTMicroSRLib.progress import Progress, check_cancelled

_log = logging.getLogger(__name__)

# The trachea of an adult is 10 to 27 mm wide; its edge voxels are lighter than the lumen threshold.
_LUMEN_HU = -850
_AREA_MM2 = (30.0, 750.0)
_LONGEST_SIDE_RATIO = 2.6
_FILLED_SHARE_OF_BOX = 0.5
_WALL_HU = -700
_WALLED_SHARE = 0.6
_SHORTEST_CHAIN_MM = 20.0
_AREA_CHANGE = 2.5

# Region growing leaks into the lung where the volume jumps; trachea and bronchi of adults hold 30 to 80 ml.
_GROW_HU = range(-1000, -799, 10)
_LARGEST_TREE_ML = 150.0
_LEAK_FACTOR = 1.35
_LEAK_FROM_SHARE = 0.5
_NARROWEST_MAIN_BRONCHUS_MM = 6.5
_SMALLEST_PART_ML = 0.3
_WALL_MM = 2.0


@dataclass(frozen=True)
class Airways:
    """``lumen_zyx``: trachea and main bronchi; ``reach_zyx``: the same with the partial-volume rim.

    ``has_trachea`` is False for a stack too thin to follow the trachea in: there each dark round spot with
    a wall of tissue is one, be it bronchus or bowel.
    """

    lumen_zyx: BoolArray
    reach_zyx: BoolArray
    lumen_ml: float
    has_trachea: bool


@dataclass(frozen=True)
class _Blob:
    """A dark spot of one axial slice: where it is, how large, its darkest voxel."""

    z: int
    centre_yx_mm: tuple[float, float]
    area_mm2: float
    darkest_zyx: tuple[int, int, int]


def find_airways(grid: WorkingGrid, enclosed_air: BoolArray, progress: Progress) -> Airways | None:
    """Find the trachea as a chain of round dark spots and grow it down to the main bronchi.

    Args:
        grid: the scan on its working grid.
        enclosed_air: air inside the body, of the grid's shape.
        progress: asked whether to stop.

    Returns:
        The airways, or None where no trachea is in view.
    """
    is_thin = grid.extent_zyx_mm[0] < _SHORTEST_CHAIN_MM
    if is_thin:
        lumen = _walled_spots(grid, enclosed_air, progress)
    else:
        lumen = _trachea_and_main_bronchi(grid, enclosed_air, progress)
    if not lumen.any():
        return None
    in_plane = max(1, round(_WALL_MM / grid.spacing_zyx_mm[1]))
    rim = (round(_WALL_MM / grid.spacing_zyx_mm[0]), in_plane, in_plane)
    reach = dilate(lumen, rim) & enclosed_air
    return Airways(lumen, reach | lumen, float(lumen.sum()) * grid.voxel_ml, not is_thin)


def _trachea_and_main_bronchi(grid: WorkingGrid, enclosed_air: BoolArray, progress: Progress) -> BoolArray:
    chain = _longest_chain(grid, enclosed_air, progress)
    seeds = np.array([blob.darkest_zyx for blob in chain], dtype=np.intp).reshape(-1, 3)
    image = _air_image(grid, enclosed_air)
    tree = _grow_without_leak(image, seeds, _LARGEST_TREE_ML / grid.voxel_ml, progress)
    return _main_part(grid, tree, seeds) if tree.any() else tree


def _walled_spots(grid: WorkingGrid, enclosed_air: BoolArray, progress: Progress) -> BoolArray:
    """In a thin stack: every dark round spot, grown by itself until it would leak."""
    image = _air_image(grid, enclosed_air)
    largest = 2.0 * _AREA_MM2[1] * grid.extent_zyx_mm[0] / 1000.0 / grid.voxel_ml
    lumen = np.zeros(enclosed_air.shape, dtype=bool)
    for z in range(enclosed_air.shape[0]):
        for blob in _blobs_of_slice(grid, enclosed_air, z):
            if not lumen[blob.darkest_zyx]:
                lumen |= _grow_without_leak(image, np.array([blob.darkest_zyx]), largest, progress)
    return lumen


def _air_image(grid: WorkingGrid, enclosed_air: BoolArray) -> sitk.Image:
    """The scan with everything but the enclosed air at 0 HU, so that nothing grows out of it."""
    return sitk.GetImageFromArray(np.where(enclosed_air, grid.array_zyx, np.int16(0)))


def _longest_chain(grid: WorkingGrid, enclosed_air: BoolArray, progress: Progress) -> list[_Blob]:
    """The longest stack of dark spots in the upper half of the enclosed air; empty if too short."""
    air_by_slice = enclosed_air.sum(axis=(1, 2)).cumsum()
    if air_by_slice[-1] == 0:
        return []
    middle = int(np.searchsorted(air_by_slice, air_by_slice[-1] / 2))
    step_mm = grid.spacing_zyx_mm[0]
    gap_slices = max(1, int(5.0 / step_mm))
    chains: list[list[_Blob]] = []
    best: list[_Blob] = []
    for z in range(grid.array_zyx.shape[0]):
        check_cancelled(progress)
        chains = [chain for chain in chains if z - chain[-1].z <= gap_slices]
        grown = []
        for blob in _blobs_of_slice(grid, enclosed_air, z):
            below = [chain for chain in chains if _continues(chain[-1], blob, step_mm)]
            grown.append([*max(below, key=len, default=[]), blob])
        chains += grown
        for chain in grown:
            if len(chain) > len(best) and chain[len(chain) // 2].z >= middle:
                best = chain
        progress.update("lungs: trachea", z + 1, grid.array_zyx.shape[0])
    if not best or (best[-1].z - best[0].z + 1) * step_mm < _SHORTEST_CHAIN_MM:
        return []
    return best


def _continues(lower: _Blob, upper: _Blob, step_mm: float) -> bool:
    if lower.z == upper.z:
        return False
    rise = (upper.z - lower.z) * step_mm
    shift = np.hypot(*np.subtract(lower.centre_yx_mm, upper.centre_yx_mm))
    ratio = upper.area_mm2 / lower.area_mm2
    return bool(shift <= 4.0 + 0.8 * rise and 1 / _AREA_CHANGE <= ratio <= _AREA_CHANGE)


def _blobs_of_slice(grid: WorkingGrid, enclosed_air: BoolArray, z: int) -> list[_Blob]:
    hu = grid.array_zyx[z]
    dark = (hu <= _LUMEN_HU) & enclosed_air[z]
    if not dark.any():
        return []
    _, sy, sx = grid.spacing_zyx_mm
    labels = _label_slice(dark)
    areas = np.bincount(labels.ravel()) * sy * sx
    areas[0] = 0.0
    blobs = []
    for label in np.flatnonzero((areas >= _AREA_MM2[0]) & (areas <= _AREA_MM2[1])):
        rows, columns = np.nonzero(labels == label)
        y0, y1, x0, x1 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        sides = sorted((float(y1 - y0) * sy, float(x1 - x0) * sx))
        area = float(areas[label])
        if sides[1] > _LONGEST_SIDE_RATIO * sides[0] or area < _FILLED_SHARE_OF_BOX * sides[0] * sides[1]:
            continue
        box = (slice(max(0, y0 - 3), y1 + 3), slice(max(0, x0 - 3), x1 + 3))
        if not _has_wall(hu[box], labels[box] == label):
            continue
        darkest = int(np.argmin(hu[rows, columns]))
        centre = (float(rows.mean()) * sy, float(columns.mean()) * sx)
        blobs.append(_Blob(z, centre, area, (z, int(rows[darkest]), int(columns[darkest]))))
    return blobs


def _label_slice(mask_yx: BoolArray) -> NDArray[np.uint32]:
    """Components of one slice; one thread, because starting threads costs more than a slice does."""
    connected = sitk.ConnectedComponentImageFilter()
    connected.SetNumberOfThreads(1)
    labels: NDArray[np.uint32] = sitk.GetArrayFromImage(connected.Execute(to_image(mask_yx)))
    return labels


def _has_wall(hu: NDArray[np.int16], spot: BoolArray) -> bool:
    """Whether tissue, not lung, lies around a spot, one voxel away for the partial volume."""
    near = dilate(spot[None], (0, 1, 1))[0]
    ring = dilate(near[None], (0, 1, 1))[0] & ~near
    return bool(ring.any() and (hu[ring] > _WALL_HU).mean() >= _WALLED_SHARE)


def _grow_without_leak(
    image: sitk.Image, seeds_zyx: NDArray[np.intp], largest_voxels: float, progress: Progress
) -> BoolArray:
    """Raise the growing threshold until the region leaks; the last region before that (perhaps empty)."""
    tree: BoolArray = np.zeros(image.GetSize()[::-1], dtype=bool)
    size = 0
    for upper_hu in _GROW_HU:
        check_cancelled(progress)
        grown = grow_below(image, seeds_zyx, upper_hu)
        grown_size = int(np.count_nonzero(grown))
        jumps = grown_size > max(_LEAK_FACTOR * size, _LEAK_FROM_SHARE * largest_voxels)
        _log.debug("airway growth at %d HU: %d voxels", upper_hu, grown_size)
        if jumps or grown_size > largest_voxels:
            break
        tree, size = grown, grown_size
    return tree


def _main_part(grid: WorkingGrid, tree: BoolArray, seeds_zyx: NDArray[np.intp]) -> BoolArray:
    """Trachea and the parts of the tree as wide as a main bronchus (an opening within the slice)."""
    _, sy, sx = grid.spacing_zyx_mm
    y, x = (int((_NARROWEST_MAIN_BRONCHUS_MM / s - 1.0) / 2.0 + 0.01) for s in (sy, sx))
    main = dilate(erode(tree, (0, max(0, y), max(0, x))), (0, max(0, y), max(0, x))) & tree
    for z, row, column in seeds_zyx:
        if tree[z, row, column]:
            labels = components(tree[z : z + 1], 1)[0]
            main[z] |= labels == labels[row, column]
    labels = components(main, math.ceil(_SMALLEST_PART_ML / grid.voxel_ml))
    return labels > 0
