"""Rise distances of the borders of vessels and of airway lumina, along rays from their centres."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.realism_pieces import Pieces

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]

STEP_MM = 0.05
RAYS = 16
BEYOND_MM = 3.0
"""How far beyond its border a piece's surroundings are read."""

LEAST_STEP_HU = 150.0


@dataclass(frozen=True)
class Edges:
    """``rise_mm`` (n,) the 10 to 90 % rise distance of each edge, ``peak_hu`` (n,) the bright side's level."""

    rise_mm: Float
    peak_hu: Float

    @staticmethod
    def join(parts: list[Edges]) -> Edges:
        """All edges of several sets."""
        none = [np.zeros(0)]
        return Edges(
            np.concatenate([p.rise_mm for p in parts] or none), np.concatenate([p.peak_hu for p in parts] or none)
        )


def vessel_edges(slice_ji: Float32, pixel_mm: float, vessels: Pieces) -> Edges:
    """Edges of vessels, from the plateau in the middle down to the lung around.

    Args:
        slice_ji: HU, shape (j, i).
        pixel_mm: its pixel.
        vessels: round cross-sections; their centres in pixels of the slice.

    Returns:
        Of every ray that meets nothing but lung beyond the border, the rise distance.
    """
    profiles, radius_mm = _profiles(slice_ji, pixel_mm, vessels)
    if not len(profiles):
        return Edges.join([])
    r = np.arange(profiles.shape[1]) * STEP_MM
    plateau = _mean_where(profiles, r <= 0.4 * radius_mm[:, None])
    level = _mean_where(profiles, (r >= radius_mm[:, None] + 1.5) & (r <= radius_mm[:, None] + BEYOND_MM))
    step = plateau - level
    clear = np.where(r >= radius_mm[:, None] + 1.0, profiles, -np.inf).max(axis=1) < level + 0.2 * step
    return _rises(profiles, level, plateau, radius_mm, (step > LEAST_STEP_HU) & clear, falling=True)


def airway_edges(slice_ji: Float32, pixel_mm: float, lumina: Pieces) -> Edges:
    """Edges of airway lumina, from the dark middle up to the brightest place of the wall.

    Args:
        slice_ji: HU, shape (j, i).
        pixel_mm: its pixel.
        lumina: cross-sections; their centres in pixels of the slice.

    Returns:
        Rise distance and brightest HU of the wall along every ray.
    """
    profiles, radius_mm = _profiles(slice_ji, pixel_mm, lumina)
    if not len(profiles):
        return Edges.join([])
    r = np.arange(profiles.shape[1]) * STEP_MM
    lumen = _mean_where(profiles, r <= 0.4 * radius_mm[:, None])
    near = (r >= 0.5 * radius_mm[:, None]) & (r <= 1.5 * radius_mm[:, None] + 2.0)
    peak = np.where(near, profiles, -np.inf).max(axis=1)
    return _rises(profiles, lumen, peak, radius_mm, peak - lumen > LEAST_STEP_HU, falling=False)


def _profiles(slice_ji: Float32, pixel_mm: float, pieces: Pieces) -> tuple[Float, Float]:
    """Values along the rays from each centre, shape (pieces * rays, points), and each ray's radius in mm."""
    from scipy.ndimage import map_coordinates

    if not len(pieces):
        return np.zeros((0, 0)), np.zeros(0)
    reach = float(pieces.diameter_mm.max()) + BEYOND_MM + 1.0
    r = np.arange(0.0, reach, STEP_MM) / pixel_mm
    angle = 2 * math.pi * np.arange(RAYS) / RAYS
    at_j = pieces.centre_ji[:, 0, None, None] + np.sin(angle)[None, :, None] * r
    at_i = pieces.centre_ji[:, 1, None, None] + np.cos(angle)[None, :, None] * r
    read = map_coordinates(slice_ji, [at_j, at_i], order=3, mode="constant", cval=math.nan, output=np.float64)
    radius = np.repeat(pieces.diameter_mm / 2.0, RAYS)
    profiles = np.asarray(read).reshape(len(radius), -1)
    # Beyond its own reach a ray says nothing, and may have left the slice.
    last = np.rint((radius + BEYOND_MM) / STEP_MM).astype(int)
    column = np.minimum(np.arange(profiles.shape[1])[None, :], last[:, None])
    profiles = np.take_along_axis(profiles, column, axis=1)
    inside = np.isfinite(profiles).all(axis=1)
    return profiles[inside], radius[inside]


def _mean_where(values: Float, where: NDArray[np.bool_]) -> Float:
    return np.asarray((values * where).sum(axis=1) / np.maximum(where.sum(axis=1), 1))


def _rises(
    profiles: Float, low: Float, high: Float, radius_mm: Float, usable: NDArray[np.bool_], *, falling: bool
) -> Edges:
    """Distance between the 10 % and the 90 % crossings that are next to the 50 % crossing nearest the border."""
    step = np.where(usable, high - low, 1.0)
    share = (profiles - low[:, None]) / step[:, None]
    if falling:
        share = 1.0 - share
    rise = np.full(len(share), math.nan)
    for n in np.flatnonzero(usable):
        rise[n] = _rise(share[n], radius_mm[n])
    found = np.isfinite(rise)
    return Edges(rise[found], high[found])


def _rise(share: Float, radius_mm: float) -> float:
    """Rise distance (mm) of one profile that goes from 0 to 1, or NaN."""
    crossings = np.flatnonzero((share[:-1] < 0.5) & (share[1:] >= 0.5))
    if not crossings.size:
        return math.nan
    middle = int(crossings[np.argmin(np.abs(crossings * STEP_MM - radius_mm))])
    below = np.flatnonzero(share[: middle + 1] <= 0.1)
    above = np.flatnonzero(share[middle:] >= 0.9)
    if not below.size or not above.size:
        return math.nan
    a, b = int(below[-1]), middle + int(above[0])
    first = a + (0.1 - share[a]) / (share[a + 1] - share[a])
    last = b - (share[b] - 0.9) / (share[b] - share[b - 1])
    return float(last - first) * STEP_MM
