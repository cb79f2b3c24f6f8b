"""Bias, false structures, sparsification and calibration of images whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.evaluation.false_structures import (
    FAINT,
    FalseStructures,
    StructureSettings,
    bends_of,
    false_structures,
    plain_parenchyma,
)
from CTMicroSRLib.evaluation.sparsification import calibration, sparsification
from CTMicroSRLib.evaluation.tissue_bias import bias_by_tissue, pool_bias
from CTMicroSRLib.simulation.description import Label

PIXEL_MM = 0.08
RNG = np.random.default_rng


def texture(seed, shape, sigma_voxels=1.5, deviation=40.0):
    """Band-limited noise of a standard deviation, periodic."""
    j, i = (np.fft.fftfreq(n) for n in shape[-2:])
    transfer = np.exp(-2 * np.pi**2 * sigma_voxels**2 * (j[:, None] ** 2 + i[None, :] ** 2))
    noise = np.fft.ifft2(np.fft.fft2(RNG(seed).standard_normal(shape)) * transfer).real
    return deviation * noise / noise.std()


def arc(shape, centre, radius, fwhm):
    """A third of a circle, 1 on its crest, of Gaussian profile."""
    j, i = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(j - centre[0], i - centre[1]) - radius
    angle = np.arctan2(j - centre[0], i - centre[1])
    return np.exp(-0.5 * (2.355 * distance / fwhm) ** 2) * (np.abs(angle) < np.pi / 3)


ARCS = [(60.0, 60.0), (60.0, 180.0), (180.0, 60.0), (180.0, 180.0), (120.0, 120.0)]


@pytest.fixture(scope="module")
def lung():
    """Two slices of textured parenchyma with one vessel."""
    truth = -860.0 + texture(0, (2, 240, 240))
    labels = np.full(truth.shape, Label.PARENCHYMA, np.uint8)
    j, i = np.mgrid[:240, :240]
    distance = np.hypot(j - 28, i - 130)
    truth[:, distance < 12] = 30.0
    labels[:, distance < 12] = Label.ARTERY
    return truth, labels


def test_bias_planted_in_tissues_is_found_and_its_voxels_are_counted():
    truth = RNG(0).normal(-500.0, 200.0, (2, 64, 96))
    labels = np.full(truth.shape, Label.PARENCHYMA, np.uint8)
    labels[:, :16], labels[:, 16:20] = Label.VEIN, Label.MIXED
    planted = {Label.MIXED: 0.0, Label.PARENCHYMA: 12.0, Label.VEIN: -50.0}
    image = truth + sum((labels == label) * bias for label, bias in planted.items())
    found = bias_by_tissue(image, truth, labels, block_voxels=16)
    assert [bias.label for bias in found] == [Label.MIXED, Label.PARENCHYMA, Label.VEIN]
    for bias in found:
        assert bias.mean_error_hu == pytest.approx(planted[bias.label], abs=1e-6)
        assert bias.standard_error_hu == pytest.approx(0.0, abs=1e-6)
        assert bias.deviation_hu == pytest.approx(0.0, abs=1e-3)
        assert bias.voxels == np.count_nonzero(labels == bias.label)
    assert [bias.groups for bias in found] == [12, 36, 12]


def test_the_standard_error_is_that_of_block_means_not_of_voxels():
    """Blocks of 8 voxels that err alike: the standard error of 64 values, not of 4096."""
    error = RNG(1).normal(0.0, 10.0, (8, 8)).repeat(8, axis=0).repeat(8, axis=1)
    zero = np.zeros_like(error)
    (found,) = bias_by_tissue(error, zero, zero + 1, block_voxels=8)
    values = error[::8, ::8]
    assert found.standard_error_hu == pytest.approx(values.std(ddof=1) / math.sqrt(values.size))
    assert found.mean_error_hu == pytest.approx(values.mean())
    assert found.deviation_hu == pytest.approx(values.std())


def test_the_standard_error_is_the_scatter_of_repeated_means():
    errors = texture(2, (150, 96, 96), sigma_voxels=3.0, deviation=20.0)[:, :72, :72]
    zero = np.zeros((72, 72))
    found = [bias_by_tissue(error, zero, zero + 1, block_voxels=24)[0] for error in errors]
    scatter = np.std([bias.mean_error_hu for bias in found])
    assert np.sqrt(np.mean([bias.standard_error_hu**2 for bias in found])) == pytest.approx(scatter, rel=0.25)
    assert scatter > 5 * 20.0 / 72


def test_erosion_leaves_out_voxels_beside_another_tissue():
    labels = np.full((1, 40, 40), Label.PARENCHYMA, np.uint8)
    labels[0, 10:31, 10:31] = Label.NODULE
    error = np.zeros(labels.shape)
    error[0, 9:32, 9:32] = 100.0
    error[0, 12:29, 12:29] = 0.0
    before = {bias.label: bias for bias in bias_by_tissue(error, 0 * error, labels)}
    after = {bias.label: bias for bias in bias_by_tissue(error, 0 * error, labels, erode_voxels=2)}
    assert before[Label.NODULE].mean_error_hu > 10.0
    assert after[Label.NODULE].mean_error_hu == after[Label.PARENCHYMA].mean_error_hu == 0.0
    assert after[Label.NODULE].voxels == 17**2
    assert after[Label.PARENCHYMA].voxels == 1600 - 25**2


def test_pooled_bias_weighs_voxels_and_takes_its_error_between_cases():
    zero = np.zeros((1, 8, 8))
    cases = [bias_by_tissue(zero + bias, zero, zero + 1) for bias in (1.0, 3.0, 8.0)]
    (pooled,) = pool_bias(cases)
    assert (pooled.voxels, pooled.groups) == (192, 3)
    assert pooled.mean_error_hu == pytest.approx(4.0)
    assert pooled.standard_error_hu == pytest.approx(np.std([1, 3, 8], ddof=1) / math.sqrt(3))
    assert pooled.deviation_hu == pytest.approx(np.std([1, 3, 8]))
    assert math.isnan(cases[0][0].standard_error_hu)


def test_bias_refuses_wrong_labels():
    image = np.zeros((4, 4))
    for labels, message in ((image[1:], "labels have shape"), (image + 99, "out of 0 to 14"), (image - 1, "out of")):
        with pytest.raises(ValueError, match=message):
            bias_by_tissue(image, image, labels)


@pytest.mark.parametrize("width", [4.0, 8.0])
def test_a_ridge_counts_its_height_at_its_width(width):
    offset = np.arange(-40, 41)
    ridge = 70.0 * np.exp(-0.5 * (2.355 * offset / width) ** 2)[None, :].repeat(81, axis=0) - 850.0
    found = bends_of(ridge, width)
    assert found.contrast[40, 40] == pytest.approx(70.0, rel=0.03)
    assert bends_of(ridge.T, width).contrast[40, 40] == pytest.approx(70.0, rel=0.03)
    assert bends_of(ridge, 2 * width).contrast[40, 40] < 65.0 > bends_of(ridge, width / 2).contrast[40, 40]
    assert bends_of(-ridge, width).contrast[40, 40] == pytest.approx(0.0, abs=1e-3)
    assert bends_of(-ridge, width).shown_across(found)[40, 40] == pytest.approx(-70.0, rel=0.03)
    assert bends_of(ridge.T, width).shown_across(found)[40, 40] == pytest.approx(0.0, abs=0.1)


def test_the_side_of_a_blurred_vessel_counts_nothing():
    j, i = np.mgrid[-60:61, -60:61]
    distance = np.hypot(j, i)
    vessel = 900.0 * np.exp(-0.5 * (distance / 9.0) ** 2)
    side = (distance > 18.0) & (distance < 45.0)
    assert bends_of(vessel, 7.0).contrast[side].max() == 0.0


@pytest.mark.parametrize("rule", [StructureSettings(), FAINT])
def test_the_truth_has_no_false_structure_and_blurring_has_fewer(lung, rule):
    truth, labels = lung
    reference = plain_parenchyma(truth, labels, PIXEL_MM, rule)
    perfect = false_structures(truth, reference)
    assert perfect.area_ratio == pytest.approx(1.0, abs=0.02)
    assert perfect.false_structures == perfect.false_blocks == 0
    assert perfect.structures == perfect.truth_structures
    assert perfect.plain_cm2 == pytest.approx(2 * (240 * 0.008) ** 2, rel=0.05)
    transfer = np.exp(-2 * np.pi**2 * 36.0 * (np.fft.fftfreq(240)[:, None] ** 2 + np.fft.fftfreq(240)[None, :] ** 2))
    smooth = np.fft.ifft2(np.fft.fft2(truth) * transfer).real
    found = false_structures(smooth, reference)
    assert found.area_ratio < 0.1
    assert found.false_structures == 0


@pytest.mark.parametrize(
    ("rule", "height"), [(StructureSettings(), 160.0), (StructureSettings(contrast_hu=140.0), 240.0)]
)
def test_planted_arcs_are_counted(lung, rule, height):
    truth, labels = lung
    reference = plain_parenchyma(truth, labels, PIXEL_MM, rule)
    image = truth.copy()
    image[1] += height * sum(arc(image.shape[1:], centre, 25.0, 6.0) for centre in ARCS)
    found = false_structures(image, reference)
    assert found.false_structures == len(ARCS)
    assert found.false_per_cm2 == pytest.approx(len(ARCS) / found.plain_cm2)
    length_cm = len(ARCS) * 2 * math.pi / 3 * 25.0 * 0.008
    assert 0.4 * 0.048 * length_cm < found.false_cm2 < 1.6 * 0.048 * length_cm
    assert found.area_ratio > 5.0
    assert len(ARCS) <= found.false_blocks < found.blocks / 2


def test_faint_arcs_in_an_image_without_texture_are_found_by_a_fixed_contrast(lung):
    truth, labels = lung
    flat = np.where(labels == Label.PARENCHYMA, -860.0, truth)
    flat[1] += 70.0 * sum(arc(flat.shape[1:], centre, 25.0, 6.0) for centre in ARCS)
    found = {
        rule: false_structures(flat, plain_parenchyma(truth, labels, PIXEL_MM, rule)).false_structures
        for rule in (StructureSettings(), FAINT)
    }
    assert found == {StructureSettings(): 0, FAINT: len(ARCS)}


def test_what_the_truth_shows_is_not_false_and_what_it_shows_elsewhere_is(lung):
    truth, labels = lung
    there, elsewhere = (300.0 * arc(truth.shape[1:], centre, 25.0, 6.0) for centre in (ARCS[0], ARCS[3]))
    rule = StructureSettings(truth_share=0.02)
    reference = plain_parenchyma(truth + there, labels, PIXEL_MM, rule)
    assert false_structures(truth + 1.3 * there, reference).false_structures == 0
    # Two slices of the truth are alike but for their texture: one false arc in each.
    assert false_structures(truth + elsewhere, reference).false_structures == 2


def test_structures_near_other_tissue_are_not_counted(lung):
    truth, labels = lung
    reference = plain_parenchyma(truth, labels, PIXEL_MM)
    image = truth.copy()
    image[labels == Label.ARTERY] = 3000.0
    image[:, 41:43, 125:135] += 500.0
    found, perfect = false_structures(image, reference), false_structures(truth, reference)
    assert (found.structures, found.over_cm2) == (perfect.structures, perfect.over_cm2)


def test_without_texture_the_floor_decides_and_without_parenchyma_nothing_does():
    flat = np.full((100, 100), -860.0)
    labels = np.full(flat.shape, int(Label.PARENCHYMA))
    reference = plain_parenchyma(flat, labels, PIXEL_MM)
    assert reference.least_contrasts_hu == (5.0, 5.0, 5.0)
    assert false_structures(flat, reference).area_ratio == 0.0
    assert false_structures(flat + 10.0 * arc((100, 100), (50.0, 40.0), 25.0, 6.0), reference).false_structures == 1
    none = false_structures(flat, plain_parenchyma(flat, labels * 0, PIXEL_MM))
    assert none.plain_cm2 == none.structures == 0
    assert math.isnan(none.area_ratio)
    assert math.isnan(none.false_block_rate)


def test_pooled_counts_are_sums():
    one = FalseStructures(2.0, 0.002, 0.004, 0.002, 5, 2, 3, 0.001, 10, 2)
    two = FalseStructures(6.0, 0.006, 0.0, 0.006, 0, 4, 0, 0.0, 30, 0)
    pooled = FalseStructures.pool([one, two])
    assert pooled.area_ratio == pytest.approx(0.5)
    assert pooled.false_per_cm2 == pytest.approx(3 / 8)
    assert pooled.false_block_rate == pytest.approx(2 / 40)
    with pytest.raises(ValueError, match="no case"):
        FalseStructures.pool([])


def test_false_structures_refuse_other_shapes_and_nan(lung):
    truth, labels = lung
    with pytest.raises(ValueError, match="labels have shape"):
        plain_parenchyma(truth, labels[:1], PIXEL_MM)
    reference = plain_parenchyma(truth, labels, PIXEL_MM)
    with pytest.raises(ValueError, match="shape"):
        false_structures(truth[:1], reference)
    with pytest.raises(ValueError, match="not finite"):
        false_structures(np.full_like(truth, np.nan), reference)
    with pytest.raises(ValueError, match="Shares"):
        StructureSettings(truth_share=0.0)
    with pytest.raises(ValueError, match="positive"):
        StructureSettings(widths_mm=())


@given(seed=st.integers(0, 1000), power=st.floats(0.2, 3.0))
@settings(max_examples=20, deadline=None)
def test_a_ranking_that_is_right_has_no_area_and_the_worst_has_more_than_chance(seed, power):
    error = RNG(seed).standard_normal((20, 25))
    perfect = sparsification(error, 3.0 * np.abs(error) ** power)
    assert perfect.ause == pytest.approx(0.0, abs=1e-12)
    assert perfect.rmse[0] == pytest.approx(1.0)
    worst = sparsification(error, 10.0 - np.abs(error))
    assert worst.relative > 1.0


def test_areas_of_uniform_errors_are_known():
    """Of |error| uniform in 0 to 1 a share 1 - q is left by the oracle with RMSE (1 - q) / sqrt(3): area 1/2."""
    rng = RNG(3)
    error = rng.permutation((np.arange(40_000) + 0.5) / 40_000) * rng.choice([-1.0, 1.0], 40_000)
    chance = sparsification(error, rng.random(40_000))
    assert chance.ause_random == pytest.approx(0.5, abs=1e-4)
    assert chance.ause == pytest.approx(0.5, abs=0.02)
    assert np.allclose(chance.oracle_rmse[:100], 1 - chance.removed[:100], atol=1e-3)
    assert sparsification(error, np.ones(40_000)).relative == pytest.approx(1.0)
    assert sparsification(error, np.ones(40_000)).rmse == pytest.approx(1.0)
    worst = sparsification(error, 1.0 - np.abs(error))
    q = (np.arange(40_000) + 0.5) / 40_000
    assert worst.ause == pytest.approx(np.mean(np.sqrt(1 + q + q**2)) - 0.5, abs=1e-3)


def test_calibration_of_the_true_deviations_is_good_and_of_twice_them_is_known():
    rng = RNG(4)
    deviation = rng.uniform(5.0, 50.0, 60_000)
    error = rng.normal(0.0, deviation)
    good = calibration(error, deviation)
    assert good.voxels.tolist() == [4000] * 15
    assert good.ence < 0.02
    assert good.ece_hu < 0.5
    double = calibration(error, 2.0 * deviation, bins=3)
    assert double.ence == pytest.approx(0.5, abs=0.01)
    assert double.ece_hu == pytest.approx(np.mean(good.predicted_hu), rel=0.02)
    assert double.uce_hu2 == pytest.approx(3.0 * np.mean(deviation**2), rel=0.02)
    assert (np.diff(double.predicted_hu) > 0).all()


def test_calibration_bins_by_hand():
    found = calibration(np.array([3.0, -3.0, 1.0, 0.0]), np.array([2.0, 2.0, 0.0, 0.0]), bins=2)
    assert found.found_hu == pytest.approx([math.sqrt(0.5), 3.0])
    assert found.predicted_hu == pytest.approx([0.0, 2.0])
    assert found.uce_hu2 == pytest.approx((0.5 + 5.0) / 2)
    assert math.isinf(found.ence)
    assert calibration(np.zeros(4), np.zeros(4), bins=2).ence == 0.0


def test_only_the_mask_is_ranked_and_bad_input_is_refused():
    error, mask = np.array([1.0, 2.0, np.nan]), np.array([True, True, False])
    assert sparsification(error, np.array([1.0, 2.0, -9.0]), mask).ause == 0.0
    assert calibration(error, np.array([1.0, 2.0, -9.0]), mask, bins=2).ece_hu == 0.0
    for call in (sparsification, calibration):
        with pytest.raises(ValueError, match="finite"):
            call(error, np.ones(3))
        with pytest.raises(ValueError, match="not negative"):
            call(np.ones(3), -np.ones(3))
        with pytest.raises(ValueError, match="empty"):
            call(np.ones(3), np.ones(3), np.zeros(3))
        with pytest.raises(ValueError, match="shape"):
            call(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="no error"):
        sparsification(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="bins"):
        calibration(np.ones(3), np.ones(3), bins=4)
