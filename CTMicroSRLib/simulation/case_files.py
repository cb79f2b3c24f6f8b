"""Simulated cases as files: a folder with all of them, its manifest and checksums, written whole or not at all.

For each case ``case-SEED-clinical.nrrd`` (int16 HU), ``-truth.nrrd`` (float32 HU), ``-labels.nrrd`` (uint8
:class:`~CTMicroSRLib.simulation.description.Label`; its name makes Slicer load it as a label map), with the specimen's
own planes ``-micro.nrrd`` (int16 grey values) and ``-tissue-labels.nrrd`` (uint8), and ``-description.json``; ``.npy``
arrays of the volumes where asked for; and one ``manifest.json`` with seeds, settings, the set's name, versions, and
the SHA-256 of every file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from CTMicroSRLib import __version__
from CTMicroSRLib.errors import RefusedInputError, ResourceError, UsageError
from CTMicroSRLib.files import read_any_volume, write_volume
from CTMicroSRLib.models import sha256_of
from CTMicroSRLib.progress import Progress, SilentProgress, check_cancelled
from CTMicroSRLib.simulation.cases import Case, CaseSettings, simulate_case
from CTMicroSRLib.simulation.description import Description, Label, Nodule, Tubes
from CTMicroSRLib.simulation.scanner import PairedScan
from CTMicroSRLib.simulation.sets import CaseSet
from CTMicroSRLib.simulation.slices import SOFTNESS
from CTMicroSRLib.volume import Volume

KINDS = ("clinical", "truth", "labels", "micro", "tissue-labels")
MANIFEST = "manifest.json"
CASE_FILE = re.compile(rf"case-\d{{6,}}-(?:(?:{'|'.join(KINDS)})\.(?:nrrd|npy)|description\.json)")
STAGING = re.compile(r"\.simulate\.(\d+)\.part")

DESCRIPTION_BYTES_PER_MM3 = 400
"""What a description takes at most, by its specimen's volume."""

WHAT = "simulated lung specimens, their simulated clinical CT and micro-CT, and the truth; no patient, no real scan"


