"""CT noise: the spectrum that filtered back-projection gives it, its size, and its correlation from slice to slice.

Photons are counted independently in every ray, so a filtered projection has the power ``(f MTF)^2`` of its filter,
and back-projection divides by ``f``: ramp times squared MTF (Riederer, Pelc and Chesler, Phys Med Biol 1978;23:446).
The reconstruction is evaluated at the pixels' centres. So the pixel's aperture, which in the image of the specimen
stands for the detector cell's width, does not shape the noise (a cell counts, it does not blur its noise); what lies
above the pixels' Nyquist frequency is not lost but folds back below it. Testing/physics checks this against a real
filtered back-projection.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from CTMicroSRLib.simulation.scanner import ScannerSettings

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

WATER_PER_MM = 0.0193
"""Linear attenuation of water at 70 keV, about the mean energy of a 120 kV beam (NIST)."""

REFERENCE_PATIENT_MM = 320.0
"""Diameter of the round water patient in which the noise is ``noise_hu``: the body dosimetry phantom's."""

BORDER_PIXELS = 8
"""Noise is made this much larger and cropped: a spectrum's noise is periodic, an image's is not."""

NEGLIGIBLE_TRANSFER = 0.01


def coloured_noise(
    rng: np.random.Generator, settings: ScannerSettings, pixel_mm: float, shape_ji: tuple[int, ...]
) -> Float32:
    """Noise of one slice in HU, shape ``(rows, columns)`` of clinical pixels.

    Its standard deviation is :func:`patient_noise_hu` in expectation: ``settings.noise_hu`` for the round patient.
    """
    padded = _padded(shape_ji)
    return _coloured(rng.standard_normal(padded), _amplitude(settings, pixel_mm, padded), shape_ji)


def noise_of_slices(
    rng: np.random.Generator,
    settings: ScannerSettings,
    pixel_mm: float,
    shape_ji: tuple[int, ...],
    weights: Float64,
) -> Float32:
    """Noise of all slices in HU, shape ``(slices, rows, columns)``.

    Each of the specimen's planes has its own noise, which enters the slices as the specimen does, with ``weights`` of
    shape ``(slices, planes)``. So overlapping slices share noise, with the correlation :func:`noise_correlation`; each
    slice's standard deviation is :func:`patient_noise_hu` all the same, as ``noise_hu`` is that of the slice.
    """
    share, padded = _noise_share(weights), _padded(shape_ji)
    white = np.zeros((len(weights), *padded))
    for plane in range(weights.shape[1]):
        drawn = rng.standard_normal(padded)
        for n in np.flatnonzero(share[:, plane]):
            white[n] += share[n, plane] * drawn
    amplitude = _amplitude(settings, pixel_mm, padded)
    return np.stack([_coloured(image, amplitude, shape_ji) for image in white])


def noise_correlation(weights: Float64) -> Float64:
    """Correlation of the noise of any two slices, ``(slices, slices)``, from their weights ``(slices, planes)``."""
    share = _noise_share(weights)
    return np.asarray(np.sum(share[:, None, :] * share[None, :, :], axis=2))


def patient_noise_hu(settings: ScannerSettings) -> float:
    """Expected standard deviation of the noise in HU at the centre of the settings' patient."""
    angle = np.arange(720) * (math.pi / 720)
    return settings.noise_hu * math.sqrt(float(np.mean(_ray_power(np.cos(angle), np.sin(angle), settings.patient_mm))))


def noise_power(settings: ScannerSettings, pixel_mm: float, shape_ji: tuple[int, int]) -> Float64:
    """Relative noise power at the frequencies of ``rfft2``, shape ``(rows, columns // 2 + 1)``; its mean over all is 1.

    The mean is that of a round patient of 320 mm; that of another patient is ``(patient_noise_hu / noise_hu)^2``.
    """
    folds = math.ceil(settings.kernel.frequency_at(NEGLIGIBLE_TRANSFER) * pixel_mm - 0.5)
    along_j = np.fft.fftfreq(shape_ji[0], pixel_mm)
    along_i = np.fft.rfftfreq(shape_ji[1], pixel_mm)
    power, whole = np.zeros((len(along_j), len(along_i))), np.zeros((len(along_j), len(along_i)))
    for j in range(-folds, folds + 1):
        for i in range(-folds, folds + 1):
            down, across = along_j[:, None] + j / pixel_mm, along_i[None, :] + i / pixel_mm
            radial = np.hypot(down, across)
            part = radial * settings.kernel.mtf(radial) ** 2
            whole += part
            # A ray's counts shape the frequencies at right angles to it.
            power += part * _ray_power(-down, across, settings.patient_mm)
    return np.asarray(power / _mean_over_all(whole, shape_ji[1]))


def _ray_power(x: NDArray[np.floating], y: NDArray[np.floating], patient_mm: tuple[float, float]) -> Float64:
    """Noise power of rays along (x, y) through the centre of an elliptic water patient, 1 for the round one."""
    width, depth = patient_mm
    length = np.hypot(x, y)
    through = np.hypot(x / width, y / depth)
    # The frequency zero has no direction, nor any power.
    chord_mm = np.divide(length, through, out=np.full(length.shape, REFERENCE_PATIENT_MM), where=through > 0)
    return np.asarray(np.exp(WATER_PER_MM * (chord_mm - REFERENCE_PATIENT_MM)))


def _noise_share(weights: Float64) -> Float64:
    """Weights of the planes' noise: slices of any thickness have the same standard deviation."""
    return np.asarray(weights / np.sqrt(np.sum(weights**2, axis=1, keepdims=True)))


def _amplitude(settings: ScannerSettings, pixel_mm: float, shape_ji: tuple[int, int]) -> Float64:
    return np.asarray(settings.noise_hu * np.sqrt(noise_power(settings, pixel_mm, shape_ji)))


def _coloured(white: Float64, amplitude: Float64, shape_ji: tuple[int, ...]) -> Float32:
    image = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=white.shape)
    return np.asarray(image[: shape_ji[0], : shape_ji[1]], dtype=np.float32)


def _padded(shape_ji: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = (n + BORDER_PIXELS + n % 2 for n in shape_ji)
    return rows, columns


def _mean_over_all(half: NDArray[np.floating], columns: int) -> float:
    """Mean over the whole spectrum of what ``rfft2`` keeps half of."""
    count = np.full(half.shape[1], 2.0)
    count[0] = 1.0
    if columns % 2 == 0:
        count[-1] = 1.0
    return float(np.sum(half * count) / (half.shape[0] * columns))
