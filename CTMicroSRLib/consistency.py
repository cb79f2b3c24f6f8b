"""Consistency with the scanner: scanning the result again gives the input back.

The scan of a fine slice s is A s: point spread, then the mean of every block (``point_spread``). Iterative
back-projection (Irani & Peleg 1991) adds interpolated residuals x - A s until they lie within the noise.
Since A and the interpolation B are both linear and separable, the iteration runs on the coarse grid with the
small matrices of A B, and the fine slice is scanned once and corrected once.

Some edges are sharper than the point spread lets any scanner show: where the field of view is cut off and padded, at
metal, or everywhere if the point spread is taken for wider than it is. No slice explains them, and the iteration would
answer with ever larger waves. Such places are told by corrections far beyond the residuals they answer, and stay as
they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.interpolation import REACH, phase_weights
from CTMicroSRLib.point_spread import scan_matrix

Mode = Literal["scan", "block", "off"]
MODES: tuple[Mode, ...] = ("scan", "block", "off")

NOISE_DEVIATIONS = 2.0
"""Residuals within this many standard deviations of the noise are left: they are the noise."""

CORRECTED_DEVIATIONS = 1.96
"""Those beyond are brought to within so many: the last steps towards the limit itself would be the most."""

BEYOND_DEVIATIONS = 2.2
"""Residuals of a finished slice beyond so many are counted: the iteration ended before it came to them."""

SMOOTH_DEVIATIONS = 0.2
"""The mean residual over a square of SMOOTH_VOXELS may be this many deviations: noise averages out, a bias does not."""

SMOOTH_VOXELS = 9
CORRECTION_LIMIT_HU = 1000.0
"""More than lungs need (tests of the real scans hold that nothing is left out there), little beside what the iteration
comes to at edges that no slice explains."""

CORRECTION_PER_RESIDUAL = 2.0
"""A result that is wrong by more than that limit may be corrected by so many times its largest residual nearby."""

UNEXPLAINED_REACH_VOXELS = 4
"""So far around a place that no slice explains nothing is corrected: as far as the widest point spread reaches."""

MAXIMUM_ITERATIONS = 40
BLOCK_ITERATIONS = 3
CHUNK_COARSE_VOXELS = 32


@dataclass(frozen=True)
class ConsistencySettings:
    """How a result is made consistent; widths in millimetres, noise in HU."""

    mode: Mode = "scan"
    psf_fwhm_mm: float = 1.0
    noise_hu: float = 15.0


class Residual(NamedTuple):
    """Sum of squares, largest absolute value and number of residuals x - A s, in HU, and how many exceed the noise."""

    squares_hu2: float
    largest_hu: float
    voxels: int
    beyond_noise: int


class Remaining(NamedTuple):
    """Residual x - A s of a finished slice in HU, and where it was made small: not at edges that no slice explains."""

    residual_hu: Tensor
    explained: Tensor


class _BackProjection(NamedTuple):
    """A coarse correction c, what remains of the residual with it, and where it was corrected (1, elsewhere 0)."""

    correction: Tensor
    remaining: Tensor
    explained: Tensor


class BandMatrix:
    """One axis of a scan or an interpolation: a banded matrix, applied chunk by chunk as dense products."""

    def __init__(self, matrix: NDArray[np.float32], chunk_rows: int, device: torch.device) -> None:
        self.shape = matrix.shape
        self.chunks: list[tuple[slice, slice, Tensor]] = []
        for start in range(0, matrix.shape[0], chunk_rows):
            rows = slice(start, min(start + chunk_rows, matrix.shape[0]))
            used = np.flatnonzero(matrix[rows].any(axis=0))
            columns = slice(int(used[0]), int(used[-1]) + 1)
            block = torch.from_numpy(np.ascontiguousarray(matrix[rows, columns])).to(device)
            self.chunks.append((rows, columns, block))

    def times(self, image: Tensor) -> Tensor:
        """The product matrix @ image."""
        result = image.new_empty((self.shape[0], image.shape[1]))
        for rows, columns, block in self.chunks:
            torch.mm(block, image[columns], out=result[rows])
        return result

    def add_transposed(self, image: Tensor, target: Tensor, *, keep: float = 1.0) -> None:
        """In place: target = keep * target + image @ matrix.T (``keep=0`` overwrites it)."""
        for rows, columns, block in self.chunks:
            target[:, rows].addmm_(image[:, columns], block.T, beta=keep)

    def times_transposed(self, image: Tensor) -> Tensor:
        """The product image @ matrix.T."""
        result = image.new_empty((image.shape[0], self.shape[0]))
        self.add_transposed(image, result, keep=0.0)
        return result


class Interpolator:
    """Cubic interpolation of coarse slices of one shape onto the fine grid."""

    def __init__(self, shape_ji: tuple[int, int], scale: int, device: torch.device) -> None:
        self.scale = scale
        matrices = [interpolation_matrix(size, scale) for size in shape_ji]
        chunk = CHUNK_COARSE_VOXELS * scale
        self.rows, self.columns = (BandMatrix(matrix, chunk, device) for matrix in matrices)

    def __call__(self, coarse: Tensor) -> Tensor:
        """Fine slice of a coarse one."""
        return self.columns.times_transposed(self.rows.times(coarse))

    def write(self, coarse: Tensor, fine: Tensor) -> None:
        """Overwrite ``fine`` by the interpolated coarse slice."""
        self.columns.add_transposed(self.rows.times(coarse), fine, keep=0.0)

    def add(self, coarse: Tensor, fine: Tensor) -> None:
        """Add an interpolated coarse slice in place."""
        self.columns.add_transposed(self.rows.times(coarse), fine)


class ScannerConsistency:
    """Makes fine slices of one shape consistent with their coarse slices."""

    def __init__(
        self,
        shape_ji: tuple[int, int],
        scale: int,
        spacing_ji_mm: tuple[float, float],
        settings: ConsistencySettings,
        device: torch.device,
    ) -> None:
        self.scale = scale
        self.settings = settings
        self.interpolate = Interpolator(shape_ji, scale, device)
        widths = (
            [settings.psf_fwhm_mm * scale / spacing for spacing in spacing_ji_mm]
            if settings.mode != "block"
            else [0.0, 0.0]
        )
        scans = [scan_matrix(n, scale, width) for n, width in zip(shape_ji, widths, strict=True)]
        self.scan_rows, self.scan_columns = (BandMatrix(m, CHUNK_COARSE_VOXELS, device) for m in scans)
        round_trips = [m @ interpolation_matrix(n, scale) for n, m in zip(shape_ji, scans, strict=True)]
        self.trip_rows, self.trip_columns = (
            BandMatrix(trip.astype(np.float32), 2 * CHUNK_COARSE_VOXELS, device) for trip in round_trips
        )

        smoothing = [mean_matrix(n, SMOOTH_VOXELS) for n in shape_ji]
        self.smooth_rows, self.smooth_columns = (BandMatrix(m, 2 * CHUNK_COARSE_VOXELS, device) for m in smoothing)

    def scan(self, fine: Tensor) -> Tensor:
        """What the scanner would show of a fine slice, HU."""
        return self.scan_columns.times_transposed(self.scan_rows.times(fine))

    def apply(self, fine: Tensor, coarse: Tensor) -> Remaining:
        """Correct ``fine`` in place and return the residual that remains, on the coarse grid, in HU."""
        residual = coarse - self.scan(fine)
        everywhere = torch.ones_like(residual, dtype=torch.bool)
        if self.settings.mode == "off":
            return Remaining(residual, everywhere)
        found = self._back_projection(residual)
        self.interpolate.add(found.correction, fine)
        if self.settings.mode == "scan":
            return Remaining(found.remaining, found.explained > 0.0)
        add_blocks(found.remaining, fine, self.scale)
        return Remaining(coarse - self.scan(fine), everywhere)

    def _back_projection(self, residual: Tensor) -> _BackProjection:
        """Coarse correction c with residual - A B c within the noise.

        First a bias over an area goes, then what exceeds the noise at single voxels, step by step with
        Nesterov's momentum (FISTA, Beck & Teboulle 2009). Momentum goes on only where something does, so that
        another step changes nothing where nothing does: a voxel's correction depends on its surroundings alone,
        however many steps the rest of the slice takes.
        """
        scan_mode = self.settings.mode == "scan"
        before = self._bias_correction(residual) if scan_mode else torch.zeros_like(residual)
        noise_hu = self.settings.noise_hu if scan_mode else 0.0
        left_hu, corrected_hu = NOISE_DEVIATIONS * noise_hu, CORRECTED_DEVIATIONS * noise_hu
        limit_hu = _correction_limit_hu(residual)
        explained = torch.ones_like(residual)
        ahead, momentum = before, 1.0
        # Masks are of floats, 1 and 0: torch takes several times as long with booleans.
        for _ in range(MAXIMUM_ITERATIONS if scan_mode else BLOCK_ITERATIONS):
            remaining = residual - self._round_trip(ahead)
            beyond_noise = functional.hardshrink(remaining, left_hu)
            excess = functional.softshrink(beyond_noise, corrected_hu).mul_(explained)
            active = excess.sign().abs_()
            if not bool(active.amax()):
                return _BackProjection(ahead, remaining, explained)
            following = ahead + excess
            too_far_hu = following.abs().sub_(limit_hu)
            if scan_mode and bool(too_far_hu.amax() > 0.0):
                explained = explained * (1.0 - _nearby((too_far_hu > 0.0).to(residual.dtype)))
                before, following = before * explained, following * explained
            next_momentum = (1.0 + math.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
            ahead = torch.addcmul(following, following - before, active, value=(momentum - 1.0) / next_momentum)
            before, momentum = following, next_momentum
        return _BackProjection(before, residual - self._round_trip(before), explained)

    def _bias_correction(self, residual: Tensor) -> Tensor:
        """A coarse correction of what the noise does not explain of the local mean."""
        correction = self._bias(residual)
        # Twice, since the limit on single residuals hides part of a large bias the first time.
        return correction + self._bias(residual - self._round_trip(correction))

    def _round_trip(self, coarse: Tensor) -> Tensor:
        """A B c: what the scanner would show of an interpolated coarse slice."""
        return self.trip_columns.times_transposed(self.trip_rows.times(coarse))

    def _bias(self, residual: Tensor) -> Tensor:
        """The part of the local mean residual that the noise does not explain.

        Single large residuals count no more than the noise could make them: they are edges, not a bias.
        """
        limit_hu = NOISE_DEVIATIONS * self.settings.noise_hu
        explained = residual.clamp(-limit_hu, limit_hu)
        smooth = self.smooth_columns.times_transposed(self.smooth_rows.times(explained))
        left_hu = SMOOTH_DEVIATIONS * self.settings.noise_hu
        return smooth - smooth.clamp(-left_hu, left_hu)


def _correction_limit_hu(residual: Tensor) -> Tensor:
    """The largest correction at each voxel that may still be one of what the scan shows."""
    return (CORRECTION_PER_RESIDUAL * _nearby(residual.abs())).clamp(min=CORRECTION_LIMIT_HU)


def _nearby(image: Tensor) -> Tensor:
    """The largest value within UNEXPLAINED_REACH_VOXELS along rows and columns; values are 0 or more."""
    reach = UNEXPLAINED_REACH_VOXELS
    found = functional.pad(image, (reach,) * 4)
    # Windows of 1, 2, 4, ... voxels, each the larger of two before it: pooling takes ten times as long.
    for axis in (0, 1):
        width = 1
        while width < 2 * reach + 1:
            step = min(width, 2 * reach + 1 - width)
            size = found.shape[axis] - step
            found = torch.maximum(found.narrow(axis, 0, size), found.narrow(axis, step, size))
            width += step
    return found


def measure(residual: Tensor, noise_hu: float) -> Residual:
    """Summary of a residual, which may be empty."""
    if not residual.numel():
        return Residual(0.0, 0.0, 0, 0)
    # On the processor, since not every device has float64.
    sizes = residual.abs().cpu()
    beyond_noise = int((sizes > BEYOND_DEVIATIONS * noise_hu).sum())
    return Residual(float(sizes.double().square().sum()), float(sizes.max()), sizes.numel(), beyond_noise)


def add_blocks(coarse: Tensor, fine: Tensor, scale: int) -> None:
    """Add every coarse value to its whole block, in place."""
    rows, columns = coarse.shape
    fine.view(rows, scale, columns, scale).add_(coarse[:, None, :, None])


def mean_matrix(size: int, width: int) -> NDArray[np.float32]:
    """One axis of a moving mean over ``width`` voxels, fewer at the border; ``(size, size)``."""
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    near = (distance <= width // 2).astype(np.float64)
    return np.asarray(near / near.sum(axis=1, keepdims=True), dtype=np.float32)


def interpolation_matrix(coarse_size: int, scale: int) -> NDArray[np.float32]:
    """One axis of cubic interpolation, ``(coarse_size * scale, coarse_size)``; the border's edge goes on."""
    weights = phase_weights(scale)
    matrix = np.zeros((coarse_size, scale, coarse_size))
    for at in range(coarse_size):
        for offset in range(-REACH, REACH + 1):
            source = min(max(at + offset, 0), coarse_size - 1)
            matrix[at, :, source] += weights[:, offset + REACH]
    return matrix.reshape(coarse_size * scale, coarse_size).astype(np.float32)
