"""Scanning the result again gives the input back, by a scanner written here in float64 with scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from CTMicroSRLib.consistency import (
    CORRECTION_LIMIT_HU,
    UNEXPLAINED_REACH_VOXELS,
    BandMatrix,
    ConsistencySettings,
    Interpolator,
    ScannerConsistency,
    _nearby,
    add_blocks,
    interpolation_matrix,
    measure,
)
from CTMicroSRLib.interpolation import cubic_kernel, phase_weights
from CTMicroSRLib.point_spread import scan_matrix, scan_slice, scan_weights

CPU = torch.device("cpu")
SCALE = 8
PIXEL_MM = 0.7
SHAPE = (40, 48)


def scanned(fine_ji, psf_fwhm_mm, *, scale=SCALE, pixel_mm=PIXEL_MM):
    """The scanner again, independently: Gaussian in float64, then block means; the edge goes on."""
    sigma = psf_fwhm_mm / (2 * math.sqrt(2 * math.log(2))) / (pixel_mm / scale)
    blurred = ndimage.gaussian_filter(np.asarray(fine_ji, np.float64), sigma, mode="nearest", truncate=6.0)
    rows, columns = (n // scale for n in blurred.shape)
    return blurred.reshape(rows, scale, columns, scale).mean(axis=(1, 3))


def phantom(shape=SHAPE, scale=SCALE, seed=0):
    """A fine slice of lung: parenchyma, vessels, a wall; HU."""
    rng = np.random.default_rng(seed)
    j, i = np.indices([n * scale for n in shape]) / scale
    fine = np.full(j.shape, -870.0) + ndimage.gaussian_filter(rng.normal(0, 60, j.shape), 2.0) * 4
    for _ in range(25):
        row, column, radius = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(0.4, 3.0)
        fine += (40.0 - fine) * ((j - row) ** 2 + (i - column) ** 2 < radius**2)
    fine += (50.0 - fine) * (i + 0.3 * j > shape[1])
    return fine


def noise(rng, shape, psf_fwhm_mm, noise_hu):
    """Noise of a scanner whose kernel has this point spread: ramp times squared MTF."""
    f = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, PIXEL_MM) for n in shape), indexing="ij"))
    sigma_mm = psf_fwhm_mm / (2 * math.sqrt(2 * math.log(2)))
    field = np.fft.ifft2(
        np.fft.fft2(rng.normal(size=shape)) * np.sqrt(f) * np.exp(-((2 * np.pi * sigma_mm * f) ** 2) / 2)
    )
    return noise_hu * field.real / field.real.std()


def consistency(mode="scan", psf_fwhm_mm=1.0, noise_hu=15.0, shape=SHAPE, scale=SCALE):
    settings = ConsistencySettings(mode, psf_fwhm_mm, noise_hu)
    return ScannerConsistency(shape, scale, (PIXEL_MM, PIXEL_MM), settings, CPU)


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def starts(engine, coarse, truth):
    """Results that a network could hand over: interpolated, the truth itself, and inventions of all scales."""
    rng = np.random.default_rng(3)
    wild = truth + ndimage.gaussian_filter(rng.normal(0, 1500, truth.shape), 6.0) + rng.normal(0, 80, truth.shape)
    return {"bicubic": engine.interpolate(coarse), "truth": tensor(truth), "wrong by far": tensor(wild)}


@pytest.mark.parametrize(
    ("psf_fwhm_mm", "noise_hu", "deviations"),
    [
        (0.6, 5.0, 2.1),
        (0.6, 40.0, 2.1),
        (1.0, 15.0, 2.1),
        (1.4, 15.0, 2.1),
        (1.4, 40.0, 2.1),
        (2.0, 40.0, 2.1),
    ],
)
@pytest.mark.parametrize("start", ["bicubic", "truth", "wrong by far"])
def test_scanning_the_result_again_gives_the_input_within_two_deviations(psf_fwhm_mm, noise_hu, deviations, start):
    """Two deviations, and a tenth for a scanner that sums in another order and the few places the last step left."""
    truth = phantom()
    clean = scanned(truth, psf_fwhm_mm)
    scan = clean + noise(np.random.default_rng(1), SHAPE, psf_fwhm_mm, noise_hu)
    engine = consistency(psf_fwhm_mm=psf_fwhm_mm, noise_hu=noise_hu)
    fine = starts(engine, tensor(scan), truth)[start]
    remaining = engine.apply(fine, tensor(scan)).residual_hu.numpy()
    again = scan - scanned(fine.numpy(), psf_fwhm_mm)
    np.testing.assert_allclose(remaining, again, rtol=0, atol=0.25)
    assert np.abs(again).max() <= deviations * noise_hu
    if start == "truth":
        assert np.sqrt(np.mean(again**2)) <= noise_hu


def test_an_interpolated_slice_becomes_consistent_at_a_wide_point_spread_and_low_noise_too():
    scan = scanned(phantom(), 2.0) + noise(np.random.default_rng(1), SHAPE, 2.0, 5.0)
    engine = consistency(psf_fwhm_mm=2.0, noise_hu=5.0)
    fine = engine.interpolate(tensor(scan))
    engine.apply(fine, tensor(scan))
    assert np.abs(scan - scanned(fine.numpy(), 2.0)).max() <= 2.2 * 5.0


def test_a_bias_of_the_whole_result_does_not_pass_as_noise():
    truth = phantom()
    scan = tensor(scanned(truth, 1.0) + noise(np.random.default_rng(1), SHAPE, 1.0, 15.0))
    fine = tensor(truth + 20.0)
    remaining = consistency().apply(fine, scan).residual_hu
    assert abs(remaining.mean()) <= 3.0


def test_a_result_that_agrees_with_its_scan_is_left_bit_for_bit_as_it_is():
    truth = phantom()
    fine = tensor(truth)
    engine = consistency()
    remaining = engine.apply(fine, tensor(scanned(truth, 1.0))).residual_hu
    assert torch.equal(fine, tensor(truth))
    assert remaining.abs().max() < 0.25


def test_off_changes_nothing_and_says_what_remains():
    truth, engine = phantom(), consistency("off")
    scan = scanned(truth, 1.0) + 100.0
    fine = tensor(truth)
    remaining = engine.apply(fine, tensor(scan)).residual_hu
    assert torch.equal(fine, tensor(truth))
    np.testing.assert_allclose(remaining.numpy(), 100.0, rtol=0, atol=0.25)


@pytest.mark.parametrize("start", ["bicubic", "truth", "wrong by far"])
def test_in_block_mode_the_rounded_results_block_means_are_the_input(start):
    truth = phantom()
    scan = np.rint(scanned(truth, 1.0) + noise(np.random.default_rng(1), SHAPE, 1.0, 15.0))
    engine = consistency("block")
    fine = starts(engine, tensor(scan), truth)[start]
    remaining = engine.apply(fine, tensor(scan)).residual_hu.numpy()
    written = np.rint(fine.numpy()).astype(np.int16)
    means = written.astype(np.float64).reshape(SHAPE[0], SCALE, SHAPE[1], SCALE).mean(axis=(1, 3))
    assert np.abs(means - scan).max() <= 0.5
    assert np.abs(remaining).max() <= 0.01


@pytest.mark.parametrize("mode", ["scan", "block", "off"])
def test_air_stays_air(mode):
    engine = consistency(mode, noise_hu=0.1)
    fine = engine.interpolate(torch.full(SHAPE, -1000.0))
    engine.apply(fine, torch.full(SHAPE, -1000.0))
    assert (fine + 1000.0).abs().max() <= 2e-3


@pytest.mark.parametrize("psf_fwhm_mm", [0.6, 1.0, 1.6])
def test_an_edge_does_not_ring(psf_fwhm_mm):
    """A sharp edge that is right stays; one interpolated overshoots by no more than a tenth of its height."""
    low, high = -900.0, 50.0
    j, i = np.indices([n * SCALE for n in SHAPE])
    truth = np.where(i + 0.35 * j > 200, high, low)
    scan = tensor(scanned(truth, psf_fwhm_mm))
    engine = consistency(psf_fwhm_mm=psf_fwhm_mm)
    inside = np.s_[3 * SCALE : -3 * SCALE, 3 * SCALE : -3 * SCALE]
    sharp, smooth = tensor(truth), engine.interpolate(scan)
    engine.apply(sharp, scan)
    assert torch.equal(sharp, tensor(truth))
    engine.apply(smooth, scan)
    assert smooth[inside].max() <= high + 0.1 * (high - low)
    assert smooth[inside].min() >= low - 0.1 * (high - low)


def test_a_wrong_voxel_far_away_changes_nothing_here():
    """The correction is local: the slice beyond it stays bit for bit the same."""
    shape = (40, 200)
    truth = phantom(shape)
    scan = tensor(scanned(truth, 1.0))
    one, other = tensor(truth), tensor(truth)
    other[100:140, 40:80] += 900.0
    engine = consistency(shape=shape, noise_hu=5.0)
    engine.apply(one, scan)
    engine.apply(other, scan)
    assert not torch.equal(one[:, :400], other[:, :400])
    assert torch.equal(one[:, 1200:], other[:, 1200:])


@pytest.mark.parametrize("noise_hu", [4.0, 8.0, 15.0])
def test_a_part_that_needs_fewer_steps_is_corrected_as_in_the_whole(noise_hu):
    """Momentum must not carry an area on that is consistent already, only because another is not."""
    shape, first = (40, 200), 60
    scan = scanned(phantom(shape), 1.2) + noise(np.random.default_rng(1), shape, 1.2, noise_hu)
    scan[:, :20] += 300.0 * (np.indices((40, 20)).sum(axis=0) % 2)
    part = scan[:, first:]
    results = []
    for coarse in (scan, part):
        engine = consistency(shape=coarse.shape, psf_fwhm_mm=1.2, noise_hu=noise_hu)
        results.append(engine.interpolate(tensor(coarse)))
        engine.apply(results[-1], tensor(coarse))
    whole, alone = results[0][:, 8 * (first + 32) :], results[1][:, 8 * 32 :]
    assert (whole - alone).abs().max() <= 0.02


def cut_off(scan):
    """A field of view whose padding begins at a slanted line, as sharp as no scanner's point spread."""
    j, i = np.indices(scan.shape)
    return np.where(i + 0.4 * j < 14, -1024.0, scan)


