"""What the headers of NRRD, NIfTI and MetaImage files have in common: fields of text, and where voxels are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def header_fields(path: Path, separator: str, ends: Callable[[str, str], bool]) -> tuple[dict[str, str], int]:
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


def offset_from_end(path: Path, length: int) -> int:
    """Where voxels start that end the file (a skip of -1)."""
    return max(0, path.stat().st_size - length) if path.is_file() else 0


def no_spacing(path: Path, found: str) -> RefusedInputError:
    """The refusal of a file that does not say how large its voxels are; ``found`` is what it says instead."""
    return RefusedInputError(
        f"{path} does not say how large its voxels are ({found}); "
        "put their spacing into its header, or convert the scan again."
    )


def shown(numbers: Sequence[float]) -> str:
    """Sizes along the axes as a sentence gives them: 0.7 x 0.7 x 1.5."""
    return " x ".join(f"{number:g}" for number in numbers)
