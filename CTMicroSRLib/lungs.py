"""The lungs of a chest CT by region growing, without help and without training."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.airways import Airways, find_airways
from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.progress import Progress, SilentProgress, check_cancelled
from CTMicroSRLib.volume import AIR_HU, Region, Volume
from CTMicroSRLib.working_grid import (
    BoolArray,
    WorkingGrid,
    anatomical_view,
    bounding_box,
    components,
    dilate,
    distance_to_mm,
    erode,
    make_working_grid,
    to_image,
    to_mask,
)

_log = logging.getLogger(__name__)

NO_LUNG = (
    "No lung found in this scan; check that it is a chest CT in Hounsfield units, choose --region, or give --mask."
)

_OUTSIDE_HU = -950
_BODY_HU = -300
_BODY_OPENING_MM = 2.5
_SMALLEST_BODY_SHARE = 0.02
_OPEN_SIDES = 1
_THINNEST_VIEW_MM = 20.0
# Lung has body on all four sides; less only where the image or the field of view cuts it off.
_FEWEST_BODY_SIDES = 3.4
_FEWEST_BODY_SIDES_CUT = 2.2

# Gas in bowel, stomach and trachea reads -990 to -950 through partial volume and scatter, lung -930 to -700.
_GAS_HU = -940
_DARKER_THAN_LUNG_HU = 30
_LARGE_ML = 300.0
_LARGE_GAS_HU = -975
_LIGHTEST_LUNG_HU = -480

# Sizes are for scans at least this thick in every direction, and shrink in proportion for thinner ones.
_FULL_THICKNESS_MM = 30.0
_NEAR_MM = 6.0
_SMALLEST_PIECE_ML = 1.0
_SPLIT_DEPTHS_MM = (2.0, 4.0, 6.0, 9.0, 12.0, 16.0)
_SPLIT_SMALLEST_SHARE = 0.12
_FACE_HOLE_MM2 = 700.0

_OUT, _IN, _BY_HU, _BY_HU_NOT_PADDING = 0, 1, 2, 3


@dataclass(frozen=True)
class LungSettings:
    """How the lungs are found.

    ``threshold_hu`` parts air from tissue. ``include_airways`` keeps the lumen of the trachea and main
    bronchi in the mask. ``closing_mm`` is the radius that fills vessels and nodules, also at the pleura; 0
    leaves them out unless lung surrounds them. ``minimum_lung_ml`` is the least lung that counts as found
    (in a scan of 30 mm or more in each direction; proportionally less in a thinner one) and the least size of
    a further piece that lies apart. ``working_spacing_mm`` is the voxel size of the region growing.

    Raises:
        UsageError: a value outside its range.
    """

    threshold_hu: float = -400.0
    include_airways: bool = False
    closing_mm: float = 10.0
    minimum_lung_ml: float = 20.0
    working_spacing_mm: float = 1.5

    def __post_init__(self) -> None:
        if not -900.0 <= self.threshold_hu <= -150.0:
            raise UsageError(
                f"The lung threshold {self.threshold_hu} HU does not part air from tissue; choose one from "
                "-900 to -150 HU, usually -400."
            )
        if not (0.0 <= self.closing_mm <= 50.0 and self.minimum_lung_ml >= 0.0):
            raise UsageError(
                "The closing radius must lie in 0 to 50 mm and the smallest lung must not be negative; "
                "leave both at their defaults if unsure."
            )
        if not 0.2 <= self.working_spacing_mm <= 5.0:
            raise UsageError(
                f"The working spacing {self.working_spacing_mm} mm must lie in 0.2 to 5 mm; leave it at 1.5 mm."
            )


@dataclass(frozen=True)
class LungMask:
    """The lungs of a scan, on the scan's grid.

    ``array_kji`` is boolean, of the scan's shape. ``airways_ml`` is the volume of trachea and main bronchi
    that were found (0 where none are in view), whether or not they are in the mask. ``warnings`` are
    sentences for the user.
    """

    array_kji: BoolArray
    volume_ml: float
    airways_ml: float
    warnings: tuple[str, ...]

    def bounding_region(self) -> Region:
        """The smallest region of the scan's grid that holds the mask."""
        k, j, i = bounding_box(self.array_kji)
        return Region((i.start, i.stop), (j.start, j.stop), (k.start, k.stop))