def with_metal(scan):
    scan = scan.copy()
    scan[20:24, 20:24] = 3071.0
    return scan


@pytest.mark.parametrize("spoilt", [cut_off, with_metal])
@pytest.mark.parametrize("psf_fwhm_mm", [1.0, 1.4, 2.0])
def test_an_edge_that_no_slice_explains_is_left_as_it_is_instead_of_answered_with_waves(spoilt, psf_fwhm_mm):
    clean = scanned(phantom(), psf_fwhm_mm) + noise(np.random.default_rng(1), SHAPE, psf_fwhm_mm, 15.0)
    scan = spoilt(clean)
    engine = consistency(psf_fwhm_mm=psf_fwhm_mm)
    fine = engine.interpolate(tensor(scan))
    before = fine.clone()
    remaining = engine.apply(fine, tensor(scan))
    assert (fine - before).abs().max() <= 1.5 * CORRECTION_LIMIT_HU
    assert not remaining.explained.all()
    # what is told as unexplained lies around the edge, and all else is within the noise
    distance = ndimage.distance_transform_cdt(scan == clean, "chessboard")
    assert distance[~remaining.explained.numpy()].max() <= 3 * UNEXPLAINED_REACH_VOXELS
    assert remaining.residual_hu[remaining.explained].abs().max() <= 2.4 * 15.0


