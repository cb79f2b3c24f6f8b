"""Patches of a user's own scans: clinical CT inside the lungs, micro-CT inside the specimen, unpaired."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.files import read_any_volume, read_mask, read_volume
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.lungs import segment_lungs
from CTMicroSRLib.progress import Progress, SilentProgress, check_cancelled
from CTMicroSRLib.training.patch_places import Float32, Int32, block_shares, draw_places
from CTMicroSRLib.training.patch_writing import CasePatches, writing_patches
from CTMicroSRLib.training.patches import (
    Int16,
    Patches,
    PatchSettings,
    Side,
    open_patches,
    patches_made_before,
    to_stored,
)
from CTMicroSRLib.volume import AIR_HU, Volume

logger = logging.getLogger(__name__)

HISTOGRAM_BINS = 4096
LEAST_FOREGROUND = 0.1
"""Share of a clinical-sized block that must be above Otsu's threshold for the block to be tissue."""

CLOSING_SHARE = 0.25
"""Radius that joins the tissue of a specimen, as a share of a patch's edge."""

PLAUSIBLE_VOXEL_RATIO = (0.5, 2.0)
"""A micro-CT's voxel may be that many times the clinical pixel over the scale before a warning says so."""

MUCH_CLIPPED = 0.5


@dataclass(frozen=True)
class _Scan:
    """A file of a domain, with its mask's if that is given."""

    side: Side
    path: Path
    mask: Path | None


def patches_from_volumes(
    folder: Path,
    clinical: Sequence[Path],
    micro: Sequence[Path],
    settings: PatchSettings,
    progress: Progress | None = None,
    *,
    clinical_masks: Sequence[Path] | None = None,
    micro_masks: Sequence[Path] | None = None,
) -> Patches:
    """Cut patches from scans, or open them where the same scans and settings made them before.

    As P1 (JMI 2022, sections 3.2, 3.3.1): of each scan ``patches_per_case`` patches at random places of its slices (the
    planes of its rows and columns), wherever enough of a patch lies inside the lungs, or in the specimen. Intensities
    are clipped to the domain's window and mapped to [-1, 1]; nothing is resampled.

    A clinical scan's lungs are segmented where no mask is given. A micro-CT's specimen, without a mask, is in every
    slice what lies within the tissue (voxels above Otsu's threshold over the whole scan), its gaps closed up to a
    quarter of a patch and its holes filled: so air within the specimen belongs to it and air around it does not. A
    sample holder can't be told from tissue; P1 cropped it off by hand, here a mask does. Places of micro-CT patches are
    multiples of the scale.

    Args:
        folder: where; complete or not at all.
        clinical: chest CT in any format that :func:`~CTMicroSRLib.files.read_volume` reads, a DICOM folder too.
        micro: micro-CT in any such format, in any grey values.
        settings: sizes, windows, number and seed.
        progress: told of every scan.
        clinical_masks: lung masks on the scans' grids, one for each clinical scan.
        micro_masks: likewise for the micro-CT.

    Raises:
        UsageError: a domain without scans, a scan given twice or in both domains, masks that don't match in number, a
            missing file, or a folder with something else in it.
        RefusedInputError: a scan that can't be read or has no place for a patch, an empty mask, or values that leave
            nothing within the window.
        ResourceError: the disk or the memory is too small.
        CancelledError: ``progress`` said so.
    """
    progress = progress or SilentProgress()
    scans = [
        *_scans("clinical", clinical, clinical_masks),
        *_scans("micro", micro, micro_masks),
    ]
    _check_files(scans)
    request = {"settings": asdict(settings), "scans": [_requested(scan) for scan in scans]}
    found = patches_made_before(folder, request)
    if found is not None:
        return found
    counts = [len(paths) * settings.patches_per_case for paths in (clinical, micro)]
    cutter = _Cutter(settings, progress)
    with writing_patches(folder, settings, request, clinical=counts[0], micro=counts[1]) as writer:
        for n, scan in enumerate(scans):
            check_cancelled(progress)
            progress.update("cutting patches", n, len(scans))
            writer.add(scan.side, cutter.cut(scan, n))
    progress.update("cutting patches", len(scans), len(scans))
    return open_patches(folder)


