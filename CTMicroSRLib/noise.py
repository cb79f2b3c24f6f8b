"""A scan's noise: the scatter inside small windows of uniform tissue.

Structure in a window only adds to its scatter, so the mode over many windows counts. CT noise is coloured
(a ramp under the scanner's transfer function), which decides how much of it a small window sees; that
share is computed from the point spread and divided out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.edge_windows import Floats, Spacing, as_hu, binomial_smooth, evenly_spaced_slices
from CTMicroSRLib.log_mode import log_mode
from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.volume import AIR_HU

SOFT_TISSUE_HU = (-50.0, 150.0)
ANY_TISSUE_HU = (-150.0, 300.0)
LUNG_HU = (-960.0, -500.0)
STRUCTURE_HU = (-250.0, 350.0)
OPEN_AIR_HU = (-1015.0, -960.0)


@dataclass(frozen=True)
class NoiseSettings:
    """Windows are ``window_mm`` wide, within ``window_pixels``; ``least_windows`` make an estimate.

    Windows closer than ``edge_margin_mm`` to lung, air or bone are left out.
    """

    slices: int = 24
    window_mm: float = 6.0
    edge_margin_mm: float = 1.4
    window_pixels: tuple[int, int] = (7, 13)
    least_windows: int = 40
    # Where little tissue is uniform its windows are a small peak below the one of boundaries.
    least_height: float = 0.25
    # Below this a window was padded or filled, not measured.
    least_noise_hu: float = 0.5


@dataclass(frozen=True)
class Noise:
    """``noise_hu`` is a standard deviation; ``region`` says where it was measured, in ``windows`` windows."""

    noise_hu: float
    region: str
    windows: int


@dataclass(frozen=True)
class NoiseWindows:
    """What is needed of every window, shape (n,), and how wide the windows are in pixels.

    ``mean`` in HU; ``variance`` about the window's plane in HU^2; ``unusable`` where a pixel is clipped or an
    edge runs through; ``upper_spread`` the distance in HU from the median to the 84 % quantile, in air.
    """

    width: int
    mean: Floats
    variance: Floats
    unusable: NDArray[np.bool_]
    upper_spread: Floats


def read_noise_windows(
    array_kji: NDArray[np.generic],
    spacing_mm: Spacing,
    progress: Progress,
    settings: NoiseSettings | None = None,
) -> NoiseWindows | None:
    """Cut evenly spaced slices into small windows and measure each.

    Args:
        array_kji: HU, shape (k, j, i), any real dtype.
        spacing_mm: spacing along i, j and k.
        progress: told of every slice.
        settings: size and number of the windows.

    Returns:
        The windows, or None where the slices are smaller than one.

    Raises:
        CancelledError: progress said so.
    """
    settings = settings or NoiseSettings()
    pixel = math.sqrt(spacing_mm[0] * spacing_mm[1])
    width = int(np.clip(round(settings.window_mm / pixel), *settings.window_pixels))
    if min(array_kji.shape[1:]) < width:
        return None
    margin = min(round(settings.edge_margin_mm / pixel), 4)
    chosen = evenly_spaced_slices(array_kji.shape[0], settings.slices)
    found = []
    for done, k in enumerate(chosen):
        check_cancelled(progress)
        progress.update("noise", done, len(chosen))
        found.append(_slice_windows(as_hu(array_kji[k]), width, margin))
    progress.update("noise", len(chosen), len(chosen))
    mean, variance, unusable, upper_spread = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return NoiseWindows(width, mean, variance, unusable, upper_spread)


def noise_of_windows(
    windows: NoiseWindows, spacing_mm: Spacing, psf_fwhm_mm: float, settings: NoiseSettings | None = None
) -> Noise | None:
    """Estimate the noise's standard deviation from a scan's windows.

    Soft tissue is used where there is enough of it, then any tissue, then the quietest tenth of the lung,
    then the air around the patient, of which only the upper half of the values counts (the lower
    may be clipped).

    Args:
        windows: see :func:`read_noise_windows`.
        spacing_mm: spacing along i, j and k.
        psf_fwhm_mm: point spread, which colours the noise.
        settings: how many windows make an estimate.

    Returns:
        The noise, or None when nothing uniform is in view.
    """
    settings = settings or NoiseSettings()
    seen, freedom = window_share(windows.width, spacing_mm, psf_fwhm_mm)
    variance = windows.variance / seen
    usable = (variance > settings.least_noise_hu**2) & ~windows.unusable

    def within(range_hu: tuple[float, float]) -> Floats:
        return np.asarray(variance[usable & (windows.mean > range_hu[0]) & (windows.mean < range_hu[1])])

    for region, range_hu in (("soft tissue", SOFT_TISSUE_HU), ("tissue", ANY_TISSUE_HU)):
        chosen = within(range_hu)
        if chosen.size >= settings.least_windows:
            bandwidth = max(0.1, 0.5 * math.sqrt(2.0 / freedom))
            # The logarithm of a chi-squared variable has its mode where the variable is at its mean.
            mode = log_mode(np.log(chosen), bandwidth, least_height=settings.least_height)
            return Noise(math.exp(mode / 2.0), region, int(chosen.size))
    chosen = within(LUNG_HU)
    if chosen.size >= settings.least_windows:
        quiet = float(np.quantile(chosen, 0.1)) / _chi_squared_tenth(freedom)
        return Noise(math.sqrt(quiet), "lung", int(chosen.size))
    air = (windows.mean > OPEN_AIR_HU[0]) & (windows.mean < OPEN_AIR_HU[1])
    spread = windows.upper_spread[air & (windows.upper_spread > settings.least_noise_hu)]
    if spread.size >= settings.least_windows:
        return Noise(float(np.median(spread)) / math.sqrt(seen), "air", int(spread.size))
    return None


def window_share(window: int, spacing_mm: Spacing, psf_fwhm_mm: float) -> tuple[float, float]:
    """What a window sees of noise whose power is a ramp times the squared transfer function.

    Returns:
        The expected sum of squares about the window's plane, over ``window**2 - 3`` and the noise's
        variance; and the effective degrees of freedom of that sum.
    """
    size = 128
    frequency_j = np.fft.fftfreq(size, spacing_mm[1])[:, None]
    frequency_i = np.fft.fftfreq(size, spacing_mm[0])[None, :]
    squared = frequency_j**2 + frequency_i**2
    sigma_mm = psf_fwhm_mm / math.sqrt(8.0 * math.log(2.0))
    power = np.sqrt(squared) * np.exp(-((2.0 * math.pi * sigma_mm) ** 2) * squared)
    correlation = np.fft.ifft2(power).real
    correlation /= correlation[0, 0]
    j, i = (index.ravel() for index in np.mgrid[:window, :window])
    matrix = correlation[j[:, None] - j[None, :], i[:, None] - i[None, :]]
    plane, _ = np.linalg.qr(np.stack([np.ones(j.size), j - j.mean(), i - i.mean()], axis=1))
    matrix = matrix - plane @ (plane.T @ matrix)
    matrix = matrix - (matrix @ plane) @ plane.T
    seen = float(np.trace(matrix))
    return seen / (window**2 - 3), seen**2 / float((matrix**2).sum())


def _slice_windows(image: Floats, window: int, margin: int) -> tuple[Floats, Floats, NDArray[np.bool_], Floats]:
    """Mean, variance, unusable and upper spread of a slice's windows, half overlapping."""
    stride = (window + 1) // 2
    smooth = binomial_smooth(image)
    structured = (smooth < STRUCTURE_HU[0]) | (smooth > STRUCTURE_HU[1])
    for _ in range(margin):
        structured[1:] |= structured[:-1].copy()
        structured[:-1] |= structured[1:].copy()
        structured[:, 1:] |= structured[:, :-1].copy()
        structured[:, :-1] |= structured[:, 1:].copy()

    def cut(of: NDArray[np.generic]) -> NDArray[np.generic]:
        windows = np.lib.stride_tricks.sliding_window_view(of, (window, window))
        return windows[::stride, ::stride].reshape(-1, window, window)

    values = np.asarray(cut(image), dtype=np.float32)
    mean = values.mean(axis=(1, 2))
    rest = values - mean[:, None, None]
    ramp = np.arange(window, dtype=np.float32) - (window - 1) / 2
    energy = window * float((ramp**2).sum())
    square = (rest**2).sum(axis=(1, 2))
    square -= (rest.sum(axis=2) @ ramp) ** 2 / energy + (rest.sum(axis=1) @ ramp) ** 2 / energy
    clipped = (values <= AIR_HU).any(axis=(1, 2))
    # An edge against lung, air or bone inside a window of soft tissue.
    edge = (mean > STRUCTURE_HU[0]) & cut(structured).any(axis=(1, 2))
    spread = np.zeros_like(mean)
    air = (mean < OPEN_AIR_HU[1]) & (mean > AIR_HU)
    if air.any():
        middle, high = np.quantile(values[air].reshape(-1, window * window), (0.5, 0.8413), axis=1)
        spread[air] = np.where(middle > AIR_HU, high - middle, 0)
    return mean, square / (window**2 - 3), clipped | edge, spread


def _chi_squared_tenth(freedom: float) -> float:
    """10 % quantile of a chi-squared variable over its mean (Wilson and Hilferty's approximation)."""
    part = 2.0 / (9.0 * freedom)
    return float((1.0 - part - 1.2816 * math.sqrt(part)) ** 3)
