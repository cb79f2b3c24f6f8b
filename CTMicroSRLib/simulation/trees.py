"""Space-filling trees of the lung: airways, the arteries beside them, and veins between.

Airways are grown into a cloud of acini by splitting it again and again through its centre of mass, as the
volume-filling trees of Tawhai et al. (Ann Biomed Eng 2000; J Appl Physiol 2004) do: a branch goes two fifths of the way
to the centre of what it feeds, and turns by at most 60 degrees. Radii follow r0^x = r1^x + r2^x from the last branches
up, so that a branch that feeds n acini is n^(1/x) times as wide: x is 3 for airways (Murray's law, J Gen Physiol 1926)
and 2.7 for vessels (2.9, scattering by 1.1, in images of pulmonary arteries: Dong et al., Am J Physiol Heart 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.simulation.description import Tubes

Float = NDArray[np.float64]
Int = NDArray[np.int64]

SHARE_OF_THE_WAY = 0.4
"""How far towards the centre of mass of its points a branch goes (Tawhai et al. 2000)."""

AIRWAY_EXPONENT = 3.0
VESSEL_EXPONENT = 2.7
SHORTEST_IN_DIAMETERS = 1.2
LARGEST_TURN_RADIANS = np.pi / 3.0
PIECES_PER_BRANCH = 4
WANDER = 0.06
"""Sideways bend of a branch, as a share of its length."""


@dataclass(frozen=True)
class Targets:
    """What a tree feeds: ``positions_mm`` ``(n, 3)`` and each one's share of an acinus ``weight`` ``(n,)``."""

    positions_mm: Float
    weight: Float


@dataclass(frozen=True)
class Tree:
    """A tree as nodes and branches, so that neighbours share their ends.

    ``nodes_mm`` has shape ``(m, 3)``. A branch runs through the nodes ``path`` ``(b, PIECES_PER_BRANCH + 1)``;
    ``radius_mm``, ``parent`` (-1: none) and ``weight`` (acini fed) have shape ``(b,)``; ``target`` is the one target
    of a last branch, else -1; ``owner`` ``(n,)`` the last branch that feeds each target.
    """

    nodes_mm: Float
    path: Int
    radius_mm: Float
    parent: Int
    weight: Float
    target: Int
    owner: Int

    def __len__(self) -> int:
        return len(self.radius_mm)

    @property
    def start(self) -> Int:
        """Each branch's first node."""
        return self.path[:, 0]

    @property
    def end(self) -> Int:
        """Each branch's last node."""
        return self.path[:, -1]

    def tubes(self, wall_mm: Float | None = None) -> Tubes:
        """The tree's pieces; ``wall_mm`` ``(b,)`` is each branch's wall (none: a vessel)."""
        pieces = self.path.shape[1] - 1
        branch = np.repeat(np.arange(len(self)), pieces)
        wall = np.zeros(len(self)) if wall_mm is None else wall_mm
        return Tubes(
            self.nodes_mm[self.path[:, :-1].ravel()],
            self.nodes_mm[self.path[:, 1:].ravel()],
            self.radius_mm[branch],
            wall[branch],
            branch,
            self.parent[branch],
        )


@dataclass(frozen=True)
class _Task:
    chosen: Int
    node: int
    heading: Float
    parent: int


class _Growth:
    """Nodes and branches while a tree grows."""

    def __init__(self, root_mm: Float) -> None:
        self.nodes: list[Float] = [root_mm]
        self.paths: list[list[int]] = []
        self.parents: list[int] = []
        self.weights: list[float] = []
        self.targets: list[int] = []

    def add(self, rng: np.random.Generator, first: int, end_mm: Float, parent: int, weight: float, target: int) -> int:
        """Add a gently bent branch from a node to a place; returns its number."""
        start_mm = self.nodes[first]
        way = end_mm - start_mm
        bend = perpendicular(rng, way) * (WANDER * math.sqrt(float(way @ way)))
        share = np.arange(1, PIECES_PER_BRANCH + 1)[:, None] / PIECES_PER_BRANCH
        path = [first, *range(len(self.nodes), len(self.nodes) + PIECES_PER_BRANCH)]
        self.nodes.extend(start_mm + share * way + np.sin(np.pi * share) * bend)
        self.paths.append(path)
        self.parents.append(parent)
        self.weights.append(weight)
        self.targets.append(target)
        return len(self.paths) - 1


