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
from CTMicroSRLib.files.itk_io import (
    METAIMAGE_MODALITY_PREFIX,
    ImageInformation,
    check_memory,
    copy_as_hu,
    plain_text,
    read_image,
    read_information,
)
from CTMicroSRLib.volume import Geometry, Volume, grid_difference

FINEST_SPACING_MM = 0.2
"""In-plane spacing below which a scan is no clinical CT and there is nothing to add at 8x."""

COARSEST_SPACING_MM = 100.0
"""No CT has voxels or slice distances above this; a header that says so is wrong."""

HIGHEST_AIR_HU = -500
"""A volume with nothing above this is only air."""

LOWEST_TISSUE_HU = -200
"""A volume with nothing below this has neither air nor lung; MR and label maps are like that."""

METAL_HU = 4000
METAL_FRACTION = 0.01
"""Real CT exceeds METAL_HU only in metal; more than this share of voxels above it means another scale."""

LABEL_COUNT = 64
"""A volume of whole numbers from 0 with no more distinct values than this is taken for a label map."""

IMAGE_IOS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}

PRIVATE_WORDS = ("patientname", "patientid", "birth", "patientage", "patientaddress", "0010|")


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a chest CT in HU.

    Voxels and geometry (spacing, origin, direction cosines) come exactly as stored, with rescale slope and
    intercept applied. Voxels below AIR_HU (scanner padding) become AIR_HU. A single image becomes one slice.

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
    volume = _read(_existing(path), as_ct=True)
    try:
        check_is_ct(volume)
    except RefusedInputError as error:
        raise RefusedInputError(f"{os.fspath(path)}: {error}") from None
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


def check_is_ct(volume: Volume) -> None:
    """Refuse a volume that does not look like clinical CT in HU; for arrays that come from elsewhere too.

    Args:
        volume: any volume; its voxels are not changed.

    Raises:
        RefusedInputError: the modality is another, voxels are not real numbers or not finite, pixels are
            finer than 0.2 mm, or the values are those of air alone, of a label map or of another scale.
    """
    modality = volume.metadata.get("Modality", "CT").strip().upper()
    if modality != "CT":
        raise RefusedInputError(f"The scan is {modality}, not CT; give a CT in HU.")
    if volume.array_kji.dtype.kind not in "iuf":
        raise RefusedInputError(f"The voxels are {volume.array_kji.dtype}, not HU; give a CT in HU.")
    finest_mm = min(volume.geometry.spacing_mm[:2])
    # float32 headers store 0.2 as 0.200000003 or, after a product, just below
    if finest_mm < FINEST_SPACING_MM * (1 - 1e-6):
        raise RefusedInputError(
            f"The pixels are {finest_mm:.3g} mm, already finer than {FINEST_SPACING_MM} mm; "
            "give a clinical CT, not a micro-CT or a result."
        )
    if max(volume.geometry.spacing_mm) > COARSEST_SPACING_MM:
        raise RefusedInputError(
            f"The voxel spacing {volume.geometry.spacing_mm} mm is no scanner's; correct the file's header."
        )
    _check_values(volume.array_kji)


def _check_values(array_kji: NDArray[Any]) -> None:
    lowest, highest, metal = np.inf, -np.inf, 0
    for array_ji in array_kji:
        if array_ji.dtype.kind == "f" and not np.isfinite(array_ji).all():
            raise RefusedInputError(
                "The scan has NaN or infinite voxels; replace them (air is -1000 HU) and give it again."
            )
        lowest, highest = min(lowest, float(array_ji.min())), max(highest, float(array_ji.max()))
        metal += int(np.count_nonzero(array_ji > METAL_HU))
    if highest < HIGHEST_AIR_HU:
        raise RefusedInputError(f"The scan holds only air (nothing above {highest:g} HU); give a chest CT in HU.")
    if lowest >= LOWEST_TISSUE_HU and _is_label_map(array_kji, lowest):
        raise RefusedInputError("The volume looks like a label map, not CT in HU; give the scan itself.")
    if lowest >= LOWEST_TISSUE_HU or metal > METAL_FRACTION * array_kji.size:
        raise RefusedInputError(
            f"The values ({lowest:g} to {highest:g}) do not look like CT in HU, where air is about -1000 and "
            "tissue about 0; give a CT with its rescale slope and intercept applied."
        )


def _is_label_map(array_kji: NDArray[Any], lowest: float) -> bool:
    if lowest < 0:
        return False
    labels: set[float] = set()
    for array_ji in array_kji:
        labels.update(np.unique(array_ji).tolist())
        if len(labels) > LABEL_COUNT:
            return False
    return all(float(label).is_integer() for label in labels)


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
    if path.is_dir() or _is_dicom_file(path):
        return dicom.read_series(path)
    image_io = next((io for suffix, io in IMAGE_IOS.items() if path.name.lower().endswith(suffix)), None)
    if image_io is None:
        raise RefusedInputError(
            f"{path} is not a NRRD, NIfTI, MetaImage or DICOM file; convert the scan to one of these."
        )
    try:
        return _read_image_file(path, image_io, as_ct=as_ct)
    except PermissionError:
        raise UsageError(f"{path} may not be read; ask for the permission or copy the scan.") from None


def _is_dicom_file(path: Path) -> bool:
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
    metadata = {} if image_io == "NiftiImageIO" else _scan_metadata(information.metadata)
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


def _scan_metadata(found: dict[str, str]) -> dict[str, str]:
    """What a header says about the scan, without what describes the file and without the patient."""
    kept = {}
    for key, value in found.items():
        plain = key.replace(" ", "").replace("_", "").replace(".", "").lower()
        of_file = key.startswith(("NRRD_", "ITK_"))
        if not of_file and value and not any(word in plain for word in PRIVATE_WORDS):
            kept[plain_text(key)] = value.removeprefix(METAIMAGE_MODALITY_PREFIX)
    if kept.get("Modality") in ("UNKNOWN", "OTHER"):
        del kept["Modality"]
    return kept
