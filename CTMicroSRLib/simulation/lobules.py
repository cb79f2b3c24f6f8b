"""Acini, the secondary lobules that they make up, and the septa between lobules.

An acinus (what one terminal bronchiole feeds) held 187 mm^3 in casts (Haefeli-Bleuer and Weibel, Anat Rec 1988); here
it is 230 mm^3, a lung of 6.5 l at full inspiration shared by 28,000. A secondary lobule holds 3 to 12 of them and is
10 to 25 mm wide, with septa of about 0.1 mm between lobules, complete in some places and missing in others (Webb,
Radiology 2006).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.raster import Grid, SmoothField, sheet_coverage
from CTMicroSRLib.simulation.trees import Tree

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]
Int = NDArray[np.int64]

ACINUS_MM3 = 230.0
ACINUS_MM = ACINUS_MM3 ** (1.0 / 3.0)
LARGEST_LOBULE_ACINI = (6, 13)
SEPTUM_MM = (0.05, 0.13)
SEPTUM_HU = 20.0
PRESENT_SEPTA = 0.5
COARSE_VOXELS = 4
WAVE_MM = 0.35
"""How far septa stray from the planes between acini."""


@dataclass(frozen=True)
class Acini:
    """Centres ``(n, 3)`` and, once the airways are grown, each one's lobule ``(n,)``."""

    centres_mm: Float
    lobule: Int


def place_acini(rng: np.random.Generator, low_mm: Float, high_mm: Float) -> Float:
    """Centres of acini between two corners, ``(n, 3)``: a shaken lattice, one per acinus volume."""
    counts = np.maximum(1, np.round((high_mm - low_mm) / ACINUS_MM)).astype(int)
    lattice = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in counts), indexing="ij"), axis=-1).reshape(-1, 3)
    step = (high_mm - low_mm) / counts
    return np.asarray(low_mm + (lattice + rng.uniform(-0.35, 0.35, lattice.shape)) * step)


def lobules_of(rng: np.random.Generator, airways: Tree) -> Int:
    """The lobule of each acinus: the largest subtrees of at most 6 to 12 acini."""
    largest = rng.integers(*LARGEST_LOBULE_ACINI, size=len(airways))
    lobule_of_branch = np.full(len(airways), -1)
    for branch in range(len(airways)):  # parents come before their children
        parent = int(airways.parent[branch])
        if parent >= 0 and lobule_of_branch[parent] >= 0:
            lobule_of_branch[branch] = lobule_of_branch[parent]
        elif airways.weight[branch] <= largest[max(parent, 0)]:
            lobule_of_branch[branch] = branch
    return np.asarray(lobule_of_branch[airways.owner])


def septa_coverage(rng: np.random.Generator, grid: Grid, acini: Acini) -> Float32:
    """Share of each voxel inside the septa between lobules, shape (k, j, i)."""
    coverage = np.zeros(grid.shape_kji, dtype=np.float32)
    waves = SmoothField(rng, np.zeros(3), grid.extent_mm, 3.0)
    salt = int(rng.integers(1 << 30))
    acini = _near(acini, grid)
    if len(np.unique(acini.lobule)) < 2:
        return coverage
    step_k = max(1, round(COARSE_VOXELS * grid.spacing_mm[0] / grid.spacing_mm[2]))
    size = (step_k, COARSE_VOXELS, COARSE_VOXELS)
    reach_mm = 3.0 * WAVE_MM + 0.9 * float(np.linalg.norm(np.multiply(size[::-1], grid.spacing_mm)))
    x, y, z = grid.axes_mm()
    for k in range(0, grid.shape_kji[0], step_k):  # a layer at a time, so that memory stays small
        part = slice(k, k + step_k)
        wave = waves.on_axes(x, y, z[part]) * np.float32(WAVE_MM)
        _draw_layer(coverage[part], wave, (z[part], y, x), acini, salt, reach_mm, grid)
    return coverage


