"""Tissue that borders the lung, in the slices of an image, and positions in the image's own frame."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.simulation.description import Float, Label
from CTMicroSRLib.volume import Geometry, Volume

Mask = NDArray[np.bool_]

DENSE_TISSUES = (Label.PLEURA, Label.NODULE, Label.SOFT_TISSUE, Label.FAT, Label.BONE, Label.OUTSIDE_AIR)
"""What borders the lung or fills it without being a tube; septa are part of the parenchyma that veins run in."""


def checked_thickness_mm(geometry: Geometry, thickness_mm: float | None) -> float:
    """The slices' thickness, their distance where not given.

    Raises:
        UsageError: a thickness that is not positive and finite.
    """
    thickness = geometry.spacing_mm[2] if thickness_mm is None else thickness_mm
    if not (math.isfinite(thickness) and thickness > 0):
        raise UsageError(f"The slice thickness {thickness} mm is not positive; give millimetres above zero.")
    return thickness


def in_frame(points_mm: Float, geometry: Geometry) -> Float:
    """Physical points ``(n, 3)`` as (i, j, k) in mm from the centre of voxel (0, 0, 0)."""
    moved = np.asarray(points_mm, dtype=np.float64).reshape(-1, 3) - geometry.origin_mm
    return np.asarray(moved @ geometry.direction_matrix)


def tissue_in_slices(
    labels: Volume, geometry: Geometry, thickness_mm: float, tissues: tuple[Label, ...] = DENSE_TISSUES
) -> Mask:
    """Voxels (k, j, i) of a grid of slices in which some of the slice's thickness is one of the tissues.

    Raises:
        UsageError: labels whose axes do not run as the image's.
    """
    fine = labels.geometry
    if not np.allclose(fine.directions, geometry.directions, atol=1e-6):
        raise UsageError("The labels' axes are not the image's; give the label volume of the same specimen.")
    first = in_frame(np.asarray([geometry.origin_mm]), fine)[0]
    wanted = np.asarray(np.isin(labels.array_kji, [int(tissue) for tissue in tissues]), dtype=bool)
    rows, columns = (
        np.rint((first[a] + np.arange(geometry.size_ijk[a]) * geometry.spacing_mm[a]) / fine.spacing_mm[a])
        .astype(int)
        .clip(0, fine.size_ijk[a] - 1)
        for a in (1, 0)
    )
    found = np.zeros(geometry.shape_kji, dtype=bool)
    for k in range(geometry.size_ijk[2]):
        middle = first[2] + k * geometry.spacing_mm[2]
        low, high = ((middle + sign * thickness_mm / 2.0) / fine.spacing_mm[2] for sign in (-1.0, 1.0))
        # Slabs end between two fine slices; a hair's breadth keeps rounding from adding a slice.
        from_k, to_k = max(0, math.ceil(low - 1e-6)), min(fine.size_ijk[2], math.floor(high + 1e-6) + 1)
        if from_k < to_k:
            slab = np.asarray(wanted[from_k:to_k].any(axis=0))
            found[k] = slab[rows[:, None], columns]
    return found


def distance_to_dense_tissue(labels: Volume, geometry: Geometry, thickness_mm: float) -> NDArray[np.float32]:
    """In-plane distance in mm of each voxel (k, j, i) to tissue that is neither lung nor tube (inf without any).

    Raises:
        UsageError: labels whose axes do not run as the image's.
    """
    from scipy import ndimage

    mask_kji = tissue_in_slices(labels, geometry, thickness_mm)

    spacing = (geometry.spacing_mm[1], geometry.spacing_mm[0])
    planes = [
        ndimage.distance_transform_edt(~plane, sampling=spacing) if plane.any() else np.full(plane.shape, np.inf)
        for plane in mask_kji
    ]
    return np.stack(planes).astype(np.float32)
