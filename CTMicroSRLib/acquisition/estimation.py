"""How a scan was acquired, as far as super-resolution needs it: its own blur and its own noise."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

from CTMicroSRLib.acquisition.edge_spread import EdgeSpread, measure_edge_spread
from CTMicroSRLib.acquisition.noise import Noise, noise_of_windows, read_noise_windows
from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.progress import Progress, SilentProgress
from CTMicroSRLib.volume import Volume

Source = Literal["estimated", "given", "assumed"]

_GIVEN: Source = "given"

TYPICAL_PSF_FWHM_MM = 1.0
TYPICAL_NOISE_HU = 20.0
FIRST_PSF_FWHM_MM = 1.2
NOISE_RANGE_HU = (1.0, 200.0)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acquisition:
    """The scanner's blur and noise in one scan.

    Attributes:
        psf_fwhm_mm: full width at half maximum of the in-plane Gaussian point spread, in mm, without the
            mean over the pixel's area.
        noise_hu: standard deviation of a pixel's noise, in HU.
        psf_source: whether the point spread was estimated from the scan, given, or assumed.
        noise_source: the same for the noise.
        edges: number of edges that the point spread was estimated from.
        psf_quartiles_mm: 25 % and 75 % quantiles of the single edges' widths; None unless estimated.
        noise_region: tissue in which the noise was measured; empty unless estimated.
        notes: what a user should know about the estimates, one sentence each.
    """

    psf_fwhm_mm: float
    noise_hu: float
    psf_source: Source
    noise_source: Source
    edges: int = 0
    psf_quartiles_mm: tuple[float, float] | None = None
    noise_region: str = ""
    notes: tuple[str, ...] = ()


def estimate_acquisition(
    volume: Volume,
    *,
    psf_fwhm_mm: float | None = None,
    noise_hu: float | None = None,
    progress: Progress | None = None,
) -> Acquisition:
    """Estimate the point spread and the noise of a CT scan from its voxels.

    Only some slices are read, so that a whole chest takes seconds and little memory. The result depends
    on nothing but the arguments.

    Args:
        volume: CT in HU, finite; in-plane means the array's axes j and i.
        psf_fwhm_mm: the point spread, where it is known.
        noise_hu: the noise, where it is known.
        progress: told of both stages, asked whether to stop.

    Returns:
        The acquisition. What can't be estimated is assumed to be typical of chest CT, and a note says so.

    Raises:
        UsageError: a given value is negative or not finite.
        CancelledError: ``progress`` said so.
    """
    _check_given("point spread", psf_fwhm_mm)
    _check_given("noise", noise_hu)
    progress = progress or SilentProgress()
    spacing_mm = volume.geometry.spacing_mm
    windows = read_noise_windows(volume.array_kji, spacing_mm, progress) if noise_hu is None else []
    notes: list[str] = []
    spread = None
    fwhm, psf_source = psf_fwhm_mm, _GIVEN
    if fwhm is None:
        first = noise_of_windows(windows, spacing_mm, FIRST_PSF_FWHM_MM)
        guess = noise_hu if noise_hu is not None else first.noise_hu if first else TYPICAL_NOISE_HU
        spread = measure_edge_spread(volume.array_kji, spacing_mm, guess, progress)
        fwhm, psf_source = _accept_spread(spread, spacing_mm, notes)
    measured = noise_of_windows(windows, spacing_mm, fwhm)
    if noise_hu is None:
        noise, noise_source = _accept_noise(measured, notes)
    else:
        noise, noise_source = noise_hu, _GIVEN
    for note in notes:
        _logger.warning(note)
    return Acquisition(
        psf_fwhm_mm=fwhm,
        noise_hu=noise,
        psf_source=psf_source,
        noise_source=noise_source,
        edges=spread.edges if spread else 0,
        psf_quartiles_mm=spread.quartiles_mm if spread else None,
        noise_region=measured.region if measured else "",
        notes=tuple(notes),
    )


def _accept_spread(
    spread: EdgeSpread | None, spacing_mm: tuple[float, float, float], notes: list[str]
) -> tuple[float, Source]:
    """The point spread within what the pixels can tell, and its source."""
    pixel = math.sqrt(spacing_mm[0] * spacing_mm[1])
    if spread is None:
        fwhm = max(TYPICAL_PSF_FWHM_MM, 1.1 * pixel)
        notes.append(
            f"Too few sharp edges to estimate the point spread; {fwhm:.2f} mm is assumed, give it if it is known."
        )
        return fwhm, "assumed"
    low, high = max(0.3, 0.4 * pixel), max(3.0, 4.0 * pixel)
    fwhm = min(max(spread.psf_fwhm_mm, low), high)
    if fwhm != spread.psf_fwhm_mm:
        notes.append(
            f"The edges ask for a point spread of {spread.psf_fwhm_mm:.2f} mm, outside what pixels of "
            f"{pixel:.2f} mm can tell; {fwhm:.2f} mm is used."
        )
    return fwhm, "estimated"


def _accept_noise(measured: Noise | None, notes: list[str]) -> tuple[float, Source]:
    """The noise within what scanners do, and its source."""
    if measured is None:
        notes.append(
            f"Nothing uniform is in view to estimate the noise; {TYPICAL_NOISE_HU:.0f} HU are assumed, "
            "give it if it is known."
        )
        return TYPICAL_NOISE_HU, "assumed"
    noise = min(max(measured.noise_hu, NOISE_RANGE_HU[0]), NOISE_RANGE_HU[1])
    if noise != measured.noise_hu:
        notes.append(f"The measured noise of {measured.noise_hu:.1f} HU is unusual; {noise:.0f} HU are used.")
    if measured.region != "soft tissue":
        notes.append(f"No uniform soft tissue is in view; the noise was measured in {measured.region}.")
    return noise, "estimated"


def _check_given(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise UsageError(f"The {name} {value} is not a finite number of at least 0; leave it out to estimate it.")
