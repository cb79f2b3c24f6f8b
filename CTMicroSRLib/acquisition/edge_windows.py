"""Small windows of raw pixels around the edges between air or lung and soft tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.volume import AIR_HU

Floats = NDArray[np.float32]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class WindowSettings:
    """Where edges are looked for and how much around them is read.

    The step goes from a dark side (air, lung) to a bright side (fat to muscle, not bone). A window
    reaches ``half_length`` along the edge's normal and ``half_width`` along the edge, in mm or pixels,
    whichever is longer. Of a slice's candidates the ``edges_per_slice`` that lean least are kept.
    """

    slices: int = 24
    candidates_per_slice: int = 480
    edges_per_slice: int = 160
    low_side_below_hu: float = -600.0
    high_side_range_hu: tuple[float, float] = (-250.0, 250.0)
    least_step_hu: float = 500.0
    half_length_mm: float = 3.0
    half_length_pixels: float = 3.5
    half_width_mm: float = 2.4
    half_width_pixels: float = 3.0
    largest_radius_pixels: int = 8

    def extent(self, spacing_mm: Spacing) -> tuple[int, float, float]:
        """Radius in pixels, half length and half width in mm of a window."""
        pixel = max(spacing_mm[:2])
        length = max(self.half_length_mm, self.half_length_pixels * pixel)
        width = max(self.half_width_mm, self.half_width_pixels * pixel)
        radius = min(math.ceil(length / min(spacing_mm[:2])), self.largest_radius_pixels)
        return radius, length, width


@dataclass(frozen=True)
class SliceEdges:
    """Edges found in one slice.

    ``centre_ji`` (n, 2) are the centre pixels; ``direction`` is the normal's angle towards the bright side
    (radians, from i towards j, measured in mm); ``skin`` whether the dark side is the air around the patient.
    """

    centre_ji: NDArray[np.intp]
    direction: Floats
    skin: NDArray[np.bool_]

    def select(self, kept: NDArray[np.intp]) -> SliceEdges:
        """The edges with those indices, in that order."""
        return SliceEdges(self.centre_ji[kept], self.direction[kept], self.skin[kept])


@dataclass(frozen=True)
class EdgeWindows:
    """Windows around n edges, p pixels each.

    ``data`` in HU, ``along`` (towards the bright side) and ``across`` the edge in mm from the centre pixel
    and ``weight`` (1 inside the oriented window, 0 outside) have shape (n, p). ``low_hu`` and ``step_hu``
    are first guesses of the two sides. ``lean_mm`` is how far the edge moves from one slice to the next, 0 or more.
    ``node_mm`` and ``node_share`` (n, 1) are the outer points of the three that stand for the pixel's area
    and the lean, see :func:`area_nodes`. ``skin`` tells the edges against the air around the patient from those inside.
    ``centre_kji`` has shape (n, 3).
    """

    data: Floats
    along: Floats
    across: Floats
    weight: Floats
    low_hu: Floats
    step_hu: Floats
    lean_mm: Floats
    node_mm: Floats
    node_share: Floats
    skin: NDArray[np.bool_]
    centre_kji: NDArray[np.intp]

    def select(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> EdgeWindows:
        """The windows where ``kept`` is true, or with those indices."""
        return EdgeWindows(**{f.name: getattr(self, f.name)[kept] for f in fields(self)})


def read_edge_windows(
    array_kji: NDArray[np.generic], spacing_mm: Spacing, progress: Progress, settings: WindowSettings
) -> EdgeWindows | None:
    """Find edges in evenly spaced slices and read the pixels around them.

    Args:
        array_kji: HU, shape (k, j, i), any real dtype.
        spacing_mm: spacing along i, j and k.
        progress: told of every slice.
        settings: what counts as an edge.

    Returns:
        The windows, or None where there is no edge.

    Raises:
        CancelledError: progress said so.
    """
    generator = np.random.default_rng(0)
    chosen = evenly_spaced_slices(array_kji.shape[0], settings.slices)
    found = []
    for done, k in enumerate(chosen):
        check_cancelled(progress)
        progress.update("edges", done, len(chosen))
        edges = find_edges(as_hu(array_kji[k]), spacing_mm, settings)
        edges = edges.select(generator.permutation(len(edges.centre_ji)))
        edges = edges.select(np.argsort(edges.skin, kind="stable")[: settings.candidates_per_slice])
        if len(edges.centre_ji):
            windows = _read_windows(array_kji, k, edges, spacing_mm, settings)
            upright = np.lexsort((windows.lean_mm, windows.skin))
            found.append(windows.select(upright[: settings.edges_per_slice]))
    progress.update("edges", len(chosen), len(chosen))
    if not found:
        return None
    return EdgeWindows(**{f.name: np.concatenate([getattr(w, f.name) for w in found]) for f in fields(EdgeWindows)})


def evenly_spaced_slices(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` slices; the outermost, often incomplete, only where there are no others."""
    first, last = (1, count - 2) if count > 2 else (0, count - 1)
    positions = np.linspace(first, last, min(wanted, last - first + 1))
    return sorted({round(p) for p in positions.tolist()})