def write_cases(
    folder: Path, cases: CaseSet, *, arrays: bool = False, overwrite: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Make the cases and write their files; the folder gets all of them, the manifest last, or stays as it was.

    Unfinished files lie in a hidden folder inside, which goes with the run; what a killed process left of it goes with
    the next run.

    Args:
        folder: where to write; it is made if there is none.
        cases: seeds and settings.
        arrays: write ``.npy`` arrays of the volumes too, for ``numpy.load(mmap_mode="r")``.
        overwrite: replace the cases that the folder holds, all of them.
        progress: told of every case.

    Returns:
        The files, the manifest last.

    Raises:
        UsageError: the folder holds cases already.
        ResourceError: the folder can't be made, its disk is too small, or a specimen does not fit into memory.
        CancelledError: ``progress`` said so.
    """
    progress = progress or SilentProgress()
    names = [name for seed in cases.seeds for name in _names(seed, arrays=arrays)]
    _check_free(folder, [*names, MANIFEST], overwrite=overwrite)
    _check_space(folder, sum(case_bytes(settings, arrays=arrays) for _, settings in cases.cases))
    with _staging(folder) as staging:
        listed = []
        for n, (seed, settings) in enumerate(cases.cases):
            progress.update("simulating", n, len(cases))
            case = simulate_case(settings, seed, progress)
            check_cancelled(progress)
            _write_case(staging, case, arrays=arrays)
            listed.append(_listed(case))
        check_cancelled(progress)
        manifest = {
            "what": WHAT,
            "software": {"ctmicrosr": __version__, "numpy": np.__version__},
            "set": None if cases.name is None else {"name": cases.name, "version": cases.version},
            "seeds": list(cases.seeds),
            "labels": {label.name: int(label) for label in Label},
            "cases": listed,
            "sha256": {name: sha256_of(staging / name) for name in names},
        }
        _write_bytes(staging / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        _publish(staging, folder, [*names, MANIFEST])
    progress.update("simulating", len(cases), len(cases))
    return [folder / name for name in [*names, MANIFEST]]


def case_bytes(settings: CaseSettings, *, arrays: bool) -> int:
    """Room that a case's files take, at most."""
    planes, rows, columns = settings.specimen.grid.shape_kji
    base_mm, scanner = settings.slice_mm * (1.0 + SOFTNESS), settings.scanner
    slices = 1 + math.floor((planes * settings.plane_mm - base_mm) / scanner.slice_spacing_mm + 1e-6)
    fine = rows * columns
    volumes = slices * (fine * (4 + 1) + 2 * fine // settings.scale**2) + (2 + 1) * planes * fine
    description = math.prod(settings.specimen.size_mm) * DESCRIPTION_BYTES_PER_MM3
    return (2 if arrays else 1) * volumes + math.ceil(description) + 100_000


def cases_in(folder: Path) -> CaseSet:
    """Seeds and settings of the cases that a folder holds.

    Raises:
        UsageError: it holds none.
        RefusedInputError: its manifest is damaged, or of another version.
    """
    manifest = _read_manifest(folder)
    named = manifest["set"] or {"name": None, "version": 0}
    try:
        cases = tuple((int(case["seed"]), _settings(case["settings"])) for case in manifest["cases"])
        return CaseSet(named["name"], int(named["version"]), cases)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise RefusedInputError(
            f"{folder / MANIFEST} lists settings that this version does not know ({error}); simulate the cases again."
        ) from None


def verify_cases(folder: Path, progress: Progress | None = None) -> int:
    """Compare every file of a folder with its manifest's checksum.

    Returns:
        Number of files.

    Raises:
        UsageError: the folder holds no cases.
        RefusedInputError: a file is missing or changed, or the manifest is damaged.
        CancelledError: ``progress`` said so.
    """
    progress = progress or SilentProgress()
    sums: dict[str, str] = _read_manifest(folder)["sha256"]
    wrong = []
    for n, (name, expected) in enumerate(sums.items()):
        check_cancelled(progress)
        progress.update("verifying", n, len(sums))
        if not (folder / name).is_file() or sha256_of(folder / name) != expected:
            wrong.append(name)
    if wrong:
        what = "is missing or was changed" if len(wrong) == 1 else f"and {len(wrong) - 1} more are missing or changed"
        raise RefusedInputError(f"{folder / wrong[0]} {what}; simulate the cases again.")
    progress.update("verifying", len(sums), len(sums))
    return len(sums)


def load_case(folder: Path, seed: int) -> Case:
    """Read a case back, with the voxels that were simulated; checksums are for :func:`verify_cases` to compare.

    Raises:
        UsageError: the folder holds no case of that seed.
        RefusedInputError: a file is damaged or missing.
    """
    cases = cases_in(folder)
    settings = dict(cases.cases).get(seed)
    if settings is None:
        raise UsageError(f"{folder} holds no case of seed {seed}; its seeds are {', '.join(map(str, cases.seeds))}.")
    missing = next((name for name in _names(seed, arrays=False) if not (folder / name).is_file()), None)
    if missing is not None:
        raise RefusedInputError(f"{folder / missing} is missing; simulate the cases again.")
    clinical, truth, labels, micro, tissue = (read_any_volume(folder / _name(seed, kind)) for kind in KINDS)
    grey = Volume(micro.array_kji.astype(np.uint16), micro.geometry, micro.metadata)
    path = folder / _description_name(seed)
    try:
        description = _description(json.loads(path.read_bytes()))
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedInputError(f"{path} is damaged ({error}); simulate the cases again.") from None
    return Case(settings, seed, PairedScan(clinical, truth, labels), grey, tissue, description)


def _name(seed: int, kind: str, suffix: str = ".nrrd") -> str:
    return f"case-{seed:06d}-{kind}{suffix}"


def _description_name(seed: int) -> str:
    return _name(seed, "description", ".json")


def _names(seed: int, *, arrays: bool) -> list[str]:
    suffixes = (".nrrd", ".npy") if arrays else (".nrrd",)
    return [*(_name(seed, kind, suffix) for kind in KINDS for suffix in suffixes), _description_name(seed)]


def _write_case(folder: Path, case: Case, *, arrays: bool) -> None:
    scan, micro = case.scan, case.micro
    names = ", ".join(f"{int(label)} {label.name.lower().replace('_', ' ')}" for label in Label)
    # NRRD files are written signed; grey values end far below what that holds.
    grey = np.minimum(micro.array_kji, np.iinfo(np.int16).max).astype(np.int16)
    volumes = {
        "clinical": scan.clinical,
        "truth": scan.truth,
        "labels": Volume(scan.labels.array_kji, scan.labels.geometry, {"Labels": names}),
        "micro": Volume(grey, micro.geometry, micro.metadata),
        "tissue-labels": Volume(case.tissue.array_kji, case.tissue.geometry, {"Labels": names}),
    }
    for kind, volume in volumes.items():
        write_volume(volume, folder / _name(case.seed, kind))
        if arrays:
            path = folder / _name(case.seed, kind, ".npy")
            with _writing(path), path.open("wb") as file:
                np.save(file, volume.array_kji, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
    _write_bytes(folder / _description_name(case.seed), _described(case).encode())


def _described(case: Case) -> str:
    content = {"seed": case.seed, **asdict(case.description)}
    return json.dumps(content, default=lambda array: array.tolist(), allow_nan=False) + "\n"


def _description(content: Mapping[str, Any]) -> Description:
    x, y, z = content["extent_mm"]
    return Description(
        (x, y, z),
        _tubes(content["airways"]),
        _tubes(content["arteries"]),
        _tubes(content["veins"]),
        tuple(Nodule(**{**nodule, "centre_mm": tuple(nodule["centre_mm"])}) for nodule in content["nodules"]),
        dict(content["conditions"]),
    )


def _tubes(content: Mapping[str, Any]) -> Tubes:
    return Tubes(
        start_mm=np.asarray(content["start_mm"], np.float64).reshape(-1, 3),
        end_mm=np.asarray(content["end_mm"], np.float64).reshape(-1, 3),
        radius_mm=np.asarray(content["radius_mm"], np.float64),
        wall_mm=np.asarray(content["wall_mm"], np.float64),
        branch=np.asarray(content["branch"], np.int64),
        parent=np.asarray(content["parent"], np.int64),
    )


def _listed(case: Case) -> dict[str, Any]:
    """A case's entry in the manifest."""
    grey = {key: float(case.micro.metadata[key]) for key in ("GreyPerHU", "GreyOfAir")}
    return {
        "seed": case.seed,
        "settings": asdict(case.settings),
        "image_noise_hu": case.settings.image_noise_hu,
        "micro": {"grey_per_hu": grey["GreyPerHU"], "grey_of_air": grey["GreyOfAir"]},
    }


def _settings(content: Mapping[str, Any]) -> CaseSettings:
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    return CaseSettings(**values)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} holds no simulated cases ({MANIFEST} is missing); simulate them first.")
    try:
        manifest = json.loads(path.read_bytes())
        good = isinstance(manifest["cases"], list) and all(CASE_FILE.fullmatch(name) for name in manifest["sha256"])
        good = good and "set" in manifest
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise RefusedInputError(f"{path} is no manifest of simulated cases, or damaged; simulate the cases again.")
    return dict(manifest)


def _check_free(folder: Path, names: list[str], *, overwrite: bool) -> None:
    if overwrite:
        return
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder} holds simulated cases already; choose another folder or add --overwrite.")
    taken = next((name for name in names if (folder / name).exists()), None)
    if taken is not None:
        raise UsageError(f"{folder / taken} exists already; choose another folder or add --overwrite.")


def _check_space(folder: Path, needed_bytes: int) -> None:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed_bytes > free:
        raise ResourceError(
            f"The cases need {needed_bytes / 1e9:.2f} GB but {free / 1e9:.2f} GB is free on the disk of {folder}; "
            "free some space, or choose another disk or fewer cases."
        )


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files; it goes in the end, and with it the folders made for it that stayed empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    staging = folder / f".simulate.{os.getpid()}.part"
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(folder)
            staging.mkdir()
        except OSError as error:
            raise ResourceError(f"The folder {folder} can't be made ({error.strerror}); choose another.") from None
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _remove_stale(folder: Path) -> None:
    for path in folder.iterdir():
        match = STAGING.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _publish(staging: Path, folder: Path, names: list[str]) -> None:
    """Give all files their final names, the manifest last; on any trouble the folder is as it was before."""
    replaced = staging / "replaced"
    replaced.mkdir()
    old = [MANIFEST, *_listed_before(folder), *names]
    # Without its manifest a folder is nobody's result, so that goes first and comes last.
    moves = [(folder / name, replaced / name) for name in dict.fromkeys(old) if (folder / name).exists()]
    moves += [(staging / name, folder / name) for name in names]
    begun = []
    try:
        for source, target in moves:
            begun.append((source, target))
            with _writing(target):
                os.replace(source, target)
    except BaseException:
        for source, target in reversed(begun):
            if not source.exists():
                os.replace(target, source)
        raise


def _listed_before(folder: Path) -> list[str]:
    """Files of the cases that are replaced: those of a damaged manifest can't be told from others and stay."""
    try:
        return list(_read_manifest(folder)["sha256"])
    except (UsageError, RefusedInputError):
        return []


def _write_bytes(path: Path, content: bytes) -> None:
    with _writing(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell a failed write in the user's words."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{path} can't be written ({error.strerror or error}); free some space or choose another folder."
        ) from None
