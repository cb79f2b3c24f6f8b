"""Simulated pairs for supervised training: made once from specimens, kept as memory-mapped arrays."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.scanner import ScannerSettings, clean_slice
from CTMicroSRLib.simulation.specimen import Specimen, SpecimenSettings, make_specimen

logger = logging.getLogger(__name__)

Float32 = NDArray[np.float32]

BORDER_VOXELS = 3


@dataclass(frozen=True)
class PairSettings:
    """Which specimens and scanners the pairs come from; ranges are uniform unless said otherwise.

    ``patch_voxels`` is the coarse patch's edge, ``block_voxels`` the specimen's, both in coarse voxels.
    """

    seed: int = 1
    specimens: int = 200
    pairs_per_specimen: int = 36
    patch_voxels: int = 40
    block_voxels: int = 64
    scale: int = 8
    pixel_mm: tuple[float, float] = (0.5, 0.9)
    psf_fwhm_mm: tuple[float, float] = (0.6, 2.0)
    slice_thickness_mm: tuple[float, float] = (0.5, 5.0)
    edge_enhancement: tuple[float, float] = (0.0, 0.35)
    enhanced_share: float = 0.25


@dataclass(frozen=True)
class Pairs:
    """Pairs on disk.

    ``truth`` has shape ``(n, P * scale, P * scale)`` (int16 HU), ``clean`` ``(n, P, P)`` (float32 HU, without
    noise), ``scanner`` ``(n, 4)``: pixel mm, point spread's width mm, slice thickness mm, edge enhancement.
    """

    truth: NDArray[np.int16]
    clean: Float32
    scanner: Float32

    def __len__(self) -> int:
        return len(self.truth)


def load_pairs(folder: Path) -> Pairs:
    """Open pairs that :func:`make_pairs` wrote, without reading them into memory."""
    truth, clean, scanner = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("truth", "clean", "scanner"))
    return Pairs(truth, clean, scanner)


def make_pairs(folder: Path, settings: PairSettings) -> Pairs:
    """Make the pairs, or open them where the same settings made them before."""
    described = json.dumps(asdict(settings), sort_keys=True)
    manifest = folder / "manifest.json"
    if manifest.exists() and manifest.read_text() == described:
        return load_pairs(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count, coarse = settings.specimens * settings.pairs_per_specimen, settings.patch_voxels
    fine = coarse * settings.scale
    shapes = {
        "truth": (np.int16, (count, fine, fine)),
        "clean": (np.float32, (count, coarse, coarse)),
        "scanner": (np.float32, (count, 4)),
    }
    truth, clean, scanner = (
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, (dtype, shape) in shapes.items()
    )
    for n in range(settings.specimens):
        rng = np.random.default_rng([settings.seed, n, 0x50414952])
        pixel_mm = float(rng.uniform(*settings.pixel_mm))
        specimen = make_specimen(_block(settings, pixel_mm), settings.seed * 100_000 + n)
        for m in range(n * settings.pairs_per_specimen, (n + 1) * settings.pairs_per_specimen):
            truth[m], clean[m], scanner[m] = _one_pair(rng, specimen, settings, pixel_mm)
        logger.info("specimen %d of %d", n + 1, settings.specimens)
    for array in (truth, clean, scanner):
        array.flush()
    manifest.write_text(described)
    return load_pairs(folder)


def _block(settings: PairSettings, pixel_mm: float) -> SpecimenSettings:
    edge_mm = settings.block_voxels * pixel_mm
    return SpecimenSettings(size_mm=(edge_mm, edge_mm, 8.0), voxel_mm=pixel_mm / settings.scale)


def _one_pair(
    rng: np.random.Generator, specimen: Specimen, settings: PairSettings, pixel_mm: float
) -> tuple[Float32, Float32, tuple[float, float, float, float]]:
    low, high = np.log(settings.slice_thickness_mm)
    thickness_mm = float(np.exp(rng.uniform(low, high)))
    enhanced = rng.random() < settings.enhanced_share
    scanner = ScannerSettings(
        psf_fwhm_mm=float(rng.uniform(*settings.psf_fwhm_mm)),
        edge_enhancement=float(rng.uniform(*settings.edge_enhancement)) if enhanced else 0.0,
        slice_thickness_mm=thickness_mm,
        scale=settings.scale,
    )
    slabs = specimen.volume
    depth = max(1, round(thickness_mm / slabs.geometry.spacing_mm[2]))
    start = int(rng.integers(0, slabs.array_kji.shape[0] - depth + 1))
    plane: Float32 = np.asarray(slabs.array_kji[start : start + depth].mean(axis=0, dtype=np.float32))
    clean = clean_slice(plane, scanner, pixel_mm / settings.scale)
    reach = settings.block_voxels - settings.patch_voxels - BORDER_VOXELS
    row, column = (int(v) for v in rng.integers(BORDER_VOXELS, reach + 1, 2))
    patch = settings.patch_voxels
    fine = settings.scale
    truth = plane[row * fine : (row + patch) * fine, column * fine : (column + patch) * fine]
    return (
        np.rint(truth),
        clean[row : row + patch, column : column + patch],
        (pixel_mm, scanner.psf_fwhm_mm, thickness_mm, scanner.edge_enhancement),
    )