def segment_lungs(
    volume: Volume, settings: LungSettings | None = None, progress: Progress | None = None
) -> LungMask:
    """Segment the lungs by region growing (SimpleITK).

    On a grid of about 1.5 mm: air inside the body is grown and parted from outside air, table and bowel gas;
    the trachea is found as a chain of round dark spots and grown down to the main bronchi until it would leak;
    what remains is closed and filled, each lung by itself. The border is then drawn on the scan's own voxels.
    The answer is the same for any order and direction of the scan's axes.

    Args:
        volume: a CT in HU, int16 or float, padding already read as air.
        settings: see :class:`LungSettings`; None is the defaults.
        progress: told of progress and asked whether to stop; None is nobody.

    Returns:
        The mask on the volume's grid.

    Raises:
        RefusedInputError: no lung is in view.
        CancelledError: the user stopped it.
    """
    settings = settings or LungSettings()
    progress = progress or SilentProgress()
    view, spacing = anatomical_view(volume.array_kji, volume.geometry)
    grid = make_working_grid(view, spacing, settings.working_spacing_mm, progress)
    steps = _Steps(progress)

    around = _look_around(grid, settings.threshold_hu)
    enclosed_air = around.enclosed_air
    steps.done()
    inside = enclosed_air & (around.body_sides == 4) if around.shows_outside else enclosed_air
    airways = find_airways(grid, inside, progress)
    steps.done()
    air = enclosed_air & ~airways.reach_zyx if airways else enclosed_air
    lung_air = _lung_pieces(grid, air, around, settings)
    steps.done()
    sides = _left_and_right(grid, lung_air)
    steps.done()
    filled = np.zeros_like(lung_air)
    for side in sides:
        filled |= _close_and_fill(grid, side, settings.closing_mm)
        steps.done()
    lumen = _lumen(airways, filled)
    codes = _codes(grid, lung_air, filled, lumen, include_airways=settings.include_airways)
    codes[around.padding_rim & (codes != _OUT)] = _BY_HU_NOT_PADDING

    array_kji = np.zeros(volume.array_kji.shape, dtype=bool)
    out_view, _ = anatomical_view(array_kji, volume.geometry)
    _draw(view, codes, grid.factors_zyx, settings.threshold_hu, out_view, progress)
    voxel_ml = math.prod(volume.geometry.spacing_mm) / 1000.0
    return LungMask(
        array_kji=array_kji,
        volume_ml=float(np.count_nonzero(array_kji)) * voxel_ml,
        airways_ml=airways.lumen_ml if airways else 0.0,
        warnings=_warnings(grid, lung_air, sides, airways, settings),
    )


class _Steps:
    """Counts the steps between the passes over the scan."""

    _TOTAL = 6

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._count = 0

    def done(self) -> None:
        check_cancelled(self._progress)
        self._count += 1
        self._progress.update("lungs: grow", min(self._count, self._TOTAL), self._TOTAL)


@dataclass(frozen=True)
class _Surroundings:
    """What lies around each voxel within its axial slice.

    ``enclosed_air``: air that has open air without body behind it on at most one of its four sides. A lung
    cut off by the edge of the image or of the field of view sees no open air there, so it stays.
    ``body_sides``, ``open_sides``: on how many sides there is body, or open air without body. ``cut``: where the image or the field of view ends;
    ``padding_rim``: voxels that mix with the padding beyond the field of view.
    ``shows_outside``: whether the scan shows open air.
    """

    enclosed_air: BoolArray
    body_sides: NDArray[np.uint8]
    open_sides: NDArray[np.uint8]
    cut: BoolArray
    padding_rim: BoolArray
    shows_outside: bool


