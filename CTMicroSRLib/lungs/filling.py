"""Fills what a lung's air leaves out: vessels, nodules, and nodules at the pleura."""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk

from CTMicroSRLib.lungs.working_grid import (
    BoolArray,
    WorkingGrid,
    bounding_box,
    components,
    distance_to_mm,
    to_image,
    to_mask,
)

_SPLIT_DEPTHS_MM = (2.0, 4.0, 6.0, 9.0, 12.0, 16.0)
_SPLIT_SMALLEST_SHARE = 0.12
_SPLIT_APART_SHARE = 0.25
_FACE_HOLE_MM2 = 700.0


def left_and_right(grid: WorkingGrid, lung: BoolArray) -> list[BoolArray]:
    """The lung air of each side, so that closing one lung doesn't bridge to the other.

    Lungs that touch are cut where an erosion first parts them into two large pieces, side by side; else the
    largest piece that lies beside the largest of all is the other lung, however small.
    """
    box = bounding_box(lung)
    part = lung[box]
    cores = _two_cores(part, grid.spacing_zyx_mm)
    if cores is None:
        return [lung]
    first, second = (distance_to_mm(core, grid.spacing_zyx_mm) for core in cores)
    sides = []
    for mask in (part & (first <= second), part & (first > second)):
        side = np.zeros_like(lung)
        side[box] = mask
        sides.append(side)
    return sides


def _two_cores(part: BoolArray, spacing_zyx_mm: tuple[float, float, float]) -> tuple[BoolArray, BoolArray] | None:
    pieces = components(part, 1)
    depth = -distance_to_mm(part, spacing_zyx_mm)
    for depth_mm in (0.0, *_SPLIT_DEPTHS_MM):
        cores = components(depth > depth_mm, 1) if depth_mm else pieces
        sizes = np.bincount(cores.ravel(), minlength=3)
        if sizes[2] >= max(1, _SPLIT_SMALLEST_SHARE * sizes[1]) and _side_by_side(cores == 1, cores == 2):
            return cores == 1, cores == 2
    for label in range(2, int(pieces.max()) + 1):
        if _side_by_side(pieces == 1, pieces == label):
            return pieces == 1, pieces == label
    return None


def _side_by_side(first: BoolArray, second: BoolArray) -> bool:
    """Whether the centres of two pieces lie well apart from left to right."""
    left, right = (np.average(np.arange(m.shape[2]), weights=m.sum(axis=(0, 1))) for m in (first, second))
    return bool(abs(left - right) > _SPLIT_APART_SHARE * first.shape[2])


def close_and_fill(grid: WorkingGrid, lung: BoolArray, closing_mm: float) -> BoolArray:
    """Closing by distance, holes filled; the scan is continued past its edges, so that edges close too."""
    box = bounding_box(lung)
    margin = [math.ceil(closing_mm / s) + 1 for s in grid.spacing_zyx_mm]
    outer = tuple(
        slice(max(0, b.start - m), min(n, b.stop + m)) for b, m, n in zip(box, margin, lung.shape, strict=True)
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