def as_hu(values: NDArray[np.generic]) -> Floats:
    """Float copy in which padding is air."""
    return np.asarray(np.maximum(values.astype(np.float32), np.float32(AIR_HU)))


def find_edges(image: Floats, spacing_mm: Spacing, settings: WindowSettings) -> SliceEdges:
    """Pixels on the crest of the gradient between a dark and a bright side.

    Args:
        image: one slice in HU, shape (j, i).
        spacing_mm: spacing along i, j and k.
        settings: what counts as an edge.

    Returns:
        The edges, at least a window's radius from the border.
    """
    radius, half_length, _ = settings.extent(spacing_mm)
    radius = max(radius, math.ceil(half_length / min(spacing_mm[:2])) + 1)
    if min(image.shape) <= 2 * radius + 2:
        return SliceEdges(np.empty((0, 2), np.intp), np.empty(0, np.float32), np.empty(0, np.bool_))
    smooth = binomial_smooth(binomial_smooth(np.minimum(image, 300.0)))
    gradient_j, gradient_i = (
        np.asarray(g, dtype=np.float32) for g in np.gradient(smooth, spacing_mm[1], spacing_mm[0])
    )
    strength = np.asarray(np.hypot(gradient_i, gradient_j), dtype=np.float32)
    # A step blurred with sigma is steepest with step / (sqrt(2 pi) sigma); the widest sigma wanted is 1.4 mm,
    # or what large pixels and the smoothing above leave.
    widest = max(1.4, 1.5 * max(spacing_mm[:2]))
    steep = strength > settings.least_step_hu / (math.sqrt(2 * math.pi) * widest)
    steep[:radius] = steep[-radius:] = False
    steep[:, :radius] = steep[:, -radius:] = False
    j, i = np.nonzero(steep)
    unit_i = np.asarray(gradient_i[j, i] / strength[j, i])
    unit_j = np.asarray(gradient_j[j, i] / strength[j, i])

    def beside(distance_mm: float, of: NDArray[Any]) -> NDArray[Any]:
        at_j = np.rint(j + unit_j * distance_mm / spacing_mm[1]).astype(np.intp)
        at_i = np.rint(i + unit_i * distance_mm / spacing_mm[0]).astype(np.intp)
        return np.asarray(of[at_j, at_i])

    pixel = max(spacing_mm[:2])
    crest = (strength[j, i] >= beside(pixel, strength)) & (strength[j, i] > beside(-pixel, strength))
    low, high = beside(-half_length, smooth), beside(half_length, smooth)
    crest &= (low < settings.low_side_below_hu) & (high - low > settings.least_step_hu)
    crest &= (high > settings.high_side_range_hu[0]) & (high < settings.high_side_range_hu[1])
    skin = beside(-half_length, _outside_body(smooth))
    centres = np.stack([j[crest], i[crest]], axis=1)
    return SliceEdges(centres, np.arctan2(unit_j[crest], unit_i[crest]).astype(np.float32), skin[crest])


def _outside_body(smooth: Floats) -> NDArray[np.bool_]:
    """Pixels that are neither in the largest piece of tissue nor in its holes."""
    tissue = sitk.GetImageFromArray((smooth > -500).astype(np.uint8))
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(tissue), sortByObjectSize=True)
    body = sitk.BinaryFillhole(pieces == 1)
    return np.asarray(sitk.GetArrayViewFromImage(body) == 0)


