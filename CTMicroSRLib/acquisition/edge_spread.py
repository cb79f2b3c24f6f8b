"""A scan's in-plane point spread, read off the edges between air or lung and soft tissue.

The raw pixels around each edge are fitted with the scanner's edge response: a Gaussian point spread,
the mean over the pixel's area and the lean of the surface through the slice. What else is wrong with an
edge (clothing, motion, a soft boundary, a vessel beside it) mostly widens it, so the mode of the widths
counts, not their mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.acquisition.edge_windows import EdgeWindows, Floats, Spacing, WindowSettings, read_edge_windows
from CTMicroSRLib.acquisition.log_mode import log_mode
from CTMicroSRLib.progress import Progress, check_cancelled

FWHM_PER_SIGMA = math.sqrt(8.0 * math.log(2.0))

LOW, STEP, OFFSET, TURN, CURVATURE, LOG_SIGMA, HIGH_SLOPE, LOW_SLOPE = range(8)
"""Columns of the fit's parameters: HU, HU, mm, radians, 1/mm, log mm, HU/mm, HU/mm."""

FIRST_SIGMA_MM = 0.45
SIGMA_RANGE_MM = (0.05, 4.0)


@dataclass(frozen=True)
class FitSettings:
    """How edges are fitted and which fits count; the priors are standard deviations about zero."""

    windows_at_once: int = 512
    iterations: int = 12
    common_iterations: int = 4
    common_rounds: int = 3
    turn_prior: float = 0.1
    curvature_prior_per_mm: float = 0.03
    slope_prior_hu_per_mm: float = 40.0
    flat_slopes_hu_per_mm: tuple[float, float] = (20.0, 10.0)
    model_error: float = 0.03
    largest_log_width_error: float = 0.15
    largest_lean: float = 1.5
    least_edges: int = 20
    enough_edges: int = 150


@dataclass(frozen=True)
class EdgeSpread:
    """Width of the point spread and the fits behind it.

    ``psf_fwhm_mm`` is the Gaussian without the pixel's area; ``quartiles_mm`` are the 25 % and 75 %
    quantiles of the single edges' widths; ``edges`` is how many fits were used. ``windows`` and ``fits``
    are the edges themselves.
    """

    psf_fwhm_mm: float
    edges: int
    quartiles_mm: tuple[float, float]
    windows: EdgeWindows
    fits: EdgeFits


@dataclass(frozen=True)
class EdgeFits:
    """One row per window.

    ``parameters`` has 8 columns, see ``LOW`` and its neighbours; ``log_sigma_error`` is the standard error
    of log(sigma); ``log_sigma_change`` the step of log(sigma) that the window asks for, seen from the sigma
    it was fitted with; ``residual_hu`` the root mean square of data minus model.
    """

    parameters: Floats
    log_sigma_error: Floats
    log_sigma_change: Floats
    residual_hu: Floats


