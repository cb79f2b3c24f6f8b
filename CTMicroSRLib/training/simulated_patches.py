"""Patches of simulated specimens: clinical scans of some, with their truth, and the micro-CT of others."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.progress import Progress, SilentProgress
from CTMicroSRLib.simulation.description import OUTSIDE_LUNG, Specimen
from CTMicroSRLib.simulation.kernels import RATIOS, Kernel
from CTMicroSRLib.simulation.micro_scanner import MicroScannerSettings, micro_to_hu, scan_micro
from CTMicroSRLib.simulation.noise import patient_noise_hu
from CTMicroSRLib.simulation.scanner import PairedScan, ScannerSettings, scan_specimen
from CTMicroSRLib.simulation.sets import HELD_OUT_SEEDS, SEEDS_PER_SET
from CTMicroSRLib.simulation.slices import SOFTNESS
from CTMicroSRLib.simulation.specimen import SpecimenSettings, make_specimen
from CTMicroSRLib.training.patch_places import Int32, block_shares, draw_places, patch_shares
from CTMicroSRLib.training.patch_writing import CasePatches, writing_patches
from CTMicroSRLib.training.patches import (
    Patches,
    PatchSettings,
    Side,
    open_patches,
    patches_made_before,
    to_stored,
)
from CTMicroSRLib.volume import Volume
from CTMicroSRLib.workers import results_of

FIRST_MICRO_SEED = SEEDS_PER_SET // 2
"""Specimens of the micro-CT have seeds that far behind those of the clinical scans."""

PLANE_FINE_VOXELS = 3 / 8
"""Distance of a specimen's planes in clinical voxels: clinical slices are thicker still."""

BORDER_VOXELS = 4
"""Clinical voxels at a block's edge that no patch shows: the point spread reaches beyond the block there."""

SLICES_PER_SCAN = 3
WIDEST_SPACING_MM = 5.0
MICRO_DEPTH_MM = 3.0

ADDED = {"simulation": {"micro_specimens": 0, "shaped_share": 0.0, "kernel_ratio": [1.45, 2.1]}}
"""Settings that earlier patches were made without, and the values that make the same."""

Range = tuple[float, float]


@dataclass(frozen=True)
class SimulatedPatchSettings:
    """Which specimens and scanners simulated patches come from.

    A range is drawn from for every specimen (the pixel) or scan (the rest): uniformly, but for slices and noise, whose
    logarithm is uniform. They cover those of the set ``training-1``.

    Attributes:
        specimens: specimens of each domain.
        micro_specimens: how many of the micro-CT, where a method has little use for them; 0: ``specimens``.
        patches_per_specimen: patches of each, in either domain.
        scans_per_specimen: clinical scans of a specimen, each with its own point spread, slice, noise and grid.
        margin_voxels: clinical voxels by which a specimen's edge is longer than a patch's, 9 or more.
        pixel_mm: the clinical pixel; the micro-CT's voxel is ``scale`` times smaller than one of that range too.
        psf_fwhm_mm: width of the clinical point spread, a Gaussian but for ``shaped_share``.
        shaped_share: share of scans whose kernel has another MTF10 / MTF50 than a Gaussian, at the Gaussian's MTF50.
        kernel_ratio: that ratio.
        slice_mm: slice thickness.
        noise_hu: standard deviation of the noise.
        seed: specimens have the seeds ``seed * 100000`` and on, those of the micro-CT 50000 more.

    Raises:
        UsageError: a value out of its range, or a seed whose specimens models are judged on.
    """

    specimens: int = 24
    micro_specimens: int = 0
    patches_per_specimen: int = 120
    scans_per_specimen: int = 4
    margin_voxels: int = 24
    pixel_mm: Range = (0.5, 0.9)
    psf_fwhm_mm: Range = (0.6, 2.0)
    shaped_share: float = 0.0
    kernel_ratio: Range = (1.45, 2.1)
    slice_mm: Range = (0.5, 4.0)
    noise_hu: Range = (3.0, 60.0)
    seed: int = 1

    def __post_init__(self) -> None:
        for what, value, fewest, most in (
            ("number of specimens", self.specimens, 1, FIRST_MICRO_SEED),
            ("number of micro-CT specimens", self.micro_specimens, 0, FIRST_MICRO_SEED),
            ("number of patches per specimen", self.patches_per_specimen, 1, 100_000),
            ("number of scans per specimen", self.scans_per_specimen, 1, 100),
            ("margin", self.margin_voxels, 2 * BORDER_VOXELS + 1, 512),
            ("seed", self.seed, 0, 20_000),
        ):
            if value != int(value) or not fewest <= value <= most:
                raise UsageError(f"The {what} is {value}; choose a whole number of {fewest} to {most}.")
        if self.seed in HELD_OUT_SEEDS:
            raise UsageError(
                f"The seed {self.seed} makes specimens of the sets that models are judged on; take another."
            )
        for name, least, greatest in (
            ("pixel_mm", 0.2, 2.0),
            ("psf_fwhm_mm", 0.1, 5.0),
            ("kernel_ratio", *RATIOS),
            ("slice_mm", 0.5, 5.0),
            ("noise_hu", 0.1, 500.0),
        ):
            low, high = getattr(self, name)
            if not least <= low <= high <= greatest:
                raise UsageError(
                    f"The range {name} of {low} to {high} is not possible; stay within {least} to {greatest}."
                )
        if not 0.0 <= self.shaped_share <= 1.0:
            raise UsageError(f"The share of shaped kernels is {self.shaped_share}; choose 0 to 1.")

    def specimens_of(self, side: Side) -> int:
        """Specimens of a domain."""
        return (self.micro_specimens if side == "micro" else 0) or self.specimens