class _Cutter:
    """Cuts scan after scan, and remembers what it saw."""

    def __init__(self, settings: PatchSettings, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        self._seen: dict[str, _Scan] = {}
        self._pixels_mm: list[float] = []

    def cut(self, scan: _Scan, number: int) -> CasePatches:
        clinical = scan.side == "clinical"
        volume = read_volume(scan.path) if clinical else _read_micro(scan.path)
        self._check_new(scan, volume)
        edge = self._settings.patch_voxels if clinical else self._settings.fine_voxels
        _check_size(scan.path, volume, edge)
        self._note_voxels(scan, volume)
        inside = self._inside(scan, volume)
        window = self._settings.windows[scan.side]
        _check_window(scan, volume, inside, window)
        places = self._places(scan, inside, number)
        return CasePatches(
            _patches(volume, places, edge, window),
            np.insert(places, 0, 0, axis=1),
            {"file": str(scan.path), "spacing_mm": list(volume.geometry.spacing_mm)},
        )

    def _check_new(self, scan: _Scan, volume: Volume) -> None:
        digest = _digest(volume)
        before = self._seen.setdefault(digest, scan)
        if before is not scan:
            where = "twice" if before.side == scan.side else "in both domains, which makes the training paired"
            raise UsageError(f"{before.path} and {scan.path} are the same scan {where}; leave one out.")

    def _note_voxels(self, scan: _Scan, volume: Volume) -> None:
        pixel_mm = float(np.mean(volume.geometry.spacing_mm[:2]))
        if scan.side == "clinical":
            self._pixels_mm.append(pixel_mm)
            return
        expected_mm = float(np.median(self._pixels_mm)) / self._settings.scale
        low, high = PLAUSIBLE_VOXEL_RATIO
        if not low <= pixel_mm / expected_mm <= high:
            logger.warning(
                "%s has voxels of %.4g mm, but a clinical voxel over the scale is %.4g mm: the network will learn "
                "another size of structures; resample the micro-CT or choose another scale.",
                scan.path,
                pixel_mm,
                expected_mm,
            )

    def _inside(self, scan: _Scan, volume: Volume) -> NDArray[np.bool_]:
        """Mask on the scan's grid."""
        if scan.mask is not None:
            inside = read_mask(scan.mask, volume.geometry)
            if not inside.any():
                raise RefusedInputError(f"The mask {scan.mask} is empty; draw it again or leave it out.")
            return inside
        if scan.side == "micro":
            return specimen_mask(volume, self._settings.scale, self._settings.patch_voxels)
        try:
            return segment_lungs(volume, progress=self._progress).array_kji
        except RefusedInputError as error:
            raise RefusedInputError(
                f"{scan.path}: no lungs were found to cut patches from; give its mask with --clinical-mask."
            ) from error

    def _places(self, scan: _Scan, inside: NDArray[np.bool_], number: int) -> Int32:
        settings, fine = self._settings, scan.side == "micro"
        rng = np.random.default_rng([settings.seed, number, 0x504C4143])
        shares = np.stack([block_shares(plane, settings.scale) for plane in inside]) if fine else inside
        least = settings.least_specimen_share if fine else settings.least_lung_share
        places, possible = draw_places(rng, shares, settings.patch_voxels, settings.patches_per_case, least)
        if not possible:
            raise RefusedInputError(
                f"{scan.path} has no place where {least:.0%} of a patch lie inside its mask; give another mask, "
                f"or choose smaller patches or a lower least_{'specimen' if fine else 'lung'}_share."
            )
        if possible < settings.patches_per_case:
            logger.warning("%s has only %d places for patches, so some are taken more than once.", scan.path, possible)
        return places * np.asarray([1, settings.scale, settings.scale], np.int32) if fine else places


def specimen_mask(volume: Volume, scale: int, patch_voxels: int) -> NDArray[np.bool_]:
    """Where a micro-CT shows its specimen; see :func:`patches_from_volumes`.

    Args:
        volume: grey values, air below tissue.
        scale: edge in voxels of the blocks that are looked at.
        patch_voxels: a patch's edge in such blocks.

    Returns:
        Mask on the scan's grid; what is left of whole blocks at the end of rows and columns is outside.

    Raises:
        RefusedInputError: all voxels have the same value.
    """
    threshold = _otsu_threshold(volume.array_kji)
    radius = max(1, round(CLOSING_SHARE * patch_voxels))
    inside = np.zeros(volume.array_kji.shape, dtype=np.bool_)
    for k, plane in enumerate(volume.array_kji):
        tissue = block_shares(plane > threshold, scale) >= LEAST_FOREGROUND
        joined = sitk.BinaryMorphologicalClosing(sitk.GetImageFromArray(tissue.astype(np.uint8)), [radius] * 2)
        blocks = sitk.GetArrayFromImage(sitk.BinaryFillhole(joined)).astype(bool)
        fine = blocks.repeat(scale, axis=0).repeat(scale, axis=1)
        inside[k, : fine.shape[0], : fine.shape[1]] = fine
    return inside


def _scans(side: Side, paths: Sequence[Path], masks: Sequence[Path] | None) -> list[_Scan]:
    if not paths:
        raise UsageError(f"Training needs scans of both domains; add --{side} FILES, or leave both out to simulate.")
    if masks and len(masks) != len(paths):
        raise UsageError(
            f"There are {len(paths)} {side} scans and {len(masks)} masks of them; give one mask for each scan, in the "
            "same order, or none."
        )
    return [_Scan(side, Path(path), Path(masks[n]) if masks else None) for n, path in enumerate(paths)]


def _check_files(scans: Sequence[_Scan]) -> None:
    seen: dict[Path, _Scan] = {}
    for scan in scans:
        for path in (scan.path, scan.mask):
            if path is not None and not path.exists():
                raise UsageError(f"There is no file or folder {path}; check the path.")
        before = seen.setdefault(scan.path.resolve(), scan)
        if before is not scan:
            where = "twice" if before.side == scan.side else "in both domains, which makes the training paired"
            raise UsageError(f"The scan {scan.path} is given {where}; leave one out.")


def _requested(scan: _Scan) -> dict[str, Any]:
    """A scan as the manifest remembers it; a file that was changed since is another."""
    paths = {"scan": scan.path, "mask": scan.mask}
    files = {name: _files(path) for name, path in paths.items() if path is not None}
    return {
        "domain": scan.side,
        **{name: str(paths[name]) for name in files},
        "bytes": sum(path.stat().st_size for path in chain(*files.values())),
        "changed_ns": max(path.stat().st_mtime_ns for path in chain(*files.values())),
    }


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [*sorted(file for file in path.rglob("*") if file.is_file()), path]


def _read_micro(path: Path) -> Volume:
    volume = read_any_volume(path)
    if volume.array_kji.dtype.kind not in "iuf":
        raise RefusedInputError(f"The voxels of {path} are {volume.array_kji.dtype}, not grey values; give a micro-CT.")
    if volume.array_kji.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in volume.array_kji):
        raise RefusedInputError(f"{path} has NaN or infinite voxels; replace them and give it again.")
    return volume


