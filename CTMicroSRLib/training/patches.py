"""Patches of both domains as memory-mapped arrays on disk: cut once, then read with NumPy alone.

A folder holds, beside ``manifest.json``,

    ``clinical.npy`` ``(n, P, P)`` and ``micro.npy`` ``(m, P * scale, P * scale)``: int16, normalised values times
    32767;
    ``clinical_case.npy`` and ``micro_case.npy``: int32, which of the manifest's sources each patch was cut from;
    ``clinical_place.npy`` and ``micro_place.npy``: int32 ``(n, 4)``, scan of the source, slice, row and column of the
    patch's first voxel;
    ``truth.npy`` ``(n, P * scale, P * scale)`` and ``scanner.npy`` ``(n, 2)`` float32 (width of the point spread in
    coarse voxels, standard deviation of the noise in HU): only where simulation knows them.

The manifest has a CRC-32 of each array's values, which :func:`verify_patches` compares before a run trains on them.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.progress import Progress, check_cancelled

logger = logging.getLogger(__name__)

Int16: TypeAlias = NDArray[np.int16]
Int32: TypeAlias = NDArray[np.int32]
Float32: TypeAlias = NDArray[np.float32]
Side = Literal["clinical", "micro"]

MANIFEST = "manifest.json"
FORMAT = 1
STORED_UNIT = 32767
"""What a normalised value of 1 is stored as."""

SMALLEST_PATCH, LARGEST_PATCH = 8, 512
LARGEST_SCALE = 16
BYTES_AT_ONCE = 1 << 24
ARRAYS = (
    *("clinical", "clinical_case", "clinical_place", "micro", "micro_case", "micro_place"),
    *("truth", "scanner"),
)
"""The arrays of a folder, which :class:`Patches` has under the same names; the last two where they are known."""

DAMAGED = "the patches are damaged; delete the folder and make them again."


@dataclass(frozen=True)
class PatchSettings:
    """Size, number and windows of patches.

    The defaults are those of SR-CycleGAN (P1, JMI 2022, sections 3.2 and 3.3.1): 32 x 32 clinical voxels beside
    256 x 256 of micro-CT, 2000 patches per case, [-1000, 2500] HU and grey values [0, 15000] to [-1, 1].

    Attributes:
        patch_voxels: a clinical patch's edge in voxels, 8 to 512.
        scale: fine voxels per clinical voxel along rows and columns, 2 to 16.
        patches_per_case: patches cut from every scan.
        clinical_window: HU that map to -1 and 1.
        micro_window: grey values that map to -1 and 1.
        least_lung_share: least share of a patch that lies inside the lungs, above 0 and up to 1; walls beside the lung
            are seen too, as they are when a scan is super-resolved.
        least_specimen_share: the same of a micro-CT patch and the specimen; nobody needs its holder and the air around.
        seed: of the places.

    Raises:
        UsageError: a value out of its range.
    """

    patch_voxels: int = 32
    scale: int = 8
    patches_per_case: int = 2000
    clinical_window: tuple[float, float] = (-1000.0, 2500.0)
    micro_window: tuple[float, float] = (0.0, 15000.0)
    least_lung_share: float = 0.5
    least_specimen_share: float = 0.9
    seed: int = 1

    def __post_init__(self) -> None:
        for what, value, low, high in (
            ("patch's edge", self.patch_voxels, SMALLEST_PATCH, LARGEST_PATCH),
            ("scale", self.scale, 2, LARGEST_SCALE),
            ("number of patches per case", self.patches_per_case, 1, 10**7),
            ("seed", self.seed, 0, 2**31),
        ):
            if value != int(value) or not low <= value <= high:
                raise UsageError(f"The {what} is {value}; choose a whole number of {low} to {high}.")
        for name in ("clinical", "micro"):
            low, high = getattr(self, f"{name}_window")
            if not -math.inf < low < high < math.inf:
                raise UsageError(f"The {name} window {low} to {high} is empty or endless; give the lower value first.")
        for what, share in (("lung", self.least_lung_share), ("specimen", self.least_specimen_share)):
            if not 0 < share <= 1:
                raise UsageError(f"The least {what} share is {share}; choose one above 0 and up to 1.")

    @property
    def fine_voxels(self) -> int:
        """A micro-CT patch's edge in voxels."""
        return self.patch_voxels * self.scale

    @property
    def windows(self) -> dict[Side, IntensityWindow]:
        """The intensity window of each domain."""
        return {"clinical": IntensityWindow(*self.clinical_window), "micro": IntensityWindow(*self.micro_window)}


@dataclass(frozen=True)
class Patches:
    """Patches on disk; the arrays are memory-mapped, see the module for their meaning.

    ``sources`` says what a case number stands for: scan or specimen, its domain and more; no case is in both domains.
    ``simulation`` holds the settings that simulated specimens and scanners were drawn by.
    """

    folder: Path
    settings: PatchSettings
    simulated: bool
    sources: tuple[Mapping[str, Any], ...]
    clinical: Int16
    clinical_case: Int32
    clinical_place: Int32
    micro: Int16
    micro_case: Int32
    micro_place: Int32
    truth: Int16 | None = None
    scanner: Float32 | None = None
    simulation: Mapping[str, Any] | None = None


def to_stored(normalised: NDArray[np.floating]) -> Int16:
    """Normalised values in [-1, 1] as they are stored."""
    return np.asarray(np.rint(normalised * STORED_UNIT), dtype=np.int16)


def from_stored(stored: Int16) -> Float32:
    """Normalised values of stored ones, float32; off by up to 1.6e-5, 0.03 HU at the paper's window."""
    return np.asarray(stored / np.float32(STORED_UNIT), dtype=np.float32)


