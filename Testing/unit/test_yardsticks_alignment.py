"""The shift of an image against its truth, and the grid that it prints, on images made with known ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from CTMicroSRLib.evaluation.printed_grid import PrintedGrid, printed_grid
from CTMicroSRLib.evaluation.shift import Shift, shift_of
from CTMicroSRLib.interpolators import INTERPOLATORS, lanczos

SCALE = 8
RNG = np.random.default_rng


def moved(images, row, column):
    """Circular shift by any part of a voxel: the Fourier transform's shift theorem."""
    j, i = (np.fft.fftfreq(n) for n in images.shape[-2:])
    phase = np.exp(-2j * np.pi * (row * j[:, None] + column * i[None, :]))
    return np.fft.ifft2(np.fft.fft2(images) * phase).real


@pytest.fixture(scope="module")
def truth():
    """Texture of 25 HU with bright vessels in it, four slices."""
    rng = RNG(0)
    texture = ndimage.gaussian_filter(rng.normal(size=(4, 256, 256)), (0, 1.5, 1.5))
    vessels = ndimage.gaussian_filter(rng.random((4, 256, 256)) > 0.998, (0, 2.5, 2.5), output=np.float64)
    return -860.0 + 25.0 * texture / texture.std() + 600.0 * vessels / vessels.max()


@pytest.mark.parametrize(("row", "column"), [(0.0, 0.0), (1.0, 0.0), (0.0, -1.0), (3.5, 3.5), (-3.5, 2.25)])
def test_a_known_shift_is_found_with_its_sign(truth, row, column):
    found = shift_of(moved(truth, row, column), truth, SCALE)
    # Steps are a twentieth of a voxel.
    assert (found.row, found.column) == pytest.approx((row, column), abs=0.06)
    assert found.length == pytest.approx(math.hypot(row, column), abs=0.08)


def test_down_and_right_are_positive(truth):
    found = shift_of(np.roll(truth, (2, 5), (1, 2)), truth, SCALE)
    assert (found.row, found.column) == pytest.approx((2.0, 5.0), abs=0.06)


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("noise_hu", [0.0, 25.0])
def test_a_shift_is_found_in_a_blurred_image_with_other_texture(truth, shift, noise_hu):
    image = ndimage.gaussian_filter(moved(truth, shift, -shift), (0, 5.0, 5.0))
    texture = ndimage.gaussian_filter(RNG(1).normal(size=truth.shape), (0, 1.5, 1.5))
    image += noise_hu * texture / texture.std()
    found = shift_of(image, truth, SCALE)
    assert (found.row, found.column) == pytest.approx((shift, -shift), abs=0.25)


@pytest.mark.parametrize("name", INTERPOLATORS)
def test_interpolation_of_block_means_is_not_shifted(truth, name):
    coarse = truth.reshape(4, 32, SCALE, 32, SCALE).mean(axis=(2, 4)).astype(np.float32)
    fine = np.stack([INTERPOLATORS[name](plane, SCALE) for plane in coarse])
    assert shift_of(fine, truth, SCALE).length < 0.3
    half_a_pixel_off = shift_of(np.roll(fine, 4, axis=1), truth, SCALE)
    assert (half_a_pixel_off.row, half_a_pixel_off.column) == pytest.approx((4.0, 0.0), abs=0.3)


def test_what_lies_out_of_the_mask_does_not_count(truth):
    image, lung = moved(truth, 3.0, 0.0), np.ones(truth.shape, bool)
    for array in (image, truth := truth.copy()):
        array[:, :, 200:] = RNG(2).normal(0.0, 900.0, (4, 256, 1))  # a wall that did not move
    lung[:, :, 200:] = False
    found = shift_of(image, truth, SCALE, lung)
    assert (found.row, found.column) == pytest.approx((3.0, 0.0), abs=0.1)


def test_an_image_that_shows_nothing_of_the_truth_has_no_shift(truth):
    for image in (np.full(truth.shape, -860.0), RNG(3).normal(-860.0, 40.0, truth.shape)):
        assert math.isnan(shift_of(image, truth, SCALE).length)
    assert math.isnan(shift_of(truth, truth, SCALE, np.zeros(truth.shape, bool)).length)


def test_shifts_of_several_cases_are_the_median_of_their_slices():
    one = Shift(np.asarray([[0.0, 0.0], [1.0, math.nan], [math.nan, math.nan]]))
    other = Shift(np.asarray([[2.0, -3.0], [1.0, -3.0]]))
    pooled = Shift.pool([one, other])
    assert (pooled.row, pooled.column) == (1.0, -3.0)
    assert pooled.length == pytest.approx(math.sqrt(10.0))
    # Shifts that scatter about nothing are no shift.
    assert Shift(np.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])).length == 0.0


