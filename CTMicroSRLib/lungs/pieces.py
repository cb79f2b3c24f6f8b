"""Which pieces of the air inside the body are lung, and which are bowel gas or something else."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.lungs.surroundings import Surroundings
from CTMicroSRLib.lungs.working_grid import BoolArray, WorkingGrid, at_least_one, components, dilate, erode

_log = logging.getLogger(__name__)

# Gas in bowel, stomach and trachea reads -990 to -950 through partial volume and scatter, lung -930 to -700.
_GAS_HU = -940
_DARKER_THAN_LUNG_HU = 30
_LARGE_ML = 300.0
_LARGE_GAS_HU = -975
_LIGHTEST_LUNG_HU = -480

# Lung has body on all four sides; less only where the image or the field of view cuts it off.
_FEWEST_BODY_SIDES = 3.4
_FEWEST_BODY_SIDES_CUT = 1.7
_MOST_OPEN_SIDES_CUT = 0.25

# Sizes are for scans at least this thick in every direction, and shrink in proportion for thinner ones.
_FULL_THICKNESS_MM = 30.0
_LARGEST_SHARE_OF_SCAN = 0.05
_NEAR_MM = 6.0
_SMALLEST_PIECE_ML = 1.0


@dataclass(frozen=True)
class _Piece:
    """A component of the enclosed air."""

    label: int
    volume_ml: float
    median_hu: float
    body_sides: float


def lung_pieces(grid: WorkingGrid, air: BoolArray, around: Surroundings, minimum_lung_ml: float) -> BoolArray:
    """The components of the enclosed air that are lung.

    Lung is lighter than the gas in bowel and trachea, has body on all sides, and is large; small pieces near
    a lung, of its density, are part of it.

    Args:
        grid: the scan on its working grid.
        air: enclosed air without the airways, of the grid's shape.
        around: the surroundings of every voxel.
        minimum_lung_ml: the least lung, for a scan at least 30 mm thick in every direction.

    Returns:
        A mask, empty where nothing is lung.
    """
    share = min(1.0, min(grid.extent_zyx_mm) / _FULL_THICKNESS_MM)
    scan_ml = grid.array_zyx.size * grid.voxel_ml
    minimum_ml = min(minimum_lung_ml * share, _LARGEST_SHARE_OF_SCAN * scan_ml)
    smallest_ml = min(_SMALLEST_PIECE_ML * share, minimum_ml)
    labels = components(air, math.ceil(smallest_ml / grid.voxel_ml))
    pieces = _describe_pieces(grid, air, around, labels)
    candidates = [p for p in pieces if p.volume_ml >= minimum_ml and _may_be_lung(p)]
    if not candidates:
        # Only apices or recesses in view: several small pieces that together are enough.
        candidates = [p for p in pieces if p.volume_ml >= minimum_ml / 4 and _may_be_lung(p)]
    if sum(p.volume_ml for p in candidates) < minimum_ml or not candidates:
        return np.zeros_like(air)
    main = candidates[0]
    darkest = min(_GAS_HU, main.median_hu - _DARKER_THAN_LUNG_HU)
    gas = [p for p in pieces if p.median_hu < (_LARGE_GAS_HU if p.volume_ml >= _LARGE_ML else darkest)]
    lungs = [p for p in candidates if p not in gas or p is main]
    is_lung = np.isin(labels, [p.label for p in lungs])
    near = dilate(is_lung, at_least_one(grid.radius_voxels(_NEAR_MM)))
    touching = set(np.unique(labels[near]).tolist())
    slivers = [p for p in pieces if p.label in touching and p not in gas and p not in lungs and _may_be_lung(p)]
    _log.debug("air pieces: lung %s, sliver %s, gas %s", lungs, slivers, gas)
    is_lung |= np.isin(labels, [p.label for p in slivers])
    return is_lung


def _may_be_lung(piece: _Piece) -> bool:
    darkest = _LARGE_GAS_HU if piece.volume_ml >= _LARGE_ML else _GAS_HU
    return darkest <= piece.median_hu <= _LIGHTEST_LUNG_HU


def _describe_pieces(
    grid: WorkingGrid, air: BoolArray, around: Surroundings, labels: NDArray[np.uint32]
) -> list[_Piece]:
    """Size and median HU of each component; the median is of its inside, away from the partial volume."""
    inside = erode(air, (0, 1, 1))
    pieces = []
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.ComputeOrientedBoundingBoxOff()
    statistics.ComputeFeretDiameterOff()
    statistics.ComputePerimeterOff()
    statistics.Execute(sitk.GetImageFromArray(labels))
    for label in statistics.GetLabels():
        x, y, z, width, height, depth = statistics.GetBoundingBox(label)
        box = (slice(z, z + depth), slice(y, y + height), slice(x, x + width))
        here = labels[box] == label
        core = here & inside[box]
        hu = grid.array_zyx[box][core if core.any() else here]
        sides = float(around.body_sides[box][here].mean())
        open_sides = float(around.open_sides[box][here].mean())
        is_cut = open_sides < _MOST_OPEN_SIDES_CUT and bool((here & around.cut[box]).any())
        if around.shows_outside and sides < (_FEWEST_BODY_SIDES_CUT if is_cut else _FEWEST_BODY_SIDES):
            continue
        pieces.append(_Piece(label, float(np.count_nonzero(here)) * grid.voxel_ml, float(np.median(hu)), sides))
    return pieces
