"""Measuring: known answers of the metrics, the interpolators' alignment, coverage, calibration, tables."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.errors import CancelledError, ModelError, UsageError
from CTMicroSRLib.evaluation.candidates import find_candidates
from CTMicroSRLib.evaluation.crops_figure import draw_crops, plainest_crop, readable
from CTMicroSRLib.evaluation.interpolators import INTERPOLATORS
from CTMicroSRLib.evaluation.metrics import PEAK_HU, psnr_db, quality, ssim
from CTMicroSRLib.evaluation.published import PUBLISHED, published_for
from CTMicroSRLib.evaluation.residuals import input_residual
from CTMicroSRLib.evaluation.results import Row, Table, coverage
from CTMicroSRLib.evaluation.simulated import back_projected, evaluate_models
from CTMicroSRLib.evaluation.tables import SUFFIXES, as_plain, markdown, table_paths, with_published, write_table
from CTMicroSRLib.evaluation.variants import Scanner, model_variants
from CTMicroSRLib.evaluation.yardsticks import prepare_reference, read_image, summarise
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.session import load_model
from CTMicroSRLib.simulation.case_figure import busiest_crop
from CTMicroSRLib.simulation.cases import CaseSettings, make_case, simulate_case
from CTMicroSRLib.simulation.sets import CaseSet
from CTMicroSRLib.training.export import fit_calibration
from CTMicroSRLib.training.methods import method_kind


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
    clinical, scanner = small_case.scan.clinical, Scanner(SMALL.psf_fwhm_mm, SMALL.image_noise_hu)
    variants = dict(model_variants(load_model(tiny_model, precision="fp32"), "tiny", clinical, scanner))
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
    quick = {"psnr_db", "ssim", "ssim_lung_window", "mae_hu", "paper_psnr_db", "paper_ssim"}
    quick |= {"m_hum", "m_hum_mean_of_minima", "m_hum_median_of_minima", "scan_residual_noise", "block_residual_hu"}
    for row in table.rows:
        assert set(row.numbers) - {"ause", "ause_of_chance"} == quick
        assert ("ause" in row.numbers) == (row.method == "tiny, scan (default)")


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


# Which models, and what they are called


def test_a_run_is_found_by_its_exported_model(make_model, tmp_path):
    run = tmp_path / "run-a"
    run.mkdir()
    make_model("tiny").rename(run / "model")
    (found,) = find_candidates([str(run)])
    assert (found.label, found.folder) == ("tiny", run / "model")


def test_a_run_without_exported_model_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ModelError, match=r"no exported model; let the training finish .*, or give a model folder\.$"):
        find_candidates([str(tmp_path / "run")])


def test_models_of_one_name_are_called_by_their_runs_and_no_model_is_taken_twice(make_model, tmp_path):
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        make_model("tiny").rename(tmp_path / run / "model")
    other = make_model("other")
    names = [str(tmp_path / "first"), str(tmp_path / "second"), str(other)]
    assert [c.label for c in find_candidates(names)] == ["first", "second", "other"]
    with pytest.raises(UsageError, match="twice"):
        find_candidates([names[0], str(tmp_path / "first" / "model")])


def test_runs_that_share_even_their_folders_name_are_called_by_their_paths(make_model, tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "run").mkdir(parents=True)
        make_model("tiny").rename(tmp_path / place / "run" / "model")
    names = [str(tmp_path / place / "run") for place in ("one", "two")]
    assert [c.label for c in find_candidates(names)] == names


# Variants, whole slices, models without dropout


@pytest.fixture
def instance_model(make_model):
    """A tiny SR-CycleGAN generator as trained: whole slices only, no dropout."""
    parameters = {"channels": 8, "blocks": 1, "norm": "instance"}
    return make_model(
        "srcg", "sr-cyclegan", parameters, gain=0.1, method="sr-cyclegan (preset small), 10 steps", seed=3
    )


def test_default_variants_of_a_model_without_dropout_need_no_uncertainty(instance_model):
    table, _ = evaluate_models([str(instance_model)], ONE_CASE, SilentProgress(), variants="default", yardsticks=False)
    assert [row.method for row in table.rows][4:] == ["srcg, consistency off", "srcg, scan (default)"]
    assert table.coverage == {}
    alone, consistent = table.rows[4:]
    assert consistent.numbers["scan_residual_noise"] < alone.numbers["scan_residual_noise"]
    assert consistent.numbers["scan_residual_noise"] < 2.0


def test_the_papers_variant_is_the_network_alone_with_its_uncertainty(tiny_model, small_case):
    clinical, scanner = small_case.scan.clinical, Scanner(SMALL.psf_fwhm_mm, SMALL.image_noise_hu)
    model = load_model(tiny_model, precision="fp32")
    ((name, result),) = model_variants(model, "tiny", clinical, scanner, "papers")
    assert name == "tiny, consistency off"
    assert result.uncertainty is not None


def test_a_model_of_another_scale_than_the_cases_is_refused(make_model):
    half = make_model("four", "sr-cyclegan", {"channels": 8, "blocks": 1, "doublings": 2, "norm": "frozen"})
    with pytest.raises(UsageError, match=r"four is 4x and the simulated cases are 8x"):
        evaluate_models([str(half)], ONE_CASE, SilentProgress())


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


# The papers' numbers


def card_of(folder):
    return find_candidates([str(folder)])[0].card


def test_a_models_method_and_preset_find_what_its_paper_says(make_model):
    def value(method, protocol, metric="paper_psnr_db"):
        card = card_of(make_model(f"m{abs(hash((method, protocol)))}", method=method))
        found = published_for(card, protocol).get(metric)
        return None if found is None else (found.paper, found.table, found.value)

    assert value("sr-cyclegan (preset small), 3 steps", "micro-self") == ("P1", 2, 17.71)
    assert value("sr-cyclegan (preset jmi2022)", "ct-self") == ("P1", 6, 26.10)
    assert value("sr-cyclegan (preset down-blocks)", "micro-self") == ("P1", 2, 16.48)
    assert value("sr-cyclegan (preset cyclegan-upblocks)", "micro-self") == ("P1", 2, 13.64)
    assert value("sr-cyclegan (preset no-upsample)", "micro-self") == ("P1", 3, 15.78)
    assert value("sr-cyclegan (preset jmi2022)", "synthesized", "paper_ssim") == ("P0", 1, 0.40)
    assert value("two-stage (preset paper)", "simulated", "paper_ssim") == ("P0", 1, 0.51)
    assert value("cincgan", "simulated") == ("P1", 4, 9.99)
    assert value("bayesian-cyclegan", "simulated", "m_hum_mean_of_minima") == ("P3", 2, 0.28)
    assert value("supervised on simulated pairs, L2", "simulated") is None


def test_a_papers_variant_is_the_preset_that_trains_it():
    for number in PUBLISHED:
        assert number.variant == "" or number.variant in method_kind(number.method).presets


def test_every_number_of_the_papers_tables_is_there():
    of_table = {}
    for number in PUBLISHED:
        of_table.setdefault((number.paper, number.table), []).append(number)
    counts = {table: len(numbers) for table, numbers in of_table.items()}
    # The CycleGAN of table 2 stands beside two methods of ours; conditions B and J of table 3 are one.
    p1 = {("P1", 2): 10, ("P1", 3): 24, ("P1", 4): 6, ("P1", 5): 12, ("P1", 6): 8, ("P1", 7): 12}
    assert counts == {**p1, ("P0", 1): 2, ("P3", 2): 3}
    assert len(set(PUBLISHED)) == len(PUBLISHED)


def test_the_papers_number_stands_beside_the_own_one_and_is_called_another_data_set(instance_model, tmp_path):
    import csv

    (candidate,) = find_candidates([str(instance_model)])
    rows = [
        Row("bicubic", {"paper_psnr_db": 20.0}),
        *(Row(f"srcg, {variant}", {"paper_psnr_db": 21.456}) for variant in ("consistency off", "scan (default)")),
    ]
    table = Table(with_published(rows, [candidate], "simulated"), {}, TABLE.protocol)
    text = markdown(table)
    assert "| srcg, consistency off | 21.46 (the paper's: 17.71, another data set) |" in text
    assert "| srcg, scan (default) | 21.46 |" in text  # consistency is not the papers'
    assert "| bicubic | 20.00 |" in text
    assert "The paper's numbers of P1, table 2 (micro-self): micro-CT of lung specimens" in text
    write_table(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        kept = list(csv.DictReader(file))
    assert [row["paper_psnr_db, the paper's (another data set)"] for row in kept] == ["", "17.71", ""]
    write_table(table, tmp_path / "t.json")
    plain = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert "published" not in plain[0]
    assert {(n["metric"], n["value"]) for n in plain[1]["published"]} >= {("paper_psnr_db", 17.71)}


# Files and figure


def test_an_output_without_suffix_or_a_folder_is_all_four_kinds(tmp_path):
    assert [p.name for p in table_paths(str(tmp_path / "t.md"))] == ["t.md"]
    assert [p.name for p in table_paths(str(tmp_path / "t"))] == ["t.md", "t.html", "t.csv", "t.json"]
    for folder in (tmp_path, tmp_path / "new"):
        paths = table_paths(f"{folder}/")
        assert {p.parent for p in paths} == {folder}
        assert [p.name for p in paths] == [f"evaluation{suffix}" for suffix in SUFFIXES]
    assert table_paths(str(tmp_path)) == table_paths(f"{tmp_path}/")
    with pytest.raises(UsageError, match="can be"):
        table_paths("t.xls")


def test_the_plainest_crop_is_even_lung_and_not_even_air():
    rng = np.random.default_rng(0)
    truth = rng.normal(-850.0, 60.0, (160, 240)).astype(np.float32)
    truth[:, 160:] = -1000.0
    truth[80:120, 40:80] = rng.normal(-850.0, 5.0, (40, 40))
    assert plainest_crop(truth, 8, 5) == (slice(80, 120), slice(40, 80))
    nothing = plainest_crop(np.full((16, 16), 100.0, np.float32), 8, 5)
    assert nothing == (slice(0, 16), slice(0, 16))


def test_many_images_are_thinned_to_one_for_each_model():
    names = ["bicubic", "B-spline", "Lanczos", "bicubic, scan"]
    for n in range(8):
        names += [f"m{n}, consistency off", f"m{n}, scan (default)", f"m{n}, block"]
    names += ["alone, consistency off"]
    kept = readable({name: np.zeros((1, 1), np.float32) for name in names})
    assert list(kept) == ["bicubic", *(f"m{n}, scan (default)" for n in range(8)), "alone, consistency off"]
    few = {name: np.zeros((1, 1), np.float32) for name in names[:7]}
    assert readable(few) == few