def grow_tree(
    rng: np.random.Generator,
    inlet_mm: Float,
    root_mm: Float,
    targets: Targets,
    terminal_radius_mm: float,
    exponent: float = AIRWAY_EXPONENT,
) -> Tree:
    """Grow a tree that feeds all targets.

    Args:
        rng: source of randomness.
        inlet_mm: where the trunk comes from.
        root_mm: where the trunk divides first.
        targets: what is fed.
        terminal_radius_mm: radius of a branch that feeds a weight of 1.
        exponent: of the law that radii follow.

    Returns:
        The tree; its first branch is the trunk from inlet to root. Without targets it has no branch.
    """
    growth = _Growth(inlet_mm)
    owner = np.full(len(targets.weight), -1)
    everything = np.arange(len(targets.weight))
    if len(everything):
        total = float(targets.weight.sum())
        trunk = growth.add(rng, 0, root_mm, -1, total, int(everything[0]) if len(everything) == 1 else -1)
        owner[:] = trunk
        todo = (
            [_Task(everything, growth.paths[trunk][-1], unit(root_mm - inlet_mm), trunk)] if len(everything) > 1 else []
        )
        while todo:
            task = todo.pop()
            for part in _split(rng, targets, task):
                child = _grow_branch(rng, growth, targets, task, part, terminal_radius_mm)
                owner[part] = child
                if len(part) > 1:
                    last, before = growth.nodes[growth.paths[child][-1]], growth.nodes[growth.paths[child][0]]
                    todo.append(_Task(part, growth.paths[child][-1], unit(last - before), child))
    weight = np.asarray(growth.weights, dtype=np.float64)
    return Tree(
        np.asarray(growth.nodes),
        np.asarray(growth.paths, dtype=np.int64).reshape(-1, PIECES_PER_BRANCH + 1),
        terminal_radius_mm * weight ** (1.0 / exponent),
        np.asarray(growth.parents, dtype=np.int64),
        weight,
        np.asarray(growth.targets, dtype=np.int64),
        owner,
    )


def _split(rng: np.random.Generator, targets: Targets, task: _Task) -> tuple[Int, Int]:
    """Cut a cloud of points in two by a plane along the branch's heading, across the cloud's longest side."""
    points, weight = targets.positions_mm[task.chosen], targets.weight[task.chosen]
    centred = points - weight @ points / weight.sum()
    across = centred - np.outer(centred @ task.heading, task.heading)
    _, vectors = np.linalg.eigh(across.T @ (across * weight[:, None]))
    order = np.argsort(across @ vectors[:, -1], kind="stable")
    reached = np.cumsum(weight[order])
    share = float(np.clip(rng.normal(0.5, 0.1), 0.25, 0.75))
    cut = int(np.clip(np.searchsorted(reached, share * reached[-1]), 1, len(order) - 1))
    return np.sort(task.chosen[order[:cut]]), np.sort(task.chosen[order[cut:]])


def _grow_branch(
    rng: np.random.Generator, growth: _Growth, targets: Targets, task: _Task, part: Int, terminal_radius_mm: float
) -> int:
    weight = float(targets.weight[part].sum())
    centre = targets.weight[part] @ targets.positions_mm[part] / weight
    start = growth.nodes[task.node]
    way = centre - start
    heading = _limited(task.heading, unit(way))
    shortest = SHORTEST_IN_DIAMETERS * 2.0 * terminal_radius_mm * weight ** (1.0 / 3.0)
    length = max(SHARE_OF_THE_WAY * math.sqrt(float(way @ way)), shortest) * float(rng.lognormal(0.0, 0.12))
    target = int(part[0]) if len(part) == 1 else -1
    return growth.add(rng, task.node, start + length * heading, task.parent, weight, target)


def _limited(before: Float, after: Float) -> Float:
    """``after``, turned back so that it is at most the largest turn away from ``before``."""
    cosine = float(np.clip(before @ after, -1.0, 1.0))
    if cosine >= np.cos(LARGEST_TURN_RADIANS):
        return after
    side = after - cosine * before
    norm = float(np.linalg.norm(side))
    if norm < 1e-9:
        return before
    return np.asarray(np.cos(LARGEST_TURN_RADIANS) * before + np.sin(LARGEST_TURN_RADIANS) * side / norm)


