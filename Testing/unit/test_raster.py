"""Drawing with partial volume: areas and volumes kept, errors as stated, smooth fields as described."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.simulation.description import Tubes
from CTMicroSRLib.simulation.raster import Grid, SmoothField, coverage_from_distance, draw_tubes, sheet_coverage

CUBES = (0.1, 0.1, 0.1)
SLABS = (0.1, 0.1, 0.3)


def tube(start, end, radius, wall=0.0):
    ends = np.array([start], float), np.array([end], float)
    return Tubes(*ends, np.array([radius]), np.array([wall]), np.array([0]), np.array([-1]))


@pytest.mark.parametrize(
    ("spacing", "radius", "error"),
    [(CUBES, 0.05, 0.03), (CUBES, 0.12, 0.03), (CUBES, 1.0, 0.01), (SLABS, 0.12, 0.07), (SLABS, 0.4, 0.02)],
)
@pytest.mark.parametrize("end", [(8.0, 5.0, 5.0), (7.0, 7.0, 6.5), (4.0, 4.4, 8.0)])
def test_a_drawn_tube_has_its_volume_and_its_place_also_thinner_than_a_voxel(spacing, radius, error, end):
    start = (3.0, 4.0, 5.0)
    grid = Grid(tuple(round(10 / d) for d in spacing[::-1]), spacing)
    coverage = np.zeros(grid.shape_kji, np.float32)
    draw_tubes(grid, tube(start, end, radius), coverage)
    length = np.linalg.norm(np.subtract(end, start))
    expected = math.pi * radius**2 * length + 4 / 3 * math.pi * radius**3
    # The round ends of tubes thinner than a voxel are drawn too long, by a part of a voxel.
    slack = math.pi * radius**2 * 0.35 * max(spacing)
    assert coverage.sum(dtype=np.float64) * np.prod(spacing) == pytest.approx(expected, rel=error, abs=slack)
    z, y, x = (np.sum(coverage * at, dtype=np.float64) / coverage.sum() for at in np.indices(coverage.shape))
    np.testing.assert_allclose((np.array([x, y, z]) + 0.5) * spacing, np.add(start, end) / 2, atol=0.2 * max(spacing))
    assert coverage.min() >= 0.0
    assert coverage.max() <= 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([CUBES, SLABS]))
def test_coverage_of_a_flat_surface_is_within_five_percent_of_a_supersampled_voxel(seed, spacing):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(3)
    normal /= np.linalg.norm(normal)
    width = Grid((1, 1, 1), spacing).width_mm(normal)
    offsets = (np.arange(24) + 0.5) / 24 - 0.5
    points = np.stack(np.meshgrid(offsets, offsets, offsets), -1).reshape(-1, 3) * spacing
    for distance in np.linspace(-width, width, 11):
        exact = np.mean(points @ normal + distance < 0)
        assert float(coverage_from_distance(np.float32(distance), width)) == pytest.approx(exact, abs=0.055)


def test_coverage_is_the_share_of_a_voxel_behind_a_flat_surface():
    distance = np.float32([-0.2, -0.05, 0.0, 0.025, 0.05, 1.0])
    np.testing.assert_allclose(coverage_from_distance(distance, 0.1), [1, 1, 0.5, 0.25, 0, 0], atol=1e-6)


@pytest.mark.parametrize("thickness", [0.02, 0.1, 0.37])
def test_a_sheet_keeps_its_thickness_also_below_a_voxel(thickness):
    distance = ((np.arange(200) + 0.37) * 0.1 - 10.0).astype(np.float32)
    coverage = sheet_coverage(distance, thickness, 0.1)
    assert coverage.sum() * 0.1 == pytest.approx(thickness, rel=1e-3)


def test_lumen_and_wall_are_drawn_from_one_axis_and_tubes_outside_draw_nothing():
    grid = Grid((40, 40, 40), CUBES)
    outer, lumen = np.zeros(grid.shape_kji, np.float32), np.zeros(grid.shape_kji, np.float32)
    draw_tubes(grid, tube((2, 2, -9), (2, 2, 9), 0.8, 0.3), outer, lumen)
    area = lumen[20].sum() * 0.01, outer[20].sum() * 0.01
    assert area == pytest.approx((math.pi * 0.8**2, math.pi * 1.1**2), rel=0.005)
    assert (outer >= lumen).all()
    outside = np.zeros(grid.shape_kji, np.float32)
    draw_tubes(grid, tube((9, 9, 9), (12, 12, 12), 0.5), outside)
    assert not outside.any()


def test_a_tube_through_two_blocks_has_no_seam_between_them():
    whole, part = Grid((10, 40, 40), CUBES), Grid((10, 40, 20), CUBES)
    one, other = np.zeros(whole.shape_kji, np.float32), np.zeros(part.shape_kji, np.float32)
    draw_tubes(whole, tube((0.5, 1, 0.5), (3.5, 3, 0.7), 0.5), one)
    draw_tubes(part, tube((0.5, 1, 0.5), (3.5, 3, 0.7), 0.5), other)
    np.testing.assert_allclose(one[:, :, :20], other, atol=1e-5)


@pytest.mark.parametrize("scale_mm", [0.8, 3.0])
def test_a_smooth_field_has_mean_0_and_deviation_1_and_varies_over_its_scale(scale_mm):
    rng, axes = np.random.default_rng(0), np.arange(0, 40 * scale_mm, scale_mm / 3, dtype=np.float32)
    field = SmoothField(rng, np.zeros(3), np.full(3, 40 * scale_mm), scale_mm).on_axes(axes, axes, axes)
    assert field.mean() == pytest.approx(0.0, abs=0.03)
    assert field.std() == pytest.approx(1.0, abs=0.03)
    near = np.mean(field[:, :, 1:] * field[:, :, :-1])
    far = np.mean(field[:, :, 15:] * field[:, :, :-15])
    assert near > 0.85
    assert abs(far) < 0.03


def test_a_smooth_field_is_the_same_at_points_as_on_axes_and_in_a_part_as_in_the_whole():
    field = SmoothField(np.random.default_rng(1), np.zeros(3), np.full(3, 10.0), 2.0)
    x, y, z = np.float32([0.3, 2.0, 9.7]), np.float32([1.1, 4.4]), np.float32([5.5, 7.0])
    block = field.on_axes(x, y, z)
    points = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], -1).reshape(-1, 3).astype(float)
    np.testing.assert_allclose(field.at(points).reshape(block.shape), block, atol=1e-5)
    np.testing.assert_allclose(field.on_axes(x[1:], y, z[:1]), block[:1, :, 1:], atol=1e-6)


def test_a_box_holds_the_voxels_whose_centres_lie_between_its_corners():
    grid = Grid((10, 20, 30), (0.1, 0.2, 0.5))
    box = grid.box(np.array([0.25, 1.0, -3.0]), np.array([0.54, 2.0, 1.3]))
    assert box == (slice(0, 3), slice(5, 10), slice(2, 5))
    assert grid.box(np.array([4.0, 0, 0]), np.array([5.0, 1, 1])) is None