def test_a_shift_refuses_what_it_cannot_measure(truth):
    with pytest.raises(ValueError, match="shape"):
        shift_of(truth[:2], truth, SCALE)
    with pytest.raises(ValueError, match="scale"):
        shift_of(truth, truth, 0)


def pattern_of(rms_hu, seed):
    """A cell of that root mean square about its mean."""
    cell = RNG(seed).normal(size=(SCALE, SCALE))
    cell -= cell.mean()
    return rms_hu * cell / np.sqrt(np.mean(cell**2))


@pytest.mark.parametrize("rms_hu", [0.5, 3.0, 20.0])
def test_a_printed_grid_is_found_in_hu_on_a_smooth_image(truth, rms_hu):
    smooth = ndimage.gaussian_filter(truth, (0, 6, 6))
    printed = smooth + np.tile(pattern_of(rms_hu, 1), (32, 32))
    assert printed_grid(printed, smooth, SCALE).rms_hu == pytest.approx(rms_hu, rel=1e-6)


def test_three_hu_are_found_below_errors_of_thirty(truth):
    image = ndimage.gaussian_filter(truth, (0, 6, 6))
    assert np.std(image - truth) > 20.0
    printed = image + np.tile(pattern_of(3.0, 2), (32, 32))
    assert printed_grid(printed, truth, SCALE).rms_hu == pytest.approx(3.0, abs=0.5)
    stripes = image + 3.0 * np.sqrt(2.0) * np.cos(2 * np.pi * np.arange(256) / SCALE)
    assert printed_grid(stripes, truth, SCALE).rms_hu == pytest.approx(3.0, abs=0.5)


@pytest.mark.parametrize("slices", [1, 4])
def test_texture_that_is_not_there_is_no_grid(slices):
    """The power has no bias: over many images without a grid its mean is nothing beside its scatter.

    Nor has it where slices overlap so far that all show the same.
    """
    truth = np.zeros((slices, 128, 128))
    errors = (RNG(n).normal(0.0, 40.0, (1, 128, 128)).repeat(slices, axis=0) for n in range(200))
    found = [printed_grid(error, truth, SCALE).power_hu2 for error in errors]
    assert abs(np.mean(found)) < 3.0 * np.std(found) / math.sqrt(len(found))
    # Not taken out, the 256 cells' mean would have 1600 / 256 HU^2 of its own.
    assert np.std(found) < 0.3 * 1600.0 / 256.0
    assert PrintedGrid.pool([PrintedGrid(power, 256) for power in found]).rms_hu < 0.35


def test_interpolations_that_keep_constants_print_no_grid(truth):
    coarse = truth.reshape(4, 32, SCALE, 32, SCALE).mean(axis=(2, 4)).astype(np.float32)
    for name in ("bicubic", "B-spline"):
        fine = np.stack([INTERPOLATORS[name](plane, SCALE) for plane in coarse])
        assert printed_grid(fine, truth, SCALE).rms_hu < 0.3


def test_the_ripple_of_a_windowed_sinc_is_a_grid():
    """Its weights do not sum to 1 at every place, so a flat lung gets a grid; the same under any texture."""
    ripple = lanczos(np.full((32, 32), -850.0, np.float32), SCALE).astype(np.float64)
    alone = np.std(ripple[64:-64, 64:-64])
    inside = np.zeros(ripple.shape, bool)
    inside[64:-64, 64:-64] = True
    assert printed_grid(ripple, np.full(ripple.shape, -850.0), SCALE, inside).rms_hu == pytest.approx(alone, rel=0.01)


def test_only_whole_cells_in_the_mask_are_read():
    error, inside = np.tile(pattern_of(5.0, 3), (32, 32)), np.zeros((256, 256), bool)
    inside[3:250, :] = True
    error[:8] = error[248:] = 700.0 * RNG(4).normal(size=(8, 256))
    found = printed_grid(error, np.zeros_like(error), SCALE, inside)
    assert found.cells == 30 * 32
    assert found.rms_hu == pytest.approx(5.0)
    nothing = printed_grid(error, np.zeros_like(error), SCALE, np.zeros_like(inside))
    assert math.isnan(nothing.rms_hu)
    assert PrintedGrid.pool([nothing, found]) == found
    assert math.isnan(PrintedGrid.pool([nothing]).rms_hu)


def test_a_grid_refuses_what_it_cannot_measure(truth):
    with pytest.raises(ValueError, match="shape"):
        printed_grid(truth[:2], truth, SCALE)
    with pytest.raises(ValueError, match="no grid"):
        printed_grid(truth, truth, 1)
