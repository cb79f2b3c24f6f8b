"""Known answers of the metrics, the interpolators' alignment, coverage, calibration and residuals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.evaluation.metrics import PEAK_HU, psnr_db, quality, ssim
from CTMicroSRLib.evaluation.residuals import input_residual
from CTMicroSRLib.evaluation.results import coverage
from CTMicroSRLib.evaluation.simulated import back_projected
from CTMicroSRLib.interpolators import INTERPOLATORS
from CTMicroSRLib.simulation.cases import CaseSettings, make_case
from CTMicroSRLib.training.calibration import fit_calibration


def test_psnr_of_a_constant_error_is_the_peaks_ratio_to_it():
    truth = np.random.default_rng(0).normal(-800.0, 50.0, (20, 20))
    assert psnr_db(truth + 35.0, truth) == pytest.approx(40.0)
    assert psnr_db(truth - 350.0, truth) == pytest.approx(20.0)
    assert psnr_db(truth + 1.0, truth, peak=10.0) == pytest.approx(20.0)
    assert psnr_db(truth, truth) == math.inf


@given(st.floats(-900, 900), st.floats(-900, 900))
def test_ssim_of_two_flat_images_is_its_luminance_term(a, b):
    image, truth = np.full((16, 16), a), np.full((16, 16), b)
    constant = (0.01 * PEAK_HU) ** 2
    assert ssim(image, truth, PEAK_HU) == pytest.approx((2 * a * b + constant) / (a * a + b * b + constant), abs=1e-6)


def test_ssim_is_one_for_the_truth_and_its_formula_elsewhere():
    """Wang et al. 2004 written out: Gaussian of deviation 1.5 over 11 x 11 voxels, away from the border."""
    rng = np.random.default_rng(0)
    truth = rng.normal(-500.0, 200.0, (11, 11))
    image = truth + rng.normal(0.0, 100.0, (11, 11))
    assert ssim(truth, truth, PEAK_HU) == pytest.approx(1.0)
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(line, line) / line.sum() ** 2

    def mean(values):
        return np.sum(weights * values)

    a, b = mean(image), mean(truth)
    variances = mean(image**2) - a * a, mean(truth**2) - b * b
    c1, c2 = (0.01 * PEAK_HU) ** 2, (0.03 * PEAK_HU) ** 2
    expected = (2 * a * b + c1) * (2 * (mean(image * truth) - a * b) + c2)
    expected /= (a * a + b * b + c1) * (sum(variances) + c2)
    assert ssim(image, truth, PEAK_HU) == pytest.approx(expected, abs=1e-6)


def test_quality_is_worse_the_more_is_wrong_and_looks_through_the_lung_window():
    truth = np.random.default_rng(0).normal(-850.0, 60.0, (32, 32)).astype(np.float32)
    bone = truth.copy()
    bone[:8] = 900.0
    whiter = bone.copy()
    whiter[:8] = 1500.0
    found = quality(whiter, bone)
    assert found.ssim_lung_window == pytest.approx(1.0)
    assert found.ssim < 1.0
    assert found.mae_hu == pytest.approx(600.0 / 4)
    assert quality(truth + 10, truth).psnr_db > quality(truth + 20, truth).psnr_db


@pytest.mark.parametrize("name", INTERPOLATORS)
@pytest.mark.parametrize("scale", [2, 3, 8])
def test_an_interpolated_ramp_is_the_ramp_at_the_fine_voxels_centres(name, scale):
    """Fine voxel n lies at (n + 1/2) / scale - 1/2 coarse voxels: a shift of half a fine voxel would show at once."""
    j, i = np.mgrid[:24, :30].astype(np.float32)
    fine = INTERPOLATORS[name](10.0 * j - 4.0 * i, scale)
    assert fine.shape == (24 * scale, 30 * scale)
    fj, fi = (((np.arange(n * scale) + 0.5) / scale - 0.5) for n in (24, 30))
    expected = 10.0 * fj[:, None] - 4.0 * fi[None, :]
    inside = np.s_[8 * scale : -8 * scale, 8 * scale : -8 * scale]
    # A fine voxel's step is 10 / 8 and 4 / 8. A windowed sinc does not sum to 1 at every place.
    np.testing.assert_allclose(fine[inside], expected[inside], rtol=0, atol=0.6 if name == "Lanczos" else 0.02)
    assert np.mean(fine[inside] - expected[inside]) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("name", INTERPOLATORS)
def test_interpolation_keeps_symmetry_and_mean_grey(name):
    coarse = np.random.default_rng(0).normal(-800.0, 100.0, (16, 18)).astype(np.float32)
    interpolate = INTERPOLATORS[name]
    fine = interpolate(coarse, 4)
    np.testing.assert_allclose(interpolate(coarse[::-1, ::-1], 4)[::-1, ::-1], fine, rtol=0, atol=0.05)
    np.testing.assert_allclose(interpolate(coarse.T.copy(), 4).T, fine, rtol=0, atol=0.05)
    flat = interpolate(np.full((16, 18), -800.0, np.float32), 4)
    np.testing.assert_allclose(flat, -800.0, rtol=0, atol=2.5 if name == "Lanczos" else 0.01)


@pytest.mark.parametrize("wrong", [0.5, 1.0, 2.0])
def test_coverage_of_gaussian_errors_is_the_normal_distributions(wrong):
    rng = np.random.default_rng(0)
    deviation = rng.uniform(5.0, 80.0, (200, 300)).astype(np.float32)
    error = (rng.normal(size=deviation.shape) * deviation).astype(np.float32)
    found = coverage([(error[:100], wrong * deviation[:100]), (error[100:], wrong * deviation[100:])])
    normal = {
        level: math.erf(width * wrong / math.sqrt(2))
        for level, width in (("80%", 1.2816), ("90%", 1.6449), ("95%", 1.96))
    }
    assert found.keys() == normal.keys()
    for level, expected in normal.items():
        assert found[level] == pytest.approx(expected, abs=0.006)


@settings(max_examples=8)
@given(st.sampled_from([0.7, 1.0, 2.5]), st.sampled_from([0.0, 8.0, 25.0]), st.integers(0, 100))
def test_calibration_recovers_a_known_scale_and_floor(scale, floor_hu, seed):
    rng = np.random.default_rng(seed)
    deviation = np.exp(rng.uniform(np.log(3.0), np.log(80.0), 300_000)).astype(np.float32)
    spread = np.hypot(scale * deviation, floor_hu)
    found = fit_calibration(np.abs(rng.normal(size=deviation.shape) * spread).astype(np.float32), deviation)
    assert found.scale == pytest.approx(scale, rel=0.05)
    assert found.floor_hu == pytest.approx(floor_hu, rel=0.06, abs=1.5)


def test_a_calibration_has_no_negative_part():
    rng = np.random.default_rng(0)
    deviation = rng.uniform(5.0, 50.0, 50_000).astype(np.float32)
    rising = np.abs(rng.normal(size=deviation.shape) * deviation**2 / 20).astype(np.float32)
    falling = np.abs(rng.normal(size=deviation.shape) * (60.0 - deviation)).astype(np.float32)
    for error in (rising, falling):
        found = fit_calibration(error, deviation)
        assert found.scale >= 0.0
        assert found.floor_hu >= 0.0
    assert fit_calibration(rising, deviation).floor_hu == 0.0
    # Without a floor the scale is the one that leaves the least relative error of the squared quantiles.
    parts = np.array_split(np.argsort(deviation), 24)
    ratio = np.array([np.mean(deviation[p] ** 2) / (np.quantile(rising[p], 0.9) / 1.6449) ** 2 for p in parts])
    tried = np.linspace(0.1, 5.0, 2_000)
    best = tried[np.argmin([np.sum((scale**2 * ratio - 1.0) ** 2) for scale in tried])]
    assert fit_calibration(rising, deviation).scale == pytest.approx(best, abs=0.01)
    assert fit_calibration(falling, deviation).scale == 0.0


def test_consistency_alone_sharpens_bicubic():
    settings_ = CaseSettings(size_voxels=24, depth_mm=2.0, slice_mm=2.0, psf_fwhm_mm=1.2, noise_hu=5.0)
    case = make_case(settings_, 1)
    coarse = np.asarray(case.clinical.array_kji, np.float32)
    smooth = np.stack([INTERPOLATORS["bicubic"](plane, 8) for plane in coarse])
    sharper = back_projected(coarse, settings_)
    truth = case.truth.array_kji
    assert psnr_db(sharper, truth) > psnr_db(smooth, truth)


def test_block_means_of_the_result_leave_no_residual_and_a_shift_leaves_itself():
    rng = np.random.default_rng(0)
    fine = rng.normal(-800.0, 50.0, (2, 32, 40)).astype(np.float32)
    coarse = fine.reshape(2, 4, 8, 5, 8).mean(axis=(2, 4))
    exact = input_residual(fine, coarse, 8, psf_fwhm_voxels=0.0, noise_hu=10.0)
    assert (exact.block_residual_hu, exact.scan_residual_noise) == (
        pytest.approx(0.0, abs=1e-2),
        pytest.approx(0.0, abs=1e-3),
    )
    shifted = input_residual(fine + 20.0, coarse, 8, psf_fwhm_voxels=0.0, noise_hu=10.0)
    assert (shifted.block_residual_hu, shifted.scan_residual_noise) == (
        pytest.approx(20.0, abs=1e-3),
        pytest.approx(2.0, abs=1e-4),
    )
    blurred = input_residual(fine, coarse, 8, psf_fwhm_voxels=2.0, noise_hu=None)
    assert blurred.block_residual_hu == pytest.approx(0.0, abs=1e-2)
    assert math.isnan(blurred.scan_residual_noise)
