"""Does an image file hold all the voxels its header claims, intact? ITK itself does not always notice.

ITK 5.4 reads a truncated NIfTI, a damaged gzip stream in a NIfTI and a damaged zlib stream in a MetaImage
without an error: what is missing comes out as zeros. So the stored bytes are counted here first, and
compressed streams are followed to their checksum.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files.header_fields import StoredVoxels

CHUNK_BYTES = 1 << 20


def check_raw_length(header: Path, stored: StoredVoxels) -> None:
    """Refuse unpacked voxels that are fewer than the header claims; costs no reading.

    Raises:
        RefusedInputError: voxels are missing, or the data file is.
    """
    if not stored.path.is_file():
        raise RefusedInputError(
            f"The voxels of {header} are missing: there is no {stored.path.name} beside it; copy both files."
        )
    available = stored.path.stat().st_size - stored.offset
    if stored.packing == "raw" and available < stored.length:
        raise _truncated(header, max(0, available), stored.length)


def check_packed_stream(header: Path, stored: StoredVoxels) -> None:
    """Refuse a compressed stream that is cut short, damaged or of another length than the header claims.

    Raises:
        RefusedInputError: as said.
    """
    if stored.packing not in ("gzip", "zlib"):
        return
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        try:
            count = _count_gzip(file) if stored.packing == "gzip" else _count_zlib(file, stored.packed_length)
        except (zlib.error, EOFError, gzip.BadGzipFile):
            raise RefusedInputError(
                f"{header} is truncated or damaged (its compressed voxels do not unpack); "
                "copy or export the scan again."
            ) from None
    # ITK unpacks zlib into memory of the claimed length; only gzip may be followed by something else.
    if count < stored.length or (stored.packing == "zlib" and count > stored.length):
        raise _truncated(header, count, stored.length)


def _truncated(header: Path, available: int, claimed: int) -> RefusedInputError:
    return RefusedInputError(
        f"{header} is truncated or damaged: its header claims {claimed} bytes of voxels but {available} are "
        "there; copy or export the scan again."
    )


def _count_gzip(file: BinaryIO) -> int:
    count = 0
    with gzip.GzipFile(fileobj=file, mode="rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            count += len(chunk)
    return count


def _count_zlib(file: BinaryIO, packed_length: int | None) -> int:
    count = 0
    left = math.inf if packed_length is None else packed_length
    # 32 + 15: the header tells whether it is a zlib or a gzip stream, as ITK's MetaImage reader takes both.
    stream = zlib.decompressobj(wbits=32 + 15)
    while not stream.eof and left > 0:
        pending = file.read(int(min(CHUNK_BYTES, left)))
        if not pending:
            break
        left -= len(pending)
        while pending:
            count += len(stream.decompress(pending, CHUNK_BYTES))
            pending = stream.unconsumed_tail
    count += len(stream.flush())
    if not stream.eof:
        raise EOFError
    return count
