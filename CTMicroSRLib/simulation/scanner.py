"""The clinical CT of a specimen: what a scanner with known blur, slices and noise would show of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.point_spread import FWHM_PER_SIGMA, scan_slice
from CTMicroSRLib.simulation.specimen import Specimen
from CTMicroSRLib.volume import Geometry, Volume

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class ScannerSettings:
    """A clinical scanner and protocol.

    ``psf_fwhm_mm`` is the in-plane Gaussian point spread before the pixel's own mean;
    ``edge_enhancement`` the share of a wider Gaussian that a sharp kernel takes away (0 to 0.5);
    ``noise_hu`` the noise's standard deviation in a uniform region; ``scale`` fine voxels per pixel.

    Raises:
        UsageError: a value out of its range.
    """

    psf_fwhm_mm: float = 1.0
    edge_enhancement: float = 0.0
    slice_thickness_mm: float = 1.0
    slice_spacing_mm: float = 1.0
    noise_hu: float = 15.0
    scale: int = 8

    def __post_init__(self) -> None:
        lengths_mm = (self.psf_fwhm_mm, self.slice_thickness_mm, self.slice_spacing_mm)
        if not all(math.isfinite(length) and length > 0 for length in lengths_mm):
            raise UsageError("A scanner's point spread, thickness and spacing must be positive millimetres.")
        if not 0 <= self.noise_hu < math.inf or not 0 <= self.edge_enhancement <= 0.5 or self.scale < 1:
            raise UsageError(
                "A scanner's noise must not be negative, its edge enhancement lie in 0 to 0.5 and its scale "
                "be at least 1."
            )


@dataclass(frozen=True)
class PairedScan:
    """``clinical`` (int16 HU) and ``truth`` (float32 HU), on grids that differ by ``scale`` in-plane.

    ``truth`` is the specimen averaged over the same slice, without blur or noise: what a perfect
    in-plane super-resolution of ``clinical`` would be.
    """

    clinical: Volume
    truth: Volume


def scan_specimen(specimen: Specimen, settings: ScannerSettings, seed: int) -> PairedScan:
    """Scan a specimen.

    Raises:
        UsageError: a slice thicker than the block, or a block that is not a multiple of the pixel.
    """
    fine = specimen.volume
    truth = slab_means(fine, settings.slice_thickness_mm, settings.slice_spacing_mm)
    rows, columns = truth.array_kji.shape[1:]
    if rows % settings.scale or columns % settings.scale:
        raise UsageError(
            f"The block of {columns} x {rows} voxels is not a multiple of {settings.scale}; change its size."
        )
    rng = np.random.default_rng([seed, 0x5343414E])
    voxel = fine.geometry.spacing_mm[0]
    slices = [
        clean_slice(plane, settings, voxel) + coloured_noise(rng, settings, voxel * settings.scale, plane.shape)
        for plane in np.asarray(truth.array_kji, dtype=np.float32)
    ]
    array = np.clip(np.rint(np.stack(slices)), -1024, 3071).astype(np.int16)
    return PairedScan(Volume(array, _coarse(truth.geometry, settings.scale), {"Modality": "CT"}), truth)


def slab_means(fine: Volume, thickness_mm: float, spacing_mm: float) -> Volume:
    """Average the block over slices of a thickness, ``spacing_mm`` apart.

    Raises:
        UsageError: no slice of that thickness fits into the block.
    """
    step_mm = fine.geometry.spacing_mm[2]
    depth = max(1, round(thickness_mm / step_mm))
    step = max(1, round(spacing_mm / step_mm))
    starts = range(0, fine.array_kji.shape[0] - depth + 1, step)
    if not starts:
        raise UsageError(f"A slice of {thickness_mm} mm is thicker than the specimen; make the specimen deeper.")
    array = np.stack([np.mean(fine.array_kji[k : k + depth], axis=0, dtype=np.float32) for k in starts])
    geometry = Geometry(
        size_ijk=(array.shape[2], array.shape[1], array.shape[0]),
        spacing_mm=(*fine.geometry.spacing_mm[:2], step * step_mm),
        origin_mm=fine.geometry.physical_point_mm((0.0, 0.0, (depth - 1) / 2.0)),
        directions=fine.geometry.directions,
    )
    return Volume(array.astype(np.float32), geometry)


def clean_slice(fine_ji: Float32, settings: ScannerSettings, voxel_mm: float) -> Float32:
    """One slice through the point spread and the pixel's mean, without noise (HU)."""
    width = settings.psf_fwhm_mm / voxel_mm
    image = scan_slice(fine_ji, settings.scale, (width, width))
    if settings.edge_enhancement:
        wide = scan_slice(fine_ji, settings.scale, (1.8 * width, 1.8 * width))
        image = image + np.float32(settings.edge_enhancement) * (image - wide)
    return image


def coloured_noise(
    rng: np.random.Generator, settings: ScannerSettings, pixel_mm: float, fine_shape_ji: tuple[int, ...]
) -> Float32:
    """Noise of one slice with the spectrum of filtered back-projection, ramp times squared MTF.

    The standard deviation is ``settings.noise_hu`` in expectation; shape is the coarse slice's.
    """
    rows, columns = (n // settings.scale for n in fine_shape_ji)
    frequency = np.hypot(np.fft.fftfreq(rows, pixel_mm)[:, None], np.fft.rfftfreq(columns, pixel_mm)[None, :])
    sigma_mm = settings.psf_fwhm_mm / FWHM_PER_SIGMA
    power = frequency * np.exp(-((2.0 * np.pi * sigma_mm * frequency) ** 2))
    full = np.hypot(np.fft.fftfreq(rows, pixel_mm)[:, None], np.fft.fftfreq(columns, pixel_mm)[None, :])
    mean_power = float(np.mean(full * np.exp(-((2.0 * np.pi * sigma_mm * full) ** 2))))
    white = rng.standard_normal((rows, columns))
    spectrum = np.fft.rfft2(white) * np.sqrt(power / mean_power)
    return (settings.noise_hu * np.fft.irfft2(spectrum, s=(rows, columns))).astype(np.float32)


def _coarse(fine: Geometry, scale: int) -> Geometry:
    """The grid that is ``scale`` times coarser in-plane and covers the same extent."""
    centre = (scale - 1) / 2.0
    return Geometry(
        size_ijk=(fine.size_ijk[0] // scale, fine.size_ijk[1] // scale, fine.size_ijk[2]),
        spacing_mm=(fine.spacing_mm[0] * scale, fine.spacing_mm[1] * scale, fine.spacing_mm[2]),
        origin_mm=fine.physical_point_mm((centre, centre, 0.0)),
        directions=fine.directions,
    )
