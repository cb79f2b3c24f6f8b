"""The header of one DICOM file: a slice with what reading needs to know, or what the file is instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files.dicom_elements import (
    MEDIA_CLASS,
    MODALITY,
    SERIES_UID,
    SOP_CLASS,
    TRANSFER_SYNTAX,
    first_elements,
    is_dicom,
)
from CTMicroSRLib.files.itk_io import read_information
from CTMicroSRLib.files.scan_metadata import KEPT_TAGS, scan_metadata

IMAGE_IO = "GDCMImageIO"

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_CLASSES = (f"{CT_CLASS}.1", f"{CT_CLASS}.2")

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

READ_SYNTAXES = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)),
    "1.2.840.10008.1.2.5",
)
"""Transfer syntaxes (PS3.5 10) that GDCM reads: what cannot be read in one of these is damaged."""

SYNTAX_NAMES = {
    **{f"1.2.840.10008.1.2.4.{n}": "MPEG video" for n in range(100, 109)},
    **{f"1.2.840.10008.1.2.4.{n}": "JPEG XL" for n in range(110, 113)},
    **{f"1.2.840.10008.1.2.4.{n}": "High-Throughput JPEG 2000" for n in range(201, 204)},
    "1.2.840.113619.5.2": "GE's private big endian",
}

HU_RESCALE_TYPES = ("", "HU", "US", "UNSPECIFIED")
"""RescaleTypes (PS3.3 C.11.1.1.2) of values that can be HU; a CT without one is in HU."""


TISSUE_HU = (-950.0, 2000.0)
"""Lung to dense bone."""


@dataclass(frozen=True)
class Slice:
    """One DICOM file's header. Spacing and size are (i, j); positions are LPS in millimetres.

    ``spacing_ij_mm``, ``position_mm`` and ``orientation`` have as many numbers as the header gives.
    ``padding_hu`` are the lowest and highest value that the header names as padding, rescaled.
    """

    path: Path
    instance_uid: str
    series_uid: str
    sop_class: str
    modality: str
    description: str
    image_type: tuple[str, ...]
    rescale_type: str
    has_rescale: bool
    photometric: str
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    size_ij: tuple[int, int]
    spacing_ij_mm: tuple[float, ...]
    thickness_mm: float
    frames: int
    dtype: np.dtype[Any]
    padding_hu: tuple[float, float] | None
    metadata: dict[str, str]

    @property
    def is_localizer(self) -> bool:
        """Whether it is a projection that slices were planned on (scout, topogram)."""
        return "LOCALIZER" in self.image_type

    @property
    def is_of_ct_class(self) -> bool:
        """Whether it is stored as a CT image, not, for one, as a picture of the screen."""
        return self.sop_class in ("", CT_CLASS, *ENHANCED_CT_CLASSES)


@dataclass(frozen=True)
class Unread:
    """A DICOM image file that GDCM could not read as a slice, and what is known of it all the same.

    ``series_uid`` is empty where the header does not tell it; ``is_ct`` holds unless the header says otherwise.
    """

    path: Path
    series_uid: str
    is_ct: bool
    refusal: RefusedInputError


def read_slice(path: Path) -> Slice | Unread | None:
    """A file's header; None for what is no DICOM image."""
    try:
        information = read_information(path, IMAGE_IO)
    except RefusedInputError as refusal:
        return _unread(path, refusal)
    tags = information.metadata
    size = (*information.size, 1)
    spacing = (*information.spacing_mm, 1.0, 1.0)
    thickness_mm = _number(tags.get("0018|0050", ""))
    return Slice(
        path=path,
        instance_uid=tags.get("0008|0018", ""),
        series_uid=tags.get(SERIES_UID, ""),
        sop_class=tags.get(SOP_CLASS, ""),
        modality=tags.get(MODALITY, "").upper(),
        description=tags.get("0008|103e", ""),
        image_type=tuple(part.strip().upper() for part in tags.get("0008|0008", "").split("\\")),
        rescale_type=tags.get("0028|1054", "").upper(),
        has_rescale="0028|1052" in tags,
        photometric=tags.get("0028|0004", "").upper(),
        position_mm=_numbers(tags.get("0020|0032", "")),
        orientation=_numbers(tags.get("0020|0037", "")),
        size_ij=(size[0], size[1]),
        # PixelSpacing is (between rows, between columns)
        spacing_ij_mm=_numbers(tags.get("0028|0030", ""))[::-1],
        thickness_mm=thickness_mm if thickness_mm > 0 else spacing[2],
        frames=math.prod(size[2:]),
        dtype=information.dtype,
        padding_hu=_padding_hu(tags),
        metadata=scan_metadata({tag: tags[tag] for tag in KEPT_TAGS if tag in tags}),
    )


