"""The trees of one specimen: airways into its acini, arteries beside them and on into the acini, veins between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.description import Tubes
from CTMicroSRLib.simulation.lobules import Acini, lobules_of, place_acini
from CTMicroSRLib.simulation.raster import Grid
from CTMicroSRLib.simulation.surfaces import Surface
from CTMicroSRLib.simulation.trees import (
    VESSEL_EXPONENT,
    Targets,
    Tree,
    companion,
    grow_tree,
    move_apart,
    unit,
)

Float = NDArray[np.float64]

TERMINAL_RADIUS_MM = 0.25
"""Lumen of a terminal bronchiole (0.5 mm across: Haefeli-Bleuer and Weibel, Anat Rec 1988)."""

WALL_TO_LUMEN_RADIUS = 0.36
"""The wall is 0.13 of the whole width, between the sixth and the tenth that Webb (Radiology 2006) gives."""

ACINAR_ARTERY_RADIUS_MM = (0.16, 0.2)
"""Of the artery that feeds one acinus: as wide as leaves the number of vessels that real scans show (see the comparison
with them)."""

VESSELS_PER_ACINUS = 8
HOST_MARGIN_MM = np.array([13.0, 13.0, 21.0])
"""How far the lung that is grown reaches beyond the block: in all a segment's worth, with bronchi of 5 mm."""

EDGE_MM = 6.0
"""At the least, so that there is an acinus behind every place of the block."""

INLET_MM = 60.0


@dataclass(frozen=True)
class Bounds:
    """What keeps the trees in: the wall (lung on its negative side) and the fissure, where there are any."""

    wall: Surface | None
    fissure: Surface | None


@dataclass(frozen=True)
class LungTrees:
    """Tubes that reach into the block, and all acini that were grown."""

    airways: Tubes
    arteries: Tubes
    veins: Tubes
    acini: Acini


@dataclass(frozen=True)
class _Lobe:
    """One side of a fissure: its acini and which way its trunk comes in."""

    acini_mm: Float
    way_in: Float


def grow_lung_trees(
    rng: np.random.Generator, grid: Grid, bounds: Bounds, hilum: Float, wall_thickening: float
) -> LungTrees:
    """Grow the trees that fill a block and the lung about it.

    Args:
        rng: source of randomness.
        grid: the block.
        bounds: wall and fissure.
        hilum: unit vector from the hilum into the block.
        wall_thickening: factor on the airways' walls.
    """
    centres = _acini_of_host(rng, grid, bounds, hilum)
    airways: list[Tubes] = []
    arteries: list[Tubes] = []
    veins: list[Tubes] = []
    kept: list[Float] = []
    lobules: list[NDArray[np.int64]] = []
    for lobe in _lobes(centres, bounds, hilum):
        tree, artery, vein = _grow_lobe(rng, grid, lobe, wall_thickening)
        wall = WALL_TO_LUMEN_RADIUS * tree.radius_mm * rng.lognormal(0.0, 0.08, len(tree)) * wall_thickening
        airways.append(tree.tubes(wall))
        arteries.append(artery)
        veins.append(vein)
        kept.append(lobe.acini_mm)
        lobules.append(lobules_of(rng, tree) + 100_000 * len(lobules))
    acini = Acini(np.concatenate([np.zeros((0, 3)), *kept]), np.concatenate([np.zeros(0, dtype=np.int64), *lobules]))
    extent = grid.extent_mm
    airway, artery, vein = (_near(Tubes.join(parts), extent) for parts in (airways, arteries, veins))
    return LungTrees(airway, artery, vein, acini)


def _acini_of_host(rng: np.random.Generator, grid: Grid, bounds: Bounds, hilum: Float) -> Float:
    """Acini of the lung that is grown: the block and what lies about it, more towards the hilum, inside the wall.

    Most of a lung lies far from its large bronchi.
    """
    towards_hilum = hilum * float(rng.uniform(10.0, 28.0) if rng.random() < 0.85 else rng.uniform(0.0, 10.0))
    low, high = -HOST_MARGIN_MM - towards_hilum, grid.extent_mm + HOST_MARGIN_MM - towards_hilum
    centres = place_acini(rng, np.minimum(low, -EDGE_MM), np.maximum(high, grid.extent_mm + EDGE_MM))
    if bounds.wall is not None:
        centres = centres[bounds.wall.distance_at(centres) < -1.5]
    return centres


def _lobes(centres: Float, bounds: Bounds, hilum: Float) -> list[_Lobe]:
    if bounds.fissure is None:
        lobes = [_Lobe(centres, hilum)]
    else:
        side, normal = bounds.fissure.distance_at(centres), bounds.fissure.normal
        # Along the fissure, so that each trunk stays on its side.
        ways = [unit(hilum - normal * (hilum @ normal) + 0.2 * sign * normal) for sign in (1.0, -1.0)]
        lobes = [_Lobe(centres[side > 1.0], ways[0]), _Lobe(centres[side < -1.0], ways[1])]
    return [lobe for lobe in lobes if len(lobe.acini_mm) >= 2]


