"""Models through the simulated protocol: variants, rows and yardsticks, on one small case."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from CTMicroSRLib.errors import CancelledError, UsageError
from CTMicroSRLib.evaluation.crops_figure import draw_crops
from CTMicroSRLib.evaluation.metrics import psnr_db
from CTMicroSRLib.evaluation.simulated import evaluate_models
from CTMicroSRLib.evaluation.tables import write_table
from CTMicroSRLib.evaluation.variants import Scanner, model_variants
from CTMicroSRLib.evaluation.yardsticks import prepare_reference, read_image, summarise
from CTMicroSRLib.interpolators import INTERPOLATORS
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.session import load_model
from CTMicroSRLib.simulation.cases import CaseSettings, simulate_case
from CTMicroSRLib.simulation.sets import CaseSet

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
    assert (numbers["grid_hu"], numbers["shift_fine_voxels"]) == (0.0, 0.0)
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


def test_an_image_off_by_half_a_coarse_voxel_with_a_printed_grid_shows_both_in_the_numbers(small_case):
    truth = np.asarray(small_case.scan.truth.array_kji, np.float32)
    cell = np.zeros((8, 8), np.float32)
    cell[:4] = 10.0
    image = np.roll(truth, (4, 0), (1, 2)) + np.tile(cell, (SMALL.size_voxels, SMALL.size_voxels))
    numbers = summarise([read_image(image, prepare_reference(small_case))])
    found = [numbers[f"shift_{which}fine_voxels"] for which in ("row_", "column_", "")]
    assert found == pytest.approx([4.0, 0.0, 4.0], abs=0.3)
    # A step of 10 HU is 5 HU about its mean; the shift's own errors repeat by chance.
    assert numbers["grid_hu"] == pytest.approx(5.0, abs=1.5)


def test_an_evaluation_can_be_cancelled(tiny_model):
    class Impatient(SilentProgress):
        def cancelled(self):
            return True

    with pytest.raises(CancelledError):
        evaluate_models([str(tiny_model)], ONE_CASE, Impatient())


def test_processes_that_share_the_cases_give_the_same_numbers(tiny_model):
    two = CaseSet(None, 0, ((SEED, SMALL), (SEED + 1, SMALL)))
    alone, shared = (
        evaluate_models([str(tiny_model)], two, SilentProgress(), yardsticks=False, workers=n)[0] for n in (1, 2)
    )
    assert [row.method for row in alone.rows] == [row.method for row in shared.rows]
    for one, other in zip(alone.rows, shared.rows, strict=True):
        assert other.numbers == pytest.approx(one.numbers, rel=1e-6)


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
