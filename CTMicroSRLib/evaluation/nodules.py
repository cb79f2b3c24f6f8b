"""Nodule volume: measured by the half-way threshold, against the description and against the truth image.

The half-way threshold is the boundary that a symmetric point spread does not move on a flat surface, the rule of
full-width-half-maximum measurement; what a method gets wrong is what blur, noise and made-up detail do to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.evaluation.slice_tissue import DENSE_TISSUES, Mask, checked_thickness_mm, in_frame, tissue_in_slices
from CTMicroSRLib.simulation.description import Description, Float, Label, Nodule
from CTMicroSRLib.volume import Geometry, Volume

BESIDE_NODULES = (
    *(tissue for tissue in DENSE_TISSUES if tissue != Label.NODULE),
    *(Label.AIRWAY_LUMEN, Label.AIRWAY_WALL, Label.ARTERY, Label.VEIN),
)
"""What is neither nodule nor the parenchyma around it."""


@dataclass(frozen=True)
class NoduleRules:
    """Which nodules count and how they are measured.

    The nodule is looked for within ``reach_radii`` radii of its centre; the background is the median of the shell
    from there to ``shell_mm`` further out. A voxel counts in full above half-way plus ``half_ramp`` of the contrast,
    not at all below half-way minus it, and linearly between; below half-way only within ``foot_mm`` in-plane, or
    one slice, of voxels above it.
    """

    reach_radii: float = 1.5
    lobe_radii: float = 1.25
    shell_mm: float = 2.0
    half_ramp: float = 0.25
    foot_mm: float = 0.4
    least_slices: float = 2.0
    least_contrast_hu: float = 100.0


@dataclass(frozen=True)
class NodulePlaces:
    """The nodules that can be measured on a grid.

    ``whole`` says of each whether all of it lies inside the image, so that the described volume is comparable;
    ``found`` counts the description's nodules; ``beside_kji`` are voxels of other structures (from labels).
    """

    geometry: Geometry
    nodules: tuple[Nodule, ...]
    whole: tuple[bool, ...]
    found: int
    beside_kji: Mask | None
    rules: NoduleRules


@dataclass(frozen=True)
class NoduleVolumes:
    """One row per nodule: volumes in mm3; NaN where a nodule can't be told from its background.

    ``described_mm3`` is NaN where the image does not hold the whole nodule; ``truth_mm3`` is the same measure on the
    truth image. The density of a part-solid nodule is that of its rim, so that its threshold bounds all of it.
    """

    kind: tuple[str, ...]
    radius_mm: Float
    measured_mm3: Float
    described_mm3: Float
    truth_mm3: Float
    found: int


@dataclass(frozen=True)
class NoduleSummary:
    """Relative volume errors over nodules (NaN without any): medians of signed and of absolute errors."""

    count: int
    measured: int
    error_to_truth: float
    absolute_error_to_truth: float
    whole: int
    error_to_description: float
    absolute_error_to_description: float


def find_nodules(
    description: Description,
    geometry: Geometry,
    thickness_mm: float | None = None,
    labels: Volume | None = None,
    rules: NoduleRules | None = None,
) -> NodulePlaces:
    """The nodules that a grid can show.

    Left out are nodules whose ball is cut by the image's in-plane border or has its centre outside of the slices,
    and those with a diameter of fewer than ``least_slices`` slice distances or thicknesses. A nodule that comes
    nearer to the image's faces than its lobes may reach (``lobe_radii``) is measured against the truth image only.

    Args:
        description: its nodules; points are physical points of ``geometry``.
        geometry: the image's grid.
        thickness_mm: the slices' thickness; the slice distance where not given.
        labels: the specimen's label volume; with it voxels of vessels, airways and chest wall do not count.
        rules: see :class:`NoduleRules`.

    Raises:
        UsageError: a thickness that is not positive, or labels whose axes are not the image's.
    """
    rules = rules or NoduleRules()
    thickness = checked_thickness_mm(geometry, thickness_mm)
    step = max(thickness, geometry.spacing_mm[2])
    upper = (np.asarray(geometry.size_ijk) - 0.5) * geometry.spacing_mm
    lower = -0.5 * np.asarray(geometry.spacing_mm)
    kept, whole = [], []
    for nodule in description.nodules:
        centre = in_frame(np.asarray([nodule.centre_mm]), geometry)[0]
        room = np.minimum(centre - lower, upper - centre)
        if min(room[:2]) < nodule.radius_mm or room[2] < 0 or 2 * nodule.radius_mm < rules.least_slices * step:
            continue
        kept.append(nodule)
        whole.append(bool(min(room) >= rules.lobe_radii * nodule.radius_mm))
    beside = None if labels is None else tissue_in_slices(labels, geometry, thickness, BESIDE_NODULES)
    return NodulePlaces(geometry, tuple(kept), tuple(whole), len(description.nodules), beside, rules)


def measure_nodules(
    image_kji: NDArray[np.generic], truth_kji: NDArray[np.generic], places: NodulePlaces
) -> NoduleVolumes:
    """Volumes of the nodules in one method's image and in the truth (HU, (k, j, i), on the places' grid).

    Raises:
        UsageError: an image of another size than the places' grid.
    """
    measured = [nodule_volume_mm3(image_kji, nodule, places) for nodule in places.nodules]
    truth = [nodule_volume_mm3(truth_kji, nodule, places) for nodule in places.nodules]
    described = [
        nodule.volume_mm3 if whole else math.nan for nodule, whole in zip(places.nodules, places.whole, strict=True)
    ]
    return NoduleVolumes(
        kind=tuple(nodule.kind for nodule in places.nodules),
        radius_mm=np.asarray([nodule.radius_mm for nodule in places.nodules], dtype=np.float64),
        measured_mm3=np.asarray(measured, dtype=np.float64),
        described_mm3=np.asarray(described, dtype=np.float64),
        truth_mm3=np.asarray(truth, dtype=np.float64),
        found=places.found,
    )


def nodule_volume_mm3(image_kji: NDArray[np.generic], nodule: Nodule, places: NodulePlaces) -> float:
    """Volume inside the half-way threshold between a nodule's described density and its background.

    Only what hangs together with the nodule's middle counts, each voxel by its linear share around the threshold.
    NaN where a voxel within reach is missing, no background is left, or its density comes within
    ``least_contrast_hu`` of the nodule's; 0 where nothing about the centre passes the threshold.

    Raises:
        UsageError: an image of another size than the places' grid.
    """
    from scipy import ndimage

    geometry, rules = places.geometry, places.rules
    if image_kji.shape != geometry.shape_kji:
        raise UsageError(
            f"The image has shape {image_kji.shape} but its nodules were found on {geometry.shape_kji}; "
            "give the image on the grid of the description's truth."
        )
    reach = rules.reach_radii * nodule.radius_mm
    box, distance = _around(nodule, geometry, reach + rules.shell_mm)
    voxels = np.asarray(image_kji[box], dtype=np.float64)
    other = np.zeros(voxels.shape, dtype=bool) if places.beside_kji is None else places.beside_kji[box]
    # The middle belongs to the nodule even where a vessel is labelled.
    other = other & (distance > 0.5 * nodule.radius_mm)
    shell = (distance > reach) & (distance <= reach + rules.shell_mm) & ~other
    ball = (distance <= reach) & ~other
    if not shell.any() or not np.isfinite(voxels[ball | shell]).all():
        return math.nan
    background = float(np.median(voxels[shell]))
    contrast = nodule.density_hu - background
    if abs(contrast) < rules.least_contrast_hu:
        return math.nan
    level = (voxels - background) / contrast
    share = np.clip((level - 0.5 + rules.half_ramp) / (2.0 * rules.half_ramp), 0.0, 1.0)
    pieces, _ = ndimage.label(ball & (share > 0.5), structure=np.ones((3, 3, 3), dtype=bool))
    middle = np.unique(pieces[(distance <= 0.5 * nodule.radius_mm) & (pieces > 0)])
    if not len(middle):
        return 0.0
    core = np.isin(pieces, middle)
    # Shares below a half lie at the core's surface; following them further would follow the parenchyma's texture.
    widened = ndimage.binary_dilation(core, np.ones((3, 1, 1), dtype=bool))
    sampling = (1e3, geometry.spacing_mm[1], geometry.spacing_mm[0])
    surface = ndimage.distance_transform_edt(~widened, sampling=sampling) <= rules.foot_mm
    return float(share[ball & surface].sum()) * math.prod(geometry.spacing_mm)


def summarise_nodules(measurements: Sequence[NoduleVolumes]) -> NoduleSummary:
    """Relative volume errors over the nodules of all cases; ``whole`` counts those with a described volume."""
    names = ("measured_mm3", "truth_mm3", "described_mm3")
    measured, truth, described = (
        np.concatenate([np.zeros(0), *(getattr(one, name) for one in measurements)]) for name in names
    )
    to_truth = _relative(measured, truth)
    to_description = _relative(measured, described)
    return NoduleSummary(
        count=len(measured),
        measured=len(to_truth),
        error_to_truth=_median(to_truth),
        absolute_error_to_truth=_median(np.abs(to_truth)),
        whole=len(to_description),
        error_to_description=_median(to_description),
        absolute_error_to_description=_median(np.abs(to_description)),
    )


def _around(nodule: Nodule, geometry: Geometry, reach_mm: float) -> tuple[tuple[slice, slice, slice], Float]:
    """The box of voxels (k, j, i) within reach of a nodule's centre and each one's distance to it."""
    centre = in_frame(np.asarray([nodule.centre_mm]), geometry)[0]
    ranges, squared = [], np.zeros((1, 1, 1))
    for axis in (2, 1, 0):
        spacing, size = geometry.spacing_mm[axis], geometry.size_ijk[axis]
        first = max(0, math.ceil((centre[axis] - reach_mm) / spacing))
        last = min(size, math.floor((centre[axis] + reach_mm) / spacing) + 1)
        ranges.append(slice(first, max(first, last)))
        offset = np.arange(first, max(first, last)) * spacing - centre[axis]
        squared = squared + (offset**2).reshape([-1 if a == axis else 1 for a in (2, 1, 0)])
    return (ranges[0], ranges[1], ranges[2]), np.sqrt(squared)


def _relative(measured: Float, reference: Float) -> Float:
    known = np.isfinite(measured) & np.isfinite(reference) & (reference > 0)
    return np.asarray(measured[known] / reference[known] - 1.0)


def _median(values: Float) -> float:
    return float(np.median(values)) if len(values) else math.nan
