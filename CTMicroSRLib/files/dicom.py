"""DICOM CT series: found in a folder, checked to be one regular stack of slices, read in HU."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.files.itk_io import check_memory, copy_as_hu, read_image, read_information
from CTMicroSRLib.volume import Geometry, Vector, Volume

logger = logging.getLogger(__name__)

IMAGE_IO = "GDCMImageIO"
SUFFIXES = (".dcm", ".ima", ".dicom")

SPACING_TOLERANCE = 0.05
"""Largest distance of a slice from its place on the even grid, as a share of the slice spacing."""

TILT_TOLERANCE = 2e-3
"""Largest drift of slices per millimetre along the normal (0.11 degrees); gantries tilt by 0.5 and more."""

ROUNDING_MM = 0.01
"""How exactly positions are written by the scanners seen; drift and steps below it mean nothing."""

KEPT_TAGS = {
    "0008|0008": "ImageType",
    "0008|0060": "Modality",
    "0008|0070": "Manufacturer",
    "0008|103e": "SeriesDescription",
    "0008|1090": "ManufacturerModelName",
    "0018|0015": "BodyPartExamined",
    "0018|0050": "SliceThickness",
    "0018|0060": "KVP",
    "0018|1100": "ReconstructionDiameter",
    "0018|1120": "GantryDetectorTilt",
    "0018|1151": "XRayTubeCurrent",
    "0018|1152": "Exposure",
    "0018|1160": "FilterType",
    "0018|1210": "ConvolutionKernel",
    "0018|5100": "PatientPosition",
    "0020|000e": "SeriesInstanceUID",
}
"""What is kept of a series' header: how the scan was made, nothing of whom."""

IMAGE_STORAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.128",
)
"""SOP classes (PS3.4 B.5) whose files hold an image: one of these that cannot be read is damaged."""


