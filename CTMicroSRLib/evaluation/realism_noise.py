"""Noise power spectra of square patches, and the patches of a scan that hold little but noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.volume import AIR_HU

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]

SOFT_TISSUE_HU = (0.0, 400.0)
OUTSIDE_AIR_HU = (-1015.0, -960.0)

SCATTER = (0.4, 1.2)
"""A patch of soft tissue whose scatter, over the scan's noise, lies between these holds little but noise."""

LEAST_PATCHES = 12

WINDOW_BANDWIDTH = 1.52
"""Equivalent noise bandwidth, in frequencies, of half a sine along both axes."""

TOP_OF_BAND = 0.7
"""Above this share of the Nyquist frequency structure has been blurred away and noise alone is left."""


@dataclass(frozen=True)
class Spectrum:
    """Noise power in HU^2 mm^2 at ``frequency`` (n,) in 1/mm, from ``patches`` patches of one size."""

    frequency: Float
    power: Float
    patches: int

    @property
    def noise_hu(self) -> float:
        """Standard deviation of a pixel: the root of the spectrum's integral over the plane."""
        return math.sqrt(2.0 * math.pi * float((self.frequency * self.power).sum()) * self.step)

    @property
    def step(self) -> float:
        """Distance of the frequencies in 1/mm."""
        return float(self.frequency[-1] - self.frequency[0]) / (len(self.frequency) - 1)

    @property
    def peak(self) -> float:
        """Frequency in 1/mm of the highest power (a parabola through the highest three)."""
        x, y = self.frequency, self.power
        top = min(max(int(np.argmax(y)), 1), len(y) - 2)
        bend = float(y[top - 1] - 2.0 * y[top] + y[top + 1])
        shift = 0.5 * float(y[top - 1] - y[top + 1]) / bend if bend < 0 else 0.0
        return float(x[top]) + min(max(shift, -1.0), 1.0) * self.step

    @property
    def centroid(self) -> float:
        """Mean frequency in 1/mm, weighted with the power."""
        return float((self.frequency * self.power).sum() / self.power.sum())

    @property
    def top(self) -> float:
        """Mean power at the top of the band."""
        return float(self.power[self.frequency >= TOP_OF_BAND * self.frequency[-1]].mean())


def patch_pixels(pixel_mm: float) -> int:
    """Edge of a patch: about 13 mm, an even number of 16 to 24 pixels."""
    return min(max(2 * round(6.5 / pixel_mm), 16), 24)


def cut_patches(image_ji: NDArray[np.generic], size: int, stride: int) -> NDArray[np.generic]:
    """All squares of ``size`` pixels, ``stride`` apart, shape (n, size, size); none from a smaller image."""
    if min(image_ji.shape) < size:
        return np.zeros((0, size, size), image_ji.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(image_ji, (size, size))
    chosen = windows[::stride, ::stride]
    return chosen.reshape(chosen.shape[0] * chosen.shape[1], size, size)


def without_trend(patches: Float32) -> Float32:
    """Each patch, shape (n, size, size), less its best surface of the second degree."""
    size = patches.shape[1]
    j, i = (index.ravel() / (size - 1.0) - 0.5 for index in np.mgrid[:size, :size])
    surface, _ = np.linalg.qr(np.stack([np.ones_like(i), i, j, i * i, i * j, j * j], axis=1))
    flat = patches.reshape(len(patches), size * size).astype(np.float64)
    flat -= (flat @ surface) @ surface.T
    return flat.reshape(patches.shape).astype(np.float32)


def soft_tissue_patches(image_ji: Float32, lung_ji: NDArray[np.bool_], size: int, noise_hu: float) -> Float32:
    """Patches of uniform soft tissue (muscle, heart, aorta, liver) of a slice in HU, outside the lungs."""
    patches, outside = _outside(image_ji, lung_ji, size)
    mean = patches.mean(axis=(1, 2))
    kept = outside & (mean > SOFT_TISSUE_HU[0]) & (mean < SOFT_TISSUE_HU[1])
    scatter = without_trend(patches[kept]).std(axis=(1, 2)) / noise_hu
    return np.asarray(patches[kept][(scatter > SCATTER[0]) & (scatter < SCATTER[1])])


def outside_air_patches(image_ji: Float32, lung_ji: NDArray[np.bool_], size: int) -> Float32:
    """Patches of the air around the patient in which next to nothing is clipped or padded."""
    patches, outside = _outside(image_ji, lung_ji, size)
    mean = patches.mean(axis=(1, 2))
    kept = outside & (mean > OUTSIDE_AIR_HU[0]) & (mean < OUTSIDE_AIR_HU[1])
    return np.asarray(patches[kept][np.mean(patches[kept] <= AIR_HU, axis=(1, 2)) < 0.01])


def _outside(image_ji: Float32, lung_ji: NDArray[np.bool_], size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    patches = cut_patches(image_ji, size, size // 2).astype(np.float32)
    return patches, np.asarray(~cut_patches(lung_ji, size, size // 2).any(axis=(1, 2)))


def measure_spectrum(patches: Float32, pixel_mm: float) -> Spectrum | None:
    """Noise power spectrum of square patches, the same in all directions.

    A surface of the second degree is taken off each patch, which is then faded out to its sides by half a sine. At each
    frequency the median over the patches counts, corrected to the mean that it stands for, so that the few patches
    that hold an edge do not.

    Args:
        patches: HU, shape (n, size, size).
        pixel_mm: edge of a pixel.

    Returns:
        The spectrum up to the pixels' Nyquist frequency, or None where there are too few patches.
    """
    if len(patches) < LEAST_PATCHES:
        return None
    size = patches.shape[1]
    # Without a window the strong low frequencies of texture leak into the weak top of the band.
    sine = np.sin(np.pi * (np.arange(size) + 0.5) / size)
    window = np.outer(sine, sine) / np.mean(sine**2)
    power = np.abs(np.fft.fft2(without_trend(patches) * window)) ** 2 * (pixel_mm / size) ** 2
    axis = np.fft.fftfreq(size, pixel_mm)
    frequency = np.hypot(axis[:, None], axis[None, :])
    ring = np.rint(frequency * size * pixel_mm)
    at, value = [], []
    for r in range(1, size // 2 + 1):
        chosen = ring == r
        of_patch = power[:, chosen].mean(axis=1)
        # Each pair of opposite frequencies is a chi-squared variable of two degrees of freedom, and the window
        # makes neighbours alike.
        freedom = np.count_nonzero(chosen) / WINDOW_BANDWIDTH
        value.append(float(np.median(of_patch)) / (1.0 - 2.0 / (9.0 * freedom)) ** 3)
        at.append(float(frequency[chosen].mean()))
    return Spectrum(np.array(at), np.array(value), len(patches))


def window_share(patches: Float32, window: int) -> float:
    """Mean variance inside windows of noise over the noise's variance; 1 where noise is white."""
    flat = without_trend(patches)
    inside = np.array([cut_patches(patch, window, window).var(axis=(1, 2), ddof=1).mean() for patch in flat])
    size = patches.shape[1]
    return float(np.median(inside / (flat.var(axis=(1, 2)) * size**2 / (size**2 - 6))))
