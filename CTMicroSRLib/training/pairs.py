"""Simulated pairs for supervised training: made once from specimens, kept as memory-mapped arrays."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from CTMicroSRLib.simulation.description import OUTSIDE_LUNG, Specimen
from CTMicroSRLib.simulation.kernels import GAUSSIAN_RATIO, Kernel
from CTMicroSRLib.simulation.scanner import ScannerSettings, clean_slice
from CTMicroSRLib.simulation.slices import SOFTNESS, mean_plane, slice_weights
from CTMicroSRLib.simulation.specimen import SpecimenSettings, make_specimen

logger = logging.getLogger(__name__)

Float32 = NDArray[np.float32]

BORDER_VOXELS = 4
PLANE_VOXELS = 3
"""A specimen's planes are that many voxels thick: clinical slices are thicker still."""

LEAST_LUNG_SHARE = 0.3
TRIES = 6


@dataclass(frozen=True)
class PairSettings:
    """Which specimens and scanners the pairs come from; ranges are uniform unless said otherwise.

    ``patch_voxels`` is the coarse patch's edge, ``block_voxels`` the specimen's, both in coarse voxels. Most kernels
    are Gaussian; ``shaped_share`` of them has another MTF10 / MTF50, ``kernel_ratio``.
    """

    seed: int = 1
    specimens: int = 120
    pairs_per_specimen: int = 60
    patch_voxels: int = 40
    block_voxels: int = 64
    depth_mm: float = 8.0
    scale: int = 8
    pixel_mm: tuple[float, float] = (0.5, 0.9)
    psf_fwhm_mm: tuple[float, float] = (0.6, 2.0)
    slice_thickness_mm: tuple[float, float] = (0.5, 5.0)
    kernel_ratio: tuple[float, float] = (1.45, 2.1)
    shaped_share: float = 0.35


@dataclass(frozen=True)
class Pairs:
    """Pairs on disk.

    ``truth`` has shape ``(n, P * scale, P * scale)`` (int16 HU), ``clean`` ``(n, P, P)`` (float32 HU, without
    noise), ``scanner`` ``(n, 4)``: pixel mm, point spread's width mm, slice thickness mm, MTF10 / MTF50.
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
    numbers = range(settings.specimens)
    with ProcessPoolExecutor(max_workers=max(1, min(os.cpu_count() or 1, settings.specimens))) as workers:
        made = workers.map(_pairs_of_specimen, [settings] * settings.specimens, numbers)
        for n, part in zip(numbers, tqdm(made, total=settings.specimens, desc="specimens"), strict=True):
            rows = slice(n * settings.pairs_per_specimen, (n + 1) * settings.pairs_per_specimen)
            truth[rows], clean[rows], scanner[rows] = part
    for array in (truth, clean, scanner):
        array.flush()
    manifest.write_text(described)
    return load_pairs(folder)


def _pairs_of_specimen(settings: PairSettings, n: int) -> tuple[NDArray[np.int16], Float32, Float32]:
    """All pairs of one specimen; they depend on the settings and ``n`` alone."""
    rng = np.random.default_rng([settings.seed, n, 0x50414952])
    pixel_mm = float(rng.uniform(*settings.pixel_mm))
    specimen = make_specimen(_block(settings, pixel_mm), settings.seed * 100_000 + n)
    pairs = [_one_pair(rng, specimen, settings, pixel_mm) for _ in range(settings.pairs_per_specimen)]
    truth, clean, scanner = zip(*pairs, strict=True)
    return np.stack(truth).astype(np.int16), np.stack(clean), np.asarray(scanner, dtype=np.float32)


def _block(settings: PairSettings, pixel_mm: float) -> SpecimenSettings:
    edge_mm, voxel_mm = settings.block_voxels * pixel_mm, pixel_mm / settings.scale
    return SpecimenSettings(
        size_mm=(edge_mm, edge_mm, settings.depth_mm), voxel_mm=voxel_mm, slice_mm=PLANE_VOXELS * voxel_mm
    )


def _one_pair(
    rng: np.random.Generator, specimen: Specimen, settings: PairSettings, pixel_mm: float
) -> tuple[Float32, Float32, tuple[float, float, float, float]]:
    low, high = np.log(settings.slice_thickness_mm)
    thickness_mm = float(np.exp(rng.uniform(low, high)))
    ratio = float(rng.uniform(*settings.kernel_ratio)) if rng.random() < settings.shaped_share else GAUSSIAN_RATIO
    mtf50 = Kernel.gaussian(float(rng.uniform(*settings.psf_fwhm_mm))).mtf50_per_mm
    scanner = ScannerSettings(Kernel(mtf50, ratio * mtf50), slice_thickness_mm=thickness_mm, scale=settings.scale)
    planes, step_mm = specimen.volume.array_kji.shape[0], specimen.volume.geometry.spacing_mm[2]
    half_mm = thickness_mm * (1.0 + SOFTNESS) / 2.0
    centre_mm = np.array([rng.uniform(half_mm, planes * step_mm - half_mm)])
    plane = mean_plane(specimen.volume.array_kji, slice_weights(planes, step_mm, thickness_mm, centre_mm)[0])
    row, column = _place(rng, specimen.labels.array_kji[int(centre_mm[0] / step_mm)], settings)
    scale, border = settings.scale, BORDER_VOXELS * settings.scale
    size = settings.patch_voxels * scale
    around = plane[row - border : row + size + border, column - border : column + size + border]
    clean = clean_slice(around, scanner, pixel_mm / scale)
    inner = slice(BORDER_VOXELS, BORDER_VOXELS + settings.patch_voxels)
    return (
        np.rint(plane[row : row + size, column : column + size]),
        clean[inner, inner],
        (pixel_mm, scanner.kernel.psf_fwhm_mm, thickness_mm, ratio),
    )


def _place(rng: np.random.Generator, labels_ji: NDArray[np.uint8], settings: PairSettings) -> tuple[int, int]:
    """Corner of a patch in fine voxels, anywhere within a pixel; mostly one that shows some lung."""
    border, size = BORDER_VOXELS * settings.scale, settings.patch_voxels * settings.scale
    reach = settings.block_voxels * settings.scale - size - border
    for _ in range(TRIES):
        row, column = (int(v) for v in rng.integers(border, reach + 1, 2))
        wall = np.isin(labels_ji[row : row + size : 8, column : column + size : 8], OUTSIDE_LUNG)
        if wall.mean() < 1.0 - LEAST_LUNG_SHARE:
            break
    return row, column