@dataclass(frozen=True)
class Slice:
    """One DICOM file's header. Spacing and size are (i, j); positions are LPS in millimetres."""

    path: Path
    instance_uid: str
    series_uid: str
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    size_ij: tuple[int, int]
    spacing_mm: Vector
    frames: int
    dtype: np.dtype[Any]
    metadata: dict[str, str]

    @property
    def modality(self) -> str:
        """DICOM's Modality, upper case."""
        return self.metadata.get("Modality", "").upper()


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: it says so at byte 128 or in its suffix."""
    try:
        with path.open("rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM" or path.suffix.lower() in SUFFIXES
    except OSError:
        raise UsageError(f"{path} may not be read; ask for the permission or copy the scan.") from None


def read_series(path: Path) -> Volume:
    """Read a folder with one CT series, or the CT series that a file belongs to.

    Files of the same folder and SeriesInstanceUID form the series; folders below are not searched. Copies of
    one image (the same SOPInstanceUID) count once. Slices go along the normal of their plane, upwards in
    ``normal . position``, as ITK does it; slice spacing is that of the positions, for a single slice the
    SliceThickness.

    Returns:
        the series, ``array_kji`` int16 in HU (float32 where the rescale needs it), padding turned into air.

    Raises:
        RefusedInputError: no CT, several series, slices missing, unevenly spaced, doubled or of several
            sizes, a tilted gantry, colour, several frames, a damaged file.
        ResourceError: the voxels do not fit in memory.
    """
    slices = _only_ct_series(path, _slices_in(path)) if path.is_dir() else _series_of(path)
    return _read_slices(path, slices)


def _series_of(path: Path) -> list[Slice]:
    chosen = _read_slice(path)
    if chosen is None:
        raise RefusedInputError(f"{path} is damaged or holds no image; export or copy the scan again.")
    _check_is_ct_image(chosen)
    siblings = [other for other in _slices_in(path.parent, except_for=path) if other.series_uid == chosen.series_uid]
    if not chosen.series_uid:
        siblings = []
    return [chosen, *siblings]


def _slices_in(folder: Path, except_for: Path | None = None) -> list[Slice]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    found = (_read_slice(file) for file in files if file != except_for and _may_be_slice(file))
    return [one for one in found if one is not None]


def _may_be_slice(path: Path) -> bool:
    return is_dicom(path) or not path.suffix


def _only_ct_series(folder: Path, slices: Iterable[Slice]) -> list[Slice]:
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        by_series[one.series_uid].append(one)
    if not by_series:
        raise RefusedInputError(f"The folder {folder} has no DICOM images; give the folder that holds the slices.")
    # What was derived from a scan (dose, segmentation) often lies beside it: one CT is no choice to make.
    ct = {uid: series for uid, series in by_series.items() if any(one.modality == "CT" for one in series)}
    if not ct:
        _check_is_ct_image(next(iter(by_series.values()))[0])
    if len(ct) > 1:
        names = "; ".join(_name_of(series) for series in list(ct.values())[:5])
        more = f"; and {len(ct) - 5} more" if len(ct) > 5 else ""
        raise RefusedInputError(
            f"The folder {folder} holds {len(ct)} series ({names}{more}); give one file of the wanted series."
        )
    (series,) = ct.values()
    return series


def _name_of(series: list[Slice]) -> str:
    description = series[0].metadata.get("SeriesDescription") or f"series {series[0].series_uid}"
    images = "1 image" if len(series) == 1 else f"{len(series)} images"
    return f"{description!r} with {images} such as {series[0].path.name}"


def _check_is_ct_image(one: Slice) -> None:
    if one.modality != "CT":
        raise RefusedInputError(
            f"{one.path} is {one.modality or 'of no stated modality'}, not CT; give the files of a CT series."
        )


def _read_slice(path: Path) -> Slice | None:
    """A file's header; None for what is no DICOM image."""
    try:
        information = read_information(path, IMAGE_IO)
    except RefusedInputError:
        if _should_be_an_image(path):
            raise
        return None
    tags = information.metadata
    size = (*information.size, 1)
    spacing = (*information.spacing_mm, 1.0)
    thickness_mm = _number(tags.get("0018|0050", ""))
    return Slice(
        path=path,
        instance_uid=tags.get("0008|0018", ""),
        series_uid=tags.get("0020|000e", ""),
        position_mm=_numbers(tags.get("0020|0032", "")),
        orientation=_numbers(tags.get("0020|0037", "")),
        size_ij=(size[0], size[1]),
        spacing_mm=(spacing[0], spacing[1], thickness_mm if thickness_mm > 0 else spacing[2]),
        frames=math.prod(size[2:]),
        dtype=information.dtype,
        metadata={name: tags[tag] for tag, name in KEPT_TAGS.items() if tags.get(tag)},
    )


