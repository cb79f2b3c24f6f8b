"""How sharp vessel edges are: the 10-90 % edge rise distance.

Places come from a specimen's description, so every method is measured at the same ones; positions are those of
:mod:`CTMicroSRLib.evaluation.structures`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.structures import Structures, find_crossings, sample_ji
from CTMicroSRLib.simulation.description import Float, Int


def edge_rise_mm(
    image_ji: NDArray[np.generic],
    spacing_ji_mm: tuple[float, float],
    points_ji_mm: Float,
    normals_ji: Float,
    *,
    reach_mm: Float | float = 1.25,
    least_step_hu: float = 100.0,
) -> Float:
    """10-90 % edge rise distance in mm along the normals through points on an edge between two plateaus.

    The plateaus are the medians of the outer eighths of the profile, ``reach_mm`` to either side; the distance is
    from the last point below 10 % before the half-way crossing nearest to the place, to the first above 90 % after
    it. A Gaussian-blurred straight step gives 2.563 sigma (within 2 % up to sigma = reach / 3); of a wider blur the
    profile does not reach the plateaus and the distance reads short (by 13 % at sigma = reach / 2).

    Args:
        image_ji: one slice, HU.
        spacing_ji_mm: voxel along j and i.
        points_ji_mm: places on the edge, shape ``(n, 2)``.
        normals_ji: unit vectors ``(n, 2)`` across the edge, either way.
        reach_mm: half the profile's length, for all or place by place.
        least_step_hu: plateaus that differ by less are no edge.

    Returns:
        shape ``(n,)``; NaN where a profile leaves the image, meets a missing voxel, has no such step or never
        crosses a level.
    """
    points, normals = (np.asarray(a, dtype=np.float64).reshape(-1, 2) for a in (points_ji_mm, normals_ji))
    if not len(points):
        return np.zeros(0)
    reach = np.broadcast_to(np.asarray(reach_mm, dtype=np.float64), len(points))
    eighth = math.ceil(float(reach.max()) / min(spacing_ji_mm))
    offsets = reach[:, None] * np.linspace(-1.0, 1.0, 8 * eighth + 1)
    profiles = sample_ji(image_ji, spacing_ji_mm, points[:, None] + offsets[..., None] * normals[:, None])
    before, after = (np.median(part, axis=1) for part in (profiles[:, :eighth], profiles[:, -eighth:]))
    with np.errstate(invalid="ignore", divide="ignore"):
        valid = np.isfinite(profiles).all(axis=1) & (np.abs(after - before) >= least_step_hu)
        rising = (profiles - before[:, None]) / np.where(valid, after - before, np.nan)[:, None]
    steps = np.arange(offsets.shape[1])
    half = (rising[:, :-1] < 0.5) & (rising[:, 1:] >= 0.5)
    middle = np.argmin(np.where(half, np.abs(offsets[:, :-1]), np.inf), axis=1)[:, None]
    low = np.where((rising <= 0.1) & (steps <= middle), steps, -1).max(axis=1)
    high = np.where((rising >= 0.9) & (steps > middle), steps, len(steps)).min(axis=1)
    valid &= half.any(axis=1) & (low >= 0) & (high < len(steps))
    rise = np.full(len(points), np.nan)
    row = np.flatnonzero(valid)
    starts = _crossing_at(offsets[row], rising[row], low[row], 0.1)
    rise[row] = _crossing_at(offsets[row], rising[row], high[row] - 1, 0.9) - starts
    return rise


@dataclass(frozen=True)
class EdgeRules:
    """Which vessel edges count; see :func:`find_vessel_edges`."""

    least_radius_mm: float = 1.0
    largest_angle_degrees: float = 45.0
    largest_smear_radii: float = 1.0
    largest_smear_across_mm: float = 0.08
    largest_reach_mm: float = 2.0
    least_gap_mm: float = 0.3
    least_thickness: float = 0.3
    directions: int = 36
    least_profiles: int = 6


@dataclass(frozen=True)
class EdgePlaces:
    """Places on vessel edges with their outward normals, ``(n, 2)``, and the vessel crossing each belongs to.

    ``found`` counts all artery and vein crossings of the slices, ``crossings`` those that gave places.
    """

    structures: Structures
    slice_k: Int
    points_ji_mm: Float
    normals_ji: Float
    crossing: Int
    found: int
    crossings: int
    reach_mm: Float


@dataclass(frozen=True)
class EdgeRise:
    """Edge rise distance of each vessel crossing in mm, the median of its profiles (NaN: none measurable)."""

    rise_mm: Float
    profiles: Int
    found: int

    @property
    def median_mm(self) -> float:
        """Median over crossings (NaN without any)."""
        measured = self.rise_mm[np.isfinite(self.rise_mm)]
        return float(np.median(measured)) if len(measured) else math.nan


def find_vessel_edges(structures: Structures, rules: EdgeRules | None = None) -> EdgePlaces:
    """Places on the edges of arteries and veins in parenchyma where the truth's own edge is sharp.

    A crossing counts if its radius holds a plateau (``least_radius_mm``), its axis lies within
    ``largest_angle_degrees`` of the slice normal and moves by at most ``largest_smear_radii`` radii over the
    slice's thickness. Of its edge only directions count in which it moves by at most ``largest_smear_across_mm``
    (a voxel: the slice's thickness widens the edge by no more than the voxel does), and whose profile, a radius but
    at most ``largest_reach_mm`` to either side, keeps ``least_gap_mm`` away from other structures and
    inside the image; structures under ``least_thickness`` of its radius are the parenchyma's own texture. At least
    ``least_profiles`` directions must be left.
    """
    rules = rules or EdgeRules()
    crossings = find_crossings(structures).select_vessels()
    good = (crossings.radius_mm >= rules.least_radius_mm) & (
        crossings.smear_mm <= rules.largest_smear_radii * crossings.radius_mm
    )
    good &= crossings.cosine >= math.cos(math.radians(rules.largest_angle_degrees))
    points, used, slices, owner = [np.zeros((0, 2))], [np.zeros((0, 2))], [np.zeros(0, int)], [np.zeros(0, int)]
    reaches: list[Float] = [np.zeros(0)]
    for n in np.flatnonzero(good):
        thinnest = rules.least_thickness * float(crossings.radius_mm[n])
        normals = directions_across(crossings.smear_ji_mm[n], rules.largest_smear_across_mm, rules.directions)
        reach = min(float(crossings.radius_mm[n]), rules.largest_reach_mm)
        edge = crossings.centre_ji_mm[n] + ellipse_points(crossings.radius_mm[n], crossings.tilt_ji[n], normals)
        clear = np.ones(len(normals), dtype=bool)
        k, branch = int(crossings.slice_k[n]), int(crossings.branch[n])
        for share in (0.0, 1 / 3, 2 / 3, 1.0):
            along = edge + share * reach * normals
            clear &= structures.gap_mm(k, along, branch, thinnest) >= rules.least_gap_mm
            clear &= structures.border_gap_mm(along) >= 0.0
        if np.count_nonzero(clear) >= rules.least_profiles:
            points.append(edge[clear])
            used.append(normals[clear])
            reaches.append(np.full(np.count_nonzero(clear), reach))
            slices.append(np.full(np.count_nonzero(clear), k))
            owner.append(np.full(np.count_nonzero(clear), len(owner) - 1))
    return EdgePlaces(
        structures=structures,
        slice_k=np.concatenate(slices),
        points_ji_mm=np.concatenate(points),
        normals_ji=np.concatenate(used),
        crossing=np.concatenate(owner),
        found=len(crossings),
        crossings=len(owner) - 1,
        reach_mm=np.concatenate(reaches),
    )


def measure_vessel_edges(image_kji: NDArray[np.generic], places: EdgePlaces) -> EdgeRise:
    """Edge rise distance at the places, in one method's image (HU, (k, j, i), on the places' grid).

    Raises:
        UsageError: an image of another size than the grid that the places were found on.
    """
    places.structures.check_image(image_kji)
    rises = np.full(len(places.slice_k), np.nan)
    for k in np.unique(places.slice_k):
        row = places.slice_k == k
        at, across = places.points_ji_mm[row], places.normals_ji[row]
        spacing = places.structures.spacing_ji_mm
        rises[row] = edge_rise_mm(image_kji[k], spacing, at, across, reach_mm=places.reach_mm[row])
    measured = [rises[(places.crossing == n) & np.isfinite(rises)] for n in range(places.crossings)]
    medians = [float(np.median(values)) if len(values) else math.nan for values in measured]
    return EdgeRise(np.asarray(medians, float), np.asarray([len(v) for v in measured], int), places.found)


def ellipse_points(radius_mm: float, tilt_ji: Float, normals_ji: Float) -> Float:
    """Points of a tilted tube's outline in the slice that have the given outward normals, from its centre."""
    slope = float(np.hypot(*tilt_ji))
    toward = tilt_ji / slope if slope > 0 else np.asarray((1.0, 0.0))
    stretch = np.eye(2) + (math.sqrt(1.0 + slope**2) - 1.0) * np.outer(toward, toward)
    stretched = normals_ji @ stretch
    return np.asarray(radius_mm * (stretched @ stretch) / np.linalg.norm(stretched, axis=1, keepdims=True))


def directions_across(smear_ji_mm: Float, largest_mm: float, count: int) -> Float:
    """Unit vectors (j, i) along which a smear is at most the largest allowed, evenly over both arcs of these."""
    smear = float(np.hypot(*smear_ji_mm))
    width = math.asin(min(1.0, largest_mm / smear)) if smear > 0 else math.pi / 2.0
    side = max(1, count // 2)
    angle = math.atan2(*smear_ji_mm) + math.pi / 2.0 + width * ((2.0 * np.arange(side) + 1.0) / side - 1.0)
    angle = np.concatenate([angle, angle + math.pi])
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _crossing_at(offsets: Float, values: Float, index: Int, level: float) -> Float:
    row = np.arange(len(values))
    left, right = values[row, index], values[row, index + 1]
    share = (level - left) / (right - left)
    return np.asarray(offsets[row, index] + share * (offsets[row, index + 1] - offsets[row, index]))
