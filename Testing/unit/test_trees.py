"""Trees of the lung: no gaps, Murray's law, published lengths and angles, companions that stay beside their airways."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.simulation.description import Tubes
from CTMicroSRLib.simulation.lobules import ACINUS_MM3, lobules_of, place_acini
from CTMicroSRLib.simulation.trees import LARGEST_TURN_RADIANS, Targets, companion, grow_tree, move_apart

TERMINAL_MM = 0.25


def grown(seed, edge_mm=28.0):
    """A tree that fills a cube of lung from one side, and the acini it feeds."""
    rng = np.random.default_rng(seed)
    acini = place_acini(rng, np.zeros(3), np.full(3, edge_mm))
    root = np.array([-3.0, edge_mm / 2, edge_mm / 2])
    tree = grow_tree(rng, root - (15, 0, 0), root, Targets(acini, np.ones(len(acini))), TERMINAL_MM)
    return tree, acini


def lengths_mm(tree):
    return np.linalg.norm(tree.nodes_mm[tree.end] - tree.nodes_mm[tree.start], axis=1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_a_tree_has_no_gaps_feeds_every_acinus_once_and_keeps_murrays_law(seed):
    tree, acini = grown(seed, 18.0)
    assert len(tree) == 2 * len(acini) - 1, "a trunk, and two branches at every fork"
    assert sorted(tree.target[tree.target >= 0]) == list(range(len(acini)))
    for branch in range(1, len(tree)):
        assert tree.start[branch] == tree.end[tree.parent[branch]]
    for branch in range(len(tree)):
        children = np.flatnonzero(tree.parent == branch)
        assert len(children) == (0 if tree.target[branch] >= 0 else 2)
        if len(children):
            assert np.sum(tree.radius_mm[children] ** 3) == pytest.approx(tree.radius_mm[branch] ** 3, rel=1e-9)
    assert tree.radius_mm.min() == pytest.approx(TERMINAL_MM)
    assert tree.radius_mm[0] == pytest.approx(TERMINAL_MM * len(acini) ** (1 / 3))


def test_a_tubes_consecutive_pieces_share_their_ends():
    tree, _ = grown(3, 18.0)
    tubes = tree.tubes()
    same = tubes.branch[1:] == tubes.branch[:-1]
    np.testing.assert_array_equal(tubes.start_mm[1:][same], tubes.end_mm[:-1][same])
    first = np.concatenate([[True], ~same])
    for start, parent in zip(tubes.start_mm[first][1:], tubes.parent[first][1:], strict=True):
        np.testing.assert_array_equal(start, tubes.end_mm[tubes.branch == parent][-1])


def test_branches_are_about_three_diameters_long():
    """Weibel (1963) and Tawhai et al. (2004): mean length to diameter 2.8 to 3.3 of conducting airways."""
    tree, _ = grown(1, 50.0)
    ratio = lengths_mm(tree) / (2 * tree.radius_mm)
    inner = (tree.parent >= 0) & (tree.target < 0)
    assert 2.6 < ratio[inner].mean() < 3.6


def test_branching_angles_are_those_of_volume_filling_trees_and_never_above_the_largest():
    """Tawhai et al. (2004): mean branching angle 37 to 43 degrees."""
    tree, _ = grown(2, 50.0)
    way = (tree.nodes_mm[tree.end] - tree.nodes_mm[tree.start]) / lengths_mm(tree)[:, None]
    turn = np.arccos(np.clip(np.sum(way[1:] * way[tree.parent[1:]], axis=1), -1, 1))
    assert 33 < math.degrees(turn.mean()) < 47
    assert turn.max() <= LARGEST_TURN_RADIANS + 1e-6


def test_terminal_bronchioles_end_inside_or_beside_their_acinus():
    tree, acini = grown(4, 40.0)
    distance = np.linalg.norm(tree.nodes_mm[tree.end[tree.owner]] - acini, axis=1)
    assert np.median(distance) < 0.6 * ACINUS_MM3 ** (1 / 3)


def test_acini_fill_their_space_evenly():
    acini = place_acini(np.random.default_rng(0), np.zeros(3), np.full(3, 60.0))
    assert len(acini) * ACINUS_MM3 == pytest.approx(60.0**3, rel=0.1)
    assert acini.min() > 0
    assert acini.max() < 60


def test_lobules_are_subtrees_of_a_few_acini():
    tree, acini = grown(5, 40.0)
    lobule = lobules_of(np.random.default_rng(0), tree)
    assert (lobule >= 0).all()
    size = np.bincount(lobule)
    size = size[size > 0]
    assert size.max() <= 12
    assert size.mean() >= 3
    for name in np.unique(lobule):
        mine = acini[lobule == name]
        assert np.ptp(mine, axis=0).max() < 35.0


def test_a_companion_keeps_clear_of_its_airways_and_has_no_gaps():
    tree, _ = grown(6, 40.0)
    outer, radius = 1.4 * tree.radius_mm, 1.1 * tree.radius_mm
    beside = companion(np.random.default_rng(0), tree, outer + radius + 0.1, radius)
    assert np.isfinite(beside.nodes_mm).all()
    np.testing.assert_array_equal(beside.path, tree.path)
    own, its = tree.tubes(0.4 * tree.radius_mm), beside.tubes()
    middle = 0.5 * (its.start_mm + its.end_mm)
    overlap = 0
    for n in range(len(own)):
        axis = own.end_mm[n] - own.start_mm[n]
        along = np.clip((middle - own.start_mm[n]) @ axis / (axis @ axis), 0, 1)
        distance = np.linalg.norm(middle - own.start_mm[n] - along[:, None] * axis, axis=1)
        overlap += int(np.sum(distance < 0.8 * (own.radius_mm[n] + own.wall_mm[n]) + 0.8 * its.radius_mm))
    assert overlap < 0.05 * len(its), "few pieces cut into any airway"


def test_nodes_are_moved_out_of_a_tube_sideways():
    wall = Tubes(
        np.array([[0.0, 0, 0]]),
        np.array([[10.0, 0, 0]]),
        np.array([1.0]),
        np.array([0.5]),
        np.array([0]),
        np.array([-1]),
    )
    nodes = np.array([[5.0, 0.4, 0.0], [5.0, 0.0, 4.0], [30.0, 0.1, 0.0]])
    moved = move_apart(nodes, np.full(3, 0.25), wall, 0.1)
    np.testing.assert_allclose(moved[0], [5.0, 1.0 + 0.5 + 0.25 + 0.1, 0.0], atol=1e-12)
    np.testing.assert_array_equal(moved[1:], nodes[1:])


def test_a_tree_without_targets_has_no_branches():
    tree = grow_tree(np.random.default_rng(0), np.zeros(3), np.ones(3), Targets(np.zeros((0, 3)), np.zeros(0)), 0.25)
    assert len(tree) == 0
    assert len(tree.tubes()) == 0


def test_joined_tubes_keep_their_branches_apart():
    one, other = grown(1, 12.0)[0].tubes(), grown(2, 12.0)[0].tubes()
    joined = Tubes.join([one, other])
    assert len(joined) == len(one) + len(other)
    assert not set(joined.branch[: len(one)]) & set(joined.branch[len(one) :])
    assert (joined.parent[joined.branch == joined.branch[len(one)]] == -1).all()
    assert len(Tubes.join([])) == 0
