"""A scan's noise: the scatter inside small windows of uniform tissue.

Structure in a window only adds to its scatter, so the mode over many windows counts, or, where windows are
few, the purest part of them. CT noise is coloured
(a ramp under the scanner's transfer function), which decides how much of it a small window sees; that
share is computed from the point spread and divided out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.acquisition.edge_windows import Floats, Spacing, as_hu, binomial_smooth, evenly_spaced_slices
from CTMicroSRLib.acquisition.log_mode import log_mode
from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.volume import AIR_HU

REGIONS = ("soft tissue", "tissue", "lung", "air")
"""Where noise may be measured, best first."""

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
    narrow_window_mm: float = 4.0
    edge_margin_mm: float = 1.0
    window_pixels: tuple[int, int] = (6, 13)
    least_windows: int = 40
    enough_windows: int = 2000
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
) -> list[NoiseWindows]:
    """Cut evenly spaced slices into small windows and measure each.

    Args:
        array_kji: HU, shape (k, j, i), any real dtype.
        spacing_mm: spacing along i, j and k.
        progress: told of every slice.
        settings: size and number of the windows.

    Returns:
        The windows of one width or two, or of none where the slices are smaller.

    Raises:
        CancelledError: progress said so.
    """
    settings = settings or NoiseSettings()
    pixel = math.sqrt(spacing_mm[0] * spacing_mm[1])
    least, most = settings.window_pixels
    margin = min(round(settings.edge_margin_mm / pixel), 4)
    chosen = evenly_spaced_slices(array_kji.shape[0], settings.slices)
    result: list[NoiseWindows] = []
    for width_mm in (settings.window_mm, settings.narrow_window_mm):
        width = min(max(round(width_mm / pixel), least), most)
        if min(array_kji.shape[1:]) < width or (result and width == result[0].width):
            break
        found = []
        for done, k in enumerate(chosen):
            check_cancelled(progress)
            progress.update("noise", done, len(chosen))
            found.append(_slice_windows(as_hu(array_kji[k]), width, margin))
        progress.update("noise", len(chosen), len(chosen))
        mean, variance, unusable, spread = (np.concatenate(parts) for parts in zip(*found, strict=True))
        result.append(NoiseWindows(width, mean, variance, unusable, spread))
        soft = (mean > SOFT_TISSUE_HU[0]) & (mean < SOFT_TISSUE_HU[1]) & ~unusable
        if np.count_nonzero(soft) >= settings.enough_windows:
            break
    return result


def noise_of_windows(
    windows: list[NoiseWindows],
    spacing_mm: Spacing,
    psf_fwhm_mm: float,
    settings: NoiseSettings | None = None,
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
    found = [_noise_of_width(w, spacing_mm, psf_fwhm_mm, settings) for w in windows]
    measured = [noise for noise in found if noise is not None]
    if not measured:
        return None
    # Where wide windows were too few, the narrow ones, read last, are the purer.
    return min(reversed(measured), key=lambda noise: REGIONS.index(noise.region))


def _noise_of_width(
    windows: NoiseWindows, spacing_mm: Spacing, psf_fwhm_mm: float, settings: NoiseSettings
) -> Noise | None:
    seen, freedom = window_share(windows.width, spacing_mm, psf_fwhm_mm)
    variance = windows.variance / seen
    usable = (variance > settings.least_noise_hu**2) & ~windows.unusable

    def within(range_hu: tuple[float, float]) -> Floats:
        return np.asarray(variance[usable & (windows.mean > range_hu[0]) & (windows.mean < range_hu[1])])

    for region, range_hu in zip(REGIONS[:2], (SOFT_TISSUE_HU, ANY_TISSUE_HU), strict=True):
        chosen = within(range_hu)
        if chosen.size >= settings.least_windows:
            logarithms = np.log(chosen)
            if chosen.size >= settings.enough_windows:
                bandwidth = max(0.1, 0.5 * math.sqrt(2.0 / freedom))
                # The logarithm of a chi-squared variable has its mode where the variable is at its mean.
                level = log_mode(logarithms, bandwidth, least_height=settings.least_height)
            else:
                level = purest_level(logarithms, freedom)
            return Noise(math.exp(level / 2.0), region, int(chosen.size))
    chosen = within(LUNG_HU)
    if chosen.size >= settings.least_windows:
        quiet = float(np.quantile(chosen, 0.1)) / _chi_squared_tenth(freedom)
        return Noise(math.sqrt(quiet), REGIONS[2], int(chosen.size))
    air = (windows.mean > OPEN_AIR_HU[0]) & (windows.mean < OPEN_AIR_HU[1])
    spread = windows.upper_spread[air & (windows.upper_spread > settings.least_noise_hu)]
    if spread.size >= settings.least_windows:
        return Noise(float(np.median(spread)) / math.sqrt(seen), REGIONS[3], int(spread.size))
    return None


def purest_level(logarithms: NDArray[np.floating], freedom: float) -> float:
    """Logarithm of the variance of noise alone, from windows of which many hold structure too.

    Maximum likelihood of a mixture: log variances scattered as chi-squared about the level, and the same
    pushed up by an exponentially distributed excess.

    Args:
        logarithms: log variances, shape (n,), n >= 1.
        freedom: degrees of freedom of a pure window's variance.

    Returns:
        The level, on a grid of 0.025.
    """
    step = 0.025
    x = np.arange(-6.0, 8.0, step)
    pure = np.exp(freedom / 2.0 * (x - np.exp(x) + 1.0))
    pure /= pure.sum()
    first = float(np.quantile(logarithms, 0.005)) - 0.5
    last = float(np.quantile(logarithms, 0.6)) + 0.5
    levels = np.arange(first, last, step)
    bins = np.clip(np.rint((np.asarray(logarithms) - first) / step).astype(np.intp), 0, x.size)
    values, counts = np.unique(bins, return_counts=True)
    zero = round(6.0 / step)
    at = np.clip(values[None, :] - np.arange(levels.size)[:, None] + zero, 0, x.size - 1)
    best, level = -math.inf, first
    for excess in (0.5, 1.0, 1.5, 2.5):
        tail = np.exp(-np.arange(0.0, 8.0, step) / excess)
        pushed = np.convolve(pure, tail / tail.sum())[: x.size]
        for share in (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0):
            density = np.log(share * pure + (1.0 - share) * pushed + 1e-12)
            likelihood = density[at] @ counts
            highest = int(np.argmax(likelihood))
            if likelihood[highest] > best:
                best, level = float(likelihood[highest]), float(levels[highest])
    return level


def window_share(window: int, spacing_mm: Spacing, psf_fwhm_mm: float) -> tuple[float, float]:
    """What a window sees of noise that is a ramp under the transfer function.

    Returns:
        The expected sum of squares about the window's plane, over ``window**2 - 3`` and the noise's
        variance; and the effective degrees of freedom of that sum.
    """
    size = 128
    frequency_j = np.fft.fftfreq(size, spacing_mm[1])[:, None]
    frequency_i = np.fft.fftfreq(size, spacing_mm[0])[None, :]
    squared = frequency_j**2 + frequency_i**2
    sigma_mm = psf_fwhm_mm / math.sqrt(8.0 * math.log(2.0))
    # Filtered back-projection gives the power one ramp; processing that takes low frequencies out, two.
    power = squared**0.75 * np.exp(-((2.0 * math.pi * sigma_mm) ** 2) * squared)
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
