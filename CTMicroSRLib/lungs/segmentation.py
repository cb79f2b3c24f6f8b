"""The lungs of a chest CT by region growing, without help and without training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, UsageError, shown
from CTMicroSRLib.lungs.airways import Airways, find_airways
from CTMicroSRLib.lungs.filling import close_and_fill, left_and_right
from CTMicroSRLib.lungs.pieces import lung_pieces
from CTMicroSRLib.lungs.surroundings import look_around
from CTMicroSRLib.lungs.working_grid import (
    BoolArray,
    WorkingGrid,
    anatomical_view,
    at_least_one,
    bounding_box,
    dilate,
    make_working_grid,
)
from CTMicroSRLib.progress import Progress, SilentProgress, check_cancelled
from CTMicroSRLib.volume import AIR_HU, Region, Volume

NO_LUNG = (
    "No lung found in this scan; check that it is a chest CT in Hounsfield units, choose --region, or give --mask."
)

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


def segment_lungs(volume: Volume, settings: LungSettings | None = None, progress: Progress | None = None) -> LungMask:
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
        UsageError: it is no volume.
        RefusedInputError: no lung is in view.
        CancelledError: the user stopped it.
    """
    if not isinstance(volume, Volume):
        raise UsageError(f"The scan is {shown(volume)}, not a Volume; read it with read_volume first.")
    settings = settings or LungSettings()
    progress = progress or SilentProgress()
    view, spacing = anatomical_view(volume.array_kji, volume.geometry)
    grid = make_working_grid(view, spacing, settings.working_spacing_mm, progress)
    steps = _Steps(progress)

    around = look_around(grid, settings.threshold_hu)
    enclosed_air = around.enclosed_air
    steps.done()
    inside = enclosed_air & (around.body_sides == 4) if around.shows_outside else enclosed_air
    airways = find_airways(grid, inside, progress)
    steps.done()
    air = enclosed_air & ~airways.reach_zyx if airways else enclosed_air
    lung_air = lung_pieces(grid, air, around, settings.minimum_lung_ml)
    if not lung_air.any():
        raise RefusedInputError(NO_LUNG)
    steps.done()
    sides = left_and_right(grid, lung_air)
    steps.done()
    filled = np.zeros_like(lung_air)
    for side in sides:
        check_cancelled(progress)
        filled |= close_and_fill(grid, side, settings.closing_mm)
    steps.done()
    lumen = _lumen(airways, filled)
    codes = _codes(grid, lung_air, filled, lumen, include_airways=settings.include_airways)
    codes[around.padding] = _OUT
    codes[around.padding_rim & (codes != _OUT)] = _BY_HU_NOT_PADDING

    array_kji = np.zeros(volume.array_kji.shape, dtype=bool)
    out_view, _ = anatomical_view(array_kji, volume.geometry)
    _draw(view, codes, grid.factors_zyx, settings.threshold_hu, out_view, progress)
    voxel_ml = math.prod(volume.geometry.spacing_mm) / 1000.0
    return LungMask(
        array_kji=array_kji,
        volume_ml=float(np.count_nonzero(array_kji)) * voxel_ml,
        airways_ml=airways.lumen_ml if airways else 0.0,
        warnings=_warnings(sides, airways, settings),
    )


class _Steps:
    """Counts the steps between the passes over the scan."""

    _TOTAL = 5

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._count = 0

    def done(self) -> None:
        check_cancelled(self._progress)
        self._count += 1
        self._progress.update("lungs: grow", self._count, self._TOTAL)


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
    one = at_least_one((0, 0, 0))
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
            hu = cast("NDArray[np.float32]", view_zyx[slab])
            drawn = (fine == _IN) | ((fine >= _BY_HU) & (hu < threshold_hu))
            if (plane == _BY_HU_NOT_PADDING).any():
                drawn &= (fine != _BY_HU_NOT_PADDING) | (hu > AIR_HU)
            out_zyx[slab] = drawn
        progress.update("lungs: draw", z + 1, len(codes))


def _warnings(sides: list[BoolArray], airways: Airways | None, settings: LungSettings) -> tuple[str, ...]:
    found = []
    if len(sides) == 1:
        found.append("Only one lung was found; look at the mask, or give one with --mask.")
    if airways is None and settings.include_airways:
        found.append("No trachea was found, so the airways in the mask may be incomplete.")
    return tuple(found)
