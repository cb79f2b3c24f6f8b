"""The uncertainty's calibration: what the passes' deviation is turned by so that it covers the error."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.card import Calibration
from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.session import load_model
from CTMicroSRLib.simulation.cases import make_case
from CTMicroSRLib.simulation.sets import case_set
from CTMicroSRLib.superresolve import super_resolve

logger = logging.getLogger(__name__)

VALIDATION_SET = "validation-1"
CALIBRATED_LEVEL = 0.90
BINS = 24
HALF_WIDTH = 1.6449
"""Standard deviations that a normal distribution's 90 % interval reaches to either side."""

Float32 = NDArray[np.float32]


def calibrate(folder: Path, progress: Progress) -> Calibration:
    """Fit scale and floor so that the 90 % interval holds in every bin of the passes' deviation.

    The deviation is the network's own: a calibration that the card has already plays no part.

    Args:
        folder: a model folder, whose network has dropout and the scale of the validation cases.
        progress: told of every case.

    Raises:
        CancelledError: ``progress`` said so.
    """
    model = load_model(folder, precision="fp32")
    model.card = replace(model.card, calibration=Calibration())
    cases = case_set(VALIDATION_SET).cases
    errors, deviations = [], []
    for n, (seed, settings) in enumerate(cases):
        check_cancelled(progress)
        case = make_case(settings, seed)
        result = super_resolve(
            case.clinical,
            region="whole",
            model=model,
            uncertainty=True,
            psf_fwhm_mm=settings.psf_fwhm_mm,
            noise_hu=settings.image_noise_hu,
        )
        assert result.uncertainty is not None
        errors.append(np.abs(np.asarray(result.volume.array_kji, np.float32) - case.truth.array_kji).ravel())
        deviations.append(np.asarray(result.uncertainty.array_kji, np.float32).ravel())
        progress.update("calibrating", n + 1, len(cases))
    fitted = fit_calibration(np.concatenate(errors), np.concatenate(deviations))
    if fitted.scale == 0:
        logger.warning(
            "The passes' deviation does not grow with the error, so that the calibrated uncertainty is %.1f HU "
            "everywhere: it tells how large errors are, not where.",
            fitted.floor_hu,
        )
    return fitted


def fit_calibration(error: Float32, deviation: Float32) -> Calibration:
    """Least squares of squared 90 % error quantiles against squared deviations, over bins of equal count.

    Args:
        error: absolute errors, HU.
        deviation: uncalibrated standard deviations of the same voxels, HU.
    """
    order = np.argsort(deviation, kind="stable")
    parts = np.array_split(order, BINS)
    spread = np.array([float(np.mean(deviation[part] ** 2)) for part in parts])
    wanted = np.array([(float(np.quantile(error[part], CALIBRATED_LEVEL)) / HALF_WIDTH) ** 2 for part in parts])
    design = np.stack([spread, np.ones_like(spread)], axis=1) / wanted[:, None]
    scale, floor = np.linalg.lstsq(design, np.ones_like(wanted), rcond=None)[0]
    if floor < 0:
        floor = 0.0
        scale = float(np.sum(spread / wanted) / np.sum((spread / wanted) ** 2))
    return Calibration(scale=math.sqrt(max(float(scale), 0.0)), floor_hu=math.sqrt(max(float(floor), 0.0)))