@dataclass(frozen=True)
class _Task:
    """A specimen of one domain."""

    side: Side
    number: int
    settings: SimulatedPatchSettings
    patches: PatchSettings

    @property
    def specimen_seed(self) -> int:
        first = self.settings.seed * SEEDS_PER_SET
        return first + self.number + (FIRST_MICRO_SEED if self.side == "micro" else 0)

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.specimen_seed, 0x50415443])


def simulate_patches(
    folder: Path,
    settings: SimulatedPatchSettings,
    patch_settings: PatchSettings,
    progress: Progress | None = None,
    workers: int = 1,
) -> Patches:
    """Make patches of simulated specimens, or open them where the same settings made them before.

    No specimen is in both domains. The micro-CT is calibrated to HU with the gain and offset that simulation knows, and
    normalised with the clinical window, so that a tissue has the same value in both domains; the stored settings say
    so.

    Args:
        folder: where; complete or not at all.
        settings: specimens and scanners.
        patch_settings: patches; ``patches_per_case``, ``micro_window`` and ``seed`` are replaced by what is said here.
        progress: told of every specimen.
        workers: processes that share the specimens, each on one thread; the patches don't depend on it.

    Raises:
        UsageError: the folder holds something else.
        RefusedInputError: it holds patches that are damaged.
        ResourceError: the disk or the memory is too small.
        CancelledError: ``progress`` said so.
    """
    progress = progress or SilentProgress()
    patch_settings = replace(
        patch_settings,
        micro_window=patch_settings.clinical_window,
        patches_per_case=settings.patches_per_specimen,
        seed=settings.seed,
    )
    request = {"simulation": asdict(settings), "settings": asdict(patch_settings), "micro_values": "HU"}
    found = patches_made_before(folder, request, ADDED)
    if found is not None:
        return found
    sides: tuple[Side, ...] = ("clinical", "micro")
    tasks = [_Task(side, n, settings, patch_settings) for side in sides for n in range(settings.specimens_of(side))]
    clinical, micro = (settings.specimens_of(side) * settings.patches_per_specimen for side in sides)
    with writing_patches(folder, patch_settings, request, clinical=clinical, micro=micro, simulated=True) as writer:
        progress.update("simulating", 0, len(tasks))
        cut = results_of(_cut, tasks, progress, workers=workers)
        for n, (task, case) in enumerate(zip(tasks, cut, strict=True)):
            writer.add(task.side, case)
            progress.update("simulating", n + 1, len(tasks))
    return open_patches(folder)


def _cut(task: _Task) -> CasePatches:
    """All patches of a specimen; they depend on the task alone."""
    return _cut_clinical(task) if task.side == "clinical" else _cut_micro(task)


def _cut_clinical(task: _Task) -> CasePatches:
    settings, rng = task.settings, task.rng()
    pixel_mm = float(rng.uniform(*settings.pixel_mm))
    specimen = _specimen(task, pixel_mm, settings.slice_mm[1] * (1.0 + SOFTNESS))
    window, size, scale = task.patches.windows["clinical"], task.patches.patch_voxels, task.patches.scale
    coarse, fine, places, scanners = [], [], [], []
    for scan_number, numbers in enumerate(
        np.array_split(np.arange(settings.patches_per_specimen), settings.scans_per_specimen)
    ):
        scanner = _scanner(rng, settings, specimen, scale)
        scan = scan_specimen(specimen, scanner, int(rng.integers(2**31)))
        for k, row, column in _clinical_places(rng, scan, task.patches, len(numbers)).tolist():
            coarse.append(scan.clinical.array_kji[k, row : row + size, column : column + size])
            rows, columns = (slice(first * scale, (first + size) * scale) for first in (row, column))
            fine.append(scan.truth.array_kji[k, rows, columns])
            places.append((scan_number, k, row, column))
            scanners.append((scanner.kernel.psf_fwhm_mm / pixel_mm, patient_noise_hu(scanner)))
    return CasePatches(
        _stored(coarse, window.normalise),
        np.asarray(places, np.int32),
        {"specimen_seed": task.specimen_seed, "pixel_mm": pixel_mm},
        truth=_stored(fine, window.normalise),
        scanner=np.asarray(scanners, np.float32),
    )


