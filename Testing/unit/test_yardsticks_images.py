"""Spectra, upsampling grids, Fourier ring correlation and masked quality of images whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.evaluation.fourier_ring import cutoffs_per_mm, local_resolution, ring_correlation
from CTMicroSRLib.evaluation.masked import masked_quality
from CTMicroSRLib.evaluation.metrics import quality
from CTMicroSRLib.evaluation.spectra import PatchSettings, ensemble_noise, grid_peak, noise_power_spectrum, power_ratio
from CTMicroSRLib.interpolators import bicubic

PIXEL_MM = 0.08
RNG = np.random.default_rng


def blurred(images, sigma_voxels):
    """Circular Gaussian blur by its transfer function exp(-2 pi^2 sigma^2 f^2)."""
    j, i = (np.fft.fftfreq(n) for n in images.shape[-2:])
    transfer = np.exp(-2 * np.pi**2 * sigma_voxels**2 * (j[:, None] ** 2 + i[None, :] ** 2))
    return np.fft.ifft2(np.fft.fft2(images) * transfer).real


def test_white_noise_has_a_flat_spectrum_of_its_variance_times_the_pixels_area():
    found = noise_power_spectrum(RNG(0).normal(-850.0, 20.0, (4, 256, 256)), PIXEL_MM)
    assert found.variance_hu2 == pytest.approx(400.0, rel=0.02)
    assert np.allclose(found.power_hu2_mm2[2:], 400.0 * PIXEL_MM**2, rtol=0.15)
    assert np.average(found.power_hu2_mm2, weights=found.modes) == pytest.approx(400.0 * PIXEL_MM**2, rel=0.02)
    assert found.frequency_per_mm[-1] == pytest.approx(0.5 / PIXEL_MM, rel=0.02)
    disc = math.pi / 4 * 400.0
    assert found.band_power_hu2(0.0, 10.0) == pytest.approx(disc, rel=0.04)


def test_blurred_noise_has_the_squared_transfer_function_as_its_spectrum():
    noise = blurred(RNG(1).normal(0.0, 50.0, (4, 256, 256)), 2.0)
    found = noise_power_spectrum(noise, PIXEL_MM)
    inside = (found.frequency_per_mm > 0.5) & (found.frequency_per_mm < 2.0)
    expected = 2500.0 * PIXEL_MM**2 * np.exp(-((2 * np.pi * 2.0 * PIXEL_MM * found.frequency_per_mm) ** 2))
    assert np.allclose(found.power_hu2_mm2[inside], expected[inside], rtol=0.12)
    assert found.variance_hu2 == pytest.approx(noise.var(), rel=0.03)


def test_the_spectrum_of_one_patch_integrates_to_its_windowed_variance():
    """Parseval, with plane and window written out."""
    j, i = np.mgrid[:32, :32]
    patch = RNG(2).normal(0.0, 30.0, (32, 32)) + 5.0 * j - 3.0 * i + 100.0
    design = np.stack([np.ones(1024), j.ravel(), i.ravel()], axis=1)
    rest = (patch.ravel() - design @ np.linalg.lstsq(design, patch.ravel(), rcond=None)[0]).reshape(32, 32)
    line = np.sin(np.pi * (np.arange(32) + 0.5) / 32) ** 2
    window = np.outer(line, line)
    expected = ((window * rest) ** 2).sum() / (window**2).sum()
    assert noise_power_spectrum(patch, PIXEL_MM, PatchSettings(32, 16)).variance_hu2 == pytest.approx(expected)


def test_noise_of_an_ensemble_keeps_its_variance_without_the_object():
    thing = 300.0 * RNG(3).standard_normal((128, 128))
    noise = ensemble_noise(thing + RNG(4).normal(0.0, 12.0, (5, 128, 128)))
    assert noise_power_spectrum(noise, PIXEL_MM).variance_hu2 == pytest.approx(144.0, rel=0.05)
    with pytest.raises(ValueError, match="two images"):
        ensemble_noise(thing)


def test_only_patches_inside_the_mask_are_read():
    noise = RNG(5).normal(0.0, 10.0, (128, 256))
    noise[:, 128:] *= 9.0
    mask = np.zeros(noise.shape, bool)
    mask[:, :128] = True
    found = noise_power_spectrum(noise, PIXEL_MM, mask=mask)
    assert found.variance_hu2 == pytest.approx(100.0, rel=0.1)
    assert found.patches == 3 * 3


def test_the_ratio_of_a_blurred_image_to_its_truth_is_the_squared_transfer_function():
    truth = RNG(6).normal(-850.0, 40.0, (2, 256, 256))
    found = power_ratio(blurred(truth, 1.5), truth, PIXEL_MM)
    f = found.truth.frequency_per_mm
    middle = (f > 0.5) & (f < 2.5)
    assert np.allclose(found.ratio[middle], np.exp(-((2 * np.pi * 1.5 * PIXEL_MM * f[middle]) ** 2)), rtol=0.1)
    half = power_ratio(truth / 2, truth, PIXEL_MM)
    assert np.allclose(half.ratio, 0.25)
    assert half.in_band(0.5, 3.0) == pytest.approx(0.25)
    assert math.isnan(power_ratio(truth, np.zeros_like(truth), PIXEL_MM).in_band(0.5, 3.0))


def test_a_grid_of_one_hu_is_found_in_texture_of_40_hu():
    """A cosine of amplitude A adds A^2 / 4 (sum w)^2 to the texture's sigma^2 sum w^2: 18.2 times its power here."""
    texture = RNG(7).normal(-850.0, 40.0, (3, 512, 512))
    clean = grid_peak(texture)
    assert clean.lattice == pytest.approx(1.0, abs=0.3)
    assert max(clean.along_j, clean.along_i, clean.modulated_j, clean.modulated_i) < 1.9
    rows = np.cos(2 * np.pi * np.arange(512) / 8)[:, None]
    planted = grid_peak(texture + rows)
    assert planted.largest_at_ji == (1, 0)
    assert planted.largest == pytest.approx(19.2, abs=8.0)
    assert planted.along_j > 3.0
    assert planted.along_i == pytest.approx(clean.along_i)
    tile = np.zeros((8, 8))
    tile[3, 5] = 40.0
    dots = grid_peak(texture + np.tile(tile, (64, 64)))
    assert dots.lattice > 4.0