def measure_edge_spread(
    array_kji: NDArray[np.generic],
    spacing_mm: Spacing,
    noise_hu: float,
    progress: Progress,
    window_settings: WindowSettings | None = None,
    settings: FitSettings | None = None,
) -> EdgeSpread | None:
    """Estimate the point spread from the volume's edges.

    Args:
        array_kji: HU, shape (k, j, i), any real dtype.
        spacing_mm: spacing along i, j and k.
        noise_hu: a first idea of the noise, which weighs the fit against its priors.
        progress: told of every slice.
        window_settings: which edges to use.
        settings: how to fit them.

    Returns:
        The point spread, or None when there are too few good edges.

    Raises:
        CancelledError: progress said so.
    """
    window_settings, settings = window_settings or WindowSettings(), settings or FitSettings()
    windows = read_edge_windows(array_kji, spacing_mm, progress, window_settings)
    if windows is None:
        return None
    pixel_variance = (spacing_mm[0] ** 2 + spacing_mm[1] ** 2) / 24.0
    fits = fit_windows(windows, noise_hu, settings)
    good = _good(windows, fits, noise_hu, pixel_variance, window_settings, settings)
    # Skin is a thin layer over fat and lies far from the centre of rotation: the lungs' own edges are better.
    if np.count_nonzero(good & ~windows.skin) >= settings.enough_edges:
        good &= ~windows.skin
    if np.count_nonzero(good) < settings.least_edges:
        return None
    windows, start = windows.select(good), fits.parameters[good]
    free = np.log(_total(np.exp(start[:, LOG_SIGMA]), pixel_variance))
    total = math.exp(log_mode(free, 0.1))
    # Widths fitted one by one scatter lopsidedly where the noise is high. Seen from one common width all
    # edges scatter evenly, so that width is moved until most edges ask for no change.
    for _ in range(settings.common_rounds):
        check_cancelled(progress)
        near = windows.lean_mm < settings.largest_lean * total
        if np.count_nonzero(near) < settings.least_edges:
            return None
        windows, start = windows.select(near), start[near]
        sigma = float(_point_spread(total, pixel_variance))
        fits = fit_windows(windows, noise_hu, settings, sigma, start)
        change, error = (x * (sigma / total) ** 2 for x in (fits.log_sigma_change, fits.log_sigma_error))
        bandwidth = math.hypot(0.04, 1.2 * float(np.median(error)))
        moved = log_mode(change, bandwidth, _weight(windows, fits, error, total, settings))
        single = _point_spread(total * np.exp(np.clip(change, -2, 2)), pixel_variance) * FWHM_PER_SIGMA
        total *= math.exp(float(np.clip(moved, -0.3, 0.3)))
    low, high = np.quantile(single, (0.25, 0.75))
    return EdgeSpread(
        psf_fwhm_mm=float(_point_spread(total, pixel_variance)) * FWHM_PER_SIGMA,
        edges=len(single),
        quartiles_mm=(float(low), float(high)),
        windows=windows,
        fits=fits,
    )


def fit_windows(
    windows: EdgeWindows,
    noise_hu: float,
    settings: FitSettings,
    common_sigma_mm: float | None = None,
    start: Floats | None = None,
) -> EdgeFits:
    """Fit the edge model to all windows at once (Levenberg-Marquardt).

    With u the distance (mm) from a gently curved edge, the model is ``low + step H(u)`` plus a slope on
    either side; H is the Gaussian's integral averaged over the pixel's area and the lean.

    Args:
        windows: the edges.
        noise_hu: standard deviation that the residual is held against when priors are weighed.
        settings: priors and number of iterations.
        common_sigma_mm: hold every window at this sigma; None fits it.
        start: parameters to start from, shape (n, 8); None starts from the windows' first guesses.

    Returns:
        The fits, row by row with ``windows``.
    """
    start = _first_parameters(windows) if start is None else start
    parts = []
    for first in range(0, len(start), settings.windows_at_once):
        part = np.arange(first, min(first + settings.windows_at_once, len(start)))
        parts.append(_fit_part(windows.select(part), noise_hu, settings, common_sigma_mm, start[part]))
    return EdgeFits(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(EdgeFits)})


