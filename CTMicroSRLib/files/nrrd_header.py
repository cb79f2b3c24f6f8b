"""NRRD headers: where the voxels are, and whether ITK's reader takes them as they are meant."""

from __future__ import annotations

import math
import re
from pathlib import Path

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files.header_fields import StoredVoxels, header_fields, no_spacing, offset_from_end

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

NRRD_PACKINGS = {
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("txt", "text", "ascii", "hex"), "other"),
    "raw": "raw",
}
"""NRRD's encodings that ITK reads, and how they are counted."""

NRRD_SPACES = (
    *("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps"),
    *("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last"),
    *("left-posterior-superior-time", "lpst", "scanner-xyz", "scanner-xyz-time"),
    *("3d-right-handed", "3d-left-handed", "3d-right-handed-time", "3d-left-handed-time"),
)
"""NRRD's spaces, http://teem.sourceforge.net/nrrd/format.html section 5.3."""

NRRD_DOMAIN_KINDS = ("domain", "space", "time", "???", "none")
"""Kinds of axes along which voxels lie; the others are lists, vectors, colours and the like."""

MILLIMETRE_UNITS = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???")


def in_nrrd(path: Path) -> StoredVoxels:
    """Find the voxels in a NRRD file, whose header is refused where ITK would take another geometry than is meant.

    Raises:
        RefusedInputError: no spacing, a unit other than mm, a list of volumes, an unknown space or encoding.
        ValueError: the header is not a sound one (also KeyError).
    """
    fields, offset = header_fields(path, ":", lambda line, _: not line)
    fields = {name.lower(): value for name, value in fields.items()}
    sizes = [int(n) for n in fields["sizes"].split()]
    if len(sizes) != int(fields["dimension"]) or min(sizes) < 1:
        raise ValueError
    length = math.prod(sizes) * NRRD_TYPE_BYTES[fields["type"].lower()]
    _check_kind(path, fields, sizes)
    _check_spacing(path, fields, sizes)
    packing = NRRD_PACKINGS[fields["encoding"].lower()]
    data_file = fields.get("data file", fields.get("datafile"))
    byte_skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    line_skip = int(fields.get("line skip", fields.get("lineskip", "0")))
    voxels = path
    if data_file is not None:
        if "%" in data_file or data_file.startswith("LIST"):
            return StoredVoxels(path, 0, length, "other")
        voxels, offset = path.parent / data_file, 0
    if packing == "raw" and byte_skip == -1:
        offset = offset_from_end(voxels, length)
    elif line_skip or (packing != "raw" and byte_skip):
        packing = "other"
    else:
        offset += byte_skip
    return StoredVoxels(voxels, offset, length, packing)


def _check_kind(path: Path, fields: dict[str, str], sizes: list[int]) -> None:
    """Refuse by name what is sound NRRD but not read."""
    encoding = fields["encoding"]
    if encoding.lower() not in NRRD_PACKINGS:
        raise RefusedInputError(
            f"{path} packs its voxels by {encoding!r}, which is not supported; save it with encoding gzip or raw."
        )
    space = fields.get("space", "")
    if space and space.lower() not in NRRD_SPACES:
        raise RefusedInputError(
            f"{path} lies in the space {space!r}, which is not supported; save it in left-posterior-superior."
        )
    if len(sizes) > 3 and "list" in fields.get("kinds", "").lower().split():
        raise RefusedInputError(
            f"{path} has {len(sizes)} axes {tuple(sizes)}, not 3; save one volume of it as its own file."
        )
    for name in ("space units", "units"):
        for unit in re.findall(r'"([^"]*)"', fields.get(name, ""))[:3]:
            if unit.strip().lower() not in MILLIMETRE_UNITS:
                raise RefusedInputError(
                    f"{path} gives its lengths in {unit!r} ({name}), not in mm; convert it to millimetres first."
                )


def _check_spacing(path: Path, fields: dict[str, str], sizes: list[int]) -> None:
    """Refuse spacings that are missing or not finite, which ITK would replace by 1 mm."""
    kinds = fields.get("kinds", "domain " * len(sizes)).lower().split()
    name = "space directions" if "space directions" in fields else "spacings"
    spacing = _directed_spacing(fields[name]) if name == "space directions" else _plain_spacing(fields.get(name, ""))
    if len(kinds) != len(sizes) or (name in fields and len(spacing) != len(sizes)):
        raise ValueError
    for axis, size in enumerate(sizes):
        found = spacing[axis] if spacing else math.nan
        # an axis of one voxel has no spacing to speak of; beside three others, one without direction is a vector's
        is_space = size > 1 and kinds[axis] in NRRD_DOMAIN_KINDS and not (len(sizes) > 3 and math.isnan(found))
        if is_space and not 0 < abs(found) < math.inf:
            given = f"{name} {fields[name]}" if name in fields else "no spacings or space directions"
            raise no_spacing(path, given)


def _plain_spacing(text: str) -> list[float]:
    return [float(word) for word in text.split()]


def _directed_spacing(text: str) -> list[float]:
    """Lengths of the directions; NaN for an axis that has none."""
    vectors = re.findall(r"none|\([^()]*\)", text.lower())
    return [
        math.nan if vector == "none" else math.hypot(*(float(word) for word in vector[1:-1].split(",")))
        for vector in vectors
    ]
