"""Nodules: solid, part-solid, ground-glass, spiculated and calcified, with lobed surfaces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.description import Label, Nodule, NoduleKind, Tubes
from CTMicroSRLib.simulation.raster import Box, Grid, SmoothField, coverage_from_distance, draw_tubes
from CTMicroSRLib.simulation.trees import unit

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]

KINDS: tuple[NoduleKind, ...] = ("solid", "part-solid", "ground-glass", "spiculated", "calcified")
SHARES = (0.3, 0.15, 0.2, 0.25, 0.1)
RADII_MM = (1.2, 7.0)
GROUND_GLASS_EDGE_MM = 0.6
DENSITIES_HU: dict[NoduleKind, tuple[float, float]] = {
    "solid": (0.0, 80.0),
    "part-solid": (-700.0, -450.0),
    "ground-glass": (-700.0, -450.0),
    "spiculated": (0.0, 60.0),
    "calcified": (200.0, 900.0),
}


def draw_nodules(
    rng: np.random.Generator, grid: Grid, hu: Float32, labels: NDArray[np.uint8], count: int
) -> tuple[Nodule, ...]:
    """Draw ``count`` nodules into the block; returns what was drawn."""
    return tuple(_draw_nodule(rng, grid, hu, labels) for _ in range(count))


def _draw_nodule(rng: np.random.Generator, grid: Grid, hu: Float32, labels: NDArray[np.uint8]) -> Nodule:
    kind = KINDS[int(rng.choice(len(KINDS), p=SHARES))]
    centre = rng.uniform(0.1, 0.9, 3) * grid.extent_mm
    radius = float(np.exp(rng.uniform(*np.log(RADII_MM))))
    level = float(rng.uniform(*DENSITIES_HU[kind]))
    box = grid.box(centre - 2.2 * radius - 1.0, centre + 2.2 * radius + 1.0)
    assert box is not None  # the centre lies inside the block
    distance = _distance(rng, grid, box, centre, radius)
    soft = kind in ("ground-glass", "part-solid")
    coverage = coverage_from_distance(distance, GROUND_GLASS_EDGE_MM if soft else grid.spacing_mm[0])
    if kind == "spiculated":
        spikes = np.zeros(grid.shape_kji, dtype=np.float32)
        draw_tubes(grid, _spicules(rng, centre, radius), spikes)
        coverage = np.maximum(coverage, spikes[box])
    raised = np.float32(level) - hu[box]
    # Vessels stay visible in ground glass.
    hu[box] += coverage * (np.maximum(raised, 0.0) if soft else raised)
    if kind == "part-solid":
        core = coverage_from_distance(distance + np.float32(radius * rng.uniform(0.35, 0.6)), grid.spacing_mm[0])
        hu[box] += core * (np.float32(rng.uniform(0.0, 60.0)) - hu[box])
    labels[box][coverage >= 0.5] = Label.NODULE
    volume = float(coverage.sum(dtype=np.float64) * np.prod(grid.spacing_mm))
    return Nodule(kind, (float(centre[0]), float(centre[1]), float(centre[2])), radius, volume, level)


def _distance(rng: np.random.Generator, grid: Grid, box: Box, centre: Float, radius: float) -> Float32:
    """Signed distance to an ellipsoid of the radius' volume with lobes of up to a fifth of the radius."""
    squeeze = rng.uniform(0.8, 1.25, 3)
    squeeze /= np.cbrt(np.prod(squeeze))
    dx, dy, dz = grid.centred_axes_mm(box, centre)
    distance = np.sqrt(
        (dx * np.float32(squeeze[0])) ** 2 + (dy * np.float32(squeeze[1])) ** 2 + (dz * np.float32(squeeze[2])) ** 2
    )
    lobes = SmoothField(rng, np.zeros(3), grid.extent_mm, max(0.7, radius * float(rng.uniform(0.4, 0.9))))
    x, y, z = (axis[part] for axis, part in zip(grid.axes_mm(), box[::-1], strict=True))
    return np.asarray(
        distance + lobes.on_axes(x, y, z) * np.float32(radius * rng.uniform(0.03, 0.15)) - np.float32(radius),
        dtype=np.float32,
    )


def _spicules(rng: np.random.Generator, centre: Float, radius: float) -> Tubes:
    """Strands that run out of the nodule, thinning towards their ends."""
    starts, ends, radii = [], [], []
    for _ in range(rng.integers(12, 28)):
        heading = unit(rng.standard_normal(3))
        length, thick = radius * float(rng.uniform(0.5, 1.1)), float(rng.uniform(0.15, 0.4))
        at = centre + heading * radius * 0.7
        for n in range(3):
            heading = unit(heading + 0.12 * rng.standard_normal(3))
            starts.append(at)
            at = at + heading * (length + 0.3 * radius) / 3.0
            ends.append(at)
            radii.append(thick * (1.0 - 0.3 * n))
    count = len(radii)
    none = np.zeros(count)
    return Tubes(
        np.asarray(starts), np.asarray(ends), np.asarray(radii), none, np.arange(count) // 3, np.full(count, -1)
    )