def _cut_micro(task: _Task) -> CasePatches:
    rng, size, scale = task.rng(), task.patches.fine_voxels, task.patches.scale
    pixel_mm = float(rng.uniform(*task.settings.pixel_mm))
    specimen = _specimen(task, pixel_mm, MICRO_DEPTH_MM)
    # No sample holder: patches would not show it.
    hu = micro_to_hu(scan_micro(specimen, MicroScannerSettings(wall_mm=0.0), task.specimen_seed))
    inside = _lung_shares(specimen.labels, scale)
    places = _places(rng, inside, task.patches, task.settings.patches_per_specimen)
    places[:, 1:] *= scale
    patches = [hu[k, row : row + size, column : column + size] for k, row, column in places.tolist()]
    return CasePatches(
        _stored(patches, task.patches.windows["micro"].normalise),
        np.insert(places, 0, 0, axis=1),
        {"specimen_seed": task.specimen_seed, "voxel_mm": pixel_mm / scale},
    )


def _specimen(task: _Task, pixel_mm: float, depth_mm: float) -> Specimen:
    scale = task.patches.scale
    voxel_mm = pixel_mm / scale
    edge_mm = (task.patches.patch_voxels + task.settings.margin_voxels) * pixel_mm
    plane_mm = max(1, round(PLANE_FINE_VOXELS * scale)) * voxel_mm
    planes = max(8, int(np.ceil(depth_mm / plane_mm)) + 1)
    settings = SpecimenSettings((edge_mm, edge_mm, planes * plane_mm), voxel_mm, plane_mm)
    return make_specimen(settings, task.specimen_seed)


def _scanner(
    rng: np.random.Generator, settings: SimulatedPatchSettings, specimen: Specimen, scale: int
) -> ScannerSettings:
    geometry = specimen.volume.geometry
    depth_mm = geometry.size_ijk[2] * geometry.spacing_mm[2]
    thickness_mm = max(_log_uniform(rng, settings.slice_mm), geometry.spacing_mm[2])
    spread_mm = (depth_mm - thickness_mm * (1.0 + SOFTNESS)) / (SLICES_PER_SCAN - 1)
    down, across = (int(shift) for shift in rng.integers(0, scale, 2))
    return ScannerSettings(
        _kernel(rng, settings),
        slice_thickness_mm=thickness_mm,
        slice_spacing_mm=min(max(spread_mm, 0.5), WIDEST_SPACING_MM),
        noise_hu=_log_uniform(rng, settings.noise_hu),
        scale=scale,
        shift_voxels_ji=(down, across),
    )


def _kernel(rng: np.random.Generator, settings: SimulatedPatchSettings) -> Kernel:
    gaussian = Kernel.gaussian(float(rng.uniform(*settings.psf_fwhm_mm)))
    if settings.shaped_share == 0 or rng.random() >= settings.shaped_share:
        return gaussian
    return Kernel(gaussian.mtf50_per_mm, float(rng.uniform(*settings.kernel_ratio)) * gaussian.mtf50_per_mm)


def _log_uniform(rng: np.random.Generator, limits: Range) -> float:
    low, high = np.log(limits)
    return float(np.exp(rng.uniform(low, high)))


def _clinical_places(rng: np.random.Generator, scan: PairedScan, settings: PatchSettings, count: int) -> Int32:
    inner = slice(BORDER_VOXELS, -BORDER_VOXELS)
    inside = _lung_shares(scan.labels, settings.scale)[:, inner, inner]
    return _places(rng, inside, settings, count) + np.asarray([0, BORDER_VOXELS, BORDER_VOXELS], np.int32)


def _lung_shares(labels: Volume, scale: int) -> NDArray[np.float32]:
    return np.stack([block_shares(~np.isin(plane, OUTSIDE_LUNG), scale) for plane in labels.array_kji])


def _places(rng: np.random.Generator, inside: NDArray[np.float32], settings: PatchSettings, count: int) -> Int32:
    """Places with enough lung; in a block that has too little everywhere, those with the most."""
    most = max(float(patch_shares(plane, settings.patch_voxels).max()) for plane in inside)
    least = min(settings.least_lung_share, most)
    return draw_places(rng, inside, settings.patch_voxels, count, least)[0]


def _stored(images: list[Any], normalise: Any) -> NDArray[np.int16]:  # noqa: ANN401 - a window's method
    return np.stack([to_stored(normalise(np.asarray(image, np.float32))) for image in images])
