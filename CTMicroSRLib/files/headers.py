"""Where NRRD, NIfTI and MetaImage files keep their voxels, and whether their headers are sound.

Read before ITK sees the file: its MetaImage reader writes beyond its buffers on some malformed headers
(https://github.com/Kitware/MetaIO/issues/150), and none of its readers tells where the voxels are.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from CTMicroSRLib.errors import RefusedInputError

HEADER_LIMIT_BYTES = 1 << 22


@dataclass(frozen=True)
class StoredVoxels:
    """Where a file keeps its voxels.

    ``offset`` is where they start in ``path``; ``length`` how many bytes they are once unpacked;
    ``packing`` is ``raw``, ``gzip``, ``zlib``, or ``other`` for what only ITK can count (text, bzip2,
    several data files); ``packed_length`` is how many bytes a zlib stream may take in the file.
    """

    path: Path
    offset: int
    length: int
    packing: str
    packed_length: int | None = None


def stored_voxels(path: Path, image_io: str) -> StoredVoxels:
    """Find the voxels in a NRRD, NIfTI or MetaImage file, given the name of ITK's reader for it.

    Raises:
        RefusedInputError: the header is not a sound one of that format.
    """
    parse = {"NrrdImageIO": _in_nrrd, "NiftiImageIO": _in_nifti, "MetaImageIO": _in_metaimage}[image_io]
    try:
        return parse(path)
    except (ValueError, KeyError, OverflowError, struct.error, EOFError, zlib.error, gzip.BadGzipFile):
        raise RefusedInputError(
            f"{path} is damaged or not an image (its header is not sound); export or copy the scan again."
        ) from None


NRRD_TYPE_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), 8),
    **dict.fromkeys(("signed long long int", "ulonglong", "unsigned long long", "uint64", "uint64_t"), 8),
    **dict.fromkeys(("unsigned long long int", "double"), 8),
    "float": 4,
}
"""Bytes of NRRD's types, http://teem.sourceforge.net/nrrd/format.html section 5.1."""


def _in_nrrd(path: Path) -> StoredVoxels:
    fields, offset = _header_fields(path, ":", lambda line, _: not line)
    fields = {name.lower(): value for name, value in fields.items()}
    sizes = [int(n) for n in fields["sizes"].split()]
    if len(sizes) != int(fields["dimension"]) or min(sizes) < 1:
        raise ValueError
    length = math.prod(sizes) * NRRD_TYPE_BYTES[fields["type"].lower()]
    packing = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(fields["encoding"].lower(), "other")
    data_file = fields.get("data file", fields.get("datafile"))
    byte_skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    line_skip = int(fields.get("line skip", fields.get("lineskip", "0")))
    voxels = path
    if data_file is not None:
        if "%" in data_file or data_file.startswith("LIST"):
            return StoredVoxels(path, 0, length, "other")
        voxels, offset = path.parent / data_file, 0
    if packing == "raw" and byte_skip == -1:
        offset = _offset_from_end(voxels, length)
    elif line_skip or (packing != "raw" and byte_skip):
        packing = "other"
    else:
        offset += byte_skip
    return StoredVoxels(voxels, offset, length, packing)


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


def _in_metaimage(path: Path) -> StoredVoxels:
    fields, offset = _header_fields(path, "=", lambda _, key: key == "ElementDataFile")
    _check_metaimage_fields(fields)
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
        offset = _offset_from_end(voxels, length)
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


def _metaimage_flag(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "False")[:1] in ("T", "t", "1")


NIFTI_DATATYPES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)
"""Codes of nifti1.h; those of colour and complex numbers are refused once ITK has named them."""


NIFTI_SPACING_TOLERANCE = 1e-3
"""Part of a voxel's size by which sform and pixdim may differ: more than float32 rounds."""


