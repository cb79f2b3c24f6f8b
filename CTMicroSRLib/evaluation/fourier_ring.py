"""Fourier ring correlation of an image with its truth: up to which frequency the image shows what is there.

Saxton and Baumeister, J. Microsc. 127 (1982). Against a truth without noise an image whose signal-to-noise ratio at a
frequency is SNR correlates by sqrt(SNR / (1 + SNR)), two such noisy images with each other by SNR / (1 + SNR). So 0.5
against the truth says what 1/7 says between two half data sets (Rosenthal and Henderson, J. Mol. Biol. 333, 2003): at
the cut-off the whole image's SNR is 1/3. Plain blurring leaves the correlation as it is; :mod:`.spectra` sees that.

The local map follows the scanning Fourier ring correlation by which the FDA marks fake regions (Kc, Zeng, Soni, Badano,
TechRxiv 2024, doi 10.36227/techrxiv.171259560.02243347; arXiv 2603.04673; public code DIDSR/sfrc): patches of 64 pixels
under a Hann window are fakes where their correlation falls below 0.5 at a frequency lower than a limit tuned for the
task. Here :meth:`LocalResolution.share_below` takes that limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.masked import checked_mask, checked_pair
from CTMicroSRLib.evaluation.spectra import PatchSettings, check_pixel, cut_patches, hann, rings

Float = NDArray[np.float64]
Int = NDArray[np.int64]

HALF = 0.5
ONE_SEVENTH = 1.0 / 7.0


@dataclass(frozen=True)
class RingCorrelation:
    """Correlation, -1 to 1, and the number of frequencies of each ring; all shape (n,). 0 where either has no power."""

    frequency_per_mm: Float
    correlation: Float
    modes: Int

    def cutoff_per_mm(self, threshold: float = HALF) -> float:
        """The first frequency at which the correlation falls below a threshold, see :func:`cutoffs_per_mm`."""
        return float(cutoffs_per_mm(self.frequency_per_mm, self.correlation[None], threshold)[0])

    def resolution_mm(self, threshold: float = HALF) -> float:
        """1 / cut-off frequency: the period of the finest waves that are right."""
        return 1.0 / self.cutoff_per_mm(threshold)


@dataclass(frozen=True)
class LocalResolution:
    """Cut-off frequencies of patches.

    ``cutoff_per_mm`` has shape (k, rows, columns), NaN where a patch was left out; patch (r, c) begins at voxel
    (r * stride, c * stride) of its slice and is ``settings.size`` voxels wide.
    """

    cutoff_per_mm: Float
    settings: PatchSettings

    @property
    def patches(self) -> int:
        """How many were measured."""
        return int(np.isfinite(self.cutoff_per_mm).sum())

    @property
    def median_per_mm(self) -> float:
        """Median cut-off frequency; NaN without patches."""
        return self.percentile_per_mm(50.0)

    @property
    def tenth_percentile_per_mm(self) -> float:
        """Cut-off frequency that a tenth of the patches does not reach; NaN without patches."""
        return self.percentile_per_mm(10.0)

    @property
    def median_resolution_mm(self) -> float:
        """1 / median cut-off frequency; NaN without patches."""
        return 1.0 / self.median_per_mm

    def percentile_per_mm(self, percentile: float) -> float:
        """Percentile of the cut-off frequencies; NaN without patches."""
        return float(np.nanpercentile(self.cutoff_per_mm, percentile)) if self.patches else float("nan")

    def share_below(self, cutoff_per_mm: float) -> float:
        """Share of the patches whose cut-off lies below a frequency (their resolution is coarser than 1 / it)."""
        return float(np.nansum(self.cutoff_per_mm < cutoff_per_mm)) / self.patches if self.patches else float("nan")


def ring_correlation(
    image_hu: NDArray[Any], truth_hu: NDArray[Any], pixel_mm: float, *, window: bool = True
) -> RingCorrelation:
    """Fourier ring correlation over whole slices.

    ``Re sum(F_image F_truth*) / sqrt(sum |F_image|^2 sum |F_truth|^2)``, each sum over the frequencies of one ring of
    all slices.

    Args:
        image_hu: HU, shape (k, j, i) or (j, i).
        truth_hu: HU, the same shape.
        pixel_mm: size of an in-plane voxel (square).
        window: multiply by a Hann window first, without which image borders correlate.

    Raises:
        ValueError: shapes differ, a value that is not finite, a pixel that is not positive, or slices below 8 voxels.
    """
    image, truth = checked_pair(image_hu, truth_hu)
    check_pixel(pixel_mm)
    shape = image.shape[1:]
    if min(shape) < 8:
        raise ValueError(f"Slices of {shape} voxels are too small for rings.")
    weights = hann(*shape) if window else np.ones(shape)
    ring, frequency = rings(shape, pixel_mm)
    sums = np.zeros((3, len(frequency)))
    for a, b in zip(image, truth, strict=True):
        sums += _ring_sums(a[None], b[None], weights, ring, len(frequency))[:, 0]
    modes = np.bincount(ring)[1 : len(frequency) + 1] * len(image)
    return RingCorrelation(frequency, _correlation(sums), modes)


def local_resolution(
    image_hu: NDArray[Any],
    truth_hu: NDArray[Any],
    pixel_mm: float,
    settings: PatchSettings | None = None,
    mask: NDArray[Any] | None = None,
    threshold: float = HALF,
) -> LocalResolution:
    """Cut-off frequency of the Fourier ring correlation of each patch, under a Hann window.

    Args:
        image_hu: HU, shape (k, j, i) or (j, i).
        truth_hu: HU, the same shape.
        pixel_mm: size of an in-plane voxel (square).
        settings: the patches; by default 64 voxels, 32 apart.
        mask: patches lie in it by ``settings.mask_share``; by default everywhere. Patches where the truth is flat
            are left out too.
        threshold: correlation that counts as found, 0.5 as in sFRC.

    Returns:
        The map; without patches all of it is NaN.

    Raises:
        ValueError: shapes differ, a value that is not finite, or a pixel that is not positive.
    """
    chosen = settings or PatchSettings()
    image, truth = checked_pair(image_hu, truth_hu)
    inside = checked_mask(mask, image.shape)
    check_pixel(pixel_mm)
    window = hann(chosen.size, chosen.size)
    ring, frequency = rings(window.shape, pixel_mm)
    counts = [max(0, (n - chosen.size) // chosen.stride + 1) for n in image.shape[1:]]
    cutoffs = np.full((len(image), *counts), np.nan)
    images, truths = cut_patches(image, inside, chosen), cut_patches(truth, inside, chosen)
    for (places, a), (_, b) in zip(images, truths, strict=True):
        sums = _ring_sums(a, b, window, ring, len(frequency))
        found = cutoffs_per_mm(frequency, _correlation(sums), threshold)
        flat = np.ptp(b, axis=(1, 2)) == 0
        row, column = places[:, 1] // chosen.stride, places[:, 2] // chosen.stride
        cutoffs[places[:, 0], row, column] = np.where(flat, np.nan, found)
    return LocalResolution(cutoffs, chosen)


def cutoffs_per_mm(frequency_per_mm: Float, correlation: Float, threshold: float) -> Float:
    """Where curves first fall below a threshold, by linear interpolation.

    Each curve is taken to begin with 1 at frequency 0. One that never falls below ends at the last frequency: its
    cut-off is at least that.

    Args:
        frequency_per_mm: shape (n,).
        correlation: shape (curves, n).
        threshold: above 0 and below 1.

    Raises:
        ValueError: a threshold out of 0 to 1.
    """
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"A threshold of {threshold} does not lie between 0 and 1.")
    frequency = np.concatenate([[0.0], frequency_per_mm])
    curves = np.concatenate([np.ones((len(correlation), 1)), correlation], axis=1)
    below = curves < threshold
    after = np.where(below.any(axis=1), below.argmax(axis=1), 1)
    each = np.arange(len(curves))
    high, low = curves[each, after - 1], curves[each, after]
    share = np.divide(high - threshold, high - low, out=np.ones_like(high), where=high > low)
    crossed = frequency[after - 1] + share * (frequency[after] - frequency[after - 1])
    return np.asarray(np.where(below.any(axis=1), crossed, frequency[-1]))


def _ring_sums(images: Float, truths: Float, window: Float, ring: Int, count: int) -> Float:
    """Cross power and the two powers in rings 1 to ``count``, shape (3, patches, rings)."""
    a, b = (np.fft.fft2(window * _without_mean(patches, window)) for patches in (images, truths))
    order = np.argsort(ring, kind="stable")
    starts = np.searchsorted(ring[order], np.arange(count + 2))
    products = ((a * b.conj()).real, a.real**2 + a.imag**2, b.real**2 + b.imag**2)
    sums = [np.add.reduceat(p.reshape(len(p), -1)[:, order], starts, axis=1)[:, 1 : count + 1] for p in products]
    return np.stack(sums)


def _without_mean(patches: Float, window: Float) -> Float:
    mean = np.tensordot(patches, window, axes=2) / window.sum()
    return np.asarray(patches - mean[:, None, None])


def _correlation(sums: Float) -> Float:
    cross, first, second = sums
    power = np.sqrt(first * second)
    return np.asarray(np.divide(cross, power, out=np.zeros_like(power), where=power > 0))
