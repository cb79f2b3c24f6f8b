"""Which vessels and airways an image shows, by diameter, at a fixed share of false alarms in plain parenchyma.

Each place is judged by one number, the contrast of the structure's own shape in units of what the same shape gives
in the plain parenchyma of the same image. The place is known, so this is the detection of a known signal in a random
background; what a method draws into plain parenchyma raises its own threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.slice_tissue import Mask
from CTMicroSRLib.evaluation.structures import (
    NO_BRANCH,
    Crossings,
    Footprints,
    Structures,
    TubeKind,
    find_crossings,
    sample_ji,
)
from CTMicroSRLib.simulation.description import Float, Int

DIAMETER_CLASSES_MM = (0.0, 0.5, 1.0, 2.0, 4.0, math.inf)
"""Bounds of the diameter classes: a vessel's diameter, an airway's lumen."""

FALSE_POSITIVE_RATE = 0.05

Target = Literal["vessel", "airway"]


@dataclass(frozen=True)
class DetectionRules:
    """Which places count and where they are read; see :func:`find_targets`."""

    longest_path_mm: float = 2.0
    gap_to_thicker_mm: float = 0.5
    thicker: float = 1.5
    disc_radii: float = 0.7
    largest_disc_mm: float = 1.0
    ring_mm: tuple[float, ...] = (0.5, 0.8, 1.1)
    least_free_share: float = 1 / 3
    clear_of_reference_mm: float = 0.1
    least_thickness: float = 0.3
    background_margin_mm: float = 0.3
    background_places: int = 60
    candidates: int = 200
    seed: int = 0


@dataclass(frozen=True)
class DetectionPlaces:
    """Places of structures and of plain parenchyma, one row each.

    ``target_ji_mm`` ``(n, a, 2)`` are the points read inside, ``reference_ji_mm`` ``(n, b, 2)`` those compared with
    where ``free``; ``airway`` and ``diameter_class`` say which shape a place has, ``real`` whether the structure is
    there. ``found`` counts the crossings of each diameter class before any rule, for vessels and airways.
    """

    structures: Structures
    slice_k: Int
    target_ji_mm: Float
    reference_ji_mm: Float
    free: Mask
    airway: Mask
    diameter_class: Int
    real: Mask
    found: dict[Target, tuple[int, ...]]


@dataclass(frozen=True)
class Detections:
    """Contrast-to-noise ratio of each place in one image (NaN: not measurable), and what the place is."""

    cnr: Float
    contrast_hu: Float
    airway: Mask
    diameter_class: Int
    real: Mask
    found: dict[Target, tuple[int, ...]]


@dataclass(frozen=True)
class DetectionClass:
    """Detection of one diameter class over all images (NaN without structures or without background places).

    ``threshold`` is the contrast-to-noise ratio that ``FALSE_POSITIVE_RATE`` of the background places exceed;
    ``false_positive_rate`` was measured on the half of them that a threshold was not taken from; ``found`` is how
    many structures the slices hold, ``count`` how many of them were judged; ``area_under_curve`` the probability that
    a structure has a higher ratio than a background place.
    """

    target: Target
    diameter_mm: tuple[float, float]
    found: int
    count: int
    sensitivity: float
    background: int
    threshold: float
    false_positive_rate: float
    area_under_curve: float


def find_targets(structures: Structures, rules: DetectionRules | None = None) -> DetectionPlaces:
    """The vessels and airways to detect, and places in plain parenchyma for each diameter class.

    Every piece of a tube whose axis passes a slice's middle plane is read along its path within the slice's thickness
    (in-plane at most ``longest_path_mm``), so tubes that run obliquely or in the slice are judged too, as faint as the
    slice shows them. A vessel counts if it keeps ``gap_to_thicker_mm`` from dense tissue and anything ``thicker``
    times as thick; an airway, which nearly always touches its artery, if no such thing reaches into its lumen.

    It is read in a disc of ``disc_radii`` radii (at most ``largest_disc_mm``) moved along the path. A vessel is
    compared with the outlines ``ring_mm`` outside of it, an airway with the middle of its wall, both beside the path
    rather than beyond its ends where it is long. Points less than ``clear_of_reference_mm`` from other structures, or
    outside of the image, are left out, and ``least_free_share`` must be left.

    Plain parenchyma is where a shape's disc keeps ``background_margin_mm`` from dense tissue and all structures with
    at least ``least_thickness`` of its thickness: thinner vessels are the parenchyma's own texture. Up to
    ``background_places`` are drawn for each class that has structures, with the shapes of these.
    """
    rules = rules or DetectionRules()
    every = find_crossings(structures)
    reader = _Reader(structures, [structures.footprints(k) for k in range(structures.geometry.size_ijk[2])], rules)
    airway = every.kind == TubeKind.AIRWAY
    classes = np.digitize(2.0 * every.radius_mm, DIAMETER_CLASSES_MM[1:-1])
    rows: list[_Place] = []
    for n in range(len(every)):
        path = reader.path(every, n)
        if _apart_from_thicker(every, n, path, reader):
            place = reader.place(every, n, path, int(every.slice_k[n]), int(every.branch[n]))
            if place.free_share >= rules.least_free_share:
                rows.append(place)
    shapes = {(place.airway, place.diameter_class) for place in rows}
    rng = np.random.default_rng(rules.seed)
    for is_airway, number in sorted(shapes):
        members = [row.shape for row in rows if (row.airway, row.diameter_class) == (is_airway, number) and row.real]
        rows.extend(_background(every, members, reader, rng))
    return DetectionPlaces(
        structures=structures,
        slice_k=np.asarray([row.slice_k for row in rows], dtype=int),
        target_ji_mm=np.asarray([row.target for row in rows]).reshape(-1, reader.target_points, 2),
        reference_ji_mm=np.asarray([row.reference for row in rows]).reshape(-1, reader.reference_points, 2),
        free=np.asarray([row.free for row in rows], dtype=bool).reshape(-1, reader.reference_points),
        airway=np.asarray([row.airway for row in rows], dtype=bool),
        diameter_class=np.asarray([row.diameter_class for row in rows], dtype=int),
        real=np.asarray([row.real for row in rows], dtype=bool),
        found={
            "vessel": _histogram(classes[~airway]),
            "airway": _histogram(classes[airway]),
        },
    )


def measure_targets(image_kji: NDArray[np.generic], places: DetectionPlaces) -> Detections:
    """Contrast-to-noise ratio of all places in one method's image (HU, (k, j, i), on the places' grid).

    The contrast is the disc's mean minus the outlines' median for a vessel, the other way for an airway. Its noise is
    the robust standard deviation (1.4826 times the median absolute deviation) of the contrasts of the same class's
    background places in this image, from whose median it is taken. NaN where voxels are missing or there is no
    background.

    Raises:
        UsageError: an image of another size than the grid that the places were found on.
    """
    places.structures.check_image(image_kji)
    contrast = np.full(len(places.slice_k), np.nan)
    for k in np.unique(places.slice_k):
        row = np.flatnonzero(places.slice_k == k)
        points = np.concatenate([places.target_ji_mm[row], places.reference_ji_mm[row]], axis=1)
        values = sample_ji(image_kji[k], places.structures.spacing_ji_mm, points)
        inside, around = np.split(values, [places.target_ji_mm.shape[1]], axis=1)
        free = places.free[row]
        missing: Mask = np.any(free & ~np.isfinite(around), axis=1)
        reference = np.nanmedian(np.where(free, np.where(missing[:, None], 0.0, around), np.nan), axis=1)
        reference[missing] = np.nan
        contrast[row] = np.where(places.airway[row], -1.0, 1.0) * (inside.mean(axis=1) - reference)
    cnr = np.full(len(contrast), np.nan)
    for is_airway, number in {*zip(places.airway.tolist(), places.diameter_class.tolist(), strict=True)}:
        same = (places.airway == is_airway) & (places.diameter_class == number)
        plain = contrast[same & ~places.real & np.isfinite(contrast)]
        if not len(plain):
            continue
        level = float(np.median(plain))
        # A flat background has no noise: any contrast is then infinitely many times it, and none is none.
        noise = max(1.4826 * float(np.median(np.abs(plain - level))), 1e-9)
        cnr[same] = (contrast[same] - level) / noise
    return Detections(cnr, contrast, places.airway, places.diameter_class, places.real, places.found)


def summarise_detections(
    measurements: Sequence[Detections], false_positive_rate: float = FALSE_POSITIVE_RATE
) -> tuple[DetectionClass, ...]:
    """Sensitivity by diameter class over all images of one method, at a share of false alarms."""
    summary = []
    targets: tuple[Target, ...] = ("vessel", "airway")
    for target in targets:
        for number, bounds in enumerate(pairwise(DIAMETER_CLASSES_MM)):
            real, plain = (_ratios(measurements, target, number, real=flag) for flag in (True, False))
            threshold = _threshold(plain, false_positive_rate)
            summary.append(
                DetectionClass(
                    target=target,
                    diameter_mm=bounds,
                    found=sum(one.found[target][number] for one in measurements),
                    count=len(real),
                    sensitivity=float(np.mean(real > threshold)) if len(real) and len(plain) else math.nan,
                    background=len(plain),
                    threshold=threshold,
                    false_positive_rate=_held_out_rate(plain, false_positive_rate),
                    area_under_curve=_area_under_curve(real, plain),
                )
            )
    return tuple(summary)


@dataclass(frozen=True)
class _Place:
    shape: int
    slice_k: int
    target: Float
    reference: Float
    free: Mask
    free_share: float
    airway: bool
    diameter_class: int
    real: bool


@dataclass(frozen=True)
class _Reader:
    """Lays the shapes of crossings at places."""

    structures: Structures
    footprints: list[Footprints]
    rules: DetectionRules

    disc_points = 19
    sweep = 5
    directions = 16

    @property
    def target_points(self) -> int:
        return self.disc_points * self.sweep

    @property
    def reference_points(self) -> int:
        return self.sweep * self.directions * max(1, len(self.rules.ring_mm))

    def disc_mm(self, crossings: Crossings, n: int) -> float:
        return min(self.rules.disc_radii * float(crossings.radius_mm[n]), self.rules.largest_disc_mm)

    def path(self, crossings: Crossings, n: int) -> Float:
        """In-plane way of a crossing's piece through the slice, ``(sweep, 2)``, about its middle."""
        tubes, piece, half = self.structures.tubes, int(crossings.piece[n]), self.structures.thickness_mm / 2.0
        start, end = tubes.start_mm[piece], tubes.end_mm[piece]
        height = self.structures.height_mm(int(crossings.slice_k[n]))
        inside = np.clip((height + np.asarray([-half, half]) - start[2]) / (end[2] - start[2]), 0.0, 1.0)
        here, slope = (height - start[2]) / (end[2] - start[2]), (end - start)[1::-1]
        longest = self.rules.longest_path_mm / 2.0 / max(float(np.hypot(*slope)), 1e-9)
        low, high = np.clip(np.sort(inside), here - longest, here + longest)
        return np.asarray(start[1::-1] + np.linspace(low, high, self.sweep)[:, None] * slope)

    def place(self, crossings: Crossings, n: int, path: Float, k: int, branch: int | None) -> _Place:
        """The shape of crossing ``n`` along a path; without ``branch`` nothing of its kind is there."""
        airway, radius = bool(crossings.kind[n] == TubeKind.AIRWAY), float(crossings.radius_mm[n])
        target = (path[:, None] + self.disc_mm(crossings, n) * _sunflower(self.disc_points)).reshape(-1, 2)
        # An airway's wall belongs to its own branch; a vessel's surroundings must be free of its own, too.
        wall = float(crossings.wall_mm[n]) / 2.0
        outlines = np.asarray([wall]) if airway else np.asarray(self.rules.ring_mm)
        reference, beside = self._beside(path, radius + outlines)
        own = branch if airway and branch is not None else NO_BRANCH - 1
        free = self._free(k, path, reference[beside], own, radius)
        beside[beside] = free
        spare = self.reference_points - len(reference)
        reference = np.concatenate([reference, np.broadcast_to(path[0], (spare, 2))])
        padded = np.concatenate([beside, np.zeros(spare, dtype=bool)])
        number = int(np.digitize(2.0 * radius, DIAMETER_CLASSES_MM[1:-1]))
        return _Place(n, k, target, reference, padded, float(free.mean()), airway, number, branch is not None)

    def _beside(self, path: Float, distances_mm: Float) -> tuple[Float, Mask]:
        """Points at distances around each point of a path, and which of them are that far from all of it."""
        angle = np.arange(self.directions) * (2.0 * math.pi / self.directions)
        circle = np.stack([np.sin(angle), np.cos(angle)], axis=1)
        points = path[:, None, None] + distances_mm[:, None, None] * circle
        apart = np.linalg.norm(points[..., None, :] - path, axis=-1).min(axis=-1)
        along = path[-1] - path[0]
        length = float(np.hypot(*along))
        sideways = np.abs(circle @ along) <= math.sqrt(0.5) * length + 1e-9
        long = length > 0.5 * float(distances_mm.min())
        beside = (apart >= distances_mm[:, None] - 1e-6) & (sideways | (not long))
        return points.reshape(-1, 2), np.asarray(beside).reshape(-1)

    def _free(self, k: int, path: Float, points: Float, own: int, radius: float) -> Mask:
        middle = path.mean(axis=0)
        reach = float(np.linalg.norm(points - middle, axis=1).max()) + self.rules.clear_of_reference_mm
        gap = self.footprints[k].near(middle, reach).gap_mm(points, own, self.rules.least_thickness * radius)
        gap = np.minimum(gap, self.structures.dense_gap_mm(k, points))
        inside = self.structures.border_gap_mm(points) >= 0.0
        return np.asarray((gap >= self.rules.clear_of_reference_mm) & inside)