def _grow_lobe(rng: np.random.Generator, grid: Grid, lobe: _Lobe, wall_thickening: float) -> tuple[Tree, Tubes, Tubes]:
    """Airways, arteries and veins of one lobe."""
    acini, middle = lobe.acini_mm, lobe.acini_mm.mean(axis=0)
    depth = float(rng.uniform(1.0, 1.4) if rng.random() < 0.9 else rng.uniform(0.5, 1.0))
    root = middle - depth * float(np.abs((acini - middle) @ lobe.way_in).max()) * lobe.way_in
    inlet = root - INLET_MM * lobe.way_in
    tree = grow_tree(rng, inlet, root, Targets(acini, np.ones(len(acini))), TERMINAL_RADIUS_MM)
    thickness = 1.0 + WALL_TO_LUMEN_RADIUS * wall_thickening
    acinar_mm = float(rng.uniform(*ACINAR_ARTERY_RADIUS_MM))
    artery_radius = acinar_mm * tree.weight ** (1.0 / VESSEL_EXPONENT)
    artery = companion(rng, tree, thickness * tree.radius_mm + artery_radius + 0.1, artery_radius)
    near = _inside(acini, grid.extent_mm, 4.0)
    arterioles = [_grow_arterioles(rng, artery, n, acini[n], acinar_mm) for n in np.flatnonzero(near).tolist()]
    vein = _grow_veins(rng, lobe, near, root, acinar_mm)
    obstacles = Tubes.join([tree.tubes((thickness - 1.0) * tree.radius_mm), artery.tubes()])
    vein = _moved_apart(vein, _near(obstacles, grid.extent_mm))
    return tree, Tubes.join([artery.tubes(), *arterioles]), vein.tubes()


def _grow_arterioles(rng: np.random.Generator, artery: Tree, acinus: int, centre: Float, acinar_mm: float) -> Tubes:
    """The arteries inside one acinus, on from the end of the artery that feeds it."""
    branch = int(artery.owner[acinus])
    end, before = artery.nodes_mm[artery.path[branch, -1]], artery.nodes_mm[artery.path[branch, -2]]
    points = centre + rng.uniform(-0.5, 0.5, (VESSELS_PER_ACINUS, 3)) * 5.4
    targets = Targets(points, np.full(VESSELS_PER_ACINUS, 1.0 / VESSELS_PER_ACINUS))
    return grow_tree(rng, before, end, targets, acinar_mm, VESSEL_EXPONENT).tubes()


def _grow_veins(rng: np.random.Generator, lobe: _Lobe, near: NDArray[np.bool_], root: Float, acinar_mm: float) -> Tree:
    """Veins, which run between acini: finely near the block, one target for each acinus elsewhere."""
    acini = lobe.acini_mm
    squared = np.sum((acini[:, None] - acini[None]) ** 2, axis=2)
    neighbours = np.argsort(squared, axis=1)[:, 1:6]
    positions, weights = [], []
    for n in range(len(acini)):
        others = neighbours[n] if near[n] else neighbours[n, :1]
        count = VESSELS_PER_ACINUS if near[n] else 1
        chosen = rng.choice(others, count)
        between = 0.5 * (acini[n] + acini[chosen])
        across = acini[chosen] - acini[n]
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        shaken = rng.uniform(-2.5, 2.5, (count, 3))
        shaken -= across * np.sum(shaken * across, axis=1, keepdims=True)
        positions.append(between + shaken)
        weights.append(np.full(count, 1.0 / count))
    aside = unit(np.cross(lobe.way_in, rng.standard_normal(3))) * float(rng.uniform(6.0, 10.0))
    start = root + aside
    targets = Targets(np.concatenate(positions), np.concatenate(weights))
    radius = float(rng.uniform(0.9, 1.1)) * acinar_mm
    return grow_tree(rng, start - INLET_MM * lobe.way_in, start, targets, radius, VESSEL_EXPONENT)


def _moved_apart(vein: Tree, obstacles: Tubes) -> Tree:
    """The veins, pushed out of all but the finest airways and arteries."""
    radius = np.zeros(len(vein.nodes_mm))
    np.maximum.at(radius, vein.path.ravel(), np.repeat(vein.radius_mm, vein.path.shape[1]))
    moved = move_apart(vein.nodes_mm, radius, obstacles.select(obstacles.radius_mm > 0.3), 0.15)
    return Tree(moved, vein.path, vein.radius_mm, vein.parent, vein.weight, vein.target, vein.owner)


def _inside(points: Float, extent_mm: Float, margin_mm: float) -> NDArray[np.bool_]:
    return np.asarray(((points > -margin_mm) & (points < extent_mm + margin_mm)).all(axis=1))


def _near(tubes: Tubes, extent_mm: Float) -> Tubes:
    """The pieces that reach into the block."""
    reach = (tubes.radius_mm + tubes.wall_mm)[:, None]
    low = np.minimum(tubes.start_mm, tubes.end_mm) - reach
    high = np.maximum(tubes.start_mm, tubes.end_mm) + reach
    return tubes.select(np.asarray(((high > 0) & (low < extent_mm)).all(axis=1)))
