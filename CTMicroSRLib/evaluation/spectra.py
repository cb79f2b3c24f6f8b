"""Power spectra of images and of noise, and what an upsampling grid leaves in them.

Power is in HU^2 mm^2 by frequency in 1/mm: its integral over both in-plane frequencies is the variance in HU^2 (ICRU
Report 87, 2012, on the noise power spectrum of CT). In-plane voxels are taken to be square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.masked import as_slices, checked_mask, checked_pair

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class PatchSettings:
    """Square patches of ``size`` voxels, ``stride`` apart, of which ``mask_share`` at least lies in the mask.

    The rim that no whole patch reaches is left out.

    Raises:
        ValueError: a size below 8, a stride below 1 or a share out of 0 to 1.
    """

    size: int = 64
    stride: int = 32
    mask_share: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 8 or self.stride < 1 or not 0.0 <= self.mask_share <= 1.0:
            raise ValueError(f"Patches of {self.size} voxels, {self.stride} apart, {self.mask_share} in the mask.")


@dataclass(frozen=True)
class RadialSpectrum:
    """Power averaged over all directions, from the first ring to the voxels' Nyquist frequency.

    ``frequency_per_mm``, ``power_hu2_mm2`` and ``modes`` (how many frequencies of patches were averaged) have shape
    (n,); rings are ``step_per_mm`` wide and stand at the mean frequency of their modes. ``variance_hu2`` is the
    integral of the two-dimensional spectrum, corners included. ``patches`` is their number. The first two rings are
    biased low, because a plane was taken off each patch.
    """

    frequency_per_mm: Float
    power_hu2_mm2: Float
    modes: Int
    step_per_mm: float
    variance_hu2: float
    patches: int

    def band_power_hu2(self, low_per_mm: float, high_per_mm: float) -> float:
        """Variance between two frequencies (1/mm, the lower one included): power times area of the rings there."""
        inside = (self.frequency_per_mm >= low_per_mm) & (self.frequency_per_mm < high_per_mm)
        return float((self.power_hu2_mm2 * self.modes)[inside].sum() / self.patches * self.step_per_mm**2)


@dataclass(frozen=True)
class GridPeak:
    """Power at the frequencies of an upsampling grid relative to the frequencies around; 1 is no grid.

    It needs no truth, and says nothing of an image that has next to no power around; how strong a grid is, in HU, is
    what :mod:`CTMicroSRLib.evaluation.printed_grid` measures.

    ``along_j`` and ``along_i``: mean over the multiples of 1 / scale cycles per fine voxel along that axis (lines
    across it). ``lattice``: mean over all pairs of multiples (any pattern of scale x scale voxels, printed
    alike everywhere). ``largest``: the largest of these ratios, ``largest_at_ji`` its multiples. ``modulated_j`` and
    ``modulated_i``: the same as ``along_j`` and ``along_i`` for the absolute differences of neighbours along the axis,
    which sees a grid whose sign follows the content (blocks, interpolation sharper at some places than at others).
    """

    along_j: float
    along_i: float
    lattice: float
    largest: float
    largest_at_ji: tuple[int, int]
    modulated_j: float
    modulated_i: float


@dataclass(frozen=True)
class PowerRatio:
    """The spectra of an image and of its truth on the same rings; below 1: too little power there, above: too much."""

    image: RadialSpectrum
    truth: RadialSpectrum

    @property
    def ratio(self) -> Float:
        """Image's power over the truth's in each ring, shape (n,); NaN where the truth has none."""
        truth = self.truth.power_hu2_mm2
        return np.divide(self.image.power_hu2_mm2, truth, out=np.full_like(truth, np.nan), where=truth > 0)

    def in_band(self, low_per_mm: float, high_per_mm: float) -> float:
        """Ratio of the variances between two frequencies; NaN where the truth has none."""
        truth = self.truth.band_power_hu2(low_per_mm, high_per_mm)
        return self.image.band_power_hu2(low_per_mm, high_per_mm) / truth if truth > 0 else float("nan")


def noise_power_spectrum(
    noise_hu: NDArray[Any], pixel_mm: float, settings: PatchSettings | None = None, mask: NDArray[Any] | None = None
) -> RadialSpectrum:
    """Power spectrum by Welch's method (IEEE Trans. Audio Electroacoust. 15, 1967), over all directions.

    Every patch loses its best plane, is multiplied by a Hann window w and Fourier transformed; power is
    ``|F|^2 * pixel_mm^2 / sum(w^2)``, averaged over patches and then over rings of width 1 / (size * pixel_mm).

    Args:
        noise_hu: noise or any image, HU, shape (k, j, i) (slices or an ensemble, see :func:`ensemble_noise`) or (j, i).
        pixel_mm: size of an in-plane voxel.
        settings: the patches; by default 64 voxels, half overlapping.
        mask: voxels that may be used, the shape of ``noise_hu``; all by default.

    Returns:
        The spectrum.

    Raises:
        ValueError: no patch lies in image and mask, shapes differ, a value that is not finite, or a pixel that is
            not positive.
    """
    chosen = settings or PatchSettings()
    slices = as_slices(noise_hu)
    inside = checked_mask(mask, slices.shape)
    check_pixel(pixel_mm)
    window = hann(chosen.size, chosen.size)
    total, count = np.zeros(window.shape), 0
    for _, patches in cut_patches(slices, inside, chosen):
        transformed = np.fft.fft2(window * _without_plane(patches))
        total += (transformed.real**2 + transformed.imag**2).sum(axis=0)
        count += len(patches)
    if not count:
        raise ValueError(f"No patch of {chosen.size} voxels lies in the image and its mask.")
    power = total / count * (pixel_mm**2 / float((window**2).sum()))
    ring, frequency = rings(window.shape, pixel_mm)
    kept, step = slice(1, len(frequency) + 1), 1.0 / (chosen.size * pixel_mm)
    modes = np.bincount(ring)[kept]
    radial = np.bincount(ring, power.ravel())[kept] / modes
    return RadialSpectrum(frequency, radial, modes * count, step, float(power.sum()) * step**2, count)


def ensemble_noise(images_hu: NDArray[Any]) -> Float:
    """Noise of repeated images of one object: what each differs from their mean, scaled to the noise's variance.

    Args:
        images_hu: shape (n, j, i), HU, n at least 2, of the same object with independent noise.

    Raises:
        ValueError: fewer than two images, or a value that is not finite.
    """
    images = as_slices(images_hu, "ensemble")
    if len(images) < 2:
        raise ValueError("Noise by difference needs at least two images.")
    return np.asarray((images - images.mean(axis=0)) * np.sqrt(len(images) / (len(images) - 1)))


def power_ratio(
    image_hu: NDArray[Any],
    truth_hu: NDArray[Any],
    pixel_mm: float,
    settings: PatchSettings | None = None,
    mask: NDArray[Any] | None = None,
) -> PowerRatio:
    """Spectra of image and truth from the same patches.

    Arguments and errors are those of :func:`noise_power_spectrum`; image and truth have the same shape.
    """
    image, truth = checked_pair(image_hu, truth_hu)
    inside = checked_mask(mask, image.shape)
    return PowerRatio(
        noise_power_spectrum(image, pixel_mm, settings, inside), noise_power_spectrum(truth, pixel_mm, settings, inside)
    )


def grid_peak(image_hu: NDArray[Any], scale: int = 8) -> GridPeak:
    """Look for a grid of ``scale`` fine voxels, tied to the grid of voxels, in the whole image.

    Each slice, cut at its end to a multiple of ``scale``, loses its mean and is multiplied by a Hann window, so that
    its borders leave nothing. The power expected without grid is ``4 / pi`` times the mean, over pairs of opposite
    neighbours, of the root of their product, which no slope of the spectrum changes (``pi / 4`` is the mean root of the
    product of two exponential variables of mean 1). On an axis the neighbours are those of the same line, 3 to 16 steps
    away, as edges along the voxel axes raise the whole line; elsewhere those within 8 steps on either axis. Ratios are
    averaged over slices. The Nyquist frequency is left out, as it has no neighbours beyond. For texture without grid
    one ratio scatters by 1 / sqrt(slices), ``along_j`` and ``along_i`` for a scale of 8 by 1 / sqrt(3 slices), around
    1.0 to 1.1.

    An interpolation that keeps constants has zeros at these frequencies, so ratios below 1 aren't better than 1; its
    grid shows in the absolute differences, as blocking in JPEG images does (Wang, Bovik, Evans, ICIP 2000).

    Args:
        image_hu: HU, shape (k, j, i) or (j, i).
        scale: period of the grid in voxels, 3 or more (of a grid of 2 there is nothing but the Nyquist frequency).

    Raises:
        ValueError: a slice under 25 periods in-plane, a scale below 3, or a value that is not finite.
    """
    slices = as_slices(image_hu)
    if scale < 3 or min(slices.shape[1:]) < 25 * scale:
        raise ValueError(
            f"A grid of {scale} voxels, or fewer than 25 periods of it in slices of {slices.shape[1:]}, can't be seen."
        )
    multiples = range(1, (scale + 1) // 2)
    places = [(m, 0) for m in multiples] + [(0, n) for n in multiples]
    places += [(m, sign * n) for m in multiples for n in multiples for sign in (-1, 1)]
    found = _ratios(slices, scale, places)
    largest = max(found, key=lambda at: found[at])
    along_j, along_i = [(m, 0) for m in multiples], [(0, n) for n in multiples]
    return GridPeak(
        along_j=_mean([found[at] for at in along_j]),
        along_i=_mean([found[at] for at in along_i]),
        lattice=_mean(list(found.values())),
        largest=found[largest],
        largest_at_ji=largest,
        modulated_j=_mean(list(_ratios(np.abs(np.diff(slices, axis=1)), scale, along_j).values())),
        modulated_i=_mean(list(_ratios(np.abs(np.diff(slices, axis=2)), scale, along_i).values())),
    )


def cut_patches(slices: Float, inside: Bools, settings: PatchSettings) -> Iterator[tuple[Int, Float]]:
    """For each slice the patches that lie in the mask, shape (n, size, size), with their places.

    The places, shape (n, 3), are slice and first voxel (k, j, i). Slices without any are left out.
    """
    if min(slices.shape[1:]) < settings.size:
        return
    shape, step = (settings.size, settings.size), slice(None, None, settings.stride)
    for k, (plane, allowed) in enumerate(zip(slices, inside, strict=True)):
        share = np.lib.stride_tricks.sliding_window_view(allowed, shape)[step, step].mean(axis=(2, 3))
        row, column = np.nonzero(share >= settings.mask_share)
        if row.size:
            places = np.stack([np.full_like(row, k), row * settings.stride, column * settings.stride], axis=1)
            yield places, np.lib.stride_tricks.sliding_window_view(plane, shape)[step, step][row, column]


def hann(rows: int, columns: int) -> Float:
    """Hann window of two dimensions, without the zeros at its ends."""
    j, i = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n) for n in (rows, columns))
    return np.asarray(j[:, None] * i[None, :])


def rings(shape_ji: tuple[int, ...], pixel_mm: float) -> tuple[Int, Float]:
    """The ring of each frequency of an FFT of that shape (flattened), and the rings' mean frequencies from ring 1 on.

    Rings are one frequency step of the shorter side wide, up to the Nyquist frequency; further ones are the corners.
    """
    shorter = min(shape_ji)
    j, i = (np.fft.fftfreq(n, pixel_mm) for n in shape_ji)
    frequency = np.hypot(j[:, None], i[None, :]).ravel()
    ring = np.rint(frequency * shorter * pixel_mm).astype(np.int64)
    mean = np.bincount(ring, frequency) / np.bincount(ring)
    return ring, np.asarray(mean[1 : shorter // 2 + 1])


def check_pixel(pixel_mm: float) -> None:
    """Raise ValueError unless a pixel is positive and finite."""
    if not (np.isfinite(pixel_mm) and pixel_mm > 0):
        raise ValueError(f"A pixel of {pixel_mm} mm is not positive.")


def _without_plane(patches: Float) -> Float:
    """Each patch less its least-squares plane."""
    size = patches.shape[1]
    ramp = np.arange(size) - (size - 1) / 2
    energy = size * float((ramp**2).sum())
    flat = patches - patches.mean(axis=(1, 2), keepdims=True)
    along_i, along_j = flat.sum(axis=1) @ ramp / energy, flat.sum(axis=2) @ ramp / energy
    return np.asarray(flat - along_i[:, None, None] * ramp - along_j[:, None, None] * ramp[:, None])


GUARD = 3
"""Frequency steps from a peak that the Hann window doesn't spread it to."""


