"""DICOM slices as one regular stack: alike, evenly spaced, none missing, upright on their plane."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files.dicom_headers import ENHANCED_CT_CLASSES, HU_RESCALE_TYPES, Slice

SPACING_TOLERANCE = 0.05
"""Largest distance of a slice from its place on the even grid, as a share of the slice spacing."""

TILT_TOLERANCE = 2e-3
"""Largest drift of slices per millimetre along the normal (0.11 degrees); gantries tilt by 0.5 and more."""

ROUNDING_MM = 0.01
"""How exactly positions are written by the scanners seen; drift and steps below it mean nothing."""

POSITION_ROUNDING_MM = 0.06
"""Largest distance of a slice from the line through all positions: some headers give them to 0.1 mm."""

POSITION_ROUNDING_SHARE = 0.25
"""The same as a share of the slice spacing. A missing slice moves others by a third of it and more, so that from
0.18 mm on it is found; clinical CT has slices of 0.25 mm and more."""


def check_alike(slices: list[Slice]) -> None:
    """Refuse slices that are not read, each by its cause, and slices that are not of one grid.

    Raises:
        RefusedInputError: as said.
    """
    first = slices[0]
    for one in slices:
        _check_is_read(one)
        _check_lies_somewhere(one)
        if one.size_ij != first.size_ij or not np.allclose(one.spacing_ij_mm, first.spacing_ij_mm, rtol=1e-4):
            raise RefusedInputError(
                f"{one.path} has other pixels ({one.size_ij}, {one.spacing_ij_mm} mm) than "
                f"{first.path.name} of its series; export the series again."
            )
        if not np.allclose(one.orientation, first.orientation, atol=1e-3):
            raise RefusedInputError(
                f"{one.path} lies in another plane than {first.path.name} of its series; "
                "put the images of one plane into a folder of their own."
            )


def _check_is_read(one: Slice) -> None:
    if one.sop_class in ENHANCED_CT_CLASSES:
        raise RefusedInputError(
            f"{one.path} is an Enhanced CT image (a multi-frame object), which is not read; "
            "convert it to NRRD or NIfTI first."
        )
    if one.frames != 1:
        raise RefusedInputError(
            f"{one.path} is a multi-frame image, which is not read; convert it to NRRD or NIfTI first."
        )
    if one.photometric == "MONOCHROME1":
        raise RefusedInputError(
            f"{one.path} is stored inverted (PhotometricInterpretation MONOCHROME1), which no CT in HU is; "
            "export the original CT series."
        )
    if one.rescale_type not in HU_RESCALE_TYPES:
        raise RefusedInputError(
            f"{one.path} holds values of another kind than HU (RescaleType {one.rescale_type}); "
            "give the CT series in HU."
        )


def _check_lies_somewhere(one: Slice) -> None:
    if len(one.position_mm) != 3 or len(one.orientation) != 6:
        raise RefusedInputError(
            f"{one.path} does not say where its slice lies (ImagePositionPatient, "
            "ImageOrientationPatient); export the original CT series."
        )
    if not all(map(math.isfinite, (*one.position_mm, *one.orientation))):
        raise RefusedInputError(
            f"{one.path} gives its slice a position that is not finite (ImagePositionPatient, "
            "ImageOrientationPatient); export the original CT series."
        )
    if len(one.spacing_ij_mm) != 2 or not all(0 < size < math.inf for size in one.spacing_ij_mm):
        raise RefusedInputError(
            f"{one.path} does not say how large its pixels are (PixelSpacing); export the original CT series."
        )


def slice_directions(one: Slice) -> NDArray[np.float64]:
    """Direction cosines (columns i, j, k) of a slice; made exactly orthonormal.

    Raises:
        RefusedInputError: the slice's axes are not perpendicular unit vectors.
    """
    i, j = np.array(one.orientation[:3]), np.array(one.orientation[3:])
    lengths = np.array([np.linalg.norm(i), np.linalg.norm(j)])
    if not np.allclose(lengths, 1, atol=1e-2) or abs(i @ j) > 1e-3:
        raise RefusedInputError(
            f"The orientation in {one.path} is not two perpendicular unit vectors; export the original CT series."
        )
    i = i / np.linalg.norm(i)
    j = j - (i @ j) * i
    j = j / np.linalg.norm(j)
    return np.column_stack([i, j, np.cross(i, j)])


def check_stack(path: Path, positions_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Slice spacing of sorted slice positions.

    Raises:
        RefusedInputError: slices are missing, unevenly spaced, doubled, or shifted against each other.
    """
    heights_mm = positions_mm @ normal
    steps_mm = np.diff(heights_mm)
    if steps_mm.min() < ROUNDING_MM:
        raise RefusedInputError(
            f"{path} has two slices at the same position; keep the slices of one reconstruction or time point."
        )
    length_mm = float(heights_mm[-1] - heights_mm[0])
    step_mm = _even_step_mm(heights_mm)
    if step_mm is None:
        raise RefusedInputError(
            f"{path} has missing or unevenly spaced slices (steps of {steps_mm.min():.4g} to "
            f"{steps_mm.max():.4g} mm); export the complete series again."
        )
    drift_mm = positions_mm - positions_mm[0]
    drift_mm = drift_mm - np.outer(drift_mm @ normal, normal)
    if np.linalg.norm(drift_mm, axis=1).max() > TILT_TOLERANCE * length_mm + ROUNDING_MM:
        raise RefusedInputError(
            f"{path} was scanned with a tilted gantry (its slices are shifted against each other); "
            "resample it to a regular grid first."
        )
    return step_mm


def _even_step_mm(heights_mm: NDArray[np.float64]) -> float | None:
    """Step of heights that are even but for the rounding of headers; None for others."""
    places = np.arange(len(heights_mm))
    step_mm = float(heights_mm[-1] - heights_mm[0]) / (len(heights_mm) - 1)
    distances_mm = heights_mm - (heights_mm[0] + step_mm * places)
    if np.abs(distances_mm).max() <= max(SPACING_TOLERANCE * step_mm, ROUNDING_MM):
        return step_mm
    slope_mm, offset_mm = np.polyfit(places, distances_mm, 1)
    fitted_mm = step_mm + float(slope_mm)
    residual_mm = np.abs(distances_mm - slope_mm * places - offset_mm).max()
    allowed_mm = min(POSITION_ROUNDING_MM, POSITION_ROUNDING_SHARE * fitted_mm)
    return fitted_mm if residual_mm <= allowed_mm else None
