"""PSNR and SSIM as the SR-CycleGAN papers' code computes them, under their own names; they are not the standard ones.

Their images lie in [-1, 1]. The PSNR takes a peak of 1 where the data span 2, so that it reads 20 log10(2) = 6.02 dB
below the usual one; the SSIM takes the whole image as its only window (Zheng et al., J Med Imaging 2022, P1: the
published code's PSNR and ``my_ssim``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.metrics import psnr_db
from CTMicroSRLib.intensity import IntensityWindow

PAPERS_WINDOW = IntensityWindow(-1000.0, 2500.0)
"""HU that the papers map to [-1, 1] (P1 section 3.2)."""

PEAK = 1.0
C1 = C2 = 1e-4


@dataclass(frozen=True)
class PaperQuality:
    """The papers' PSNR in dB and SSIM of one slice."""

    paper_psnr_db: float
    paper_ssim: float


def paper_psnr(image: NDArray[Any], truth: NDArray[Any]) -> float:
    """PSNR with a peak of 1 on data in [-1, 1]: 6.02 dB less than with the data's true range of 2."""
    return psnr_db(np.asarray(image, dtype=np.float64), np.asarray(truth, dtype=np.float64), PEAK)


def paper_ssim(image: NDArray[Any], truth: NDArray[Any]) -> float:
    """SSIM with one window, the whole image: from the two means, variances and the covariance (C1 = C2 = 1e-4)."""
    first, second = np.asarray(image, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    mean_1, mean_2 = float(first.mean()), float(second.mean())
    covariance = float(np.mean((first - mean_1) * (second - mean_2)))
    luminance = (2.0 * mean_1 * mean_2 + C1) / (mean_1**2 + mean_2**2 + C1)
    structure = (2.0 * covariance + C2) / (float(first.var()) + float(second.var()) + C2)
    return luminance * structure


def paper_quality(
    image_hu: NDArray[Any], truth_hu: NDArray[Any], window: IntensityWindow = PAPERS_WINDOW
) -> PaperQuality:
    """Both for one slice in HU, clipped to the papers' window and normalised as theirs are."""
    image, truth = (window.normalise(np.asarray(values, dtype=np.float64)) for values in (image_hu, truth_hu))
    return PaperQuality(paper_psnr(image, truth), paper_ssim(image, truth))
