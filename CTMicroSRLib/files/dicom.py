"""DICOM CT series: read in HU, once their files are found and checked to be one regular stack of slices."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files.dicom_elements import is_dicom
from CTMicroSRLib.files.dicom_folder import series_slices
from CTMicroSRLib.files.dicom_headers import IMAGE_IO, Slice, unreadable
from CTMicroSRLib.files.dicom_stack import check_alike, check_stack, slice_directions
from CTMicroSRLib.files.itk_io import check_memory, copy_as_hu, read_image
from CTMicroSRLib.volume import Geometry, Volume

__all__ = ["is_dicom", "lacks_rescale", "read_series"]

logger = logging.getLogger(__name__)


def read_series(path: Path) -> Volume:
    """Read a folder with one CT series, or the CT series that a file belongs to.

    Files of the same folder and SeriesInstanceUID form the series; folders below are not searched. Localizers and
    what is no CT beside it are left out. Copies of one image (the same SOPInstanceUID, position and pixels) count
    once. Slices go along the normal of their plane, upwards in ``normal . position``, as ITK does it; slice spacing
    is that of the positions, for a single slice the SliceThickness.

    Returns:
        the series, ``array_kji`` int16 in HU (float32 where the rescale needs it), padding turned into air.

    Raises:
        RefusedInputError: no CT, several series, slices missing, lost, unevenly spaced, doubled or of several
            sizes, a tilted gantry, colour, several frames, other values than HU, a damaged file.
        ResourceError: the voxels do not fit in memory.
    """
    found = series_slices(path)
    check_alike(found)
    slices = _without_copies(found)
    first = slices[0]
    directions, origins_mm = slice_directions(first), np.array([one.position_mm for one in slices])
    normal = directions[:, 2]
    order = np.argsort(origins_mm @ normal, kind="stable")
    slices, origins_mm = [slices[n] for n in order], origins_mm[order]
    step_mm = first.thickness_mm if len(slices) == 1 else check_stack(path, origins_mm, normal)
    origin = origins_mm[0].tolist()
    geometry = Geometry(
        size_ijk=(*first.size_ij, len(slices)),
        spacing_mm=(first.spacing_ij_mm[0], first.spacing_ij_mm[1], step_mm),
        origin_mm=(origin[0], origin[1], origin[2]),
        directions=tuple(directions.ravel().tolist()),
    )
    return Volume(_read_voxels(path, slices, geometry), geometry, _common_metadata(slices))


def lacks_rescale(path: Path) -> bool:
    """Whether a slice of the series at a path does not say how its stored values become HU."""
    return not all(one.has_rescale for one in series_slices(path))


def _without_copies(slices: list[Slice]) -> list[Slice]:
    """One slice of each image. Anonymised slices may share a UID: only the same place and pixels make a copy."""
    kept: list[Slice] = []
    alike: dict[tuple[str, tuple[float, ...]], list[Slice]] = defaultdict(list)
    for one in slices:
        others = alike[one.instance_uid, one.position_mm] if one.instance_uid else []
        original = next((other for other in others if np.array_equal(_pixels(one), _pixels(other))), None)
        if original is None:
            kept.append(one)
            others.append(one)
        else:
            logger.info("%s is a copy of %s (the same image) and is left out", one.path, original.path)
    return kept


def _common_metadata(slices: list[Slice]) -> dict[str, str]:
    """What all slices say alike (tube current, for one, often changes from slice to slice)."""
    others = [one.metadata for one in slices[1:]]
    kept = slices[0].metadata.items()
    return {name: value for name, value in kept if all(other.get(name) == value for other in others)}


def _read_voxels(path: Path, slices: list[Slice], geometry: Geometry) -> NDArray[Any]:
    is_float = any(one.dtype.kind == "f" for one in slices)
    dtype = np.dtype(np.float32 if is_float else np.int16)
    check_memory(path, math.prod(geometry.size_ijk) * dtype.itemsize + slices[0].dtype.itemsize)
    array_kji: NDArray[Any] = np.empty(geometry.shape_kji, dtype)
    for k, one in enumerate(slices):
        stored_ji = _pixels(one).reshape(geometry.shape_kji[1:])
        copy_as_hu(one.path, stored_ji, array_kji[k], one.padding_hu)
    return array_kji


def _pixels(one: Slice) -> NDArray[Any]:
    """A slice's rescaled voxels, padding still as it is stored."""
    try:
        image = read_image(one.path, IMAGE_IO)
    except RefusedInputError as refusal:
        raise unreadable(one.path, refusal) from None
    return np.asarray(sitk.GetArrayFromImage(image))