def _fit_part(
    windows: EdgeWindows,
    noise_hu: float,
    settings: FitSettings,
    common_sigma_mm: float | None,
    parameters: Floats,
) -> EdgeFits:
    parameters = parameters.copy()
    held = common_sigma_mm is not None
    if common_sigma_mm is not None:
        parameters[:, LOG_SIGMA] = math.log(common_sigma_mm)
    target = np.zeros(8, dtype=np.float32)
    target[LOG_SIGMA] = math.log(common_sigma_mm or FIRST_SIGMA_MM)
    prior = np.zeros(8, dtype=np.float32)
    prior[TURN], prior[CURVATURE] = 1 / settings.turn_prior, 1 / settings.curvature_prior_per_mm
    prior[HIGH_SLOPE] = prior[LOW_SLOPE] = 1 / settings.slope_prior_hu_per_mm
    prior[LOG_SIGMA] = 1.0
    # Residuals of neighbouring pixels hang together and no edge is perfect, hence at least 10 HU.
    prior *= math.hypot(noise_hu, 10.0)

    data, weight = windows.data, windows.weight
    damping = np.full(len(data), 1e-2, dtype=np.float32)
    values, jacobian = _edge_model(parameters, windows)
    cost = _cost(data - values, weight, parameters - target, prior)
    identity = np.eye(8, dtype=np.float32)
    for _ in range(settings.common_iterations if held else settings.iterations):
        normal, slope = _normal_equations(data - values, jacobian, weight, parameters - target, prior)
        if held:
            normal[:, LOG_SIGMA] = normal[:, :, LOG_SIGMA] = 0
            normal[:, LOG_SIGMA, LOG_SIGMA] = 1
            slope[:, LOG_SIGMA] = 0
        diagonal = np.einsum("npp->np", normal)
        damped = normal + (damping[:, None] * diagonal + 1e-6)[:, :, None] * identity
        step = np.linalg.solve(damped, slope[:, :, None])[:, :, 0]
        step[:, LOG_SIGMA] = np.clip(step[:, LOG_SIGMA], -0.5, 0.5)
        trial = parameters + step
        trial[:, LOG_SIGMA] = np.clip(trial[:, LOG_SIGMA], *np.log(SIGMA_RANGE_MM))
        trial_values, trial_jacobian = _edge_model(trial, windows)
        trial_cost = _cost(data - trial_values, weight, trial - target, prior)
        better = trial_cost < cost
        damping = np.clip(np.where(better, damping * 0.3, damping * 5.0), 1e-5, 1e4)
        cost = np.where(better, trial_cost, cost)
        parameters = np.where(better[:, None], trial, parameters)
        values = np.where(better[:, None], trial_values, values)
        jacobian = np.where(better[:, None, None], trial_jacobian, jacobian)

    residual = data - values
    mean_square = (weight * residual**2).sum(axis=1) / np.maximum(weight.sum(axis=1) - 6.0, 1.0)
    prior[LOG_SIGMA] = 0.0
    normal, slope = _normal_equations(residual, jacobian, weight, parameters - target, prior)
    covariance = np.linalg.inv(normal + 1e-4 * identity)
    return EdgeFits(
        parameters=parameters,
        log_sigma_error=np.sqrt(np.maximum(covariance[:, LOG_SIGMA, LOG_SIGMA], 0) * mean_square),
        log_sigma_change=(covariance[:, LOG_SIGMA] * slope).sum(axis=1),
        residual_hu=np.sqrt(mean_square),
    )


def _good(
    windows: EdgeWindows,
    fits: EdgeFits,
    noise_hu: float,
    pixel_variance: float,
    window_settings: WindowSettings,
    settings: FitSettings,
) -> NDArray[np.bool_]:
    """Which fits are edges of the kind that was looked for, well determined and well described."""
    low, step, offset, turn = fits.parameters.T[:4]
    least, most = window_settings.high_side_range_hu
    sigma = np.exp(fits.parameters[:, LOG_SIGMA])
    total = _total(sigma, pixel_variance)
    good = (step > window_settings.least_step_hu) & (low < window_settings.low_side_below_hu)
    good &= (low + step > least) & (low + step < most)
    good &= (np.abs(offset) < 1.5) & (np.abs(turn) < 0.3)
    good &= fits.log_sigma_error * sigma**2 / total**2 < settings.largest_log_width_error
    good &= fits.residual_hu**2 < (1.3 * noise_hu) ** 2 + (settings.model_error * step) ** 2
    return np.asarray(good, dtype=np.bool_)


def _weight(windows: EdgeWindows, fits: EdgeFits, error: Floats, total_mm: float, settings: FitSettings) -> Floats:
    """How much each edge counts: less where it is noisy, leans, or is not flat on either side."""
    # The slice may be thicker or thinner than its spacing, which leaves a part of the lean in the width.
    lean_error = 0.25 * windows.lean_mm**2 / 12.0 / total_mm**2
    slopes = fits.parameters[:, HIGH_SLOPE:] / settings.flat_slopes_hu_per_mm
    weight = 1.0 / ((error**2 + lean_error**2 + 0.05**2) * (1.0 + (slopes**2).sum(axis=1)))
    return np.asarray(weight)


