"""Bright and dark pieces of a slice, vessels' and airways' cross-sections, with their diameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]
Bools = NDArray[np.bool_]

FINE_PIXEL_MM = 0.25
"""Slices are interpolated to pixels of about this size, so that thin pieces don't depend on the scan's pixel."""

ELONGATED = 1.8
"""A piece whose axes' ratio is above this, or that is less solid than its ellipse, is as wide as its widest place."""


@dataclass(frozen=True)
class Pieces:
    """Connected pieces of n; ``centre_ji`` (n, 2) in pixels, the rest shape (n,).

    ``diameter_mm`` is that of the disc of the same area, or for elongated pieces twice the greatest
    distance to the border; ``area_mm2`` the area; ``axis_ratio`` that of the ellipse of the same second moments.
    """

    centre_ji: Float
    diameter_mm: Float
    area_mm2: Float
    axis_ratio: Float

    def __len__(self) -> int:
        return len(self.diameter_mm)

    def select(self, kept: Bools) -> Pieces:
        """The pieces where ``kept`` is true."""
        return Pieces(**{f.name: getattr(self, f.name)[kept] for f in fields(self)})

    def on_coarser(self, factor: int) -> Pieces:
        """The same pieces with their centres in pixels of the slice that was refined by ``factor``."""
        return replace(self, centre_ji=(self.centre_ji + 0.5) / factor - 0.5)


def refine_slice(slice_ji: Float32, pixel_mm: float) -> tuple[Float32, int]:
    """The slice interpolated (cubic splines) to pixels of about :data:`FINE_PIXEL_MM`, and how much finer it is.

    Fine pixel ``f`` has its centre at ``(f + 0.5) / factor - 0.5`` of the slice's own pixels.
    """
    from scipy.ndimage import zoom

    factor = max(1, round(pixel_mm / FINE_PIXEL_MM))
    return np.asarray(zoom(slice_ji, factor, order=3, mode="grid-mirror", grid_mode=True), np.float32), factor


def find_pieces(inside: Bools, pixel_mm: float) -> Pieces:
    """The pieces of a mask (pixels that touch at an edge or corner), shape (j, i)."""
    from scipy import ndimage

    labels, count = ndimage.label(inside, structure=np.ones((3, 3)))
    return _describe(np.asarray(labels), int(count), pixel_mm)


def find_holes(inside: Bools, pixel_mm: float) -> Pieces:
    """The holes that a mask, shape (j, i), encloses whole."""
    from scipy import ndimage

    labels, _ = ndimage.label(~inside)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    new = np.zeros(int(labels.max()) + 1, dtype=np.int32)
    kept = np.setdiff1d(np.unique(labels), [0, *border.tolist()])
    new[kept] = np.arange(1, len(kept) + 1)
    return _describe(new[labels], len(kept), pixel_mm)


def _describe(labels: NDArray[np.integer], count: int, pixel_mm: float) -> Pieces:
    """The pieces numbered 1 to ``count`` in ``labels``, shape (j, i)."""
    from scipy import ndimage

    if count == 0:
        none = np.zeros(0)
        return Pieces(np.zeros((0, 2)), none, none, none)
    inside = labels > 0
    j, i = np.nonzero(inside)
    which = labels[j, i] - 1
    pixels = np.bincount(which, minlength=count).astype(float)

    def mean(values: Float) -> Float:
        return np.asarray(np.bincount(which, values, minlength=count) / pixels)

    centre_j, centre_i = mean(j.astype(float)), mean(i.astype(float))
    # A pixel's own extent adds 1/12 to each second moment.
    from_j, from_i = j - centre_j[which], i - centre_i[which]
    jj, ii, ij = mean(from_j**2) + 1 / 12, mean(from_i**2) + 1 / 12, mean(from_j * from_i)
    spread = np.sqrt(((jj - ii) / 2) ** 2 + ij**2)
    major, minor = (jj + ii) / 2 + spread, np.maximum((jj + ii) / 2 - spread, 1 / 24)
    # The distance is to the next pixel's centre, half a pixel beyond the border.
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge")))[1:-1, 1:-1]
    deepest = np.zeros(count)
    np.maximum.at(deepest, which, depth[j, i] - 0.5)
    disc = 2.0 * np.sqrt(pixels / math.pi)
    ratio = np.sqrt(major / minor)
    solid = pixels > 0.8 * (4.0 * math.pi * np.sqrt(major * minor))
    diameter = np.where((ratio > ELONGATED) | ~solid, np.minimum(2.0 * deepest, disc), disc)
    return Pieces(np.column_stack([centre_j, centre_i]), diameter * pixel_mm, pixels * pixel_mm**2, ratio)
