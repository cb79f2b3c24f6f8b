"""Lung tissue finer than airways and vessels: density, gravity, alveoli and ducts, emphysema, ground glass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.description import Label
from CTMicroSRLib.simulation.raster import Grid, SmoothField, coverage_from_distance

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]

CELL_MM = (0.2, 0.3)
"""Width of an alveolus (Ochs et al., Am J Respir Crit Care Med 2004: 4.2 million um^3, a ball of 0.2 mm)."""

FOAM_CONTRAST_HU = (
    (0.13, 147.0),
    (0.20, 112.0),
    (0.26, 90.0),
    (0.31, 74.5),
    (0.39, 62.0),
    (0.52, 41.0),
    (0.62, 28.0),
    (0.78, 17.0),
)
"""Standard deviation of a foam of alveoli (11 % tissue) averaged over cubic voxels of that share of a cell's width;
a test makes such a foam."""

DUCT_MM = 0.9
"""Distance between alveolar ducts."""

DUCT_CONTRAST_HU = 18.0
FREQUENCY_PER_CELL = 0.75
BAND_WIDTH = 0.35
WALL_STEEPNESS = 2.0


def parenchyma(
    rng: np.random.Generator, grid: Grid, *, mean_hu: float, gradient_hu_per_mm: float, texture: bool
) -> Float32:
    """Lung tissue between vessels, HU: a mean, slow changes, gravity along the rows (y), and the alveoli."""
    _, y, _ = grid.axes_mm()
    hu = SmoothField(rng, np.zeros(3), grid.extent_mm, 7.0).on_axes(*grid.axes_mm())
    hu *= np.float32(rng.uniform(3.0, 10.0))
    hu += np.float32(mean_hu)
    hu += ((y - np.float32(grid.extent_mm[1] / 2.0)) * np.float32(gradient_hu_per_mm))[None, :, None]
    cell_mm = float(rng.uniform(*CELL_MM))
    if texture:
        hu += alveoli(rng, grid, cell_mm) + ducts(rng, grid) * np.float32(DUCT_CONTRAST_HU)
    return hu


def alveolar_contrast_hu(voxel_mm: float, cell_mm: float) -> float:
    """Standard deviation of alveolar texture in cubic voxels."""
    shares, contrasts = zip(*FOAM_CONTRAST_HU, strict=True)
    return float(np.exp(np.interp(np.log(voxel_mm / cell_mm), np.log(shares), np.log(contrasts))))


def alveoli(rng: np.random.Generator, grid: Grid, cell_mm: float) -> Float32:
    """Walls between air cells, in HU with mean 0.

    They are the ridges of a band-limited field, made in cubic voxels and averaged over each plane.
    """
    voxel = grid.spacing_mm[0]
    merged = max(1, round(grid.spacing_mm[2] / voxel))
    shape = (grid.shape_kji[0] * merged, *grid.shape_kji[1:])
    field = _band_limited(rng, shape, voxel, FREQUENCY_PER_CELL / cell_mm)
    np.abs(field, out=field)
    field *= np.float32(-WALL_STEEPNESS)
    np.exp(field, out=field)
    field -= np.float32(field.mean(dtype=np.float64))
    field *= np.float32(alveolar_contrast_hu(voxel, cell_mm) / max(float(field.std(dtype=np.float64)), 1e-6))
    return _merge_slices(field, merged)


def ducts(rng: np.random.Generator, grid: Grid) -> Float32:
    """Alveolar ducts: dark winding channels where two smooth fields are both zero; standard deviation 1, mean 0."""
    x, y, z = grid.axes_mm()
    one, other = (SmoothField(rng, np.zeros(3), grid.extent_mm, DUCT_MM).on_axes(x, y, z) for _ in range(2))
    one *= one
    other *= other
    one += other
    one *= np.float32(-4.0)
    np.exp(one, out=one)
    mean, deviation = one.mean(dtype=np.float64), one.std(dtype=np.float64)
    return np.asarray((np.float32(mean) - one) / np.float32(max(deviation, 1e-6)), dtype=np.float32)


def _band_limited(rng: np.random.Generator, shape: tuple[int, int, int], voxel_mm: float, frequency: float) -> Float32:
    """A Gaussian field of standard deviation 1 about one spatial frequency (1/mm)."""
    spectrum = np.fft.rfftn(rng.standard_normal(shape, dtype=np.float32)).astype(np.complex64, copy=False)
    k, j = (np.fft.fftfreq(n, voxel_mm).astype(np.float32) for n in shape[:2])
    i = np.fft.rfftfreq(shape[2], voxel_mm).astype(np.float32)
    in_plane = np.square(j)[:, None] + np.square(i)[None, :]
    for n in range(shape[0]):
        radial = np.sqrt(in_plane + np.square(k[n]))
        spectrum[n] *= np.exp(np.float32(-0.5) * np.square((radial - frequency) / np.float32(BAND_WIDTH * frequency)))
    field = np.fft.irfftn(spectrum, s=shape, axes=(0, 1, 2)).astype(np.float32, copy=False)
    field /= np.float32(max(float(field.std(dtype=np.float64)), 1e-12))
    return field


def _merge_slices(field: Float32, merged: int) -> Float32:
    if merged == 1:
        return field
    return np.asarray(field.reshape(-1, merged, *field.shape[1:]).mean(axis=1, dtype=np.float32))


def draw_emphysema(
    rng: np.random.Generator, grid: Grid, hu: Float32, labels: NDArray[np.uint8], centres_mm: Float, share: float
) -> None:
    """Centrilobular emphysema: holes of nearly air, 1 to 4 mm in radius, about a share of the acini's centres."""
    for centre in centres_mm:
        sick, radius = rng.random() < share, float(np.clip(rng.lognormal(0.6, 0.4), 1.0, 4.0))
        lobes_seed = int(rng.integers(1 << 31))
        box = grid.box(centre - 1.6 * radius, centre + 1.6 * radius)
        if not sick or box is None:
            continue
        dx, dy, dz = grid.centred_axes_mm(box, centre)
        x, y, z = (axis[part] for axis, part in zip(grid.axes_mm(), box[::-1], strict=True))
        lobes = SmoothField(np.random.default_rng(lobes_seed), np.zeros(3), grid.extent_mm, 0.8 * radius)
        distance = np.sqrt(dx * dx + dy * dy + dz * dz) + lobes.on_axes(x, y, z) * np.float32(0.25 * radius)
        coverage = coverage_from_distance(distance - np.float32(radius), 0.3)
        hu[box] += coverage * (np.float32(-985.0) - hu[box])
        labels[box][coverage >= 0.5] = Label.EMPHYSEMA


def draw_ground_glass(rng: np.random.Generator, grid: Grid, hu: Float32, labels: NDArray[np.uint8]) -> None:
    """Patches of denser tissue with soft borders: 80 to 350 HU above the lung about them."""
    field = SmoothField(rng, np.zeros(3), grid.extent_mm, float(rng.uniform(4.0, 10.0))).on_axes(*grid.axes_mm())
    share = np.clip((field - np.float32(rng.uniform(0.2, 1.0))) * np.float32(rng.uniform(1.5, 5.0)), 0.0, 1.0)
    hu += share * np.float32(rng.uniform(80.0, 350.0))
    labels[share >= 0.5] = Label.GROUND_GLASS
