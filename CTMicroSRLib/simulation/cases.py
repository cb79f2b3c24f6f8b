"""Simulated cases: a specimen, its clinical CT and the truth on the fine grid, in memory or as files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from CTMicroSRLib.errors import ResourceError, UsageError
from CTMicroSRLib.files import write_volume
from CTMicroSRLib.models import sha256_of
from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.simulation.scanner import PairedScan, ScannerSettings, scan_specimen
from CTMicroSRLib.simulation.specimen import SpecimenSettings, make_specimen
from CTMicroSRLib.volume import Volume

MAXIMUM_SIZE_VOXELS = 256


@dataclass(frozen=True)
class CaseSettings:
    """One specimen and scanner; lengths in millimetres, ``size_voxels`` clinical pixels along an edge.

    Raises:
        UsageError: a value out of its range.
    """

    pixel_mm: float = 0.625
    psf_fwhm_mm: float = 1.0
    edge_enhancement: float = 0.0
    slice_mm: float = 1.0
    noise_hu: float = 15.0
    size_voxels: int = 64
    depth_mm: float = 8.0
    scale: int = 8

    def __post_init__(self) -> None:
        if not 8 <= self.size_voxels <= MAXIMUM_SIZE_VOXELS:
            raise UsageError(
                f"A specimen of {self.size_voxels} pixels is not possible; choose 8 to {MAXIMUM_SIZE_VOXELS}."
            )
        if not 0.2 <= self.pixel_mm <= 2.0:
            raise UsageError(f"A pixel of {self.pixel_mm} mm is not a clinical one; choose 0.2 to 2 mm.")
        # Made here so that a wrong scanner is refused before a specimen is grown for it.
        scanner = self.scanner
        if not scanner.slice_thickness_mm <= self.depth_mm <= 100.0:
            raise UsageError(
                f"A slice of {self.slice_mm} mm is thicker than the specimen ({self.depth_mm} mm, at most 100); "
                "change one."
            )

    @property
    def specimen(self) -> SpecimenSettings:
        """The specimen's settings."""
        edge_mm = self.size_voxels * self.pixel_mm
        return SpecimenSettings(size_mm=(edge_mm, edge_mm, self.depth_mm), voxel_mm=self.pixel_mm / self.scale)

    @property
    def scanner(self) -> ScannerSettings:
        """The scanner's settings."""
        return ScannerSettings(
            psf_fwhm_mm=self.psf_fwhm_mm,
            edge_enhancement=self.edge_enhancement,
            slice_thickness_mm=self.slice_mm,
            slice_spacing_mm=self.slice_mm,
            noise_hu=self.noise_hu,
            scale=self.scale,
        )


def make_case(settings: CaseSettings, seed: int) -> PairedScan:
    """Grow and scan one specimen; the same seed and settings give the same voxels."""
    return scan_specimen(make_specimen(settings.specimen, seed), settings.scanner, seed)


def write_cases(
    folder: Path, count: int, seed: int, settings: CaseSettings, *, overwrite: bool, progress: Progress
) -> list[Path]:
    """Write ``case-SEED-clinical.nrrd`` and ``case-SEED-truth.nrrd`` for each seed, and ``manifest.json``.

    Raises:
        UsageError: no positive count, a negative seed, or files that exist.
        ResourceError: the folder can't be made.
    """
    if count < 1 or seed < 0:
        raise UsageError("Give a count of at least 1 and a seed of 0 or more.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"The folder {folder} can't be made ({error.strerror}); choose another.") from None
    manifest_path = folder / "manifest.json"
    if manifest_path.exists() and not overwrite:
        raise UsageError(f"{folder} holds simulated cases already; choose another folder or add --overwrite.")
    written: list[Path] = []
    for n in range(seed, seed + count):
        check_cancelled(progress)
        progress.update("simulating", n - seed, count)
        case = make_case(settings, n)
        for kind, volume in (("clinical", case.clinical), ("truth", case.truth)):
            path = folder / f"case-{n:06d}-{kind}.nrrd"
            write_volume(Volume(volume.array_kji, volume.geometry), path, overwrite=overwrite)
            written.append(path)
    progress.update("simulating", count, count)
    manifest = {
        "what": "simulated lung specimens (truth) and their simulated clinical CT; no patient, no micro-CT",
        "settings": asdict(settings),
        "seeds": [seed, seed + count],
        "sha256": {path.name: sha256_of(path) for path in written},
    }
    manifest_path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return [*written, manifest_path]
