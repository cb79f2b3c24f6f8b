"""The papers' own PSNR and SSIM: hand-computed numbers, and how they differ from the standard ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from CTMicroSRLib.evaluation.paper_metrics import paper_psnr, paper_quality, paper_ssim


def test_psnr_is_that_of_a_peak_of_one():
    truth = np.linspace(-1.0, 1.0, 64).reshape(8, 8)
    assert paper_psnr(truth + 0.1, truth) == pytest.approx(20.0)
    assert paper_psnr(truth - 0.01, truth) == pytest.approx(40.0)
    assert paper_psnr(truth, truth) == math.inf


def test_psnr_is_602_hundredths_of_a_decibel_below_scikit_images_for_the_datas_range():
    from skimage.metrics import peak_signal_noise_ratio

    rng = np.random.default_rng(0)
    truth, image = rng.uniform(-1, 1, (2, 20, 30))
    standard = peak_signal_noise_ratio(truth, image, data_range=2.0)
    assert standard - paper_psnr(image, truth) == pytest.approx(6.0206, abs=1e-4)


def test_ssim_is_its_formula_over_the_whole_image():
    # Means 0.5 and 0.25, variances 0.25 and 0.0625, covariance 0.125, by hand.
    image, truth = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.0, 0.5], [0.5, 0.0]])
    luminance = (2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    structure = (2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    assert paper_ssim(image, truth) == pytest.approx(luminance * structure)
    assert paper_ssim(image, truth) == pytest.approx(0.6401, abs=1e-3)


def test_ssim_does_not_see_where_things_are_but_how_much_varies():
    """Shuffling both images alike changes nothing: there is one window. The standard SSIM would see it."""
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(1)
    truth = np.add.outer(np.arange(16), np.arange(16)) / 15.0 - 1.0
    image = truth + rng.normal(0, 0.1, truth.shape)
    order = rng.permutation(truth.size)
    moved = [values.ravel()[order].reshape(truth.shape) for values in (image, truth)]
    assert paper_ssim(*moved) == pytest.approx(paper_ssim(image, truth))
    standard = [structural_similarity(a, b, data_range=2.0) for a, b in (moved, (image, truth))]
    assert abs(standard[0] - standard[1]) > 0.01


@given(st.integers(0, 1000))
def test_ssim_is_one_only_for_the_image_itself_and_symmetric(seed):
    a, b = np.random.default_rng(seed).uniform(-1, 1, (2, 6, 6))
    assert paper_ssim(a, a) == pytest.approx(1.0)
    assert paper_ssim(a, b) == pytest.approx(paper_ssim(b, a))
    assert paper_ssim(a, b) < 1.0


def test_hu_are_clipped_to_the_papers_window_and_mapped_to_minus_one_to_one():
    truth = np.array([[-1000.0, 750.0], [2500.0, -1000.0]])
    beyond = np.array([[-3000.0, 750.0], [4000.0, -1024.0]])
    assert paper_quality(beyond, truth).paper_psnr_db == math.inf
    # 175 HU are a tenth of a unit, in one voxel of four.
    off = truth + np.array([[175.0, 0.0], [0.0, 0.0]])
    assert paper_quality(off, truth).paper_psnr_db == pytest.approx(20.0 + 10 * math.log10(4))
