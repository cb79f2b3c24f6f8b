"""Measuring: known answers of the metrics, the interpolators' alignment, coverage, calibration, tables."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.errors import CancelledError, UsageError
from CTMicroSRLib.evaluation.crops_figure import draw_crops
from CTMicroSRLib.evaluation.interpolators import INTERPOLATORS
from CTMicroSRLib.evaluation.metrics import PEAK_HU, psnr_db, quality, ssim
from CTMicroSRLib.evaluation.simulated import (
    Row,
    Table,
    back_projected,
    coverage,
    evaluate_models,
    model_variants,
)
from CTMicroSRLib.evaluation.tables import SUFFIXES, as_plain, markdown, write_table
from CTMicroSRLib.evaluation.yardsticks import prepare_reference, read_image, summarise
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.session import load_model
from CTMicroSRLib.simulation.case_figure import busiest_crop
from CTMicroSRLib.simulation.cases import CaseSettings, make_case, simulate_case
from CTMicroSRLib.simulation.sets import CaseSet
from CTMicroSRLib.training.export import fit_calibration


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


SMALL = CaseSettings(size_voxels=24, depth_mm=4.0, slice_mm=2.0, pixel_mm=0.7)
SEED = 2  # a block that shows something brighter than lung
ONE_CASE = CaseSet(None, 0, ((SEED, SMALL),))


@pytest.fixture(scope="module")
def small_case():
    return simulate_case(SMALL, SEED)


def test_a_models_variants_are_the_consistencies_and_the_misjudged_point_spreads(tiny_model, small_case):
    variants = dict(model_variants(load_model(tiny_model, precision="fp32"), small_case))
    assert list(variants) == [
        "tiny, consistency off",
        "tiny, scan (default)",
        "tiny, off, point spread x0.8",
        "tiny, scan, point spread x0.8",
        "tiny, off, point spread x1.2",
        "tiny, scan, point spread x1.2",
        "tiny, block",
    ]
    for name, result in variants.items():
        told = result.report["consistency"]
        factor = 0.8 if "x0.8" in name else 1.2 if "x1.2" in name else 1.0
        assert told["psf_fwhm_mm"] == pytest.approx(factor * SMALL.psf_fwhm_mm)
        assert told["mode"] == (
            "off" if ", off" in name or "consistency off" in name else "block" if "block" in name else "scan"
        )
        assert (result.uncertainty is not None) == ("default" in name)
        assert result.volume.array_kji.shape == small_case.scan.truth.array_kji.shape


def test_a_table_has_every_method_and_names_what_it_was_measured_on(tiny_model, small_case, tmp_path):
    table, shown = evaluate_models([str(tiny_model)], ONE_CASE, SilentProgress())
    methods = [row.method for row in table.rows]
    assert methods[:4] == ["bicubic", "B-spline", "Lanczos", "bicubic, scan"]
    assert len(methods) == 4 + 7
    scan = small_case.scan
    bicubic = [INTERPOLATORS["bicubic"](np.asarray(plane, np.float32), 8) for plane in scan.clinical.array_kji]
    expected = np.mean([psnr_db(image, truth) for image, truth in zip(bicubic, scan.truth.array_kji, strict=True)])
    assert table.rows[0].numbers["psnr_db"] == pytest.approx(expected, abs=1e-3)
    assert set(table.coverage["tiny"]) >= {"80%", "90%", "95%"}
    assert (table.protocol["cases"], table.protocol["seeds"]) == (1, [SEED, SEED])
    for row in table.rows:
        assert ("edge_rise_mm" in row.numbers) == ("point spread x" not in row.method)
    assert set(shown.images_ji) == {m for m in methods if "point spread x" not in m}
    write_table(table, tmp_path / "table.json")
    kept = json.loads((tmp_path / "table.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert kept["rows"][0]["method"] == "bicubic"
    draw_crops(shown, tmp_path / "crops.png")
    assert (tmp_path / "crops.png").stat().st_size > 10_000


def test_a_quick_evaluation_reads_image_quality_alone(tiny_model):
    table, _ = evaluate_models([str(tiny_model)], ONE_CASE, SilentProgress(), yardsticks=False)
    assert all(set(row.numbers) == {"psnr_db", "ssim", "ssim_lung_window", "mae_hu"} for row in table.rows)


def test_the_truth_itself_passes_every_yardstick(small_case):
    reference = prepare_reference(small_case)
    numbers = summarise([read_image(small_case.scan.truth.array_kji, reference)])
    assert numbers["lung_psnr_db"] == math.inf
    assert numbers["lung_ssim"] == pytest.approx(1.0)
    assert numbers["fine_power_ratio"] == pytest.approx(1.0)
    assert numbers["false_structures_per_cm2"] == 0.0
    biases = [value for key, value in numbers.items() if key.startswith("bias_")]
    assert biases
    assert set(biases) == {0.0}


def test_a_blurred_truth_is_worse_by_every_yardstick_that_looks_at_detail(small_case):
    from scipy import ndimage

    reference, truth = prepare_reference(small_case), small_case.scan.truth.array_kji
    sharp, blurred = (
        summarise([read_image(image, reference)]) for image in (truth, ndimage.gaussian_filter(truth, (0, 5, 5)))
    )
    assert blurred["lung_psnr_db"] < sharp["lung_psnr_db"]
    assert blurred["lung_ssim"] < 0.95
    assert blurred["resolution_mm"] > sharp["resolution_mm"]
    assert blurred["fine_power_ratio"] < 0.5


def test_an_evaluation_can_be_cancelled(tiny_model):
    class Impatient(SilentProgress):
        def cancelled(self):
            return True

    with pytest.raises(CancelledError):
        evaluate_models([str(tiny_model)], ONE_CASE, Impatient())


def test_the_shown_crop_is_the_busiest_square_on_the_coarse_grid():
    truth = np.full((160, 240), -900.0, np.float32)
    truth[64:104, 120:160:4] = 0.0
    rows, columns = busiest_crop(truth, 8, 5)
    assert (rows, columns) == (slice(64, 104), slice(120, 160))
    assert busiest_crop(truth[:16, :16], 8, 5) == (slice(0, 16), slice(0, 16))


TABLE = Table(
    [
        Row(
            "bicubic",
            {"psnr_db": 26.125, "ssim": 0.71234, "edge_rise_mm": 1.234, "nodule_volume_absolute_error": math.nan},
        ),
        Row("ours & <co>", {"psnr_db": math.inf, "ssim": 1.0}),
    ],
    {"ours": {"80%": 0.8123, "90%": 0.9, "AUSE": 0.1, "AUSE of chance": 0.4}},
    {"set": "test-1", "cases": 2, "seeds": [9, 11], "machine": "an abacus"},
)


def test_a_markdown_table_has_a_line_for_each_method_in_each_part_that_it_has_numbers_for(tmp_path):
    write_table(TABLE, tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2] == "| method | PSNR dB | SSIM |"
    assert lines[4:6] == ["| bicubic | 26.12 | 0.7123 |", "| ours & <co> | inf | 1.0000 |"]
    assert "| bicubic | 1.23 |  |" in lines
    assert "80% interval 81.2%, 90% interval 90.0%. It ranks the errors with an AUSE of 0.100" in markdown(TABLE)
    assert lines[-1] == "2 simulated specimens of test-1, seeds [9, 11]; an abacus."


def test_the_other_formats_hold_the_same_numbers(tmp_path):
    import csv
    from html.parser import HTMLParser

    for suffix in SUFFIXES:
        write_table(TABLE, tmp_path / f"table{suffix}")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["method"], float(rows[0]["psnr_db"]), rows[1]["edge_rise_mm"]) == ("bicubic", 26.125, "")
    kept = json.loads((tmp_path / "table.json").read_text())
    assert kept == as_plain(TABLE)
    assert kept["rows"][1]["psnr_db"] is None
    texts = []
    parser = HTMLParser()
    parser.handle_data = texts.append
    parser.feed((tmp_path / "table.html").read_text())
    assert "ours & <co>" in "".join(texts)
    assert "26.12" in texts


def test_a_table_of_another_kind_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(UsageError, match=r"not '\.xls'"):
        write_table(TABLE, tmp_path / "table.xls")
    assert not list(tmp_path.iterdir())


def test_processes_that_share_the_cases_give_the_same_numbers(tiny_model):
    two = CaseSet(None, 0, ((SEED, SMALL), (SEED + 1, SMALL)))
    alone, shared = (
        evaluate_models([str(tiny_model)], two, SilentProgress(), yardsticks=False, workers=n)[0] for n in (1, 2)
    )
    assert [row.method for row in alone.rows] == [row.method for row in shared.rows]
    for one, other in zip(alone.rows, shared.rows, strict=True):
        assert other.numbers == pytest.approx(one.numbers, rel=1e-6)
