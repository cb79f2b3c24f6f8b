"""The plan of a slice: cells over the mask, rectangles, halos, the fade into the surroundings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.plan import CONTEXT_VOXELS, bounding_region, make_plan
from CTMicroSRLib.tiles import (
    CALL_COST_VOXELS,
    CELL_VOXELS,
    FADE_VOXELS,
    GROWN_VOXELS,
    Rectangle,
    fade_weights,
    merge_cells,
    needed_cells,
    tile_of,
)
from CTMicroSRLib.volume import Geometry, Region

cell_grids = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=8))


@st.composite
def masks(draw):
    """Boxes, single voxels and all of a slice of any size, empty too."""
    rows, columns = draw(st.integers(1, 110)), draw(st.integers(1, 110))
    mask = np.zeros((rows, columns), dtype=bool)
    for _ in range(draw(st.integers(0, 4))):
        row, column = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        mask[row : row + draw(st.integers(1, 50)), column : column + draw(st.integers(1, 50))] = True
    return mask


def distance_to(mask):
    """Chessboard distance of every voxel to the mask (scipy's)."""
    return ndimage.distance_transform_cdt(~mask, metric="chessboard")


def painted(rectangles, shape):
    """How often each voxel is covered."""
    count = np.zeros(shape, dtype=int)
    for rectangle in rectangles:
        count[slice(*rectangle.rows), slice(*rectangle.columns)] += 1
    return count


def cell_mask(cells, shape):
    return np.kron(cells, np.ones((CELL_VOXELS, CELL_VOXELS), dtype=bool))[: shape[0], : shape[1]]


def cost(rectangle, halo):
    """Work of a rectangle with its last cells taken as whole ones, in voxels."""
    rows, columns = (-(-ends[1] // CELL_VOXELS) * CELL_VOXELS - ends[0] for ends in (rectangle.rows, rectangle.columns))
    return (rows + halo) * (columns + halo) + CALL_COST_VOXELS


@given(cell_grids, st.integers(1, 32), st.integers(0, 30), st.sampled_from([32, 64, 96, 512]))
def test_rectangles_cover_every_needed_cell_once_and_nothing_twice(cells, last_voxels, halo, largest):
    shape = tuple((n - 1) * CELL_VOXELS + last_voxels for n in cells.shape)
    rectangles = merge_cells(cells, shape, halo, largest)
    count = painted(rectangles, shape)
    assert count.max(initial=0) <= 1
    assert count[cell_mask(cells, shape)].all()
    for rectangle in rectangles:
        for (start, stop), size in zip((rectangle.rows, rectangle.columns), shape, strict=True):
            assert 0 <= start < stop <= size
            assert stop - start <= largest
            assert start % CELL_VOXELS == 0
            assert stop % CELL_VOXELS == 0 or stop == size
    assert rectangles == sorted(rectangles, key=lambda r: (r.rows, r.columns))


@given(cell_grids, st.integers(0, 30))
def test_rectangles_run_spare_cells_only_where_that_is_cheaper_than_the_needed_ones_alone(cells, halo):
    shape = tuple(n * CELL_VOXELS for n in cells.shape)
    rectangles = merge_cells(cells, shape, halo, 512)
    alone = merge_cells(cells, shape, halo, CELL_VOXELS)
    assert (painted(alone, shape) > 0).tolist() == cell_mask(cells, shape).tolist()
    assert sum(cost(r, halo) for r in rectangles) <= sum(cost(r, halo) for r in alone)
    for rectangle in rectangles:
        assert cell_mask(cells, shape)[slice(*rectangle.rows), slice(*rectangle.columns)].any()


def test_a_whole_slice_becomes_one_rectangle():
    assert merge_cells(np.ones((4, 5), bool), (120, 150), 18, 512) == [Rectangle((0, 120), (0, 150))]


def test_two_distant_cells_stay_two_rectangles():
    cells = np.zeros((8, 8), bool)
    cells[0, 0] = cells[7, 7] = True
    assert merge_cells(cells, (256, 256), 18, 512) == [Rectangle((0, 32), (0, 32)), Rectangle((224, 256), (224, 256))]


@settings(max_examples=60)
@given(masks())
def test_the_networks_result_holds_in_full_on_the_grown_mask_and_nowhere_far_from_it(mask):
    weights = fade_weights(mask)
    assert weights.shape == mask.shape
    assert weights.min() >= 0.0
    assert weights.max() <= 1.0
    if not mask.any():
        assert not weights.any()
        return
    distance = distance_to(mask)
    assert (weights[distance <= GROWN_VOXELS] == 1.0).all()
    assert (weights[distance > GROWN_VOXELS + FADE_VOXELS] == 0.0).all()


@settings(max_examples=60)
@given(masks())
def test_the_fade_has_no_step(mask):
    """Two means over five voxels: from one voxel to the next the weight changes by a fifth at most."""
    weights = fade_weights(mask)
    for axis in (0, 1):
        assert np.abs(np.diff(weights, axis=axis)).max(initial=0.0) <= 0.2 + 1e-5


@settings(max_examples=60)
@given(masks(), st.sampled_from([2, 8]))
def test_the_network_runs_wherever_its_result_has_weight_on_the_fine_grid(mask, scale):
    """Weights are interpolated: half a voxel beyond the last that is not zero the result still counts."""
    import torch

    weights = fade_weights(mask)
    fine = torch.nn.functional.interpolate(torch.from_numpy(weights)[None, None], scale_factor=scale, mode="bilinear")
    counts = fine[0, 0].numpy().reshape(mask.shape[0], scale, mask.shape[1], scale).max(axis=(1, 3)) > 0
    covered = cell_mask(needed_cells(weights), mask.shape)
    assert covered[counts].all()
    near_weight = ndimage.binary_dilation(weights > 0, np.ones((3, 3)))
    rows, columns = (-(-n // CELL_VOXELS) for n in mask.shape)
    for row, column in np.ndindex(rows, columns):
        part = np.s_[row * CELL_VOXELS : (row + 1) * CELL_VOXELS, column * CELL_VOXELS : (column + 1) * CELL_VOXELS]
        assert covered[part].any() == near_weight[part].any()


@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.integers(0, 40),
)
def test_a_tile_carries_its_halo_or_reaches_to_the_images_border(shape, shares, halo):
    rows = int(shares[0] * (shape[0] - 1))
    columns = int(shares[1] * (shape[1] - 1))
    core = Rectangle(
        (rows, rows + 1 + int(shares[2] * (shape[0] - 1 - rows))),
        (columns, columns + 1 + int(shares[3] * (shape[1] - 1 - columns))),
    )
    tile = tile_of(core, shape, halo)
    for inner, outer, size, at_start, at_end in (
        (core.rows, tile.rows, shape[0], tile.top, tile.bottom),
        (core.columns, tile.columns, shape[1], tile.left, tile.right),
    ):
        assert outer == (max(0, inner[0] - halo), min(size, inner[1] + halo))
        assert at_start == (outer[0] == 0)
        assert at_end == (outer[1] == size)


def geometry(size_ijk=(150, 100, 6)):
    return Geometry(size_ijk, (0.7, 0.8, 2.0), (3.0, -4.0, 5.0))


def test_the_lungs_region_is_their_bounding_box_with_the_fade_around_it():
    mask = np.zeros((6, 100, 150), bool)
    mask[2:4, 30:60, 40:55] = True
    plan = make_plan(geometry(), "lungs", mask, scale=8, halo=6)
    margin = GROWN_VOXELS + FADE_VOXELS
    assert bounding_region(mask) == Region((40, 55), (30, 60), (2, 4))
    assert plan.region == Region((40 - margin, 55 + margin), (30 - margin, 60 + margin), (2, 4))
    assert plan.output_geometry == geometry().crop(plan.region).refine((8, 8, 1))
    assert [k for k, _ in plan.slice_plans()] == [2, 3]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([32, 64, None]))
def test_a_regions_rectangles_cover_what_counts_in_its_window(seed, tile):
    rng = np.random.default_rng(seed)
    mask = np.zeros((6, 100, 150), bool)
    for _ in range(3):
        row, column = rng.integers(0, 100), rng.integers(0, 150)
        mask[1, row : row + rng.integers(1, 40), column : column + rng.integers(1, 40)] = True
    i0, j0 = int(rng.integers(0, 149)), int(rng.integers(0, 99))
    region = Region((i0, int(rng.integers(i0 + 1, 151))), (j0, int(rng.integers(j0 + 1, 101))), (1, 2))
    plan = make_plan(geometry(), region, mask, scale=8, halo=6, tile=tile)
    assert plan.window == region.grow(CONTEXT_VOXELS, (150, 100, 6))
    ((_, slice_plan),) = plan.slice_plans()
    count = painted(slice_plan.rectangles, (100, 150))
    assert count.max(initial=0) <= 1
    window = np.s_[slice(*plan.window.j), slice(*plan.window.i)]
    assert count[window][slice_plan.weights_ji[window] > 0].all()
    assert plan.network_voxels() == count.sum()


def test_without_a_mask_the_network_runs_everywhere_in_full():
    plan = make_plan(geometry(), "whole", None, scale=8, halo=6)
    assert plan.region == Region.whole((150, 100, 6))
    assert plan.slice_plan(0).weights_ji is None
    assert plan.network_voxels() == 150 * 100 * 6


@pytest.mark.parametrize("tile", [0, -32, 16, 33, 100])
def test_a_tile_that_is_no_multiple_of_a_cell_is_refused(tile):
    with pytest.raises(UsageError, match="multiple of 32"):
        make_plan(geometry(), "whole", None, scale=8, halo=6, tile=tile)


def test_an_empty_mask_is_refused():
    with pytest.raises(RefusedInputError, match="empty"):
        make_plan(geometry(), "lungs", np.zeros((6, 100, 150), bool), scale=8, halo=6)


def test_a_region_outside_the_scan_is_refused():
    with pytest.raises(UsageError, match="region J"):
        make_plan(geometry(), Region((0, 150), (0, 101), (0, 6)), None, scale=8, halo=6)


def test_a_scan_that_is_finer_than_the_result_is_refused():
    fine = Geometry((64, 64, 4), (0.1, 0.1, 0.1))
    with pytest.raises(RefusedInputError, match="finer"):
        make_plan(fine, "whole", None, scale=8, halo=6)
    at_the_limit = Geometry((64, 64, 4), (float(np.float32(0.1)) * 1.9999999, 0.2, 1.0))
    assert make_plan(at_the_limit, "whole", None, scale=8, halo=6).scale == 8