def _ratios(slices: Float, scale: int, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Power over expected power at multiples of the grid's frequency, averaged over slices."""
    rows, columns = (n // scale * scale for n in slices.shape[1:])
    window = hann(rows, columns)
    total = dict.fromkeys(places, 0.0)
    for plane in slices[:, :rows, :columns]:
        transformed = np.fft.fft2(window * (plane - np.average(plane, weights=window)))
        power = transformed.real**2 + transformed.imag**2
        for m, n in places:
            total[m, n] += _ratio(power, (m * rows // scale, n * columns // scale)) / len(slices)
    return total


def _ratio(power: Float, at_ji: tuple[int, int]) -> float:
    """Power at one frequency over what pairs of opposite neighbours let expect; 1 where there is no power at all."""
    row, column = at_ji
    if row and column:
        j, i = (offset.ravel() for offset in np.mgrid[-8:9, 0:9])
        pairs = (np.maximum(np.abs(j), i) >= GUARD) & ((i > 0) | (j > 0))
        j, i = j[pairs], i[pairs]
    else:
        line = np.arange(GUARD, 17)
        j, i = (line, 0 * line) if row else (0 * line, line)
    rows, columns = power.shape
    before, after = (power[(row + sign * j) % rows, (column + sign * i) % columns] for sign in (-1, 1))
    expected = 4.0 / np.pi * float(np.mean(np.sqrt(before * after)))
    if expected > 0:
        return float(power[row, column]) / expected
    return float("inf") if power[row, column] > 0 else 1.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