@pytest.mark.parametrize(("scale", "frequencies"), [(4, 4), (8, 24)])
def test_texture_without_a_grid_has_a_mean_ratio_of_one(scale, frequencies):
    """Each frequency of each of 24 slices has an exponential ratio: the mean scatters by 1 / sqrt(their number)."""
    slices = blurred(RNG(17).normal(0.0, 40.0, (24, 224, 224)), 0.7)
    found = grid_peak(slices, scale)
    assert found.lattice == pytest.approx(1.03, abs=3.0 / math.sqrt(24 * frequencies))


def test_borders_trends_and_straight_edges_are_no_grid():
    texture = blurred(RNG(8).normal(0.0, 150.0, (3, 384, 384)), 1.0)
    clean = grid_peak(texture)
    trend = grid_peak(texture + np.linspace(-400.0, 400.0, 384)[:, None] + np.linspace(0.0, 900.0, 384))
    assert (trend.along_j, trend.along_i) == pytest.approx((clean.along_j, clean.along_i), rel=0.01)
    assert trend.lattice == pytest.approx(clean.lattice, rel=0.01)
    edge = texture.copy()
    edge[:, :, 150:] += 900.0
    found = grid_peak(edge)
    # Four times the scatter of 1 / sqrt(9) above the 1.1 of images without a grid.
    assert max(found.along_j, found.along_i, found.modulated_j, found.modulated_i) < 2.4
    assert found.lattice == pytest.approx(1.0, abs=0.4)


def test_blocks_of_random_sign_are_a_grid_in_the_differences():
    coarse = RNG(9).normal(0.0, 40.0, (2, 48, 48)).astype(np.float32)
    blocks = grid_peak(coarse.repeat(8, axis=1).repeat(8, axis=2))
    assert min(blocks.modulated_j, blocks.modulated_i) > 100.0
    assert max(blocks.along_j, blocks.along_i) < 0.1
    smooth = grid_peak(np.stack([bicubic(plane, 8) for plane in coarse]))
    assert smooth.modulated_j < blocks.modulated_j