def open_patches(folder: Path) -> Patches:
    """Open patches without reading them into memory.

    Raises:
        UsageError: the folder holds no patches.
        RefusedInputError: its manifest or an array is damaged, or a case is in both domains.
    """
    manifest = _read_manifest(folder)
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["settings"].items()}
        settings = PatchSettings(**values)
        counts = {side: int(manifest["patches"][side]) for side in ("clinical", "micro")}
        layout = patch_layout(settings, counts["clinical"], counts["micro"], paired=bool(manifest["paired"]))
        sources, simulated = tuple(dict(source) for source in manifest["sources"]), bool(manifest["simulated"])
        simulation = manifest.get("request", {}).get("simulation")
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise RefusedInputError(f"{folder / MANIFEST} can't be understood ({error}); {DAMAGED}") from None
    arrays = {name: _mapped(folder / f"{name}.npy", *expected) for name, expected in layout.items()}
    _check_cases(folder, arrays, len(sources))
    return Patches(folder, settings, simulated, sources, **arrays, simulation=simulation)


def verify_patches(patches: Patches, progress: Progress) -> None:
    """Read all patches once and compare them with the manifest's checksums; says so where there are none.

    Args:
        patches: opened.
        progress: told of every array, and asked whether to stop.

    Raises:
        RefusedInputError: an array is not what was written.
        CancelledError: ``progress`` said so.
    """
    checksums = _read_manifest(patches.folder).get("crc32")
    if checksums is None:
        logger.warning(
            "The patches in %s are from before patches had checksums, so that damage in them can't be noticed.",
            patches.folder,
        )
        return
    names = [name for name in ARRAYS if getattr(patches, name) is not None]
    for n, name in enumerate(names):
        progress.update("checking patches", n, len(names))
        if not isinstance(checksums, dict) or _checksum(getattr(patches, name), progress) != checksums.get(name):
            raise RefusedInputError(
                f"{patches.folder / f'{name}.npy'} is not what was written (its checksum differs); {DAMAGED}"
            )
    progress.update("checking patches", len(names), len(names))


def _checksum(array: NDArray[Any], progress: Progress) -> int:
    total, rows = 0, max(1, BYTES_AT_ONCE // max(1, array[:1].nbytes))
    for first in range(0, len(array), rows):
        check_cancelled(progress)
        total = zlib.crc32(np.ascontiguousarray(array[first : first + rows]).tobytes(), total)
    return total


def patches_made_before(
    folder: Path, request: Mapping[str, Any], added: Mapping[str, Mapping[str, Any]] | None = None
) -> Patches | None:
    """The patches of a folder where the same request made them; None where there are none yet.

    Args:
        folder: where they are.
        request: what patches are wanted.
        added: by part of the request, values that earlier requests don't have, and what means the same as before them.

    Raises:
        UsageError: the folder holds patches of another request, or other files, or is no folder.
        RefusedInputError: the patches are damaged.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder; choose another name for the patches.")
    if not (folder / MANIFEST).exists():
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no patches; choose another folder.")
        return None
    made = _read_manifest(folder).get("request")
    for part, values in (added or {}).items():
        if isinstance(made, dict) and isinstance(made.get(part), dict):
            made = made | {part: {**values, **made[part]}}
    if made != json.loads(json.dumps(request)):
        raise UsageError(f"{folder} holds patches of other scans or settings; choose another folder or delete it.")
    return open_patches(folder)


def patch_layout(
    settings: PatchSettings, clinical: int, micro: int, *, paired: bool
) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    """Type and shape of every array of a folder, by the name of its file."""
    coarse, fine = (settings.patch_voxels,) * 2, (settings.fine_voxels,) * 2
    layout: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {}
    for side, count, shape in (("clinical", clinical, coarse), ("micro", micro, fine)):
        layout[side] = (np.int16, (count, *shape))
        layout[f"{side}_case"] = (np.int32, (count,))
        layout[f"{side}_place"] = (np.int32, (count, 4))
    if paired:
        layout["truth"] = (np.int16, (clinical, *fine))
        layout["scanner"] = (np.float32, (clinical, 2))
    return layout


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} holds no patches ({MANIFEST} is missing); make them first.")
    try:
        manifest = json.loads(path.read_bytes())
        known = manifest["format"] == FORMAT
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RefusedInputError(f"{path} can't be read ({error}); {DAMAGED}") from None
    if not known:
        raise RefusedInputError(f"{path} is of another version ({manifest['format']}); make the patches again.")
    return dict(manifest)


def _mapped(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - of any dtype
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise RefusedInputError(f"{path} can't be read ({error}); {DAMAGED}") from None
    if array.dtype != dtype or array.shape != shape:
        raise RefusedInputError(
            f"{path} holds {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape} as the manifest says; {DAMAGED}"
        )
    return array


def _check_cases(folder: Path, arrays: Mapping[str, NDArray[Any]], sources: int) -> None:
    clinical, micro = (np.unique(arrays[f"{side}_case"]) for side in ("clinical", "micro"))
    numbers = np.concatenate([clinical, micro])
    if not (len(clinical) and len(micro)):
        raise RefusedInputError(f"{folder} lacks the patches of a domain; {DAMAGED}")
    if numbers.min() < 0 or numbers.max() >= sources:
        raise RefusedInputError(f"{folder} has patches of a case that its manifest does not list; {DAMAGED}")
    if len(np.unique(numbers)) < len(numbers):
        raise RefusedInputError(f"{folder} has patches of one case in both domains, which must not be; {DAMAGED}")
