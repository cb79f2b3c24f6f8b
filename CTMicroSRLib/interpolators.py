"""The methods that need no training, onto the fine grid: bicubic, B-spline and Lanczos."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.consistency import interpolation_matrix

Float32 = NDArray[np.float32]


def bicubic(coarse_ji: Float32, scale: int) -> Float32:
    """Keys' cubic convolution (a = -1/2)."""
    rows, columns = (interpolation_matrix(size, scale) for size in coarse_ji.shape)
    return np.asarray(rows @ coarse_ji @ columns.T, dtype=np.float32)


def b_spline(coarse_ji: Float32, scale: int) -> Float32:
    """Cubic B-spline interpolation (SimpleITK)."""
    return _resample(coarse_ji, scale, sitk.sitkBSpline)


def lanczos(coarse_ji: Float32, scale: int) -> Float32:
    """Sinc interpolation with Lanczos window (SimpleITK)."""
    return _resample(coarse_ji, scale, sitk.sitkLanczosWindowedSinc)


INTERPOLATORS: dict[str, Callable[[Float32, int], Float32]] = {
    "bicubic": bicubic,
    "B-spline": b_spline,
    "Lanczos": lanczos,
}


def _resample(coarse_ji: Float32, scale: int, interpolator: int) -> Float32:
    image = sitk.GetImageFromArray(coarse_ji.astype(np.float32))
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([size * scale for size in image.GetSize()])
    resampler.SetOutputSpacing([1.0 / scale] * 2)
    resampler.SetOutputOrigin([(1.0 / scale - 1.0) / 2.0] * 2)
    resampler.SetInterpolator(interpolator)
    resampler.SetUseNearestNeighborExtrapolator(True)
    return np.asarray(sitk.GetArrayFromImage(resampler.Execute(image)), dtype=np.float32)
