"""Reading scans: NRRD, NIfTI, MetaImage, a DICOM folder or one file of a DICOM series."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.files import dicom
from CTMicroSRLib.files.completeness import check_packed_stream, check_raw_length
from CTMicroSRLib.files.headers import stored_voxels
from CTMicroSRLib.files.hu_check import NotHUError, check_is_ct
from CTMicroSRLib.files.itk_io import (
    ImageInformation,
    check_memory,
    copy_as_hu,
    read_image,
    read_information,
)
from CTMicroSRLib.files.nifti_header import not_nifti_1
from CTMicroSRLib.files.scan_metadata import scan_metadata
from CTMicroSRLib.volume import Geometry, Volume, grid_difference

IMAGE_IOS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}

PAIR_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
"""NIfTI and ANALYZE in two files."""


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a chest CT in HU.

    Voxels and geometry (spacing, origin, direction cosines) come exactly as stored, with rescale slope and
    intercept applied. Scanner padding (below AIR_HU, or named in a DICOM header) becomes AIR_HU. A single image becomes
    one slice.

    Args:
        path: NRRD, NIfTI or MetaImage file, a folder with one DICOM CT series, or one file of a series.

    Returns:
        the scan, ``array_kji`` int16 (from any integer file) or float32 (from any float file) in HU,
        ``metadata`` plain text about the scan (Modality, ConvolutionKernel, …), nothing about the patient.

    Raises:
        UsageError: there is nothing at ``path``.
        RefusedInputError: what is there cannot be super-resolved honestly.
        ResourceError: the voxels do not fit in memory.
    """
    found = _existing(path)
    volume = _read(found, as_ct=True)
    try:
        check_is_ct(volume)
    except NotHUError as error:
        if _is_dicom(found) and dicom.lacks_rescale(found):
            raise RefusedInputError(
                f"{found} has lost its rescale tags (RescaleSlope, RescaleIntercept), and its values are not HU "
                "without them; export the original CT series."
            ) from None
        raise RefusedInputError(f"{found}: {error}") from None
    except RefusedInputError as error:
        raise RefusedInputError(f"{found}: {error}") from None
    return volume


def read_any_volume(path: str | os.PathLike[str]) -> Volume:
    """Read any scalar volume exactly as stored: a mask, a result, a micro-CT; nothing asks whether it is CT.

    Takes the same files as :func:`read_volume` and keeps the file's own dtype; only DICOM is read as CT.

    Raises:
        UsageError: there is nothing at ``path``.
        RefusedInputError: it is no image, damaged, or not one scalar volume on a regular grid.
        ResourceError: the voxels do not fit in memory.
    """
    return _read(_existing(path), as_ct=False)


def read_mask(path: str | os.PathLike[str], like: Geometry) -> NDArray[np.bool_]:
    """Read a mask drawn elsewhere on a scan's grid: any non-zero voxel is inside.

    Args:
        path: as for :func:`read_volume`.
        like: the scan's geometry; the mask's voxels must lie where the scan's do (to 0.01 voxel).

    Returns:
        the mask, shape ``like.shape_kji``.

    Raises:
        UsageError: there is nothing at ``path``.
        RefusedInputError: it cannot be read, or lies on another grid.
        ResourceError: the voxels do not fit in memory.
    """
    mask = read_any_volume(path)
    difference = grid_difference(mask.geometry, like)
    if difference:
        raise RefusedInputError(
            f"The mask {os.fspath(path)} has another {difference} than the scan; resample it onto the scan's grid."
        )
    return np.asarray(mask.array_kji != 0, dtype=np.bool_)


def _existing(path: str | os.PathLike[str]) -> Path:
    try:
        found = Path(path)
    except TypeError:
        raise UsageError(
            f"A scan can't be read from {type(path).__name__}; give the path of a file or folder."
        ) from None
    if not found.exists():
        raise UsageError(f"There is no file or folder {found}; check the path.")
    if not (found.is_file() or found.is_dir()):
        raise RefusedInputError(f"{found} is a device or pipe, not a file; save the scan to a file first.")
    return found


def _read(path: Path, *, as_ct: bool) -> Volume:
    if _is_dicom(path):
        return dicom.read_series(path)
    image_io = next((io for suffix, io in IMAGE_IOS.items() if path.name.lower().endswith(suffix)), None)
    if image_io is None:
        if path.name.lower().endswith(PAIR_SUFFIXES):
            raise not_nifti_1(path, "is one of a .hdr/.img pair")
        raise RefusedInputError(
            f"{path} is not a NRRD, NIfTI, MetaImage or DICOM file; convert the scan to one of these."
        )
    try:
        return _read_image_file(path, image_io, as_ct=as_ct)
    except PermissionError:
        raise UsageError(f"{path} may not be read; ask for the permission or copy the scan.") from None


def _is_dicom(path: Path) -> bool:
    if path.is_dir():
        return True
    if any(path.name.lower().endswith(suffix) for suffix in IMAGE_IOS):
        return False
    return dicom.is_dicom(path)


def _read_image_file(path: Path, image_io: str, *, as_ct: bool) -> Volume:
    stored = stored_voxels(path, image_io)
    information = read_information(path, image_io)
    size_ijk = _three_axes(path, information)
    check_raw_length(path, stored)
    check_memory(path, information.voxel_bytes)
    check_packed_stream(path, stored)
    geometry = _geometry(size_ijk, information)
    extract = (*information.size[:3], 0) if len(information.size) == 4 else None
    image = read_image(path, image_io, extract)
    array_kji = _hu_array(path, image, geometry.shape_kji) if as_ct else _exact_array(image, geometry.shape_kji)
    # what ITK reports of a NIfTI header describes the file, not the scan
    metadata = {} if image_io == "NiftiImageIO" else scan_metadata(information.metadata)
    return Volume(array_kji, geometry, metadata)


def _three_axes(path: Path, information: ImageInformation) -> tuple[int, int, int]:
    size = information.size
    if len(size) == 4 and size[3] == 1:
        size = size[:3]
    if len(size) == 2:
        size = (*size, 1)
    if len(size) != 3:
        raise RefusedInputError(
            f"{path} has {len(size)} axes {size}, not 3; save one volume of it (a single time point) as its own file."
        )
    return (size[0], size[1], size[2])


def _geometry(size_ijk: tuple[int, int, int], information: ImageInformation) -> Geometry:
    axes = len(information.size)
    matrix = np.eye(3)
    given = np.asarray(information.directions).reshape(axes, axes)
    matrix[: min(axes, 3), : min(axes, 3)] = given[:3, :3]
    spacing = (*information.spacing_mm[:3], 1.0)
    origin = (*information.origin_mm[:3], 0.0)
    return Geometry(
        size_ijk,
        (spacing[0], spacing[1], spacing[2]),
        (origin[0], origin[1], origin[2]),
        tuple(float(cosine) for cosine in matrix.ravel()),
    )


def _exact_array(image: sitk.Image, shape_kji: tuple[int, int, int]) -> NDArray[Any]:
    array: NDArray[Any] = sitk.GetArrayFromImage(image)
    return array.reshape(shape_kji)


def _hu_array(path: Path, image: sitk.Image, shape_kji: tuple[int, int, int]) -> NDArray[Any]:
    """Voxels as int16 or float32 HU, converted slice by slice so that the file's dtype is held only once."""
    view_kji: NDArray[Any] = sitk.GetArrayViewFromImage(image).reshape(shape_kji)
    dtype = np.float32 if view_kji.dtype.kind == "f" else np.int16
    array_kji: NDArray[Any] = np.empty(shape_kji, dtype)
    for k, view_ji in enumerate(view_kji):
        copy_as_hu(path, view_ji, array_kji[k])
    return array_kji