def _apart_from_thicker(crossings: Crossings, n: int, path: Float, reader: _Reader) -> bool:
    k, radius = int(crossings.slice_k[n]), float(crossings.radius_mm[n])
    outer = radius + float(crossings.wall_mm[n])
    airway = crossings.kind[n] == TubeKind.AIRWAY
    needed = radius if airway else outer + reader.rules.gap_to_thicker_mm
    gap = reader.footprints[k].gap_mm(path, int(crossings.branch[n]), reader.rules.thicker * outer)
    gap = np.minimum(gap, reader.structures.dense_gap_mm(k, path))
    return bool((gap >= needed).all() and (reader.structures.border_gap_mm(path) >= 0.0).all())


def _background(crossings: Crossings, shapes: list[int], reader: _Reader, rng: np.random.Generator) -> list[_Place]:
    """Places in plain parenchyma with the shapes of one class, evenly over the slices."""
    rules, structures = reader.rules, reader.structures
    size_mm = (np.asarray(structures.geometry.shape_kji[1:]) - 1) * structures.spacing_ji_mm
    slices = structures.geometry.size_ijk[2]
    paths = [reader.path(crossings, n) for n in shapes]
    paths = [path - (path[0] + path[-1]) / 2.0 for path in paths]
    room = [reader.disc_mm(crossings, n) + float(np.hypot(*path[0])) for n, path in zip(shapes, paths, strict=True)]
    thinnest = rules.least_thickness * float(crossings.radius_mm[shapes].min())
    places: list[_Place] = []
    for k in range(slices):
        points = rng.uniform(0.0, 1.0, (rules.candidates, 2)) * size_mm
        gap = np.minimum(
            reader.footprints[k].gap_mm(points, thicker_than_mm=thinnest), structures.border_gap_mm(points)
        )
        gap = np.minimum(gap, structures.dense_gap_mm(k, points)) - rules.background_margin_mm
        wanted = rules.background_places * (k + 1) // slices
        for point, space in zip(points, gap, strict=True):
            if len(places) >= wanted:
                break
            turn = len(places) % len(shapes)
            if space < room[turn]:
                continue
            place = reader.place(crossings, shapes[turn], point + paths[turn], k, None)
            if place.free_share >= rules.least_free_share:
                places.append(place)
    return places


