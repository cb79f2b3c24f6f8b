"""The best that linear estimates could do on a case: Wiener filters that were told the case's own truth.

The best linear estimate that treats all coarse voxels alike gives each of the ``scale`` x ``scale`` fine voxels of a
coarse one a filter of its own over the coarse voxels around (Wiener's filter of a sampled image). It follows from the
correlations of the scan with itself and with the truth; least squares over the case takes exactly these, with point
spread, aliasing, noise and borders as they are, instead of a model of them. The filter has seen the truth it is judged
on, so that it errs on the side of the linear estimates (by about its number of weights over that of coarse voxels).

:func:`texture_floor` answers another question: what remains if a method knew every structure exactly and had only the
random alveolar texture to estimate. For a texture with Gaussian statistics no estimate whatever is better than the
linear one; a slice averages over several alveoli, which brings it near. So it is close to a bound for all methods.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.cases import Case, make_case
from CTMicroSRLib.simulation.scanner import clean_slice

Float = NDArray[np.float64]

REACH_VOXELS = 4
"""Coarse voxels to each side that the filters see: beyond the widest point spread of the sets."""

RIDGE = 1e-9
"""Share of the scan's mean power that is added to it, so that a scan without noise or detail has a filter too."""


def best_linear_estimate(
    coarse_hu: NDArray[Any], truth_hu: NDArray[Any], scale: int, reach_voxels: int = REACH_VOXELS
) -> Float:
    """The linear estimate of the truth from the scan with the least squared error, the same for all coarse voxels.

    Args:
        coarse_hu: the scan, HU, shape (k, j, i).
        truth_hu: what is to be estimated, HU, shape (k, scale * j, scale * i).
        scale: fine voxels per coarse one.
        reach_voxels: coarse voxels to each side that a filter sees; the scan's edge goes on outside.

    Returns:
        The estimate, the shape of ``truth_hu``.

    Raises:
        ValueError: shapes that do not fit, or fewer coarse voxels than a filter has weights.
    """
    coarse, truth = np.asarray(coarse_hu, dtype=np.float64), np.asarray(truth_hu, dtype=np.float64)
    slices, rows, columns = coarse.shape
    if truth.shape != (slices, rows * scale, columns * scale):
        raise ValueError(f"A truth of {truth.shape} is not {scale} times as fine as a scan of {coarse.shape}.")
    seen = _surroundings(coarse - coarse.mean(), reach_voxels)
    if len(seen) <= seen.shape[1]:
        raise ValueError(f"{len(seen)} coarse voxels are too few for filters of {seen.shape[1]} weights.")
    wanted = truth.reshape(slices, rows, scale, columns, scale).transpose(0, 1, 3, 2, 4).reshape(len(seen), -1)
    power = seen.T @ seen
    power[np.diag_indices_from(power)] += RIDGE * np.trace(power) / len(power)
    found = seen @ np.linalg.solve(power, seen.T @ wanted)
    fine = found.reshape(slices, rows, columns, scale, scale).transpose(0, 1, 3, 2, 4)
    return np.asarray(fine.reshape(truth.shape))


def texture_floor(case: Case) -> Float:
    """The truth with its alveolar texture replaced by the best linear estimate of it, HU, shape (k, j, i).

    The same specimen is made once more without texture (which takes as long as the case did). What the scan shows
    beyond a noiseless scan of that is texture and noise; from this the texture is estimated.

    Raises:
        ResourceError: the specimen does not fit into memory.
    """
    settings = case.settings
    without = tuple({*settings.without, "texture"})
    bare = np.asarray(make_case(replace(settings, without=without), case.seed).truth.array_kji)
    voxel_mm = case.scan.truth.geometry.spacing_mm[0]
    scanner = replace(settings.scanner, shift_voxels_ji=(0, 0))  # the truth starts where the scan's grid does
    known = np.stack([clean_slice(plane, scanner, voxel_mm) for plane in bare])
    texture = np.asarray(case.scan.truth.array_kji, dtype=np.float64) - bare
    rest = np.asarray(case.scan.clinical.array_kji, dtype=np.float64) - known
    return np.asarray(bare + best_linear_estimate(rest, texture, settings.scale))


def _surroundings(coarse: Float, reach_voxels: int) -> Float:
    """What the filters of each coarse voxel see: the voxels around it and a 1, shape (voxels, weights)."""
    size = 2 * reach_voxels + 1
    padded = np.pad(coarse, ((0, 0), (reach_voxels, reach_voxels), (reach_voxels, reach_voxels)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2)).reshape(-1, size * size)
    return np.concatenate([around, np.ones((len(around), 1))], axis=1)