def _should_be_an_image(path: Path) -> bool:
    """Whether a file that GDCM could not read as an image is a damaged one, not a report or an index."""
    with path.open("rb") as file:
        head = file.read(2048)
    if head[128:132] != b"DICM":
        return path.suffix.lower() in SUFFIXES
    # (0002,0002) MediaStorageSOPClassUID, always explicit VR little endian: tag, VR, 16-bit length, value
    at = head.find(b"\x02\x00\x02\x00UI")
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    if at < 0 or len(head) < at + 8 + length:
        return True
    return head[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("latin-1") in IMAGE_STORAGE_CLASSES


def _read_slices(path: Path, found: list[Slice]) -> Volume:
    slices = _without_copies(found)
    first = slices[0]
    _check_alike(slices)
    directions, origins_mm = _directions(first), np.array([one.position_mm for one in slices])
    normal = directions[:, 2]
    order = np.argsort(origins_mm @ normal, kind="stable")
    slices, origins_mm = [slices[n] for n in order], origins_mm[order]
    step_mm = first.spacing_mm[2] if len(slices) == 1 else _check_stack(path, origins_mm, normal)
    origin = origins_mm[0].tolist()
    geometry = Geometry(
        size_ijk=(*first.size_ij, len(slices)),
        spacing_mm=(*first.spacing_mm[:2], step_mm),
        origin_mm=(origin[0], origin[1], origin[2]),
        directions=tuple(directions.ravel().tolist()),
    )
    return Volume(_read_voxels(path, slices, geometry), geometry, _common_metadata(slices))


def _without_copies(slices: list[Slice]) -> list[Slice]:
    kept: dict[str, Slice] = {}
    for one in slices:
        earlier = kept.setdefault(one.instance_uid or str(one.path), one)
        if earlier is not one:
            logger.info("%s is a copy of %s (the same SOPInstanceUID) and is left out", one.path, earlier.path)
    return list(kept.values())


def _common_metadata(slices: list[Slice]) -> dict[str, str]:
    """What all slices say alike (tube current, for one, often changes from slice to slice)."""
    others = [one.metadata for one in slices[1:]]
    kept = slices[0].metadata.items()
    return {name: value for name, value in kept if all(other.get(name) == value for other in others)}


def _check_alike(slices: list[Slice]) -> None:
    first = slices[0]
    for one in slices:
        if one.frames != 1:
            raise RefusedInputError(
                f"{one.path} is a multi-frame image, which is not read; convert it to NRRD or NIfTI first."
            )
        if len(one.position_mm) != 3 or len(one.orientation) != 6:
            raise RefusedInputError(
                f"{one.path} does not say where its slice lies (ImagePositionPatient, "
                "ImageOrientationPatient); export the original CT series."
            )
        if one.size_ij != first.size_ij or not np.allclose(one.spacing_mm[:2], first.spacing_mm[:2], rtol=1e-4):
            raise RefusedInputError(
                f"{one.path} has other pixels ({one.size_ij}, {one.spacing_mm[:2]} mm) than "
                f"{first.path.name} of its series; export the series again."
            )
        if not np.allclose(one.orientation, first.orientation, atol=1e-3):
            raise RefusedInputError(
                f"{one.path} lies in another plane than {first.path.name} of its series; "
                "put the images of one plane into a folder of their own."
            )


def _directions(one: Slice) -> NDArray[np.float64]:
    """Direction cosines (columns i, j, k) of a slice; made exactly orthonormal."""
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


def _check_stack(path: Path, positions_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Slice spacing of sorted slice positions; refuses a stack that is no regular grid."""
    heights_mm = positions_mm @ normal
    steps_mm = np.diff(heights_mm)
    if steps_mm.min() < ROUNDING_MM:
        raise RefusedInputError(
            f"{path} has two slices at the same position; keep the slices of one reconstruction or time point."
        )
    length_mm = float(heights_mm[-1] - heights_mm[0])
    step_mm = length_mm / len(steps_mm)
    even_mm = heights_mm[0] + step_mm * np.arange(len(heights_mm))
    if np.abs(heights_mm - even_mm).max() > max(SPACING_TOLERANCE * step_mm, ROUNDING_MM):
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


def _read_voxels(path: Path, slices: list[Slice], geometry: Geometry) -> NDArray[Any]:
    is_float = any(one.dtype.kind == "f" for one in slices)
    dtype = np.dtype(np.float32 if is_float else np.int16)
    check_memory(path, math.prod(geometry.size_ijk) * dtype.itemsize + slices[0].dtype.itemsize)
    array_kji: NDArray[Any] = np.empty(geometry.shape_kji, dtype)
    for k, one in enumerate(slices):
        image = read_image(one.path, IMAGE_IO)
        stored_ji = sitk.GetArrayViewFromImage(image).reshape(geometry.shape_kji[1:])
        copy_as_hu(one.path, stored_ji, array_kji[k])
    return array_kji


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split("\\") if part.strip())
    except ValueError:
        return ()


def _number(text: str) -> float:
    numbers = _numbers(text)
    return numbers[0] if numbers and math.isfinite(numbers[0]) else 0.0