def _sunflower(count: int) -> Float:
    """Points that fill a disc of radius 1 evenly (Vogel's spiral)."""
    number = np.arange(count)
    radius, angle = np.sqrt((number + 0.5) / count), number * math.pi * (3.0 - math.sqrt(5.0))
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)


def _histogram(classes: Int) -> tuple[int, ...]:
    return tuple(np.bincount(classes, minlength=len(DIAMETER_CLASSES_MM) - 1).tolist())


def _ratios(measurements: Sequence[Detections], target: Target, number: int, *, real: bool) -> Float:
    chosen = [
        one.cnr[(one.airway == (target == "airway")) & (one.diameter_class == number) & (one.real == real)]
        for one in measurements
    ]
    ratios = np.concatenate([np.zeros(0), *chosen])
    return np.asarray(ratios[np.isfinite(ratios)])


def _threshold(plain: Float, rate: float) -> float:
    return float(np.quantile(plain, 1.0 - rate)) if len(plain) else math.nan


def _held_out_rate(plain: Float, rate: float) -> float:
    halves = (plain[::2], plain[1::2])
    if not min(len(half) for half in halves):
        return math.nan
    exceeded = [np.mean(b > _threshold(a, rate)) for a, b in (halves, halves[::-1])]
    return float(np.mean(exceeded))


def _area_under_curve(real: Float, plain: Float) -> float:
    if not len(real) or not len(plain):
        return math.nan
    return float(np.mean((real[:, None] > plain) + 0.5 * (real[:, None] == plain)))
