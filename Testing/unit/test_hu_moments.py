"""m-HuM: moments against their definition, what they don't see, and distances by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from CTMicroSRLib.evaluation.hu_moments import (
    HuDistances,
    ShapeSettings,
    hu_distance,
    hu_moments,
    minimum_distances,
)


def shape(size=80, *, turned=False, at=(10, 12), scale=1):
    """An L of two bars in lung, HU."""
    image = np.full((size, size), -850.0)
    j, i = at
    image[j : j + 30 * scale, i : i + 8 * scale] = 30.0
    image[j : j + 8 * scale, i : i + 18 * scale] = 30.0
    return np.rot90(image) if turned else image


def test_the_first_two_moments_are_their_definition():
    """h1 = n20 + n02 and h2 = (n20 - n02)^2 + 4 n11^2, with n = central moment / area^2."""
    image = shape()
    j, i = np.nonzero(image > -500.0)
    area = len(j)
    j, i = j - j.mean(), i - i.mean()
    n20, n02, n11 = np.sum(j * j) / area**2, np.sum(i * i) / area**2, np.sum(i * j) / area**2
    moments = hu_moments(image)
    assert moments.shape == (7,)
    assert moments[0] == pytest.approx(n20 + n02)
    assert moments[1] == pytest.approx((n20 - n02) ** 2 + 4 * n11**2)


def test_a_shape_that_is_moved_turned_or_enlarged_is_the_same():
    own = hu_moments(shape())
    for other in (shape(at=(30, 40)), shape(turned=True), shape(size=160, scale=2)):
        np.testing.assert_allclose(hu_moments(other)[:4], own[:4], rtol=0.01, atol=1e-6)
    assert hu_distance(hu_moments(shape(at=(30, 40))), own) == pytest.approx(0.0, abs=1e-6)


def test_brightness_above_the_threshold_does_not_count():
    brighter = np.where(shape() > -500.0, 900.0, -700.0)
    np.testing.assert_array_equal(hu_moments(brighter), hu_moments(shape()))
    assert hu_moments(np.full((40, 40), -850.0)) is None


def test_next_to_nothing_bright_is_no_shape():
    image = np.full((40, 40), -850.0)
    image[5:10, 5:10] = 0.0
    assert hu_moments(image) is None
    assert hu_moments(image, ShapeSettings(least_area_voxels=25)) is not None
    assert hu_moments(image, ShapeSettings(least_area_voxels=26)) is None
    with pytest.raises(ValueError, match="area"):
        ShapeSettings(least_area_voxels=0)


def test_the_distances_are_opencvs_by_hand():
    first = np.array([1e-1, -1e-2, 0, 0, 0, 0, 1e-9])  # m = -1, +2; the last is rounding
    second = np.array([1e-2, -1e-3, 0, 0, 0, 0, 1e-2])  # m = -2, +3
    assert hu_distance(first, second, "I1") == pytest.approx(abs(-1 + 0.5) + abs(0.5 - 1 / 3))
    assert hu_distance(first, second, "I2") == pytest.approx(1.0 + 1.0)
    assert hu_distance(first, second, "I3") == pytest.approx(max(1.0 / 1.0, 1.0 / 2.0))
    assert math.isnan(hu_distance(np.zeros(7), second))


def test_the_smallest_of_all_pairs_and_the_mean_and_median_of_the_rows_smallest():
    def with_first(value):
        return np.array([10.0**value, 0, 0, 0, 0, 0, 0])

    images, others = [with_first(v) for v in (-1, -2, -4)], [with_first(-1.5), None, with_first(-2.25)]
    found = minimum_distances([*images, None], others, "I2")
    # Rows' smallest: 0.5, 0.25, 1.75.
    assert found == HuDistances(pytest.approx(0.25), pytest.approx(2.5 / 3), pytest.approx(0.5))
    assert minimum_distances([None], others) is None
    assert minimum_distances(images, [None]) is None