def companion(rng: np.random.Generator, tree: Tree, gap_mm: Float, radius_mm: Float) -> Tree:
    """The tree that runs beside another: the arteries beside the airways.

    At every branching it lies at right angles to the plane of the branches, so that it is clear of all of them, and
    along each branch it turns smoothly from one side to the next; so it has no gaps and does not cross its partner.

    Args:
        rng: source of randomness.
        tree: the airways.
        gap_mm: distance between the two centre lines, per branch.
        radius_mm: the companion's radius, per branch.
    """
    pieces = tree.path.shape[1] - 1
    sides = _sides(rng, tree)
    nodes = tree.nodes_mm.copy()
    node_gap = np.zeros(len(nodes))
    np.maximum.at(node_gap, tree.path.ravel(), np.repeat(gap_mm, pieces + 1))
    for branch in range(len(tree)):
        path = tree.path[branch]
        first, last = sides[path[0]], sides[path[-1]]
        axis = unit(tree.nodes_mm[path[-1]] - tree.nodes_mm[path[0]])
        for n in range(1, pieces + 1):
            share = n / pieces
            side = (1.0 - share) * first + share * last
            side = side - axis * (side @ axis) if n < pieces else last
            gap = (1.0 - share) * node_gap[path[0]] + share * node_gap[path[-1]]
            nodes[path[n]] = tree.nodes_mm[path[n]] + unit(side) * gap
    if len(tree):
        root = int(tree.path[0, 0])
        nodes[root] = tree.nodes_mm[root] + sides[root] * node_gap[root]
    return Tree(nodes, tree.path, radius_mm, tree.parent, tree.weight, tree.target, tree.owner)


def _sides(rng: np.random.Generator, tree: Tree) -> dict[int, Float]:
    """Unit vector to the companion at each branch's first and last node."""
    children: dict[int, list[int]] = {}
    for branch, parent in enumerate(tree.parent.tolist()):
        children.setdefault(parent, []).append(branch)
    ways = [unit(tree.nodes_mm[path[-1]] - tree.nodes_mm[path[0]]) for path in tree.path]
    sides: dict[int, Float] = {}
    for branch in range(len(tree)):
        first, last = int(tree.path[branch, 0]), int(tree.path[branch, -1])
        if first not in sides:
            sides[first] = perpendicular(rng, ways[branch])
        fork = children.get(branch, [])
        normal = np.cross(ways[fork[0]], ways[fork[1]]) if len(fork) == 2 else np.zeros(3)
        if np.linalg.norm(normal) < 1e-3:
            normal = sides[first] - ways[branch] * (sides[first] @ ways[branch])
        if np.linalg.norm(normal) < 1e-6:
            normal = perpendicular(rng, ways[branch])
        sides[last] = unit(normal) * (1.0 if normal @ sides[first] >= 0 else -1.0)
    return sides


def move_apart(nodes_mm: Float, radius_mm: Float, obstacles: Tubes, clearance_mm: float) -> Float:
    """Nodes pushed sideways out of tubes that they would cut into, one pass.

    Args:
        nodes_mm: places ``(m, 3)``.
        radius_mm: radius of what runs through each, ``(m,)``.
        obstacles: what to keep clear of, with their walls.
        clearance_mm: the gap to leave.
    """
    moved: Float = nodes_mm.copy()
    widest = float(radius_mm.max(initial=0.0)) + clearance_mm
    reach = obstacles.radius_mm + obstacles.wall_mm + widest
    low = np.minimum(obstacles.start_mm, obstacles.end_mm) - reach[:, None]
    high = np.maximum(obstacles.start_mm, obstacles.end_mm) + reach[:, None]
    for n in range(len(obstacles)):
        near = np.flatnonzero(((moved > low[n]) & (moved < high[n])).all(axis=1))
        if len(near):
            moved[near] = _pushed(moved[near], radius_mm[near] + clearance_mm, obstacles, n)
    return moved


def _pushed(places: Float, clear_mm: Float, obstacles: Tubes, n: int) -> Float:
    start, axis = obstacles.start_mm[n], obstacles.end_mm[n] - obstacles.start_mm[n]
    along = np.clip((places - start) @ axis / max(float(axis @ axis), 1e-12), 0.0, 1.0)
    away = places - start - along[:, None] * axis
    distance = np.maximum(np.linalg.norm(away, axis=1), 1e-9)
    missing = np.maximum(clear_mm + obstacles.radius_mm[n] + obstacles.wall_mm[n] - distance, 0.0)
    return np.asarray(places + away * (missing / distance)[:, None])


def perpendicular(rng: np.random.Generator, direction: Float) -> Float:
    """A random unit vector at right angles to a direction."""
    vector = rng.standard_normal(3)
    direction = unit(direction)
    return unit(vector - direction * (vector @ direction))


def unit(vector: Float) -> Float:
    """A vector scaled to length 1."""
    return np.asarray(vector / max(math.sqrt(float(vector @ vector)), 1e-12), dtype=np.float64)
