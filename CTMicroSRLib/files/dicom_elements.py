"""The first elements of a DICOM file without GDCM: what a file is that GDCM cannot read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from CTMicroSRLib.errors import UsageError

SUFFIXES = (".dcm", ".ima", ".dicom")

MEDIA_CLASS, TRANSFER_SYNTAX = "0002|0002", "0002|0010"
SOP_CLASS, MODALITY, SERIES_UID = "0008|0016", "0008|0060", "0020|000e"

READ_LIMIT_BYTES = 1 << 20
UNDEFINED_LENGTH = 0xFFFFFFFF
LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Value representations whose length takes four bytes (PS3.5 7.1.2)."""

IMPLICIT_SYNTAX = "1.2.840.10008.1.2"
UNFOLLOWED_SYNTAXES = ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.113619.5.2")
"""Big endian and deflated, whose elements after the file's meta information are not followed here."""


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: it says so at byte 128 or in its suffix, or starts as a data set does.

    Raises:
        UsageError: the file may not be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        raise UsageError(f"{path} may not be read; ask for the permission or copy the scan.") from None
    return head[128:] == b"DICM" or path.suffix.lower() in SUFFIXES or _starts_a_data_set(head)


def first_elements(path: Path) -> dict[str, str]:
    """The text of a DICOM file's elements up to the SeriesInstanceUID, by tag (``0020|000e``), as far as they go."""
    with path.open("rb") as file:
        content = file.read(READ_LIMIT_BYTES)
    start = 132 if content[128:132] == b"DICM" else 0
    return {tag: value.rstrip(b"\0 ").decode("latin-1") for tag, value in _elements(content, start)}


def _starts_a_data_set(head: bytes) -> bool:
    """Whether bytes are a little-endian element of group 2 or 8, where files without a preamble start."""
    if len(head) < 132 or head[:2] not in (b"\x02\0", b"\x08\0") or head[3] != 0:
        return False
    if _is_explicit(head, 0) or head[:2] == b"\x02\0":
        return _is_explicit(head, 0)
    element, length = struct.unpack("<HI", head[2:8])
    # a group's length is followed by an element of the group; numbers of another file would pass otherwise
    return length < 128 and length % 2 == 0 and (element > 0 or (length == 4 and head[12:14] == b"\x08\0"))


def _is_explicit(content: bytes, position: int) -> bool:
    return content[position + 4 : position + 6].isalpha() and content[position + 4 : position + 6].isupper()


def _elements(content: bytes, position: int) -> Iterator[tuple[str, bytes]]:
    """Elements outside sequences (PS3.5 7.1 and 7.5), as far as they are whole."""
    depth, syntax, explicit = 0, "", _is_explicit(content, position)
    while position + 12 <= len(content):
        group, element, length = struct.unpack("<HHI", content[position : position + 8])
        if group == 0xFFFE:  # an item or the end of one or of a sequence
            depth -= element == 0xE0DD
            is_skipped = element == 0xE000 and length != UNDEFINED_LENGTH
            position += 8 + (length if is_skipped else 0)
            continue
        if group > 2 and syntax:
            if syntax in UNFOLLOWED_SYNTAXES:
                return
            explicit = syntax != IMPLICIT_SYNTAX
        position += 8
        if explicit:
            vr = content[position - 4 : position - 2]
            length = struct.unpack("<H", content[position - 2 : position])[0]
            if vr in LONG_VRS:
                length = struct.unpack("<I", content[position : position + 4])[0]
                position += 4
        if depth == 0 and (group, element) > (0x0020, 0x000E):
            return
        if length == UNDEFINED_LENGTH:
            depth += 1
            continue
        value = content[position : position + length]
        tag = f"{group:04x}|{element:04x}"
        if depth == 0 and len(value) == length:
            if tag == TRANSFER_SYNTAX:
                syntax = value.rstrip(b"\0 ").decode("latin-1")
            yield tag, value
        position += length
