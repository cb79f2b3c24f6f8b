"""Airway lumen area and wall thickness by full width at half maximum, against the description.

Rays run from the axis outwards in the image plane; the wall's inner edge lies half-way between the lumen's lowest
value and the wall's highest, its outer edge half-way between that and the lowest value outside (Nakano et al., Am J
Respir Crit Care Med 2000;162:1102). Walls thinner than the point spread measure too thick and too small a lumen:
that is a property of the image that these numbers are meant to show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.edges import directions_across
from CTMicroSRLib.evaluation.slice_tissue import Mask
from CTMicroSRLib.evaluation.structures import Crossings, Structures, TubeKind, find_crossings, sample_ji
from CTMicroSRLib.simulation.description import Float

LUMEN_CLASSES_MM = (0.0, 1.0, 2.0, 3.0, 4.0, math.inf)
"""Bounds of the lumen diameter classes of the summary."""


@dataclass(frozen=True)
class AirwayRules:
    """Which airway crossings count and how rays are read; see :func:`find_airways`.

    The wall's peak is looked for up to ``peak_margin_mm`` outside the true outer edge, the parenchyma's lowest
    value up to ``outside_mm`` from the peak. A peak less than ``least_contrast_hu`` above either is no wall.
    """

    directions: int = 48
    largest_angle_degrees: float = 45.0
    largest_smear_radii: float = 1.0
    largest_smear_across_mm: float = 0.1
    peak_margin_mm: float = 0.5
    outside_mm: float = 0.75
    least_contrast_hu: float = 30.0
    least_thickness: float = 0.3
    least_rays: int = 12


@dataclass(frozen=True)
class AirwayPlaces:
    """Airway crossings ``(n,)`` with their rays (unit vectors, ``(n, directions, 2)``) and what these should meet.

    ``clear`` says which rays meet no other structure, ``inner_mm`` and ``outer_mm`` where the wall's edges lie on each
    ray in the truth, where half of the slice's thickness is within; all ``(n, directions)``. ``found`` counts all
    airway crossings of the slices.
    """

    structures: Structures
    crossings: Crossings
    rays_ji: Float
    clear: Mask
    inner_mm: Float
    outer_mm: Float
    found: int
    rules: AirwayRules


@dataclass(frozen=True)
class AirwayMeasurement:
    """One row per airway crossing; NaN where it can't be measured.

    ``true_lumen_mm2`` is the ellipse in which the slice cuts the lumen, pi r^2 / cos; ``true_wall_mm`` the wall as
    the same rays cut it (their median: the wall's thickness at right angles where the airway is); ``rays`` are
    those measured of ``clear_rays`` that meet no other structure.
    """

    lumen_diameter_mm: Float
    wall_mm: Float
    true_lumen_mm2: Float
    lumen_mm2: Float
    true_wall_mm: Float
    measured_wall_mm: Float
    rays: NDArray[np.int64]
    clear_rays: NDArray[np.int64]
    found: int

    @property
    def measurable(self) -> Mask:
        """Which crossings have both numbers."""
        return np.asarray(np.isfinite(self.lumen_mm2) & np.isfinite(self.measured_wall_mm))


@dataclass(frozen=True)
class AirwayClass:
    """Airways of a lumen diameter class; errors are medians over the measurable ones (NaN without any).

    ``lumen_error`` is relative, (measured - true) / true; ``wall_error_mm`` measured - true; both also as medians of
    their absolute values.
    """

    diameter_mm: tuple[float, float]
    count: int
    measurable_share: float
    lumen_error: float
    absolute_lumen_error: float
    wall_error_mm: float
    absolute_wall_error_mm: float


def find_airways(structures: Structures, rules: AirwayRules | None = None) -> AirwayPlaces:
    """The airway crossings whose outline in the truth is that of their description.

    A crossing counts if its axis lies within ``largest_angle_degrees`` of the slice normal and moves, over the
    slice's thickness, by at most ``largest_smear_radii`` lumen radii. Its rays are laid where it moves by at most
    ``largest_smear_across_mm`` along them: elsewhere the truth's own slice smears the wall. Those count that meet no
    other structure (an artery beside, a branch, chest wall) or border from the lumen to where the parenchyma is read,
    and at least ``least_rays`` must. Vessels under ``least_thickness`` of the airway's outer radius are the
    parenchyma's own texture. The choice knows nothing of any image: it is the same for all.
    """
    rules = rules or AirwayRules()
    every = find_crossings(structures)
    airways = every.select(every.kind == TubeKind.AIRWAY)
    good = (airways.smear_mm <= rules.largest_smear_radii * airways.radius_mm) & (airways.wall_mm > 0.0)
    chosen = airways.select(good & (airways.cosine >= math.cos(math.radians(rules.largest_angle_degrees))))
    rays = np.zeros((len(chosen), rules.directions, 2))
    inner, outer, clear = (np.zeros(rays.shape[:2]) for _ in range(3))
    for n in range(len(chosen)):
        k, radius, tilt = int(chosen.slice_k[n]), float(chosen.radius_mm[n]), chosen.tilt_ji[n]
        whole, smear = radius + float(chosen.wall_mm[n]), chosen.smear_ji_mm[n]
        rays[n] = directions_across(smear, rules.largest_smear_across_mm, rules.directions)
        inner[n], outer[n] = (outline_mm(size, tilt, smear, rays[n]) for size in (radius, whole))
        distance = inner[n] + np.linspace(0.0, 1.0, 7)[:, None] * (outer[n] + rules.outside_mm - inner[n])
        points = (chosen.centre_ji_mm[n] + distance[..., None] * rays[n]).reshape(-1, 2)
        gap = structures.gap_mm(k, points, int(chosen.branch[n]), rules.least_thickness * whole)
        free = (gap > 0.0) & (structures.border_gap_mm(points) >= 0.0)
        clear[n] = free.reshape(distance.shape).all(axis=0)
    enough = np.count_nonzero(clear, axis=1) >= rules.least_rays
    return AirwayPlaces(
        structures=structures,
        crossings=chosen.select(enough),
        rays_ji=rays[enough],
        clear=clear[enough] > 0.0,
        inner_mm=inner[enough],
        outer_mm=outer[enough],
        found=len(airways),
        rules=rules,
    )


def measure_airways(image_kji: NDArray[np.generic], places: AirwayPlaces) -> AirwayMeasurement:
    """Lumen area and wall thickness at the places, in one method's image (HU, (k, j, i), on the places' grid).

    The lumen area is the true ellipse's, scaled by the mean square of the rays' inner edges over those of the truth:
    where no ray is read, the described shape stands in.
    The wall is the median over rays. A crossing is measurable if half of its clear rays are.

    Raises:
        UsageError: an image of another size than the grid that the places were found on.
    """
    places.structures.check_image(image_kji)
    crossings, rules = places.crossings, places.rules
    lumen, wall, used = np.full(len(crossings), np.nan), np.full(len(crossings), np.nan), np.zeros(len(crossings), int)
    spacing = places.structures.spacing_ji_mm
    true_lumen = np.pi * crossings.radius_mm**2 / crossings.cosine
    for k in np.unique(crossings.slice_k):
        rows = np.flatnonzero(crossings.slice_k == k)
        limits = places.outer_mm[rows] + rules.peak_margin_mm
        step = min(spacing) / 4.0
        distance = np.arange(math.ceil((limits.max() + rules.outside_mm) / step) + 1) * step
        points = crossings.centre_ji_mm[rows, None, None] + distance[:, None] * places.rays_ji[rows, :, None]
        profiles = sample_ji(image_kji[k], spacing, points)
        for n, row in enumerate(rows):
            inner, outer = wall_edges_mm(profiles[n], distance, limits[n], rules)
            good = places.clear[row] & np.isfinite(outer)
            used[row] = np.count_nonzero(good)
            if used[row] >= 0.5 * np.count_nonzero(places.clear[row]):
                lumen[row] = true_lumen[row] * np.mean((inner / places.inner_mm[row])[good] ** 2)
                wall[row] = float(np.median((outer - inner)[good]))
    true_walls = np.where(places.clear, places.outer_mm - places.inner_mm, np.nan)
    return AirwayMeasurement(
        lumen_diameter_mm=2.0 * crossings.radius_mm,
        wall_mm=crossings.wall_mm,
        true_lumen_mm2=true_lumen,
        lumen_mm2=lumen,
        true_wall_mm=np.nanmedian(true_walls, axis=1) if len(crossings) else np.zeros(0),
        measured_wall_mm=wall,
        rays=used,
        clear_rays=np.count_nonzero(places.clear, axis=1),
        found=places.found,
    )


def wall_edges_mm(profiles: Float, distance_mm: Float, peak_limit_mm: Float, rules: AirwayRules) -> tuple[Float, Float]:
    """Inner and outer edge of the wall along rays by full width at half maximum.

    Args:
        profiles: HU along each ray, shape ``(rays, samples)``.
        distance_mm: of the samples from the axis, shape ``(samples,)``.
        peak_limit_mm: how far out each ray's peak may lie, shape ``(rays,)``.
        rules: see :class:`AirwayRules`.

    Returns:
        two arrays ``(rays,)``, both NaN where a ray meets missing voxels or has no peak between two lower values.
    """
    samples = np.arange(len(distance_mm))
    allowed = distance_mm <= peak_limit_mm[:, None]
    peak = np.argmax(np.where(allowed & np.isfinite(profiles), profiles, -np.inf), axis=1)[:, None]
    beyond = (samples > peak) & (distance_mm <= distance_mm[peak] + rules.outside_mm)
    top = np.take_along_axis(profiles, peak, axis=1)[:, 0]
    low = np.where(samples < peak, profiles, np.inf).min(axis=1)
    outside = np.where(beyond, profiles, np.inf).min(axis=1)
    # A peak at the end of its range is the flank of something else.
    at_end = (peak[:, 0] == 0) | (peak[:, 0] >= np.count_nonzero(allowed, axis=1) - 1)
    good = np.isfinite(low) & np.isfinite(outside) & np.isfinite(top) & ~at_end
    good &= np.where(good, top - np.maximum(low, outside), -np.inf) >= rules.least_contrast_hu
    half_in, half_out = (low + top) / 2.0, (outside + top) / 2.0
    below_in = np.where((samples < peak) & (profiles < half_in[:, None]), samples, -1).max(axis=1)
    below_out = np.where(beyond & (profiles < half_out[:, None]), samples, len(samples)).min(axis=1)
    inner, outer = np.full(len(profiles), np.nan), np.full(len(profiles), np.nan)
    row = np.flatnonzero(good)
    inner[row] = _level_mm(profiles[row], distance_mm, below_in[row], half_in[row])
    outer[row] = _level_mm(profiles[row], distance_mm, below_out[row] - 1, half_out[row])
    return inner, outer


def summarise_airways(
    measurements: Sequence[AirwayMeasurement], bounds_mm: Sequence[float] = LUMEN_CLASSES_MM
) -> tuple[AirwayClass, ...]:
    """Errors by lumen diameter class over all cases, and over all classes last."""
    names = ("lumen_diameter_mm", "true_lumen_mm2", "lumen_mm2", "true_wall_mm", "measured_wall_mm")
    diameter, true_lumen, lumen, true_wall, wall = (
        np.concatenate([np.zeros(0), *(getattr(one, name) for one in measurements)]) for name in names
    )
    classes = [*pairwise(bounds_mm), (bounds_mm[0], bounds_mm[-1])]
    summary = []
    for low, high in classes:
        members = (diameter >= low) & (diameter < high)
        good = members & np.isfinite(lumen) & np.isfinite(wall)
        area, thickness = lumen[good] / true_lumen[good] - 1.0, wall[good] - true_wall[good]
        summary.append(
            AirwayClass(
                diameter_mm=(low, high),
                count=int(np.count_nonzero(members)),
                measurable_share=float(good[members].mean()) if members.any() else math.nan,
                lumen_error=_median(area),
                absolute_lumen_error=_median(np.abs(area)),
                wall_error_mm=_median(thickness),
                absolute_wall_error_mm=_median(np.abs(thickness)),
            )
        )
    return tuple(summary)


def outline_mm(radius_mm: float, tilt_ji: Float, smear_ji_mm: Float, rays_ji: Float) -> Float:
    """Distance along rays ``(n, 2)`` from a tilted tube's axis to its outline, at half of the slice within.

    The slice cuts the tube in an ellipse that moves along the smear as it goes through the slice's thickness; the
    half-way level lies where half of these ellipses end, their median.
    """
    slope = float(np.hypot(*tilt_ji))
    toward = tilt_ji / slope if slope > 0 else np.asarray((1.0, 0.0))
    shrink = np.eye(2) + (1.0 / math.sqrt(1.0 + slope**2) - 1.0) * np.outer(toward, toward)
    moved = np.linspace(-0.5, 0.5, 21)[:, None] * (smear_ji_mm @ shrink)
    across = rays_ji @ shrink
    along, squared = across @ moved.T, np.sum(across**2, axis=1)[:, None]
    root = np.maximum(along**2 - squared * (np.sum(moved**2, axis=1) - radius_mm**2), 0.0)
    return np.asarray(np.median((along + np.sqrt(root)) / squared, axis=1))


def _level_mm(profiles: Float, distance_mm: Float, index: NDArray[np.int64], level: Float) -> Float:
    row = np.arange(len(profiles))
    left, right = profiles[row, index], profiles[row, index + 1]
    return np.asarray(distance_mm[index] + (level - left) / (right - left) * (distance_mm[1] - distance_mm[0]))


def _median(values: Float) -> float:
    return float(np.median(values)) if len(values) else math.nan
