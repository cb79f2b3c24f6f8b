"""Where NRRD, NIfTI and MetaImage files keep their voxels, and whether their headers are sound.

Read before ITK sees the file: its MetaImage reader writes beyond its buffers on some malformed headers
(https://github.com/Kitware/MetaIO/issues/150), and none of its readers tells where the voxels are.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files.header_fields import StoredVoxels
from CTMicroSRLib.files.metaimage_header import in_metaimage
from CTMicroSRLib.files.nifti_header import in_nifti
from CTMicroSRLib.files.nrrd_header import in_nrrd


def stored_voxels(path: Path, image_io: str) -> StoredVoxels:
    """Find the voxels in a NRRD, NIfTI or MetaImage file, given the name of ITK's reader for it.

    Raises:
        RefusedInputError: the header is not a sound one of that format, or the geometry it gives is not one.
    """
    parse = {"NrrdImageIO": in_nrrd, "NiftiImageIO": in_nifti, "MetaImageIO": in_metaimage}[image_io]
    try:
        return parse(path)
    except (ValueError, KeyError, OverflowError, struct.error, EOFError, zlib.error, gzip.BadGzipFile):
        raise RefusedInputError(
            f"{path} is damaged or not an image (its header is not sound); export or copy the scan again."
        ) from None