def _look_around(grid: WorkingGrid, threshold_hu: float) -> _Surroundings:
    hu = grid.array_zyx
    # Along a thin axis (a single coronal or sagittal slice) there is nothing to see: no side, no open air.
    in_view = [axis for axis in (1, 2) if grid.extent_zyx_mm[axis] >= _THINNEST_VIEW_MM]
    sides = np.zeros(hu.shape, dtype=bool)
    for axis in in_view:
        sides[(slice(None),) * axis + ([0, -1],)] = True
    padding = _touching(hu <= AIR_HU, sides, 1)
    padding_rim = dilate(padding, (0, 1, 1)) & ~padding
    cut = sides | padding_rim | padding
    outside = _touching((hu < _OUTSIDE_HU) & ~padding, cut, hu.size // 200)
    body = _body(grid, in_one_piece=len(in_view) == 2)
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
    return _Surroundings(enclosed, body_sides, open_sides, cut, padding_rim, bool(outside.any()))


def _touching(mask: BoolArray, place: BoolArray, minimum_voxels: int) -> BoolArray:
    """Components of a mask that reach a place."""
    labels = components(mask, minimum_voxels)
    touching = np.zeros(int(labels.max()) + 1, dtype=bool)
    touching[labels[place]] = True
    touching[0] = False
    return touching[labels]


def _body(grid: WorkingGrid, *, in_one_piece: bool) -> BoolArray:
    """The largest piece of tissue, after an opening that cuts off table, tubes and blankets.

    In a coronal or sagittal slice the lungs part the chest wall from the rest, so every large piece counts,
    after a wider opening.
    """
    _, y, x = grid.radius_voxels(_BODY_OPENING_MM * (1 if in_one_piece else 2))
    tissue = grid.array_zyx > _BODY_HU
    pieces = components(dilate(erode(tissue, (0, y, x)), (0, y, x)), 1)
    if in_one_piece:
        return pieces == 1
    large = np.bincount(pieces.ravel())
    large[0] = 0
    return (large > _SMALLEST_BODY_SHARE * large.max())[pieces]


@dataclass(frozen=True)
class _Piece:
    """A component of the enclosed air."""

    label: int
    volume_ml: float
    median_hu: float
    body_sides: float


def _lung_pieces(
    grid: WorkingGrid, air: BoolArray, around: _Surroundings, settings: LungSettings
) -> BoolArray:
    """The components of the enclosed air that are lung.

    Raises:
        RefusedInputError: nothing is lung.
    """
    share = min(1.0, min(grid.extent_zyx_mm) / _FULL_THICKNESS_MM)
    scan_ml = grid.array_zyx.size * grid.voxel_ml
    minimum_ml = min(settings.minimum_lung_ml * share, 0.05 * scan_ml)
    smallest_ml = min(_SMALLEST_PIECE_ML * share, minimum_ml)
    labels = components(air, math.ceil(smallest_ml / grid.voxel_ml))
    pieces = _describe_pieces(grid, air, around, labels)
    candidates = [p for p in pieces if p.volume_ml >= minimum_ml and _may_be_lung(p)]
    if not candidates:
        # Only apices or recesses in view: several small pieces that together are enough.
        candidates = [p for p in pieces if p.volume_ml >= minimum_ml / 4 and _may_be_lung(p)]
    if sum(p.volume_ml for p in candidates) < minimum_ml or not candidates:
        raise RefusedInputError(NO_LUNG)
    main = candidates[0]
    darkest = min(_GAS_HU, main.median_hu - _DARKER_THAN_LUNG_HU)
    gas = [p for p in pieces if p.median_hu < (_LARGE_GAS_HU if p.volume_ml >= _LARGE_ML else darkest)]
    lungs = [p for p in candidates if p not in gas or p is main]
    is_lung = np.isin(labels, [p.label for p in lungs])
    near = dilate(is_lung, _at_least_one(grid.radius_voxels(_NEAR_MM)))
    touching = set(np.unique(labels[near]).tolist())
    slivers = [p for p in pieces if p.label in touching and p not in gas and p not in lungs and _may_be_lung(p)]
    for piece in pieces:
        kind = "gas" if piece in gas else "lung" if piece in lungs else "sliver" if piece in slivers else "dropped"
        _log.debug("%s: %.1f ml, median %.0f HU, body on %.1f sides", kind, piece.volume_ml, piece.median_hu, piece.body_sides)
    is_lung |= np.isin(labels, [p.label for p in slivers])
    return is_lung


def _may_be_lung(piece: _Piece) -> bool:
    darkest = _LARGE_GAS_HU if piece.volume_ml >= _LARGE_ML else _GAS_HU
    return darkest <= piece.median_hu <= _LIGHTEST_LUNG_HU


def _describe_pieces(
    grid: WorkingGrid, air: BoolArray, around: _Surroundings, labels: NDArray[np.uint32]
) -> list[_Piece]:
    """Size and median HU of each component; the median is of its inside, away from the partial volume."""
    inside = erode(air, _at_least_one((0, 0, 0), in_plane=True))
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
        is_cut = bool((here & around.cut[box]).any()) and float(around.open_sides[box][here].mean()) < 0.25
        if around.shows_outside and sides < (_FEWEST_BODY_SIDES_CUT if is_cut else _FEWEST_BODY_SIDES):
            continue
        pieces.append(_Piece(label, float(np.count_nonzero(here)) * grid.voxel_ml, float(np.median(hu)), sides))
    return pieces


def _at_least_one(radius: tuple[int, int, int], *, in_plane: bool = False) -> tuple[int, int, int]:
    z, y, x = radius
    return (z if in_plane else max(1, z), max(1, y), max(1, x))


def _left_and_right(grid: WorkingGrid, lung: BoolArray) -> list[BoolArray]:
    """The lung air of each side, so that closing one lung doesn't bridge to the other.

    Lungs that touch are cut where an erosion first parts them into two large pieces, side by side.
    """
    box = bounding_box(lung)
    part = lung[box]
    depth = -distance_to_mm(part, grid.spacing_zyx_mm)
    for depth_mm in (0.0, *_SPLIT_DEPTHS_MM):
        cores = components(depth > depth_mm if depth_mm else part, 1)
        sizes = np.bincount(cores.ravel(), minlength=3)[1:3]
        if sizes[1] < _SPLIT_SMALLEST_SHARE * sizes[0] or sizes[1] == 0:
            continue
        first, second = cores == 1, cores == 2
        if not _side_by_side(first, second):
            continue
        nearer_first = distance_to_mm(first, grid.spacing_zyx_mm) <= distance_to_mm(
            second, grid.spacing_zyx_mm
        )
        sides = []
        for mask in (part & nearer_first, part & ~nearer_first):
            side = np.zeros_like(lung)
            side[box] = mask
            sides.append(side)
        return sides
    return [lung]


def _side_by_side(first: BoolArray, second: BoolArray) -> bool:
    """Whether two pieces overlap at most a little in their left-right ranges' inner halves."""
    centres = [np.average(np.arange(m.shape[2]), weights=m.sum(axis=(0, 1))) for m in (first, second)]
    return bool(abs(centres[0] - centres[1]) > 0.25 * first.shape[2])


def _close_and_fill(grid: WorkingGrid, lung: BoolArray, closing_mm: float) -> BoolArray:
    """Closing by distance, holes filled; the scan is continued past its edges, so that edges close too."""
    box = bounding_box(lung)
    margin = [math.ceil(closing_mm / s) + 1 for s in grid.spacing_zyx_mm]
    outer = tuple(
        slice(max(0, b.start - m), min(n, b.stop + m))
        for b, m, n in zip(box, margin, lung.shape, strict=True)
    )
    part = lung[outer]
    if closing_mm > 0:
        padded = np.pad(part, [(m, m) for m in margin], mode="edge")
        dilated = distance_to_mm(padded, grid.spacing_zyx_mm) <= closing_mm
        closed = distance_to_mm(~dilated, grid.spacing_zyx_mm) > closing_mm
        inner = tuple(slice(m, m + n) for m, n in zip(margin, part.shape, strict=True))
        part = closed[inner] | part
    filled = np.zeros_like(lung)
    filled[outer] = part
    _fill_faces(grid, filled)
    return filled | to_mask(sitk.BinaryFillhole(to_image(filled), False))


def _fill_faces(grid: WorkingGrid, mask: BoolArray) -> None:
    """Fill small holes of the six faces of the grid, in place: they would open a hole cut by the face."""
    for axis in range(3):
        s = [spacing for a, spacing in enumerate(grid.spacing_zyx_mm) if a != axis]
        for position in {0, mask.shape[axis] - 1}:
            face = mask[(slice(None),) * axis + (position,)]
            if not face.any() or face.all():
                continue
            holes = components((to_mask(sitk.BinaryFillhole(to_image(face))) & ~face)[None], 1)[0]
            small = np.bincount(holes.ravel()) * s[0] * s[1] <= _FACE_HOLE_MM2
            small[0] = False
            face |= small[holes]


def _lumen(airways: Airways | None, lungs: BoolArray) -> BoolArray:
    """Airway lumen with its rim; in a thin stack, only what lies between lung on the left and on the right."""
    if airways is None:
        return np.zeros_like(lungs)
    if airways.has_trachea:
        return airways.reach_zyx
    left = np.logical_or.accumulate(lungs, axis=2)
    right = np.logical_or.accumulate(lungs[:, :, ::-1], axis=2)[:, :, ::-1]
    return airways.reach_zyx & left & right


def _codes(
    grid: WorkingGrid, lung_air: BoolArray, filled: BoolArray, lumen: BoolArray, *, include_airways: bool
) -> NDArray[np.uint8]:
    """What each working voxel's scan voxels are: out, in, or in where they are darker than the threshold."""
    one = _at_least_one((0, 0, 0))
    filled = filled & ~lumen
    rim = filled & lung_air & dilate(~filled & ~lumen, one)
    around = dilate(lung_air, one) & ~filled & ~lumen
    codes = np.zeros(filled.shape, dtype=np.uint8)
    codes[filled] = _IN
    if max(grid.factors_zyx) > 1:
        codes[rim | around] = _BY_HU
    if include_airways:
        codes[lumen] = _IN if max(grid.factors_zyx) == 1 else _BY_HU
    return codes


def _draw(
    view_zyx: NDArray[np.generic],
    codes: NDArray[np.uint8],
    factors_zyx: tuple[int, int, int],
    threshold_hu: float,
    out_zyx: NDArray[np.generic],
    progress: Progress,
) -> None:
    """Write the mask on the scan's own voxels, one working slice at a time."""
    fz, fy, fx = factors_zyx
    _, rows, columns = view_zyx.shape
    for z, plane in enumerate(codes):
        check_cancelled(progress)
        if plane.any():
            fine = plane.repeat(fy, axis=0)[:rows].repeat(fx, axis=1)[:, :columns]
            slab = slice(z * fz, (z + 1) * fz)
            hu = view_zyx[slab]
            drawn = (fine == _IN) | ((fine >= _BY_HU) & (hu < threshold_hu))
            if (plane == _BY_HU_NOT_PADDING).any():
                drawn &= (fine != _BY_HU_NOT_PADDING) | (hu > AIR_HU)
            out_zyx[slab] = drawn
        progress.update("lungs: draw", z + 1, len(codes))


def _warnings(
    grid: WorkingGrid,
    lung_air: BoolArray,
    sides: list[BoolArray],
    airways: Airways | None,
    settings: LungSettings,
) -> tuple[str, ...]:
    found = []
    if len(sides) == 1:
        found.append("Only one lung was found; look at the mask, or give one with --mask.")
    if airways is None and settings.include_airways:
        found.append("No trachea was found, so the airways in the mask may be incomplete.")
    return tuple(found)