def test_spectra_refuse_what_they_cannot_measure():
    image = np.zeros((64, 64))
    with pytest.raises(ValueError, match="not finite"):
        noise_power_spectrum(np.full((64, 64), np.nan), PIXEL_MM)
    with pytest.raises(ValueError, match="No patch"):
        noise_power_spectrum(image, PIXEL_MM, mask=image > 0)
    with pytest.raises(ValueError, match="mask has shape"):
        noise_power_spectrum(image, PIXEL_MM, mask=np.ones((64, 63)))
    with pytest.raises(ValueError, match="shape"):
        power_ratio(image, image[1:], PIXEL_MM)
    with pytest.raises(ValueError, match="not positive"):
        noise_power_spectrum(image, 0.0)
    with pytest.raises(ValueError, match="periods"):
        grid_peak(image)
    with pytest.raises(ValueError, match="of 2 voxels"):
        grid_peak(image, 2)


@given(gain=st.floats(0.1, 10.0), offset=st.floats(-1000.0, 1000.0))
@settings(max_examples=20, deadline=None)
def test_an_image_correlates_fully_with_itself_at_any_gain_and_offset(gain, offset):
    truth = RNG(10).normal(0.0, 40.0, (48, 64))
    found = ring_correlation(gain * truth + offset, truth, PIXEL_MM)
    assert np.allclose(found.correlation, 1.0)
    assert found.resolution_mm() == pytest.approx(2 * PIXEL_MM, rel=0.05)
    assert np.allclose(ring_correlation(-truth, truth, PIXEL_MM).correlation, -1.0)


def test_independent_noises_correlate_by_chance_alone():
    a, b = RNG(11).normal(0.0, 1.0, (2, 256, 256))
    found = ring_correlation(a, b, PIXEL_MM, window=False)
    assert np.mean(found.correlation * np.sqrt(found.modes)) == pytest.approx(0.0, abs=0.35)
    assert np.std(found.correlation * np.sqrt(found.modes)) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("snr", [0.25, 1.0, 4.0])
def test_known_signal_to_noise_gives_the_known_correlation(snr):
    rng = RNG(12)
    truth, first, second = rng.normal(0.0, 30.0, (3, 256, 256))
    first, second = (truth + noise / math.sqrt(snr) for noise in (first, second))
    between = ring_correlation(first, second, PIXEL_MM)
    against_truth = ring_correlation(first, truth, PIXEL_MM)
    assert np.average(between.correlation, weights=between.modes) == pytest.approx(snr / (1 + snr), abs=0.02)
    expected = math.sqrt(snr / (1 + snr))
    assert np.average(against_truth.correlation, weights=between.modes) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("threshold", [0.5, 1.0 / 7.0])
def test_blur_with_noise_ends_where_theory_says(threshold):
    """sqrt(SNR / (1 + SNR)) = t with SNR = S H^2 / N and H the Gaussian's transfer function."""
    rng = RNG(13)
    truth, noise = rng.normal(0.0, 40.0, (2, 256, 256)), rng.normal(0.0, 2.0, (2, 256, 256))
    image = blurred(truth, 2.0) + noise
    least = threshold**2 / (1 - threshold**2)
    expected = math.sqrt(math.log(40.0**2 / (2.0**2 * least))) / (2 * math.pi * 2.0 * PIXEL_MM)
    assert ring_correlation(image, truth, PIXEL_MM).cutoff_per_mm(threshold) == pytest.approx(expected, rel=0.05)
    local = local_resolution(image, truth, PIXEL_MM, threshold=threshold)
    assert local.median_per_mm == pytest.approx(expected, rel=0.06)
    assert local.median_resolution_mm == pytest.approx(1 / local.median_per_mm)


def test_blur_without_noise_is_not_seen():
    truth = RNG(14).normal(0.0, 40.0, (256, 256))
    found = ring_correlation(blurred(truth, 1.0), truth, PIXEL_MM)
    assert found.correlation.min() > 0.98