def _total(sigma_mm: Floats, pixel_variance: float) -> Floats:
    """Sigma of point spread and pixel together."""
    return np.asarray(np.sqrt(sigma_mm**2 + pixel_variance), dtype=np.float32)


def _point_spread(total_mm: Floats | float, pixel_variance: float) -> Floats:
    """Sigma of the point spread alone; where the pixel hides it, a tenth of the pixel's."""
    variance = np.asarray(total_mm) ** 2 - pixel_variance
    return np.asarray(np.sqrt(np.maximum(variance, 0.01 * pixel_variance)))


def _first_parameters(windows: EdgeWindows) -> Floats:
    start = np.zeros((len(windows.data), 8), dtype=np.float32)
    start[:, LOW], start[:, STEP] = windows.low_hu, windows.step_hu
    start[:, LOG_SIGMA] = math.log(FIRST_SIGMA_MM)
    return start


def _edge_model(parameters: Floats, windows: EdgeWindows) -> tuple[Floats, Floats]:
    """Values (n, pixels) of the model and its derivatives (n, 8, pixels)."""
    low, step, offset, turn, curvature, log_sigma, high_slope, low_slope = parameters.T[:, :, None]
    across = windows.across
    distance = windows.along + turn * across - offset - curvature * across**2
    inverse_sigma = np.exp(-log_sigma)
    response, density, widening = (np.zeros_like(distance) for _ in range(3))
    for side in (-1, 0, 1):
        share = windows.node_share if side else 1.0 - 2.0 * windows.node_share
        z = (distance + side * windows.node_mm) * inverse_sigma
        integral, bell = _normal_distribution(z)
        bell *= share
        response += share * integral
        density += bell * inverse_sigma
        widening -= z * bell
    rest = 1.0 - response
    slopes = step * density + high_slope * response + low_slope * rest
    jacobian = np.empty((len(distance), 8, distance.shape[1]), dtype=np.float32)
    jacobian[:, LOW] = 1.0
    jacobian[:, STEP] = response
    jacobian[:, OFFSET] = -slopes
    jacobian[:, TURN] = slopes * across
    jacobian[:, CURVATURE] = -slopes * across**2
    jacobian[:, LOG_SIGMA] = step * widening
    jacobian[:, HIGH_SLOPE] = distance * response
    jacobian[:, LOW_SLOPE] = distance * rest
    return low + step * response + distance * (high_slope * response + low_slope * rest), jacobian


def _normal_distribution(z: Floats) -> tuple[Floats, Floats]:
    """Integral and density of the standard normal distribution.

    The integral is Abramowitz and Stegun's 26.2.17; its error is below 1e-7.
    """
    bell = np.exp(-0.5 * z * z) / np.float32(math.sqrt(2.0 * math.pi))
    t = 1.0 / (1.0 + 0.2316419 * np.abs(z))
    series = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = bell * series
    return np.where(z > 0, 1.0 - tail, tail), bell


def _cost(residual: Floats, weight: Floats, deviation: Floats, prior: Floats) -> Floats:
    return np.asarray((weight * residual**2).sum(axis=1) + ((deviation * prior) ** 2).sum(axis=1))


def _normal_equations(
    residual: Floats, jacobian: Floats, weight: Floats, deviation: Floats, prior: Floats
) -> tuple[Floats, Floats]:
    """Matrix (n, 8, 8) and right side (n, 8) of the Gauss-Newton step."""
    weighted = jacobian * weight[:, None, :]
    normal = weighted @ jacobian.transpose(0, 2, 1) + np.diag(prior**2)
    slope = (weighted @ residual[:, :, None])[:, :, 0] - deviation * prior**2
    return normal, slope