def _digest(volume: Volume) -> str:
    """Sum over the voxels, the same however a file stores them; padding counts as air, as in clinical reading."""
    digest = hashlib.sha256(repr(volume.array_kji.shape).encode())
    for plane in volume.array_kji:
        digest.update(np.maximum(plane.astype(np.float32), AIR_HU).tobytes())
    return digest.hexdigest()


def _check_size(path: Path, volume: Volume, edge: int) -> None:
    columns, rows, _ = volume.geometry.size_ijk
    if min(rows, columns) < edge:
        raise RefusedInputError(
            f"The slices of {path} are {columns} x {rows} voxels, smaller than a patch of {edge} x {edge}; give a "
            "larger scan or choose smaller patches."
        )


def _check_window(scan: _Scan, volume: Volume, inside: NDArray[np.bool_], window: IntensityWindow) -> None:
    """Refuse a scan of which the window leaves nothing, or the same value everywhere."""
    lowest, highest, within, count = np.inf, -np.inf, 0, 0
    for plane, mask in zip(volume.array_kji, inside, strict=True):
        values = plane[mask]
        if len(values):
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
            within += int(np.count_nonzero((values >= window.low_hu) & (values <= window.high_hu)))
            count += len(values)
    if not count:
        raise RefusedInputError(f"No specimen was found in {scan.path}; give its mask with --{scan.side}-mask.")
    if np.clip(lowest, window.low_hu, window.high_hu) >= np.clip(highest, window.low_hu, window.high_hu):
        raise RefusedInputError(
            f"{scan.path} has values of {lowest:g} to {highest:g} inside its mask, of which the window "
            f"{window.low_hu:g} to {window.high_hu:g} leaves nothing; choose another --{scan.side}-window."
        )
    if within < (1.0 - MUCH_CLIPPED) * count:
        logger.warning(
            "%s: %.0f %% of the voxels inside its mask lie outside the window %g to %g and are clipped.",
            scan.path,
            100.0 * (1.0 - within / count),
            window.low_hu,
            window.high_hu,
        )


def _otsu_threshold(array_kji: NDArray[Any]) -> float:
    """Grey value that parts the voxels into two classes of the greatest variance between them (Otsu, 1979)."""
    low, high = float(min(plane.min() for plane in array_kji)), float(max(plane.max() for plane in array_kji))
    if not low < high:
        raise RefusedInputError(f"All voxels of the micro-CT are {low:g}; give a scan that shows a specimen.")
    counts = np.zeros(HISTOGRAM_BINS)
    for plane in array_kji:
        counts += np.histogram(plane, HISTOGRAM_BINS, (low, high))[0]
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2.0
    below, moment = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    above, mean = counts.sum() - below, float(counts @ centres) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean * below - moment) ** 2 / (below * above)
    return float(edges[1:-1][np.nanargmax(between)])


def _patches(volume: Volume, places: Int32, edge: int, window: IntensityWindow) -> Iterator[Int16]:
    for k, row, column in places.tolist():
        values: Float32 = volume.array_kji[k, row : row + edge, column : column + edge].astype(np.float32)
        yield to_stored(window.normalise(values))
