"""NIfTI headers: where the voxels are, and whether ITK's reader takes them as they are meant."""

from __future__ import annotations

import gzip
import itertools
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files.header_fields import StoredVoxels, no_spacing, shown

NIFTI_DATATYPES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)
"""Codes of nifti1.h; those of colour and complex numbers are refused once ITK has named them."""

NIFTI_SPACING_TOLERANCE = 1e-3
"""Part of a voxel's size by which sform and pixdim may differ: more than float32 rounds."""

NIFTI_LARGEST_COSINE = 1e-3
"""Cosine between two axes of an sform (0.06 degrees) from which on it is sheared; gantries tilt by 0.5 and more."""

NIFTI_1_BYTES, NIFTI_2_BYTES = 348, 540
"""What a header starts with: its own size, which also tells the byte order."""


def in_nifti(path: Path) -> StoredVoxels:
    """Find the voxels in a NIfTI-1 file, whose header is refused where ITK would take another geometry than is meant.

    Raises:
        RefusedInputError: NIfTI-2, the header of a pair, no spacing or two, a sheared grid, half a rescale.
        ValueError: the header is not a sound one (also struct.error, EOFError, zlib.error, gzip.BadGzipFile).
    """
    packed = path.name.lower().endswith(".gz")
    with cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb") as file:
        header = file.read(NIFTI_2_BYTES)
    sizes_of_header = {order: struct.unpack(f"{order}i", header[:4])[0] for order in "<>"}
    if NIFTI_2_BYTES in sizes_of_header.values():
        raise not_nifti_1(path, "is NIfTI-2")
    order = next((o for o, size in sizes_of_header.items() if size == NIFTI_1_BYTES), None)
    if order is None:
        raise ValueError
    if header[344:348] == b"ni1\0":
        raise not_nifti_1(path, "is the header of a .hdr/.img pair")
    count, *sizes = struct.unpack(f"{order}8h", header[40:56])
    datatype, bits = struct.unpack(f"{order}2h", header[70:74])
    (offset,) = struct.unpack(f"{order}f", header[108:112])
    if not 1 <= count <= 7 or min(sizes[:count]) < 1 or bits < 1 or datatype not in NIFTI_DATATYPES:
        raise ValueError
    # An axis of one voxel has no spacing to speak of.
    _check_grid(path, order, header, [axis for axis in range(min(count, 3)) if sizes[axis] > 1])
    _check_rescale(path, *struct.unpack(f"{order}2f", header[112:120]))
    length = math.prod(sizes[:count]) * bits // 8
    if packed:
        return StoredVoxels(path, 0, int(offset) + length, "gzip")
    return StoredVoxels(path, int(offset), length, "raw")


def not_nifti_1(path: Path, kind: str) -> RefusedInputError:
    """The refusal of a relative of NIfTI-1."""
    return RefusedInputError(f"{path} {kind}, which is not read; convert it to .nii.gz (NIfTI-1).")


def _check_grid(path: Path, order: str, header: bytes, axes: Sequence[int]) -> None:
    spacing = struct.unpack(f"{order}8f", header[76:108])[1:4]
    qform_code, sform_code = struct.unpack(f"{order}2h", header[252:256])
    sform = struct.unpack(f"{order}12f", header[280:328])
    if sform_code > 0:
        _check_nifti_shear(path, [sform[axis::4] for axis in axes])
    # Beside a qform, which pixdim belongs to, the sform may lead to another space, such as a template's.
    _check_nifti_spacing(path, axes, spacing, sform if sform_code > 0 and qform_code <= 0 else None)


def _check_nifti_shear(path: Path, columns: Sequence[Sequence[float]]) -> None:
    """Refuse a sheared sform, also beside a qform: that one keeps no shear, so it is not where the voxels lie."""
    for a, b in itertools.combinations(columns, 2):
        product = sum(x * y for x, y in zip(a, b, strict=True))
        if abs(product) > NIFTI_LARGEST_COSINE * math.hypot(*a) * math.hypot(*b):
            raise RefusedInputError(
                f"The axes of {path} are not perpendicular (its sform is sheared, as after a tilted gantry); "
                "resample the scan to a regular grid first."
            )


def _check_nifti_spacing(
    path: Path, axes: Sequence[int], spacing: Sequence[float], sform: Sequence[float] | None
) -> None:
    """Refuse spacings that ITK would replace by 1 mm (``pixdim``), or not compare with those it takes (``sform``)."""
    found = [abs(spacing[axis]) for axis in axes]
    if not all(0 < size < math.inf for size in found):
        raise no_spacing(path, f"pixdim {shown(found)}")
    if sform is None:
        return
    other = [math.hypot(*sform[axis::4]) for axis in axes]
    if not all(abs(b - a) <= NIFTI_SPACING_TOLERANCE * a for a, b in zip(found, other, strict=True)):
        raise RefusedInputError(
            f"{path} gives its voxels two sizes, {shown(found)} in pixdim and {shown(other)} in sform; "
            "correct its header, or convert the scan again."
        )


def _check_rescale(path: Path, slope: float, intercept: float) -> None:
    """Refuse half a rescale: without a slope the standard knows no intercept, but ITK would add it."""
    is_unscaled = (slope == 0 or math.isnan(slope)) and (intercept == 0 or math.isnan(intercept))
    is_scaled = slope != 0 and math.isfinite(slope) and math.isfinite(intercept)
    if not is_unscaled and not is_scaled:
        raise RefusedInputError(
            f"{path} has half a rescale (scl_slope {slope:g}, scl_inter {intercept:g}), which may mean HU or not; "
            "write both into its header, or convert the scan again."
        )