def _in_nifti(path: Path) -> StoredVoxels:
    packed = path.name.lower().endswith(".gz")
    with cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb") as file:
        header = file.read(540)
    # NIfTI-1 starts with its header's size, 348, NIfTI-2 with 540; that also tells the byte order.
    order = next((o for o in "<>" if struct.unpack(f"{o}i", header[:4])[0] in (348, 540)), None)
    if order is None:
        raise ValueError
    if struct.unpack(f"{order}i", header[:4])[0] == 348:
        count, *sizes = struct.unpack(f"{order}8h", header[40:56])
        datatype, bits = struct.unpack(f"{order}2h", header[70:74])
        (offset,) = struct.unpack(f"{order}f", header[108:112])
        spacing = struct.unpack(f"{order}8f", header[76:108])[1:4]
        qform_code, sform_code = struct.unpack(f"{order}2h", header[252:256])
        sform = struct.unpack(f"{order}12f", header[280:328])
    else:
        count, *sizes = struct.unpack(f"{order}8q", header[16:80])
        datatype, bits = struct.unpack(f"{order}2h", header[12:16])
        (offset,) = struct.unpack(f"{order}q", header[168:176])
        spacing = struct.unpack(f"{order}8d", header[104:168])[1:4]
        qform_code, sform_code = struct.unpack(f"{order}2i", header[344:352])
        sform = struct.unpack(f"{order}12d", header[400:496])
    if not 1 <= count <= 7 or min(sizes[:count]) < 1 or bits < 1 or datatype not in NIFTI_DATATYPES:
        raise ValueError
    # An axis of one voxel has no spacing to speak of.
    axes = [axis for axis in range(min(count, 3)) if sizes[axis] > 1]
    # Beside a qform, which pixdim belongs to, the sform may lead to another space, such as a template's.
    _check_nifti_spacing(path, axes, spacing, sform if sform_code > 0 and qform_code <= 0 else None)
    length = math.prod(sizes[:count]) * bits // 8
    if packed:
        return StoredVoxels(path, 0, int(offset) + length, "gzip")
    return StoredVoxels(path, int(offset), length, "raw")


def _check_nifti_spacing(
    path: Path, axes: Sequence[int], spacing: Sequence[float], sform: Sequence[float] | None
) -> None:
    """Refuse spacings that ITK would replace by 1 mm (``pixdim``), or not compare with those it takes (``sform``)."""
    found = [abs(spacing[axis]) for axis in axes]
    if not all(0 < size < math.inf for size in found):
        raise RefusedInputError(
            f"{path} does not say how large its voxels are (pixdim {_shown(found)}); "
            "put their spacing into its header, or convert the scan again."
        )
    if sform is None:
        return
    other = [math.hypot(*sform[axis::4]) for axis in axes]
    if not all(abs(b - a) <= NIFTI_SPACING_TOLERANCE * a for a, b in zip(found, other, strict=True)):
        raise RefusedInputError(
            f"{path} gives its voxels two sizes, {_shown(found)} in pixdim and {_shown(other)} in sform; "
            "correct its header, or convert the scan again."
        )


def _shown(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _offset_from_end(path: Path, length: int) -> int:
    """Where voxels start that end the file (a skip of -1)."""
    return max(0, path.stat().st_size - length) if path.is_file() else 0


def _header_fields(path: Path, separator: str, ends: Callable[[str, str], bool]) -> tuple[dict[str, str], int]:
    """Fields of a text header and the offset of what follows it."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while file.tell() < HEADER_LIMIT_BYTES:
            raw = file.readline(HEADER_LIMIT_BYTES)
            line = raw.decode("latin-1").strip(" \t\r\n")
            key, _, value = line.partition(separator)
            key = key.strip(" \t")
            # NRRD: "key:=value" is metadata, "#" a comment; a blank line ends the header
            if line and not value.startswith("=") and not line.startswith(("#", "NRRD0")):
                fields.setdefault(key, value.strip(" \t"))
            if not raw or ends(line, key):
                break
        return fields, file.tell()
