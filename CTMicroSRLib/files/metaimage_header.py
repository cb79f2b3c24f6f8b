"""MetaImage headers: where the voxels are, and whether ITK's reader takes them as they are meant."""

from __future__ import annotations

import math
from pathlib import Path

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files.header_fields import StoredVoxels, header_fields, no_spacing, offset_from_end

METAIMAGE_TYPE_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
"""Bytes of MetaImage's element types (MetaIO's metaTypes.h)."""

METAIMAGE_VECTORS = (
    "DimSize",
    "ElementSpacing",
    "ElementSize",
    "Offset",
    "Position",
    "Origin",
    "CenterOfRotation",
)
METAIMAGE_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
METAIMAGE_LONGEST_NAME = 255
METAIMAGE_LONGEST_VALUE = 32000
METAIMAGE_LONGEST_WORD = 79


def in_metaimage(path: Path) -> StoredVoxels:
    """Find the voxels in a MetaImage file, whose header is refused where ITK's reader would not do it cleanly.

    Raises:
        RefusedInputError: no spacing, or voxels as text or in several files.
        ValueError: the header is not a sound one (also KeyError, OverflowError).
    """
    fields, offset = header_fields(path, "=", lambda _, key: key == "ElementDataFile")
    _check_metaimage_fields(fields)
    _check_metaimage_spacing(path, fields)
    data_file = fields["ElementDataFile"]
    packed = _metaimage_flag(fields, "CompressedData")
    if data_file.startswith("LIST") or "%" in data_file or not _metaimage_flag(fields, "BinaryData"):
        raise RefusedInputError(
            f"{path} keeps its voxels as text or in several files, which is not read; "
            "save the scan as one .mha or .nrrd file."
        )
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    length = math.prod(int(n) for n in fields["DimSize"].split()) * channels
    length *= METAIMAGE_TYPE_BYTES[fields["ElementType"]]
    voxels = path
    if data_file.upper() != "LOCAL":
        voxels, offset = path.parent / data_file, 0
    if packed:
        return StoredVoxels(voxels, offset, length, "zlib", int(fields["CompressedDataSize"]))
    header_size = int(fields.get("HeaderSize", "0"))
    if header_size == -1:
        offset = offset_from_end(voxels, length)
    elif header_size > 0:
        offset = header_size
    return StoredVoxels(voxels, offset, length, "raw")


def _check_metaimage_fields(fields: dict[str, str]) -> None:
    """Raise ValueError for headers that ITK's MetaImage reader would not refuse cleanly."""
    axes = int(fields["NDims"])
    counts = {**dict.fromkeys(METAIMAGE_VECTORS, axes), **dict.fromkeys(METAIMAGE_MATRICES, axes**2)}
    names = list(fields)
    if not 2 <= axes <= 4 or not fields["ElementDataFile"] or "BinaryData" not in fields:
        raise ValueError
    for name, value in fields.items():
        if not name.isascii() or not 0 < len(name) <= METAIMAGE_LONGEST_NAME:
            raise ValueError
        if not value or len(value) > METAIMAGE_LONGEST_VALUE:
            raise ValueError
        if name in counts:
            numbers = [float(word) for word in value.split()]
            # Python reads 1_000 and 1e999 as numbers, MetaIO does not
            if not value.isascii() or "_" in value or not all(map(math.isfinite, numbers)):
                raise ValueError
            if len(numbers) != counts[name] or names.index(name) < names.index("NDims"):
                raise ValueError
        if (name in counts or name == "ElementDataFile") and max(map(len, value.split())) > METAIMAGE_LONGEST_WORD:
            raise ValueError
    if min(int(n) for n in fields["DimSize"].split()) < 1:
        raise ValueError


def _check_metaimage_spacing(path: Path, fields: dict[str, str]) -> None:
    """Refuse a header without spacings, which ITK would take for 1 mm."""
    name = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    if name not in fields:
        raise no_spacing(path, "no ElementSpacing")
    if not all(float(word) > 0 for word in fields[name].split()[:3]):
        raise no_spacing(path, f"{name} {fields[name]}")


def _metaimage_flag(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "False")[:1] in ("T", "t", "1")