def unreadable(path: Path, refusal: RefusedInputError) -> RefusedInputError:
    """Why GDCM could not read a file: its transfer syntax where that is none of GDCM's, else the refusal given."""
    syntax = first_elements(path).get(TRANSFER_SYNTAX, "")
    if not syntax or syntax in READ_SYNTAXES:
        return refusal
    name = f"{SYNTAX_NAMES[syntax]} ({syntax})" if syntax in SYNTAX_NAMES else syntax
    return RefusedInputError(
        f"{path} is in the transfer syntax {name}, which is not supported; "
        "export it uncompressed (Explicit VR Little Endian)."
    )


def _unread(path: Path, refusal: RefusedInputError) -> Unread | None:
    if not is_dicom(path):
        return None
    elements = first_elements(path)
    sop_class = elements.get(MEDIA_CLASS) or elements.get(SOP_CLASS, "")
    if sop_class and sop_class not in IMAGE_STORAGE_CLASSES:
        return None
    is_ct = elements.get(MODALITY, "CT").upper() == "CT" and sop_class in ("", CT_CLASS, *ENHANCED_CT_CLASSES)
    return Unread(path, elements.get(SERIES_UID, ""), is_ct, unreadable(path, refusal))


def _padding_hu(tags: Mapping[str, str]) -> tuple[float, float] | None:
    """PixelPaddingValue to PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2) in the units of the rescaled voxels.

    None too where they would be lung or tissue: some headers name 0, which a scan in HU holds in every slice.
    """
    value = _stored_value(tags, "0028|0120")
    if value is None:
        return None
    limit = _stored_value(tags, "0028|0121")
    slope, intercept = _number(tags.get("0028|1053", "")) or 1.0, _number(tags.get("0028|1052", ""))
    ends = sorted(slope * end + intercept for end in (value, value if limit is None else limit))
    if ends[0] <= TISSUE_HU[1] and ends[1] >= TISSUE_HU[0]:
        return None
    half_a_step = abs(slope) / 2
    return (ends[0] - half_a_step, ends[1] + half_a_step)


def _stored_value(tags: Mapping[str, str], tag: str) -> int | None:
    """An element of the pixels' own type, whose signed and unsigned forms writers mix up; None if no pixel holds it."""
    if not _numbers(tags.get(tag, "")):
        return None
    value = int(_number(tags[tag]))
    allocated, stored = (int(_number(tags.get(bits, ""))) or 16 for bits in ("0028|0100", "0028|0101"))
    is_signed = _number(tags.get("0028|0103", "")) == 1
    bits = stored if 0 <= value < 1 << stored else allocated
    value %= 1 << bits
    if is_signed and value >= 1 << (bits - 1):
        value -= 1 << bits
    lowest, highest = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if is_signed else (0, (1 << stored) - 1)
    return value if lowest <= value <= highest else None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split("\\") if part.strip())
    except ValueError:
        return ()


def _number(text: str) -> float:
    numbers = _numbers(text)
    return numbers[0] if numbers and math.isfinite(numbers[0]) else 0.0
