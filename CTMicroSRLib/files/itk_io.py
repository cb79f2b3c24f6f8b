"""Calls into SimpleITK's readers: quiet, sized up before anything is allocated, errors in one sentence."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, ResourceError
from CTMicroSRLib.volume import AIR_HU

logger = logging.getLogger(__name__)

DTYPES: dict[int, np.dtype[Any]] = {
    sitk.sitkInt8: np.dtype(np.int8),
    sitk.sitkUInt8: np.dtype(np.uint8),
    sitk.sitkInt16: np.dtype(np.int16),
    sitk.sitkUInt16: np.dtype(np.uint16),
    sitk.sitkInt32: np.dtype(np.int32),
    sitk.sitkUInt32: np.dtype(np.uint32),
    sitk.sitkInt64: np.dtype(np.int64),
    sitk.sitkUInt64: np.dtype(np.uint64),
    sitk.sitkFloat32: np.dtype(np.float32),
    sitk.sitkFloat64: np.dtype(np.float64),
}
"""SimpleITK's scalar pixel types as numpy's; every other type is colour, vector or complex."""

METAIMAGE_MODALITY_PREFIX = "MET_MOD_"
"""MetaImage has a field of its own for the modality: MET_MOD_CT, MET_MOD_MR, …, MET_MOD_UNKNOWN."""


@dataclass(frozen=True)
class ImageInformation:
    """What a header says of an image, before its voxels are read.

    ``size``, ``spacing_mm``, ``origin_mm`` and ``directions`` have as many axes as the file (i first).
    ``dtype`` is what the reader returns, after a rescale that the header asks for.
    """

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    directions: tuple[float, ...]
    dtype: np.dtype[Any]
    metadata: dict[str, str]

    @property
    def voxel_bytes(self) -> int:
        """Memory that the voxels take as the reader returns them."""
        return math.prod(self.size) * self.dtype.itemsize


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keep ITK's warnings off the terminal for the duration; the earlier setting comes back."""
    setting: Any = sitk.ProcessObject
    earlier = setting.GetGlobalWarningDisplay()
    setting.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        setting.SetGlobalWarningDisplay(earlier)


def read_information(path: Path, image_io: str) -> ImageInformation:
    """Read an image's header with the ITK reader of that name (``NrrdImageIO``, ``GDCMImageIO``, …).

    Raises:
        RefusedInputError: ITK's reader does not accept the header, or a voxel is not one real number.
    """
    reader: Any = _reader(path, image_io)
    with quiet_itk():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _refusal(path, error) from None
    if reader.GetNumberOfComponents() > 1 or reader.GetPixelIDValue() not in DTYPES:
        raise RefusedInputError(
            f"{path} has colour, vector or complex voxels, not HU; give the scan's own grey-value volume."
        )
    return ImageInformation(
        size=tuple(reader.GetSize()),
        spacing_mm=tuple(reader.GetSpacing()),
        origin_mm=tuple(reader.GetOrigin()),
        directions=tuple(reader.GetDirection()),
        dtype=DTYPES[reader.GetPixelIDValue()],
        metadata=_metadata(reader),
    )


def read_image(path: Path, image_io: str, extract_size: tuple[int, ...] | None = None) -> sitk.Image:
    """Read an image's voxels with the ITK reader of that name.

    Args:
        path: the file.
        image_io: name of ITK's reader.
        extract_size: size to read from index 0 on; a 0 drops that axis.

    Raises:
        RefusedInputError: the voxels cannot be read.
        ResourceError: the memory ran out.
    """
    with quiet_itk(), _unambiguous(path) as unambiguous_path:
        reader: Any = _reader(unambiguous_path, image_io)
        if extract_size is not None:
            reader.SetExtractSize(extract_size)
        try:
            return cast(sitk.Image, reader.Execute())
        except RuntimeError as error:
            if "allocate memory" in str(error):
                raise ResourceError(
                    f"{path} does not fit in memory; close other programs, crop the scan "
                    "or use a machine with more memory."
                ) from None
            raise _refusal(path, error) from None


def check_memory(path: Path, needed_bytes: int) -> None:
    """Raise ResourceError when the voxels that a header claims would not fit in free memory."""
    available = psutil.virtual_memory().available
    if needed_bytes > available:
        raise ResourceError(
            f"{path} claims {needed_bytes / 1e9:.1f} GB of voxels but {available / 1e9:.1f} GB of memory is "
            "free; check the file's header, crop the scan or use a machine with more memory."
        )


def copy_as_hu(
    path: Path, stored_ji: NDArray[Any], hu_ji: NDArray[Any], padding_hu: tuple[float, float] | None = None
) -> None:
    """Copy a slice into an int16 or float32 one, with padding turned into air.

    Padding is what lies below AIR_HU, and the values within ``padding_hu``, which the header may name.
    NaN and infinite voxels pass (-inf and NaN too), so that who asks for finite voxels can still refuse them.

    Raises:
        RefusedInputError: whole numbers beyond int16, which HU never reach.
    """
    if padding_hu is not None:
        is_padding_ji = (stored_ji >= padding_hu[0]) & (stored_ji <= padding_hu[1])
        signed = np.result_type(stored_ji.dtype, np.int16)
        stored_ji = np.where(is_padding_ji, signed.type(AIR_HU), stored_ji.astype(signed))
    if hu_ji.dtype.kind == "i" and stored_ji.max() > np.iinfo(hu_ji.dtype).max:
        raise RefusedInputError(
            f"{path} has values up to {stored_ji.max()}, which no CT in HU has; "
            "give a CT with its rescale slope and intercept applied."
        )
    if stored_ji.dtype.kind == "u":
        hu_ji[...] = stored_ji
    else:
        padding_ji = (stored_ji < AIR_HU) & (stored_ji != -np.inf)
        np.copyto(hu_ji, stored_ji, casting="unsafe")
        hu_ji[padding_ji] = AIR_HU


def plain_text(text: str) -> str:
    """Header text without padding, line breaks, control characters and undecodable bytes."""
    decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    printable = "".join(character if character.isprintable() else " " for character in decoded)
    return " ".join(printable.split())


def _metadata(reader: sitk.ImageFileReader) -> dict[str, str]:
    untyped: Any = reader
    found = {}
    for key in untyped.GetMetaDataKeys():
        # SimpleITK hands out keys that are not UTF-8 but does not take them back.
        if key.isascii():
            found[key] = plain_text(untyped.GetMetaData(key))
    return found


@contextmanager
def _unambiguous(path: Path) -> Iterator[Path]:
    """The file under a name that ITK takes literally.

    ITK 5.4's NIfTI reader, asked for ``x.nii.gz``, takes the voxels of an ``x.nii`` beside it.
    """
    if not (path.name.lower().endswith(".nii.gz") and path.with_suffix("").exists()):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "volume.nii.gz"
        try:
            alone.symlink_to(path.resolve())
        except OSError:  # Windows without the right to make links
            shutil.copyfile(path, alone)
        yield alone


def _reader(path: Path, image_io: str) -> sitk.ImageFileReader:
    untyped: Any = sitk
    reader = untyped.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(image_io)
    return cast(sitk.ImageFileReader, reader)


def _refusal(path: Path, error: RuntimeError) -> RefusedInputError:
    logger.debug("SimpleITK could not read %s: %s", path, error)
    if "orthonormal" in str(error) or "determinant" in str(error):
        return RefusedInputError(
            f"The direction cosines of {path} are not perpendicular unit vectors (a sheared or tilted grid); "
            "resample the scan to a regular grid first."
        )
    return RefusedInputError(f"{path} is damaged or not an image; export or copy the scan again.")
