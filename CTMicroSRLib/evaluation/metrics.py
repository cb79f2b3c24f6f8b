"""Image quality against the truth, in HU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.intensity import LUNG_WINDOW_HU

PEAK_HU = 3500.0
"""Peak of the PSNR and data range of the SSIM: the clinical window -1000 to 2500 HU of the papers."""

Float = NDArray[np.floating]


@dataclass(frozen=True)
class Quality:
    """PSNR in dB, SSIM over the clinical range and over the lung window, mean absolute error in HU."""

    psnr_db: float
    ssim: float
    ssim_lung_window: float
    mae_hu: float


def quality(image_hu: Float, truth_hu: Float) -> Quality:
    """Compare one slice with its truth (same shape, HU)."""
    image, truth = np.asarray(image_hu, dtype=np.float64), np.asarray(truth_hu, dtype=np.float64)
    low, high = LUNG_WINDOW_HU
    return Quality(
        psnr_db=psnr_db(image, truth),
        ssim=ssim(image, truth, PEAK_HU),
        ssim_lung_window=ssim(image.clip(low, high), truth.clip(low, high), high - low),
        mae_hu=float(np.mean(np.abs(image - truth))),
    )


def psnr_db(image: Float, truth: Float, peak: float = PEAK_HU) -> float:
    """Peak signal-to-noise ratio: 10 log10(peak^2 / mean squared error)."""
    error = float(np.mean((image - truth) ** 2))
    return math.inf if error == 0 else 10.0 * math.log10(peak**2 / error)


def ssim(image: Float, truth: Float, data_range: float) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5, K1 0.01, K2 0.03), scikit-image's."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            image, truth, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )
