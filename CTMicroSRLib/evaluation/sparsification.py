"""Whether an uncertainty ranks the errors (sparsification) and has their size (calibration)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

CURVE_POINTS = 101


@dataclass(frozen=True)
class Sparsification:
    """RMSE of what is left when the voxels of the largest uncertainty are taken away, over the RMSE of all.

    ``removed`` is the share taken away (0 to 1), ``rmse`` the curve of the uncertainty, ``oracle_rmse`` that of the
    errors themselves; all shape (101,). ``ause``: area between the two, 0 for a perfect ranking; ``ause_random``: the
    same for a map that knows nothing, whose curve stays at 1.
    """

    removed: Float
    rmse: Float
    oracle_rmse: Float
    ause: float
    ause_random: float

    @property
    def relative(self) -> float:
        """``ause / ause_random``: 0 is perfect, 1 is no better than chance; NaN if all errors are equal."""
        return self.ause / self.ause_random if self.ause_random > 0 else float("nan")


@dataclass(frozen=True)
class Calibration:
    """Predicted and found errors in bins of equally many voxels, from the smallest predicted deviation to the largest.

    ``predicted_hu`` is the root mean square of the predicted deviations, ``found_hu`` the RMSE, ``voxels`` the number
    in each bin, all shape (bins,). ``ece_hu``: mean over voxels of their bin's |found - predicted|. ``uce_hu2``: the
    same of the squares (Laves et al., Well-calibrated regression uncertainty in medical imaging, MIDL 2020). ``ence``:
    mean over bins of |found - predicted| / predicted (Levi et al., Sensors 22, 2022).
    """

    predicted_hu: Float
    found_hu: Float
    voxels: NDArray[np.int64]
    ece_hu: float
    uce_hu2: float
    ence: float


def sparsification(
    error_hu: NDArray[Any], uncertainty: NDArray[Any], mask: NDArray[Any] | None = None
) -> Sparsification:
    """Area under the sparsification error curve (AUSE; Ilg et al., ECCV 2018), by RMSE.

    Voxels are taken away one by one, so the areas are exact: means over the n curve points of 0 to n - 1 voxels
    removed. Voxels of equal uncertainty enter with their mean squared error, so that their order can't matter.

    Args:
        error_hu: image less truth, any shape.
        uncertainty: not negative, of any unit, the same shape.
        mask: voxels that count, the same shape; all by default.

    Raises:
        ValueError: shapes differ, a value in the mask that is not finite, a negative uncertainty, an empty mask, or
            no error at all.
    """
    error, ranked = _checked(error_hu, uncertainty, mask)
    square = error**2
    if not square.any():
        raise ValueError("There is no error to rank.")
    rest = _rest_rmse(_by_rank(square, ranked))
    oracle = _rest_rmse(np.sort(square))
    level = float(np.sqrt(square.mean()))
    removed = np.linspace(0.0, 1.0, CURVE_POINTS)
    at = np.minimum((removed * len(rest)).astype(np.int64), len(rest) - 1)
    return Sparsification(
        removed=removed,
        rmse=rest[at] / level,
        oracle_rmse=oracle[at] / level,
        ause=float(np.mean(rest - oracle)) / level,
        ause_random=1.0 - float(np.mean(oracle)) / level,
    )


def calibration(
    error_hu: NDArray[Any], deviation_hu: NDArray[Any], mask: NDArray[Any] | None = None, bins: int = 15
) -> Calibration:
    """Compare predicted standard deviations with the errors found, by bins of the prediction.

    Args:
        error_hu: image less truth, HU, any shape.
        deviation_hu: predicted standard deviation, HU, not negative, the same shape.
        mask: voxels that count, the same shape; all by default.
        bins: their number, at most that of the voxels.

    Returns:
        The calibration; ``ence`` is infinite where a bin predicts no error and has some (a bin with neither is right).

    Raises:
        ValueError: shapes differ, a value in the mask that is not finite, a negative deviation, an empty mask, or a
            number of bins that is not possible.
    """
    error, deviation = _checked(error_hu, deviation_hu, mask)
    if not 1 <= bins <= len(error):
        raise ValueError(f"{len(error)} voxels can't be put into {bins} bins.")
    order = np.argsort(deviation, kind="stable")
    starts = np.linspace(0, len(error), bins + 1).astype(np.int64)
    voxels = np.diff(starts)
    found = np.sqrt(np.add.reduceat(error[order] ** 2, starts[:-1]) / voxels)
    predicted = np.sqrt(np.add.reduceat(deviation[order] ** 2, starts[:-1]) / voxels)
    gap = np.abs(found - predicted)
    relative = np.divide(gap, predicted, out=np.where(gap > 0, np.inf, 0.0), where=predicted > 0)
    return Calibration(
        predicted_hu=predicted,
        found_hu=found,
        voxels=voxels,
        ece_hu=float(np.average(gap, weights=voxels)),
        uce_hu2=float(np.average(np.abs(found**2 - predicted**2), weights=voxels)),
        ence=float(np.mean(relative)),
    )


def _checked(error_hu: NDArray[Any], uncertainty: NDArray[Any], mask: NDArray[Any] | None) -> tuple[Float, Float]:
    error, spread = np.asarray(error_hu, dtype=np.float64), np.asarray(uncertainty, dtype=np.float64)
    inside = np.ones(error.shape, dtype=np.bool_) if mask is None else np.asarray(mask, dtype=np.bool_)
    if error.shape != spread.shape or inside.shape != error.shape:
        raise ValueError(f"Error {error.shape}, uncertainty {spread.shape} and mask {inside.shape} differ in shape.")
    error, spread = error[inside], spread[inside]
    if not error.size:
        raise ValueError("The mask is empty.")
    if not (np.isfinite(error).all() and np.isfinite(spread).all()) or spread.min() < 0:
        raise ValueError("Errors and uncertainties must be finite, and uncertainties not negative.")
    return error, spread


def _by_rank(square: Float, uncertainty: Float) -> Float:
    """Squared errors from the smallest uncertainty to the largest; equal uncertainties share their mean."""
    order = np.argsort(uncertainty, kind="stable")
    sorted_square, sorted_uncertainty = square[order], uncertainty[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(sorted_uncertainty) > 0]))
    counts = np.diff(np.append(starts, len(square)))
    return np.repeat(np.add.reduceat(sorted_square, starts) / counts, counts)


def _rest_rmse(ascending_square: Float) -> Float:
    """RMSE of what is left after 0, 1, ... n - 1 were taken away from the end."""
    means = np.cumsum(ascending_square) / np.arange(1, len(ascending_square) + 1)
    return np.sqrt(means[::-1])