def area_nodes(cos: Floats, sin: Floats, spacing_mm: Spacing, lean_mm: Floats) -> tuple[Floats, Floats]:
    """Distance (mm) and share of the outer two of three points that stand for a pixel's extent.

    Projected on the edge's normal, the pixel's two sides and the lean of the edge through the slice are
    three boxes, one convolved with the other; three points have the moments of that up to the fifth.
    """
    boxes = [(cos * spacing_mm[0]) ** 2, (sin * spacing_mm[1]) ** 2, lean_mm**2]
    second = (boxes[0] + boxes[1] + boxes[2]) / 12.0
    # Fourth cumulants add up: -w^4 / 120 for a box of width w.
    fourth = 3.0 * second**2 - (boxes[0] ** 2 + boxes[1] ** 2 + boxes[2] ** 2) / 120.0
    distance: Floats = np.sqrt(fourth / second).astype(np.float32)
    return distance, (second / (2.0 * distance**2)).astype(np.float32)


def _read_windows(
    array_kji: NDArray[np.generic],
    k: int,
    edges: SliceEdges,
    spacing_mm: Spacing,
    settings: WindowSettings,
) -> EdgeWindows:
    radius, half_length, half_width = settings.extent(spacing_mm)
    offset_j, offset_i = (o.ravel() for o in np.mgrid[-radius : radius + 1, -radius : radius + 1])
    at_j, at_i = edges.centre_ji[:, :1] + offset_j, edges.centre_ji[:, 1:] + offset_i
    data = as_hu(array_kji[k][at_j, at_i])
    x, y = (offset_i * spacing_mm[0]).astype(np.float32), (offset_j * spacing_mm[1]).astype(np.float32)
    cos, sin = np.cos(edges.direction)[:, None], np.sin(edges.direction)[:, None]
    along, across = x * cos + y * sin, y * cos - x * sin
    weight = ((np.abs(along) <= half_length) & (np.abs(across) <= half_width)).astype(np.float32)
    low = _weighted_mean(data, weight * (along < -0.5 * half_length))
    step = _weighted_mean(data, weight * (along > 0.5 * half_length)) - low
    reach = 0.65 * half_length
    lean = _lean(array_kji, k, at_j, at_i, data, step, weight * (np.abs(along) <= reach), reach)
    node_mm, node_share = area_nodes(cos, sin, spacing_mm, lean[:, None])
    centre_kji = np.column_stack([np.full(len(data), k), edges.centre_ji])
    return EdgeWindows(data, along, across, weight, low, step, lean, node_mm, node_share, edges.skin, centre_kji)


def _lean(
    array_kji: NDArray[np.generic],
    k: int,
    at_j: NDArray[np.intp],
    at_i: NDArray[np.intp],
    data: Floats,
    step: Floats,
    weight: Floats,
    reach_mm: float,
) -> Floats:
    """How far (mm) each edge moves per slice: the change of the mean within ``reach_mm``, over the step."""
    shift_per_hu = 2.0 * reach_mm / np.maximum(step, 1.0)
    if array_kji.shape[0] == 1:
        return np.zeros_like(step)
    if not 0 < k < array_kji.shape[0] - 1:
        change = _weighted_mean(as_hu(array_kji[1 if k == 0 else k - 1][at_j, at_i]) - data, weight)
        return np.clip(np.abs(change) * shift_per_hu, 0.0, 2.0 * reach_mm)
    before, after = as_hu(array_kji[k - 1][at_j, at_i]), as_hu(array_kji[k + 1][at_j, at_i])
    lean = _weighted_mean((after - before) / 2.0, weight) * shift_per_hu
    # A smooth surface bends little from slice to slice, so the second difference is noise: six slices'
    # worth of variance, against half a slice's in the lean.
    bend = _weighted_mean(after - 2.0 * data + before, weight) * shift_per_hu
    noise = 1.48 * float(np.median(np.abs(bend))) / math.sqrt(12.0)
    return np.clip(np.sqrt(np.maximum(lean**2 - noise**2, 0.0)), 0.0, 2.0 * reach_mm)


def _weighted_mean(data: Floats, weight: Floats) -> Floats:
    return np.asarray((data * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1.0))


def binomial_smooth(image: Floats) -> Floats:
    """The image smoothed with [1 2 1] / 4 along both axes."""
    padded = np.pad(image, 1, mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4)