def _near(acini: Acini, grid: Grid) -> Acini:
    margin = 2.0 * ACINUS_MM
    inside = ((acini.centres_mm > -margin) & (acini.centres_mm < grid.extent_mm + margin)).all(axis=1)
    return Acini(acini.centres_mm[inside], acini.lobule[inside])


def _draw_layer(
    coverage: Float32,
    wave: Float32,
    axes_zyx: tuple[Float32, Float32, Float32],
    acini: Acini,
    salt: int,
    reach_mm: float,
    grid: Grid,
) -> None:
    """Draw the septa of one layer of coarse voxels.

    Each knows its two nearest acini; near their border its voxels take their distance to the plane between the two.
    """
    z, y, x = axes_zyx
    rows, columns = (
        axis[::COARSE_VOXELS] + np.float32((COARSE_VOXELS - 1) / 2.0 * (axis[1] - axis[0])) for axis in (y, x)
    )
    middle = np.stack(np.meshgrid(z.mean(keepdims=True), rows, columns, indexing="ij")[::-1], axis=-1).reshape(-1, 3)
    first, second, gap = _nearest_two(middle, acini)
    near = np.flatnonzero(gap < reach_mm)
    if len(near) == 0:
        return
    j, i = (index * COARSE_VOXELS for index in np.divmod(near, len(columns)))
    offset = np.stack(np.meshgrid(*(np.arange(n) for n in (len(z), COARSE_VOXELS, COARSE_VOXELS)), indexing="ij"), -1)
    offset = offset.reshape(-1, 3)
    k, j, i = (base[:, None] + offset[:, n] for n, base in enumerate((np.zeros_like(j), j, i)))
    inside = (j < len(y)) & (i < len(x))
    j, i = np.minimum(j, len(y) - 1), np.minimum(i, len(x) - 1)
    one, other = np.sort(np.stack([first[near], second[near]]), axis=0)
    across = (acini.centres_mm[other] - acini.centres_mm[one]).astype(np.float32)
    middle_of_pair = (0.5 * (acini.centres_mm[other] + acini.centres_mm[one])).astype(np.float32)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    distance = (x[i] - middle_of_pair[:, :1]) * across[:, :1] + (y[j] - middle_of_pair[:, 1:2]) * across[:, 1:2]
    distance += (z[k] - middle_of_pair[:, 2:]) * across[:, 2:] + wave[k, j, i]
    thickness = _thickness_mm(acini.lobule[one], acini.lobule[other], salt)
    width = np.sqrt(np.square(across) @ np.square(np.asarray(grid.spacing_mm, dtype=np.float32)))
    drawn = sheet_coverage(distance, thickness[:, None], width[:, None])
    coverage[k[inside], j[inside], i[inside]] = drawn[inside]


def _thickness_mm(one: Int, other: Int, salt: int) -> Float32:
    """A pair of lobules has one septum, with its own thickness or none, wherever it is looked at."""
    low, high = SEPTUM_MM
    chance = ((np.minimum(one, other) * 7_919 + np.maximum(one, other) * 104_729 + salt) % 1_009) / 1_009.0
    return np.where(chance < PRESENT_SEPTA, low + (high - low) * chance / PRESENT_SEPTA, 0.0).astype(np.float32)


def _nearest_two(points: Float32, acini: Acini) -> tuple[Int, Int, Float32]:
    """The nearest acinus, the nearest of another lobule, and the distance to the plane between them."""
    centres = acini.centres_mm.astype(np.float32)
    squared = np.sum(np.square(centres), axis=1) - np.float32(2.0) * points @ centres.T
    first = np.argmin(squared, axis=1)
    rows = np.arange(len(points))
    nearest = squared[rows, first]
    squared[acini.lobule[None, :] == acini.lobule[first][:, None]] = np.inf
    second = np.argmin(squared, axis=1)
    between = np.linalg.norm(centres[first] - centres[second], axis=1)
    return first, second, (squared[rows, second] - nearest) / (np.float32(2.0) * between)