def test_a_point_spread_taken_for_far_too_wide_does_not_make_waves():
    scan = scanned(phantom(), 1.0) + noise(np.random.default_rng(1), SHAPE, 1.0, 15.0)
    engine = consistency(psf_fwhm_mm=4.0)
    fine = engine.interpolate(tensor(scan))
    remaining = engine.apply(fine, tensor(scan))
    assert fine.min() > -2500.0
    assert fine.max() < 1700.0
    assert remaining.explained.float().mean() < 1.0


def test_an_unexplained_edge_changes_nothing_far_away():
    shape = (40, 200)
    one = scanned(phantom(shape), 1.2)
    other = one.copy()
    other[:, :10] = 3071.0
    other[::2, 8:12] = -1024.0
    engine = consistency(shape=shape, psf_fwhm_mm=1.2, noise_hu=5.0)
    results = [engine.interpolate(tensor(scan)) for scan in (one, other)]
    explained = [engine.apply(fine, tensor(scan)).explained for fine, scan in zip(results, (one, other), strict=True)]
    assert explained[0].all()
    assert not explained[1].all()
    assert torch.equal(results[0][:, 1200:], results[1][:, 1200:])


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (3, 2), (33, 65)])
@pytest.mark.parametrize("mode", ["scan", "block"])
def test_slices_of_any_size_are_made_consistent(shape, mode):
    rng = np.random.default_rng(0)
    engine = consistency(mode, shape=shape, noise_hu=10.0)
    scan = tensor(np.full(shape, -700.0))
    fine = engine.interpolate(scan) + tensor(ndimage.gaussian_filter(rng.normal(0, 300, [n * 8 for n in shape]), 5.0))
    remaining = engine.apply(fine, scan).residual_hu
    again = scanned(fine.numpy(), 1.0) if mode == "scan" else scanned(fine.numpy(), 1e-6)
    assert np.abs(again + 700.0).max() <= (20.25 if mode == "scan" else 0.01)
    assert measure(remaining, 10.0).voxels == shape[0] * shape[1]


