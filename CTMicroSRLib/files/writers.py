"""Writing volumes slice by slice: complete under the final name, or absent."""

from __future__ import annotations

import contextlib
import errno
import gzip
import itertools
import math
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import psutil
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.errors import CTMicroSRError, ResourceError, UsageError, shown
from CTMicroSRLib.files.itk_io import METAIMAGE_MODALITY_PREFIX, plain_text, quiet_itk
from CTMicroSRLib.volume import Geometry, Volume

PACKED_SUFFIX = ".nii.gz"
SUFFIXES = (".nrrd", PACKED_SUFFIX, ".nii", ".mha")
REPLACE_SECONDS = 2.0
DTYPES = tuple(np.dtype(t) for t in (np.int16, np.uint8, np.float32))
METAIMAGE_MODALITIES = ("CT", "MR", "NM", "US")
NIFTI_LARGEST_AXIS = 32767
"""NIfTI-1 keeps sizes in 16 bits."""

NIFTI_LARGEST_SHEAR = 1e-4
"""ITK makes directions orthonormal for NIfTI: up to this, voxels move by less than 0.02 mm in 300 mm."""


def write_volume(volume: Volume, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a volume as .nrrd, .nii, .nii.gz or .mha; a mask (bool) is written as 0 and 1.

    Args:
        volume: voxels int16, uint8, float32 or bool.
        path: the file to write; its suffix chooses the format.
        overwrite: replace a file of that name.

    Raises:
        UsageError: it is no volume, the path cannot be written, or the format does not hold such voxels.
        ResourceError: the disk is full.
    """
    if not isinstance(volume, Volume):
        raise UsageError(f"What is to be written is {shown(volume)}, not a Volume; put an array into one first.")
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"A volume can't be written to what is {shown(path)}; give the path of a file.")
    dtype = np.dtype(np.uint8) if volume.array_kji.dtype == np.bool_ else volume.array_kji.dtype
    with VolumeWriter(path, volume.geometry, dtype, volume.metadata, overwrite=overwrite) as writer:
        for array_ji in volume.array_kji:
            writer.write_slice(array_ji.astype(dtype, copy=False))
        writer.commit()


def check_writable(path: str | os.PathLike[str], needed_bytes: int, *, overwrite: bool) -> None:
    """Find out before any work is done whether a volume can be written.

    Args:
        path: the file to be written.
        needed_bytes: how much it will take at most.
        overwrite: whether a file of that name may be replaced.

    Raises:
        UsageError: another suffix than .nrrd, .nii, .nii.gz or .mha, no such folder, a folder or file that
            may not be written, a file that exists and may not be replaced.
        ResourceError: not that much free on the disk.
    """
    _suffix(Path(path))
    target = _behind_links(Path(path))
    if not target.parent.is_dir():
        raise UsageError(f"There is no folder {target.parent} to write {target.name} to; create it first.")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give the name of a file to write.")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists already; choose another name or allow overwriting (--overwrite).")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise _write_error(target, error) from None
    if needed_bytes > free:
        raise ResourceError(
            f"{target} needs {needed_bytes / 1e9:.2f} GB but {free / 1e9:.2f} GB is free on its disk; "
            "free some space, or choose another disk or a smaller region."
        )


def check_room(
    paths: Sequence[Path], geometry: Geometry, dtype: np.dtype[Any] | type[np.generic], *, overwrite: bool
) -> None:
    """Refuse volumes of one grid that can't all be written, those of one disk taken together.

    Raises:
        UsageError, ResourceError: as :func:`check_writable`.
    """
    for path in paths:
        check_writable(path, 0, overwrite=overwrite)
    needed_bytes = {path: _needed_bytes(_suffix(path), geometry, np.dtype(dtype)) for path in paths}
    for path in paths:
        together = sum(needed_bytes[other] for other in paths if _disk_of(other) == _disk_of(path))
        check_writable(path, together if needed_bytes[path] else 0, overwrite=overwrite)


def _disk_of(path: Path) -> int:
    """Which disk the file of a path lies on, or will."""
    return _behind_links(path).parent.stat().st_dev


def _needed_bytes(suffix: str, geometry: Geometry, dtype: np.dtype[Any]) -> int:
    """What a volume takes on its disk; of what is compressed that is known only afterwards."""
    return 0 if suffix == PACKED_SUFFIX else math.prod(geometry.size_ijk) * dtype.itemsize


class KeptAsideError(UsageError):
    """A complete volume could not replace the file of its name and lies beside it."""


class VolumeWriter:
    """Writes a volume slice by slice to a temporary file that gets the final name once it is complete.

    Use as a context manager, one :meth:`write_slice` per k, then :meth:`commit`; without it, or with an
    exception, nothing is left. The headers come from SimpleITK, the slices follow as they are.
    A process that is killed leaves at most a hidden ``.<name>.<process id>.part``, which the next writer
    of the same name removes.

    Args:
        path: the file to write; .nrrd, .nii and .mha are not compressed, .nii.gz lightly. Of a link, the file that it
            points to is written, in the format of the link's own suffix.
        geometry: the grid; NIfTI keeps it as float32, the others as double.
        dtype: int16, uint8 or float32.
        metadata: text to keep in the header (NRRD and MetaImage; NIfTI has no place for it).
        overwrite: replace a file of that name.

    Raises:
        UsageError: the path cannot be written, or the format does not hold such a volume.
        ResourceError: the disk is full, also later while writing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        geometry: Geometry,
        dtype: np.dtype[Any] | type[np.generic],
        metadata: Mapping[str, str] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = _behind_links(Path(path))
        self.geometry = geometry
        self.dtype = np.dtype(dtype)
        self.written_slices = 0
        self._suffix = _suffix(Path(path))
        self._metadata = dict(metadata or {})
        self._overwrite = overwrite
        self._file: IO[bytes] | None = None
        self._packed: gzip.GzipFile | None = None
        self._is_finished = False
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        if self.dtype not in DTYPES:
            raise UsageError(f"Voxels of type {self.dtype} are not written; convert them to int16, uint8 or float32.")
        if self._suffix.startswith(".nii") and max(geometry.size_ijk) > NIFTI_LARGEST_AXIS:
            raise UsageError(f"NIfTI holds at most {NIFTI_LARGEST_AXIS} voxels along an axis; write .nrrd instead.")
        if self._suffix.startswith(".nii") and _shear(geometry) > NIFTI_LARGEST_SHEAR:
            raise UsageError(
                "NIfTI keeps only exactly perpendicular directions, which this scan's are not; write .nrrd instead."
            )
        _remove_stale_parts(self.path)
        check_writable(path, _needed_bytes(self._suffix, geometry, self.dtype), overwrite=overwrite)

    def __enter__(self) -> VolumeWriter:
        try:
            header = _header(self._suffix, self.geometry, self.dtype, self._metadata)
            self._file = self._part.open("wb")
            if self._suffix == PACKED_SUFFIX:
                self._packed = gzip.GzipFile("", "wb", compresslevel=1, fileobj=self._file, mtime=0)
            self._stream.write(header)
        except OSError as error:
            self._discard()
            raise _write_error(self.path, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    @property
    def _stream(self) -> IO[bytes]:
        if self._file is None:
            raise ValueError("The writer is not open: use it in a with statement, before commit.")
        return self._packed if self._packed is not None else self._file  # type: ignore[return-value]

    def write_slice(self, array_ji: NDArray[Any]) -> None:
        """Append the next slice (k = 0, 1, …), shape (J, I), of the writer's dtype.

        Raises:
            ValueError: another shape or dtype, or a slice too many.
            ResourceError: the disk is full.
        """
        expected = (self.geometry.shape_kji[1:], self.dtype)
        if (array_ji.shape, array_ji.dtype) != expected:
            raise ValueError(f"A slice of {expected} is needed, not one of {(array_ji.shape, array_ji.dtype)}.")
        if self.written_slices == self.geometry.shape_kji[0]:
            raise ValueError(f"All {self.written_slices} slices have been written already.")
        try:
            self._stream.write(np.ascontiguousarray(array_ji).data)
        except OSError as error:
            raise _write_error(self.path, error) from None
        self.written_slices += 1

    def finish(self) -> None:
        """Bring all bytes to the disk, still under the temporary name; nothing is written after it.

        Raises:
            ValueError: slices are missing.
            ResourceError: the disk is full.
        """
        file, stream = self._file, self._stream
        if file is None or self.written_slices != self.geometry.shape_kji[0]:
            raise ValueError(f"{self.written_slices} of {self.geometry.shape_kji[0]} slices have been written.")
        try:
            if stream is not file:
                stream.close()
            file.flush()
            os.fsync(file.fileno())
            file.close()
        except OSError as error:
            raise _write_error(self.path, error) from None
        self._is_finished = True

    def commit(self) -> None:
        """Give the file its final name, once all its bytes are on the disk.

        Raises:
            ValueError: slices are missing.
            UsageError: a file of the name has appeared meanwhile, or may not be replaced.
            KeptAsideError: the file of the name is in use; the volume lies beside it under another name.
            ResourceError: the disk is full.
        """
        if not self._is_finished:
            self.finish()
        if self.path.exists() and not self._overwrite:
            raise UsageError(f"{self.path} has appeared meanwhile; choose another name or allow overwriting.")
        try:
            _replace(self._part, self.path)
        except PermissionError as error:
            raise self._kept_aside(error) from None
        except OSError as error:
            raise _write_error(self.path, error) from None
        self._file = self._packed = None
        _flush_folder(self.path.parent)

    def _kept_aside(self, error: PermissionError) -> CTMicroSRError:
        """Keep the complete volume beside the file that could not be replaced: hours of work may be in it."""
        aside = _free_name(self.path, self._suffix)
        try:
            if self.path.exists():
                os.replace(self._part, aside)
                return KeptAsideError(
                    f"{self.path} is in use by another program and could not be replaced; the result is in "
                    f"{aside.name} beside it: close that program and rename it."
                )
        except OSError:
            pass
        return _write_error(self.path, error)

    def _discard(self) -> None:
        if self._file is None:
            return
        # A full disk fails again when buffers are flushed on closing; the file goes anyway.
        with contextlib.suppress(OSError):
            if self._packed is not None:
                self._packed.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = self._packed = None
        with contextlib.suppress(OSError):
            self._part.unlink()


def _replace(part: Path, path: Path) -> None:
    """Rename, waiting a little for a virus scanner or a viewer to let go of the file that is replaced (Windows)."""
    end = time.monotonic() + REPLACE_SECONDS
    while True:
        try:
            os.replace(part, path)
        except PermissionError:
            if not path.exists() or time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def _free_name(path: Path, suffix: str) -> Path:
    """A name beside a file that no file has: name-1.nrrd."""
    stem = path.name[: -len(suffix)]
    names = (path.with_name(f"{stem}-{n}{suffix}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def _behind_links(path: Path) -> Path:
    """The file that a link points to, whether it exists or not; any other path as it is."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise UsageError(f"{path} is a link that leads nowhere; choose another name or remove it.")
    return target


def _suffix(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(".mhd"):
        raise UsageError(
            f"{path} would be two files, which cannot be written both or none; write .mha, the same format in one file."
        )
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise UsageError(f"{path} has no suffix that says how to write it; use .nrrd, .nii, .nii.gz or .mha.")


def _shear(geometry: Geometry) -> float:
    matrix = geometry.direction_matrix
    return float(np.abs(matrix.T @ matrix - np.eye(3)).max())


def _header(suffix: str, geometry: Geometry, dtype: np.dtype[Any], metadata: Mapping[str, str]) -> bytes:
    """The header of a file as SimpleITK writes it, for the whole grid."""
    plain_suffix = ".nii" if suffix == PACKED_SUFFIX else suffix
    image: Any = sitk.GetImageFromArray(np.zeros((2, 2, 2), dtype))
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.directions)
    for key, value in _format_metadata(metadata).items():
        image.SetMetaData(key, value)
    with tempfile.TemporaryDirectory() as folder, quiet_itk():
        small = Path(folder) / f"header{plain_suffix}"
        try:
            sitk.WriteImage(image, str(small), False)
        except RuntimeError as error:
            raise ResourceError(
                f"The folder for temporary files, {tempfile.gettempdir()}, takes no file; free some space there."
            ) from error
        content = small.read_bytes()
    header = content[: -8 * dtype.itemsize]
    if suffix == ".mha" and metadata.get("Modality") in METAIMAGE_MODALITIES:
        # ITK's writer drops the format's own field for it
        field = f"Modality = {METAIMAGE_MODALITY_PREFIX}{metadata['Modality']}\n".encode()
        header = header.replace(b"ElementType = ", field + b"ElementType = ", 1)
    return _with_size(plain_suffix, header, geometry.size_ijk)


def _with_size(suffix: str, header: bytes, size_ijk: tuple[int, int, int]) -> bytes:
    if suffix == ".nii":
        # NIfTI-1: short dim[8] at byte 40, dim[1..3] being the sizes
        return header[:42] + struct.pack("=3h", *size_ijk) + header[48:]
    field = {".nrrd": b"sizes: ", ".mha": b"DimSize = "}[suffix]
    sizes = " ".join(str(n) for n in size_ijk).encode()
    patched, count = re.subn(rb"(?m)^" + field + rb"2 2 2$", field + sizes, header)
    if count != 1:
        raise RuntimeError(f"SimpleITK's {suffix} header has {count} size fields")
    return patched


def _format_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with keys and values that the header's lines take."""
    clean = {re.sub(r"[^A-Za-z0-9_.|\- ]", "_", plain_text(k)): plain_text(v) for k, v in metadata.items()}
    # keys with these prefixes mean fields of the file itself to ITK
    return {k: v for k, v in clean.items() if k and v and not k.startswith(("NRRD_", "ITK_"))}


def _remove_stale_parts(path: Path) -> None:
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.part")
    if not path.parent.is_dir():
        return
    for other in path.parent.iterdir():
        match = pattern.fullmatch(other.name)
        if match and not psutil.pid_exists(int(match[1])):
            with contextlib.suppress(OSError):
                other.unlink()


def _flush_folder(folder: Path) -> None:
    # Makes the rename last through a power cut, where the system lets a folder be opened (not Windows).
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_error(path: Path, error: OSError) -> CTMicroSRError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"There is no space left to write {path}; free some space or choose another disk.")
    return UsageError(f"{path} cannot be written ({error.strerror or error}); choose another folder or name.")