def test_the_local_map_shows_where_the_image_is_invented():
    rng = RNG(15)
    truth = rng.normal(0.0, 40.0, (2, 192, 256))
    image = truth.copy()
    image[1, :, 128:] = rng.normal(0.0, 40.0, (192, 128))
    found = local_resolution(image, truth, PIXEL_MM)
    assert found.cutoff_per_mm.shape == (2, 5, 7)
    nyquist = 0.5 / PIXEL_MM
    assert np.allclose(found.cutoff_per_mm[0], nyquist, rtol=0.02)
    assert np.allclose(found.cutoff_per_mm[1, :, :3], nyquist, rtol=0.02)
    assert found.cutoff_per_mm[1, :, 4:].max() < 2.0
    assert 15 / 70 <= found.share_below(2.0) <= 20 / 70
    assert found.tenth_percentile_per_mm < 2.0 < found.median_per_mm


def test_patches_without_truth_or_out_of_the_mask_are_left_out():
    truth = RNG(16).normal(0.0, 40.0, (128, 192))
    truth[:, :64] = -1000.0
    mask = np.ones(truth.shape, bool)
    mask[:, 130:] = False
    found = local_resolution(truth, truth, PIXEL_MM, mask=mask)
    assert np.isfinite(found.cutoff_per_mm).all(axis=(0, 1)).tolist() == [False, True, True, False, False]
    assert found.patches == 6
    empty = local_resolution(truth, truth, PIXEL_MM, mask=mask & False)
    assert math.isnan(empty.median_per_mm)
    assert math.isnan(empty.share_below(1.0))
    nothing = local_resolution(np.zeros_like(truth), truth, PIXEL_MM, mask=mask)
    assert nothing.median_per_mm < 0.2


def test_the_cut_off_is_the_first_crossing_between_rings():
    curves = np.array([[1.0, 0.8, 0.2, 0.9], [0.9, 0.8, 0.7, 0.6], [0.0, 0.9, 0.9, 0.9]])
    found = cutoffs_per_mm(np.array([1.0, 2.0, 3.0, 4.0]), curves, 0.5)
    assert found.tolist() == pytest.approx([2.5, 4.0, 0.5])
    with pytest.raises(ValueError, match="threshold"):
        cutoffs_per_mm(np.array([1.0]), np.array([[1.0]]), 0.0)


def test_ring_correlation_refuses_what_it_cannot_measure():
    image = np.zeros((32, 32))
    with pytest.raises(ValueError, match="shape"):
        ring_correlation(image, image[:-1], PIXEL_MM)
    with pytest.raises(ValueError, match="truth holds"):
        ring_correlation(image, image + np.inf, PIXEL_MM)
    with pytest.raises(ValueError, match="too small"):
        ring_correlation(image[:4], image[:4], PIXEL_MM)
    assert not ring_correlation(image, image, PIXEL_MM).correlation.any()


def test_masked_quality_by_hand():
    truth = RNG(5).normal(-800.0, 50.0, (2, 40, 40))
    image, mask = truth.copy(), np.zeros(truth.shape, bool)
    mask[0, 10:20, 10:30] = True
    image[mask] += 35.0
    image[1] += 700.0
    found = masked_quality(image, truth, mask)
    assert found.psnr_db == pytest.approx(40.0)
    assert found.mae_hu == pytest.approx(35.0)
    inner = np.zeros_like(mask)
    inner[0, 26:30, 10:30] = True
    assert masked_quality(image, truth, inner).psnr_db == math.inf
    assert masked_quality(image, truth, inner).ssim == pytest.approx(1.0)


def test_with_a_full_mask_masked_quality_is_quality():
    rng = RNG(6)
    truth = rng.normal(-700.0, 300.0, (48, 56))
    image = truth + rng.normal(0.0, 60.0, truth.shape)
    plain, masked = quality(image, truth), masked_quality(image, truth, np.ones(truth.shape))
    for key in ("psnr_db", "ssim", "ssim_lung_window", "mae_hu"):
        assert getattr(masked, key) == pytest.approx(getattr(plain, key), rel=1e-12)


def test_masked_quality_refuses_what_it_cannot_measure():
    image = np.zeros((16, 16))
    border = image.copy()
    border[0] = 1
    assert math.isnan(masked_quality(image, image, border).ssim)
    bad = [
        ((image, image[1:], image), "shape"),
        ((image, image, image[1:]), "mask has shape"),
        ((image, image, image), "empty"),
        ((image + np.nan, image, border), "not finite"),
        ((image[:9], image[:9], border[:9]), "smaller"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            masked_quality(*arguments)