def test_pixels_that_are_not_square_have_their_own_blur_along_each_axis():
    fine = np.random.default_rng(0).normal(0, 100, (20 * 4, 24 * 4))
    settings = ConsistencySettings("scan", 1.2, 10.0)
    engine = ScannerConsistency((20, 24), 4, (0.6, 0.9), settings, CPU)
    sigmas = [1.2 / 2.354820045 / (pixel / 4) for pixel in (0.6, 0.9)]
    blurred = ndimage.gaussian_filter(fine, sigmas, mode="nearest", truncate=6.0)
    expected = blurred.reshape(20, 4, 24, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(engine.scan(tensor(fine)).numpy(), expected, rtol=0, atol=0.02)


def test_the_residuals_summary_is_its_sum_of_squares_largest_value_and_count():
    assert tuple(measure(torch.tensor([[3.0, -4.5], [0.0, 1.0]]), noise_hu=2.0)) == (30.25, 4.5, 4, 1)
    assert tuple(measure(torch.empty(0), noise_hu=2.0)) == (0.0, 0.0, 0, 0)


@given(st.integers(1, 40), st.integers(1, 9), st.just(0.0) | st.floats(0.01, 40.0))
def test_a_scanned_voxel_is_a_weighted_mean(coarse_size, scale, width):
    matrix = scan_matrix(coarse_size, scale, width)
    assert matrix.shape == (coarse_size, coarse_size * scale)
    assert matrix.min() >= 0.0
    np.testing.assert_allclose(matrix.sum(axis=1, dtype=np.float64), 1.0, rtol=0, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], rtol=0, atol=1e-7)


@settings(max_examples=40)
@given(st.integers(2, 30), st.sampled_from([2, 3, 4, 8]), st.floats(0.5, 25.0), st.integers(0, 1000))
def test_the_scan_is_a_gaussian_and_a_block_mean(coarse_size, scale, width, seed):
    fine = np.random.default_rng(seed).uniform(-1000.0, 1000.0, (coarse_size * scale, 3 * scale))
    sigma = width / (2 * math.sqrt(2 * math.log(2)))
    blurred = ndimage.gaussian_filter1d(fine, sigma, axis=0, mode="nearest", truncate=8.0)
    expected = blurred.reshape(coarse_size, scale, -1).mean(axis=1)
    # The library cuts the Gaussian at 4 deviations: 6e-5 of its mass, on a range of 2000 HU.
    np.testing.assert_allclose(scan_matrix(coarse_size, scale, width) @ fine, expected, rtol=0, atol=0.15)


