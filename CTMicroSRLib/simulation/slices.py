"""Clinical slices of a specimen: the slice sensitivity profile, and what it makes of voxels and labels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.simulation.description import Label
from CTMicroSRLib.volume import Geometry, Volume

Float64 = NDArray[np.float64]

SOFTNESS = 0.25
"""Width of a slice profile's two ramps, as a share of its thickness: between a box and the bell of a helical scan."""

REAL_WEIGHT = 0.05
"""A plane counts for a slice's label where its weight is at least this share of the slice's greatest."""


def slab_weights(planes: int, step_mm: float, thickness_mm: float, spacing_mm: float) -> tuple[Float64, Float64]:
    """Weights of a block's planes in its slices, and where the slices lie.

    A slice's sensitivity is a trapezoid: a box of the thickness convolved with one of :data:`SOFTNESS` of it. Its full
    width at half maximum is the thickness, and slices at a spacing of their thickness add up to 1 everywhere. The first
    slice is the first whose profile lies inside the block; the others follow at exactly the spacing.

    Args:
        planes: planes of the block.
        step_mm: their distance.
        thickness_mm: full width at half maximum of the slice profile.
        spacing_mm: distance of the slices' centres; less than the thickness makes them overlap.

    Returns:
        Weights, shape ``(slices, planes)``, each row with sum 1; the slices' centres in mm from the block's face.

    Raises:
        UsageError: a slice thinner than the planes, or thicker than the block.
    """
    base_mm, depth_mm = thickness_mm * (1.0 + SOFTNESS), planes * step_mm
    if thickness_mm < step_mm * (1.0 - 1e-9):
        raise UsageError(
            f"A slice of {thickness_mm:g} mm is thinner than the specimen's planes ({step_mm:g} mm); "
            "make the slice thicker or the specimen finer."
        )
    if base_mm > depth_mm * (1.0 + 1e-9):
        raise UsageError(
            f"A slice of {thickness_mm:g} mm ({base_mm:g} mm with its soft edges) is thicker than the specimen "
            f"({depth_mm:g} mm); make the specimen deeper or the slice thinner."
        )
    count = 1 + math.floor((depth_mm - base_mm) / spacing_mm + 1e-6)
    centres_mm: Float64 = np.asarray(base_mm / 2.0 + spacing_mm * np.arange(count), dtype=np.float64)
    return slice_weights(planes, step_mm, thickness_mm, centres_mm), centres_mm


def slice_weights(planes: int, step_mm: float, thickness_mm: float, centres_mm: Float64) -> Float64:
    """Weights ``(slices, planes)`` of slices with any centres (mm from the block's face) whose profile fits in."""
    faces_mm = step_mm * np.arange(planes + 1) - np.asarray(centres_mm, dtype=np.float64)[:, None]
    weights = np.diff(_share_before(faces_mm, thickness_mm), axis=1)
    weights[weights < 1e-12] = 0.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def slab_means(fine: Volume, thickness_mm: float, spacing_mm: float) -> Volume:
    """Average a block over slices, float32; see :func:`slab_weights`.

    Raises:
        UsageError: a slice thinner than the planes, or thicker than the block.
    """
    planes, step_mm = fine.array_kji.shape[0], fine.geometry.spacing_mm[2]
    weights, centres_mm = slab_weights(planes, step_mm, thickness_mm, spacing_mm)
    array = np.stack([mean_plane(fine.array_kji, row) for row in weights])
    return Volume(array, slab_geometry(fine.geometry, centres_mm, spacing_mm))


def slab_labels(labels: Volume, thickness_mm: float, spacing_mm: float) -> Volume:
    """Label of each voxel of the slices, uint8: what all planes of real weight agree on, else ``MIXED``.

    Raises:
        UsageError: a slice thinner than the planes, or thicker than the block.
    """
    planes, step_mm = labels.array_kji.shape[0], labels.geometry.spacing_mm[2]
    weights, centres_mm = slab_weights(planes, step_mm, thickness_mm, spacing_mm)
    array = np.stack([_agreed(labels.array_kji[row >= REAL_WEIGHT * row.max()]) for row in weights])
    return Volume(array, slab_geometry(labels.geometry, centres_mm, spacing_mm))


def mean_plane(array_kji: NDArray[np.generic], weights: Float64) -> NDArray[np.float32]:
    """Weighted sum of a block's planes, shape ``(j, i)``."""
    # In a fixed order and without matrix products: the same bytes on any number of threads.
    total = np.zeros(array_kji.shape[1:])
    for plane in np.flatnonzero(weights):
        total += weights[plane] * np.asarray(array_kji[plane], dtype=np.float64)
    return np.asarray(total, dtype=np.float32)


def slab_geometry(fine: Geometry, centres_mm: Float64, spacing_mm: float) -> Geometry:
    """Grid of slices whose centres lie ``centres_mm`` behind the face of a block's first plane."""
    step_mm = fine.spacing_mm[2]
    return Geometry(
        size_ijk=(fine.size_ijk[0], fine.size_ijk[1], len(centres_mm)),
        spacing_mm=(fine.spacing_mm[0], fine.spacing_mm[1], spacing_mm),
        origin_mm=fine.physical_point_mm((0.0, 0.0, float(centres_mm[0]) / step_mm - 0.5)),
        directions=fine.directions,
    )


def _share_before(z_mm: Float64, thickness_mm: float) -> Float64:
    """Share of a slice profile that lies before ``z_mm`` from its centre: the trapezoid's integral."""

    def ramp(u: Float64) -> Float64:
        soft_mm = SOFTNESS * thickness_mm
        inside = np.clip(u / soft_mm + 0.5, 0.0, 1.0)
        return np.asarray(0.5 * soft_mm * inside**2 + np.maximum(u - 0.5 * soft_mm, 0.0))

    return np.asarray((ramp(z_mm + 0.5 * thickness_mm) - ramp(z_mm - 0.5 * thickness_mm)) / thickness_mm)


def _agreed(labels_kji: NDArray[np.uint8]) -> NDArray[np.uint8]:
    lowest, highest = labels_kji.min(axis=0), labels_kji.max(axis=0)
    return np.asarray(np.where(lowest == highest, lowest, Label.MIXED), dtype=np.uint8)
