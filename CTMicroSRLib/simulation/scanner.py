"""The clinical CT of a specimen: what a scanner with known kernel, slices and dose would show of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.simulation.description import Specimen
from CTMicroSRLib.simulation.kernels import Kernel
from CTMicroSRLib.simulation.noise import noise_of_slices
from CTMicroSRLib.simulation.slices import slab_labels, slab_means, slab_weights
from CTMicroSRLib.volume import Geometry, Region, Volume

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SLICE_MM = (0.5, 5.0)
"""Least and greatest slice thickness and spacing."""

PATIENT_MM = (100.0, 600.0)
"""Least and greatest extent of a patient."""

STORED_HU = (-1024, 3071)
"""What 12 bits hold with the usual offset; values beyond are clipped."""

REACH_FWHM = 6.0
"""How far a point spread is taken to reach, in its full widths at half maximum (see :func:`reach_voxels`)."""


@dataclass(frozen=True)
class ScannerSettings:
    """A clinical scanner and protocol.

    Attributes:
        kernel: the in-plane point spread before the mean over the pixel.
        slice_thickness_mm: full width at half maximum of the slice profile, 0.5 to 5.
        slice_spacing_mm: distance of the slices, 0.5 to 5; below the thickness they overlap.
        noise_hu: the noise's standard deviation at the centre of a round water patient of 320 mm.
        scale: fine voxels per pixel along each axis.
        shift_voxels_ji: fine voxels by which the grid of pixels starts inside the specimen's, each below ``scale``.
        patient_mm: the patient's lateral (i) and antero-posterior (j) extent in water, an ellipse of 100 to 600 mm; see
            :func:`~CTMicroSRLib.simulation.noise.patient_noise_hu`. The dose is taken to stay the same.

    Raises:
        UsageError: a value out of its range.
    """

    kernel: Kernel = Kernel.gaussian(1.0)  # noqa: RUF009 - frozen
    slice_thickness_mm: float = 1.0
    slice_spacing_mm: float = 1.0
    noise_hu: float = 15.0
    scale: int = 8
    shift_voxels_ji: tuple[int, int] = (0, 0)
    patient_mm: tuple[float, float] = (320.0, 320.0)

    def __post_init__(self) -> None:
        for what, length_mm in (("thickness", self.slice_thickness_mm), ("spacing", self.slice_spacing_mm)):
            if not SLICE_MM[0] <= length_mm <= SLICE_MM[1]:
                raise UsageError(f"A slice {what} of {length_mm} mm is not a clinical one; choose 0.5 to 5 mm.")
        if not 0 <= self.noise_hu < math.inf:
            raise UsageError(f"A noise of {self.noise_hu} HU is not possible; give zero or more.")
        if self.scale < 1:
            raise UsageError(f"A pixel of {self.scale} fine voxels is not possible; give a scale of at least 1.")
        if not all(0 <= shift < self.scale for shift in self.shift_voxels_ji):
            raise UsageError(
                f"A shift by {self.shift_voxels_ji} fine voxels is not within a pixel; choose 0 to {self.scale - 1}."
            )
        if not all(PATIENT_MM[0] <= extent_mm <= PATIENT_MM[1] for extent_mm in self.patient_mm):
            raise UsageError(
                f"A patient of {self.patient_mm[0]} x {self.patient_mm[1]} mm is not possible; choose 100 to 600 mm."
            )


@dataclass(frozen=True)
class PairedScan:
    """``clinical`` (int16 HU), ``truth`` (float32 HU) and ``labels`` (uint8), on grids that differ by ``scale``.

    ``truth`` is the specimen averaged with the slice profile, without blur or noise: what a perfect in-plane
    super-resolution of ``clinical`` would be. ``labels`` says what its voxels are
    (:class:`~CTMicroSRLib.simulation.description.Label`), ``MIXED`` where the planes of the slice differ.
    """

    clinical: Volume
    truth: Volume
    labels: Volume


def scan_specimen(specimen: Specimen, settings: ScannerSettings, seed: int) -> PairedScan:
    """Scan a specimen; the same seed gives the same voxels.

    Raises:
        UsageError: a block that is no multiple of the pixel, or slices thinner than its planes or thicker than it.
    """
    check_whole_pixels(specimen.volume.array_kji.shape[1:], settings)
    thickness_mm, spacing_mm = settings.slice_thickness_mm, settings.slice_spacing_mm
    means = slab_means(specimen.volume, thickness_mm, spacing_mm)
    labels = slab_labels(specimen.labels, thickness_mm, spacing_mm)
    planes, step_mm = specimen.volume.array_kji.shape[0], specimen.volume.geometry.spacing_mm[2]
    weights, _ = slab_weights(planes, step_mm, thickness_mm, spacing_mm)

    voxel_mm = means.geometry.spacing_mm[0]
    clean = np.stack([clean_slice(plane, settings, voxel_mm) for plane in means.array_kji])
    rng = np.random.default_rng([seed, 0x5343414E])
    noise = noise_of_slices(rng, settings, voxel_mm * settings.scale, clean.shape[1:], weights)
    array = np.clip(np.rint(clean + noise), *STORED_HU).astype(np.int16)

    covered = _covered(means.geometry, settings)
    truth = means.crop(covered)
    clinical = Volume(array, coarse_geometry(truth.geometry, settings.scale), {"Modality": "CT"})
    return PairedScan(clinical, truth, labels.crop(covered))


def clean_slice(fine_ji: Float32, settings: ScannerSettings, voxel_mm: float) -> Float32:
    """One slice through the point spread and the mean over each pixel, without noise.

    Outside the slice its edge goes on, so the border within :func:`reach_voxels` is not what a larger block would give.

    Args:
        fine_ji: slice in HU whose rows and columns are multiples of the scale.
        settings: kernel, scale and shift count.
        voxel_mm: the fine voxel.

    Returns:
        The slice as the scanner shows it in HU, ``scale`` times smaller; with a shift along an axis one pixel less.

    Raises:
        UsageError: a slice that is no multiple of the pixel.
    """
    check_whole_pixels(fine_ji.shape, settings)
    border = reach_voxels(settings.kernel, voxel_mm)
    rows, columns = fine_ji.shape
    height, width = (_fast_size(size + 2 * border) for size in fine_ji.shape)
    pad = ((border, height - rows - border), (border, width - columns - border))
    padded = np.pad(np.asarray(fine_ji, dtype=np.float64), pad, mode="edge")
    frequency = np.hypot(np.fft.fftfreq(height, voxel_mm)[:, None], np.fft.rfftfreq(width, voxel_mm)[None, :])
    blurred = np.fft.irfft2(np.fft.rfft2(padded) * settings.kernel.mtf(frequency), s=(height, width))
    (top, left), scale = settings.shift_voxels_ji, settings.scale
    down, across = (rows - top) // scale, (columns - left) // scale
    inside = blurred[border + top :, border + left :][: down * scale, : across * scale]
    return np.asarray(inside.reshape(down, scale, across, scale).mean(axis=(1, 3)), dtype=np.float32)


def reach_voxels(kernel: Kernel, voxel_mm: float) -> int:
    """Fine voxels that a kernel's point spread reaches.

    Beyond, a Gaussian leaves nothing of an edge's height, the named kernels 2e-4 to 1e-3 of it: a shape other than 2
    has faint, long tails.
    """
    return math.ceil(REACH_FWHM * kernel.psf_fwhm_mm / voxel_mm)


def check_whole_pixels(shape_ji: tuple[int, ...], settings: ScannerSettings) -> None:
    """Raise UsageError unless a slice holds whole pixels, and at least one of them."""
    rows, columns = shape_ji
    if rows % settings.scale or columns % settings.scale:
        raise UsageError(
            f"The block of {columns} x {rows} voxels is not a multiple of {settings.scale}; change its size."
        )
    if min(rows - settings.shift_voxels_ji[0], columns - settings.shift_voxels_ji[1]) < settings.scale:
        raise UsageError(f"The block of {columns} x {rows} voxels holds no shifted pixel; make it larger.")


def coarse_geometry(fine: Geometry, scale: int) -> Geometry:
    """The grid that is ``scale`` times coarser in-plane and covers the same extent."""
    centre = (scale - 1) / 2.0
    return Geometry(
        size_ijk=(fine.size_ijk[0] // scale, fine.size_ijk[1] // scale, fine.size_ijk[2]),
        spacing_mm=(fine.spacing_mm[0] * scale, fine.spacing_mm[1] * scale, fine.spacing_mm[2]),
        origin_mm=fine.physical_point_mm((centre, centre, 0.0)),
        directions=fine.directions,
    )


def _covered(fine: Geometry, settings: ScannerSettings) -> Region:
    """The part of the fine grid that whole pixels cover."""
    (top, left), scale = settings.shift_voxels_ji, settings.scale
    columns, rows, slices = fine.size_ijk
    return Region(
        i=(left, left + (columns - left) // scale * scale),
        j=(top, top + (rows - top) // scale * scale),
        k=(0, slices),
    )


def _fast_size(least: int) -> int:
    """The next size that the Fourier transform is fast at: no prime factor above 5."""
    size = least
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 1