def test_without_point_spread_the_scan_is_the_plain_block_mean():
    assert scan_weights(8, 0.0).tolist() == [1 / 8] * 8
    fine = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    expected = fine.reshape(3, 8, 2, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(scan_slice(fine, 8, (0.0, 0.0)), expected, rtol=0, atol=1e-6)


def test_the_point_spreads_width_is_its_full_width_at_half_maximum():
    """The edge of a half-plane scanned onto the fine grid rises from 12 to 88 % over the Gaussian's width."""
    fine = (np.arange(400) >= 200).astype(np.float64)
    edge = scan_matrix(400, 1, 20.0) @ fine
    spread = np.diff(edge)
    above = np.flatnonzero(spread >= spread.max() / 2)
    assert above[-1] - above[0] + 1 == pytest.approx(20.0, abs=1.0)
    variance = np.sum(spread * np.arange(399.0) ** 2) - np.sum(spread * np.arange(399.0)) ** 2
    assert math.sqrt(variance) == pytest.approx(20.0 / 2.354820045, rel=2e-3)


def keys(t):
    """Keys 1981, equation 15, for a = -1/2."""
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def test_the_cubic_kernel_is_keys():
    at = np.linspace(-3, 3, 121)
    np.testing.assert_allclose(cubic_kernel(at), [keys(t) for t in at], rtol=0, atol=1e-12)


@given(st.integers(1, 16))
def test_interpolations_weights_sum_to_one_for_every_phase(scale):
    weights = phase_weights(scale)
    assert weights.shape == (scale, 5)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_interpolation_is_exact_on_polynomials_up_to_the_second_degree(scale, degree):
    coarse = np.arange(20.0) ** degree
    at = (np.arange(20 * scale) + 0.5) / scale - 0.5
    fine = interpolation_matrix(20, scale) @ coarse
    inside = (at >= 2) & (at <= 17)
    np.testing.assert_allclose(fine[inside], at[inside] ** degree, rtol=0, atol=2e-4)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_interpolation_is_pillows_bicubic(scale):
    """Pillow's kernel is Keys' with a = -1/2 too; it treats the image's border in another way."""
    coarse = np.random.default_rng(0).normal(0.0, 100.0, (20, 24)).astype(np.float32)
    pillow = np.asarray(Image.fromarray(coarse).resize((24 * scale, 20 * scale), Image.Resampling.BICUBIC))
    ours = Interpolator((20, 24), scale, CPU)(tensor(coarse)).numpy()
    inside = np.s_[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    np.testing.assert_allclose(ours[inside], pillow[inside], rtol=0, atol=1e-3)


def test_at_the_border_interpolation_takes_the_edge_to_go_on():
    coarse = np.random.default_rng(0).normal(0.0, 100.0, (6, 7))
    extended = np.pad(coarse, 4, mode="edge")
    rows, columns = (interpolation_matrix(n, 4) for n in extended.shape)
    wide = (rows @ extended @ columns.T)[16:-16, 16:-16]
    rows, columns = (interpolation_matrix(n, 4) for n in coarse.shape)
    np.testing.assert_allclose(rows @ coarse @ columns.T, wide, rtol=0, atol=1e-4)


@settings(max_examples=30)
@given(st.integers(1, 80), st.integers(1, 40), st.sampled_from([1, 7, 32, 256]), st.integers(0, 1000))
def test_a_banded_matrix_multiplies_like_the_dense_one(coarse_size, other, chunk, seed):
    matrix = scan_matrix(coarse_size, 4, 6.0)
    band = BandMatrix(matrix, chunk, CPU)
    image = np.random.default_rng(seed).normal(size=(coarse_size * 4, other)).astype(np.float32)
    expected = matrix.astype(np.float64) @ image
    np.testing.assert_allclose(band.times(tensor(image)).numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(band.times_transposed(tensor(image.T)).numpy(), expected.T, rtol=0, atol=1e-5)
    target = torch.ones((other, coarse_size))
    band.add_transposed(tensor(image.T), target)
    np.testing.assert_allclose(target.numpy(), expected.T + 1.0, rtol=0, atol=1e-5)


def test_adding_to_interpolation_is_interpolation_added():
    interpolate = Interpolator((9, 11), 4, CPU)
    coarse, fine = torch.rand(9, 11), torch.rand(36, 44)
    expected = fine + interpolate(coarse)
    interpolate.add(coarse, fine)
    torch.testing.assert_close(fine, expected)


def test_blocks_get_their_coarse_value():
    fine = torch.zeros(4, 6)
    add_blocks(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), fine, 2)
    assert fine.tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2


@pytest.mark.parametrize("shape", [(1, 1), (3, 20), (30, 41)])
def test_the_largest_value_nearby_is_that_of_a_filter(shape):
    image = np.random.default_rng(0).exponential(1.0, shape).astype(np.float32)
    size = 2 * UNEXPLAINED_REACH_VOXELS + 1
    expected = ndimage.maximum_filter(image, size, mode="constant")
    assert np.array_equal(_nearby(tensor(image)).numpy(), expected)
