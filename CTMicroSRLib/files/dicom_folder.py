"""Which files of a folder are the slices of one CT series, and which may be slices that were lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files.dicom_elements import MEDIA_CLASS, SUFFIXES, first_elements, is_dicom
from CTMicroSRLib.files.dicom_headers import Slice, Unread, read_slice

DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
"""Media storage class of a DICOMDIR (PS3.10 8.6)."""

EXPORTED_NAMES = (
    *("dicomdir", "readme", "version", "lockfile", "license", "copying", "changelog", "autorun"),
    *("thumbs.db", "desktop.ini", "md5sums", "sha256sums", "_success"),
)
"""What exports put beside slices, lower case."""

SHORTEST_SLICE_BYTES = 256
"""No header of an image is this short."""


@dataclass(frozen=True)
class Folder:
    """A folder's slices, the DICOM images that cannot be read, and files without content as a slice might be."""

    slices: list[Slice]
    unread: list[Unread]
    lost: list[Path]


def series_slices(path: Path) -> list[Slice]:
    """The slices of the only CT series of a folder, or of the CT series that a file belongs to.

    Raises:
        RefusedInputError: no CT, several series, a file that may be a lost slice.
    """
    if not path.is_dir():
        return _series_of(path)
    folder = _read_folder(path)
    slices = _only_ct_series(path, folder)
    _check_none_is_lost(slices, folder)
    return slices


def _series_of(path: Path) -> list[Slice]:
    chosen = read_slice(path)
    if isinstance(chosen, Unread):
        raise chosen.refusal
    if chosen is None:
        if first_elements(path).get(MEDIA_CLASS) == DIRECTORY_CLASS:
            raise RefusedInputError(
                f"{path} is a DICOMDIR, the index of a disc; give the folder that holds the slices of the series."
            )
        raise RefusedInputError(f"{path} is damaged or holds no image; export or copy the scan again.")
    _check_is_ct_image(chosen)
    folder = _read_folder(path.parent, except_for=path)
    siblings = [
        other
        for other in _tomograms(folder.slices)
        if other.series_uid == chosen.series_uid and other.is_of_ct_class == chosen.is_of_ct_class
    ]
    slices = [chosen, *siblings]
    _check_none_is_lost(slices, folder)
    return slices


def _read_folder(path: Path, except_for: Path | None = None) -> Folder:
    folder = Folder([], [], [])
    for file in sorted(path.iterdir()):
        if file == except_for or file.name.startswith(".") or file.is_dir():
            continue
        found = read_slice(file) if file.is_file() and _may_be_slice(file) else None
        if isinstance(found, Slice):
            folder.slices.append(found)
        elif found is not None:
            folder.unread.append(found)
        elif _has_no_content(file):
            folder.lost.append(file)
    return folder


def _may_be_slice(path: Path) -> bool:
    return is_dicom(path) or not path.suffix


def _has_no_content(path: Path) -> bool:
    """Whether a file is what an interrupted copy leaves: a link to nowhere, nothing, zeros, a few bytes."""
    if path.name.lower() in EXPORTED_NAMES:
        return False
    if not path.is_file():
        return path.is_symlink() and not path.exists()
    with path.open("rb") as file:
        head = file.read(4096)
    is_text = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return not head or not any(head) or (len(head) < SHORTEST_SLICE_BYTES and not is_text)


def _tomograms(slices: Iterable[Slice]) -> list[Slice]:
    """Slices of CT, with neither localizers nor what states another modality."""
    return [one for one in slices if one.modality in ("", "CT") and not one.is_localizer]


def _only_ct_series(path: Path, folder: Folder) -> list[Slice]:
    # What was derived from a scan (dose, segmentation) often lies beside it: one CT is no choice to make.
    slices = _tomograms(folder.slices)
    if any(one.is_of_ct_class and one.modality == "CT" for one in slices):
        slices = [one for one in slices if one.is_of_ct_class]
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        by_series[one.series_uid].append(one)
    ct = [series for series in by_series.values() if any(one.modality == "CT" for one in series)]
    if not ct:
        raise _no_ct_in(path, folder)
    if len(ct) > 1:
        names = "; ".join(_name_of(series) for series in ct[:5])
        more = f"; and {len(ct) - 5} more" if len(ct) > 5 else ""
        raise RefusedInputError(
            f"The folder {path} holds {len(ct)} series ({names}{more}); give one file of the wanted series."
        )
    return ct[0]


def _no_ct_in(path: Path, folder: Folder) -> RefusedInputError:
    unread = sorted(folder.unread, key=lambda one: not one.is_ct)
    if unread and (unread[0].is_ct or not folder.slices):
        return unread[0].refusal
    if folder.slices:
        # a localizer tells more than a map of the dose beside it
        first = max(folder.slices, key=lambda one: one.modality == "CT")
        return _not_ct_refusal(first)
    return RefusedInputError(f"The folder {path} has no DICOM images; give the folder that holds the slices.")


def _name_of(series: Sequence[Slice]) -> str:
    description = repr(series[0].description) if series[0].description else "one without description"
    images = "1 image" if len(series) == 1 else f"{len(series)} images"
    return f"{description} with {images} such as {series[0].path.name}"


def _check_is_ct_image(one: Slice) -> None:
    if one.modality != "CT" or one.is_localizer:
        raise _not_ct_refusal(one)


def _not_ct_refusal(one: Slice) -> RefusedInputError:
    if one.modality == "CT":
        return RefusedInputError(
            f"{one.path} is a localizer (ImageType LOCALIZER), a projection and no slice; "
            "give the files of the CT series that was planned on it."
        )
    return RefusedInputError(
        f"{one.path} is {one.modality or 'of no stated modality'}, not CT; give the files of a CT series."
    )


def _check_none_is_lost(slices: Sequence[Slice], folder: Folder) -> None:
    """Refuse a series beside files that may be slices of it: one at an end would not be missed otherwise."""
    for unread in folder.unread:
        if unread.is_ct and unread.series_uid in ("", slices[0].series_uid):
            raise unread.refusal
    names = {*SUFFIXES, *(_kind_of_name(one.path) for one in slices)}
    for path in folder.lost:
        if _kind_of_name(path) in names:
            raise RefusedInputError(
                f"{path} has no content and may be a lost slice of the series; "
                "copy the scan again, or remove the file if it is none."
            )


def _kind_of_name(path: Path) -> str:
    """The suffix, with numbers (as of UIDs) counted as none."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix
