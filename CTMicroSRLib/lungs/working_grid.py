"""A coarse, anatomically oriented copy of a scan, and the image operations used on it.

Segmentation works on voxels of about 1.5 mm whose axes run as close to inferior-superior, anterior-posterior
and right-left as the scan's own axes allow, so that memory stays small and the answer does not depend on
the order or the direction in which a scan stores its axes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.volume import AIR_HU, Geometry

BoolArray = NDArray[np.bool_]
_HIGHEST_HU = 3071


@dataclass(frozen=True)
class WorkingGrid:
    """A scan averaged to about the working spacing.

    ``array_zyx`` is int16 HU of shape (z, y, x): z runs towards superior, y towards posterior, x towards
    left (LPS, to the nearest axis). ``spacing_zyx_mm`` and ``factors_zyx`` (scan voxels per working voxel)
    go in the same order; the last working voxel along an axis may cover fewer scan voxels.
    """

    array_zyx: NDArray[np.int16]
    spacing_zyx_mm: tuple[float, float, float]
    factors_zyx: tuple[int, int, int]

    @property
    def voxel_ml(self) -> float:
        """Volume of one working voxel."""
        z, y, x = self.spacing_zyx_mm
        return z * y * x / 1000.0

    @property
    def extent_zyx_mm(self) -> tuple[float, float, float]:
        """Physical size along z, y and x."""
        z, y, x = (n * s for n, s in zip(self.array_zyx.shape, self.spacing_zyx_mm, strict=True))
        return (z, y, x)

    def radius_voxels(self, radius_mm: float) -> tuple[int, int, int]:
        """Whole voxels, rounded down, that a radius spans along z, y and x."""
        z, y, x = (int(radius_mm / s + 1e-6) for s in self.spacing_zyx_mm)
        return (z, y, x)


def anatomical_view(
    array_kji: NDArray[np.generic], geometry: Geometry
) -> tuple[NDArray[np.generic], tuple[float, float, float]]:
    """The array seen as (z, y, x), towards superior, posterior and left, without copying.

    Returns:
        The view (writing to it writes to ``array_kji``) and its spacing along z, y and x in mm.
    """
    cosines = np.round(geometry.direction_matrix, 6)
    axes = max(itertools.permutations(range(3)), key=lambda p: sum(abs(cosines[row, p[row]]) for row in range(3)))
    index_axes = (axes[2], axes[1], axes[0])
    view = array_kji.transpose([2 - axis for axis in index_axes])
    forward = tuple(
        slice(None, None, -1 if cosines[row, axis] < 0 else 1) for row, axis in zip((2, 1, 0), index_axes, strict=True)
    )
    z, y, x = (geometry.spacing_mm[axis] for axis in index_axes)
    return view[forward], (z, y, x)


def make_working_grid(
    view_zyx: NDArray[np.generic],
    spacing_zyx_mm: tuple[float, float, float],
    working_spacing_mm: float,
    progress: Progress,
) -> WorkingGrid:
    """Average whole groups of voxels so that the spacing comes near ``working_spacing_mm``."""
    fz, fy, fx = (max(1, round(working_spacing_mm / s)) for s in spacing_zyx_mm)
    rows = np.arange(0, view_zyx.shape[1], fy)
    columns = np.arange(0, view_zyx.shape[2], fx)
    rows_in_group = np.diff(np.append(rows, view_zyx.shape[1])).astype(np.float32)
    columns_in_group = np.diff(np.append(columns, view_zyx.shape[2])).astype(np.float32)
    in_plane = rows_in_group[:, None] * columns_in_group[None, :]
    starts = range(0, view_zyx.shape[0], fz)
    averaged = np.empty((len(starts), len(rows), len(columns)), dtype=np.int16)
    for z, start in enumerate(starts):
        check_cancelled(progress)
        group = view_zyx[start : start + fz]
        total = group.sum(axis=0, dtype=np.float32)
        total = np.add.reduceat(np.add.reduceat(total, rows, axis=0), columns, axis=1)
        mean = total / (in_plane * group.shape[0])
        averaged[z] = np.rint(np.clip(mean, AIR_HU, _HIGHEST_HU))
        progress.update("lungs: shrink", z + 1, len(starts))
    sz, sy, sx = spacing_zyx_mm
    return WorkingGrid(averaged, (sz * fz, sy * fy, sx * fx), (fz, fy, fx))


def to_image(mask_zyx: BoolArray) -> sitk.Image:
    """A mask as a SimpleITK image of 0 and 1 with unit spacing."""
    return sitk.GetImageFromArray(mask_zyx.astype(np.uint8))


def to_mask(image: sitk.Image) -> BoolArray:
    """A SimpleITK label image as a mask of its non-zero voxels."""
    mask: BoolArray = sitk.GetArrayViewFromImage(image) != 0
    return mask


def grow_below(image: sitk.Image, seeds_zyx: NDArray[np.intp], upper_hu: float) -> BoolArray:
    """Region growing: the face-connected voxels at or below ``upper_hu`` that the seeds reach.

    ``image`` is int16 HU; ``seeds_zyx`` has shape (n, 3); seeds above the threshold grow nothing.
    """
    seeds_xyz = [(int(x), int(y), int(z)) for z, y, x in seeds_zyx]
    if not seeds_xyz:
        return np.zeros(image.GetSize()[::-1], dtype=bool)
    return to_mask(sitk.ConnectedThreshold(image, seedList=seeds_xyz, lower=-32768, upper=upper_hu))


def components(mask_zyx: BoolArray, minimum_voxels: int) -> NDArray[np.uint32]:
    """Face-connected components, numbered from 1 in order of falling size; smaller ones are dropped."""
    labels = sitk.ConnectedComponent(to_image(mask_zyx), False)
    labels = sitk.RelabelComponent(labels, max(1, minimum_voxels))
    numbered: NDArray[np.uint32] = sitk.GetArrayFromImage(labels)
    return numbered


def dilate(mask_zyx: BoolArray, radius_voxels_zyx: tuple[int, int, int]) -> BoolArray:
    """Dilate with a box of the given half-widths."""
    for axis, radius in enumerate(radius_voxels_zyx):
        grown = mask_zyx.copy()
        for shift in range(1, min(radius, mask_zyx.shape[axis] - 1) + 1):
            ahead: list[slice] = [slice(None)] * 3
            behind: list[slice] = [slice(None)] * 3
            ahead[axis], behind[axis] = slice(shift, None), slice(None, -shift)
            grown[tuple(ahead)] |= mask_zyx[tuple(behind)]
            grown[tuple(behind)] |= mask_zyx[tuple(ahead)]
        mask_zyx = grown
    return mask_zyx


def erode(mask_zyx: BoolArray, radius_voxels_zyx: tuple[int, int, int]) -> BoolArray:
    """Erode with a box of the given half-widths; the outside of the grid erodes nothing."""
    return ~dilate(~mask_zyx, radius_voxels_zyx)


def at_least_one(radius_voxels_zyx: tuple[int, int, int]) -> tuple[int, int, int]:
    """The same radius with no axis below one voxel."""
    z, y, x = radius_voxels_zyx
    return (max(1, z), max(1, y), max(1, x))


def distance_to_mm(mask_zyx: BoolArray, spacing_zyx_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    """Distance in mm from every voxel outside a mask to its nearest voxel; 0 or less inside."""
    image = to_image(mask_zyx)
    image.SetSpacing(spacing_zyx_mm[::-1])
    distance: NDArray[np.float32] = sitk.GetArrayFromImage(
        sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    )
    return distance


def bounding_box(mask_zyx: BoolArray) -> tuple[slice, slice, slice]:
    """The smallest box that holds a non-empty mask."""
    ranges = []
    for axis in range(3):
        inside = np.flatnonzero(mask_zyx.any(axis=tuple(a for a in range(3) if a != axis)))
        ranges.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return (ranges[0], ranges[1], ranges[2])
