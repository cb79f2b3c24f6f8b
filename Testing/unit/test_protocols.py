"""The protocols that compare fine images with themselves: how they shrink, what they refuse, what they report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file, save_file

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.evaluation.candidates import find_candidates
from CTMicroSRLib.evaluation.ct_self import evaluate_ct_self
from CTMicroSRLib.evaluation.metrics import psnr_db
from CTMicroSRLib.evaluation.micro_self import evaluate_micro_self
from CTMicroSRLib.evaluation.micro_slices import MicroSource, spread_slices
from CTMicroSRLib.evaluation.protocols import PROTOCOLS, ProtocolOptions, prepare_protocol, run_protocol
from CTMicroSRLib.evaluation.shrinking import block_means, point_samples, pyramid_levels, whole_blocks
from CTMicroSRLib.evaluation.synthesized import evaluate_synthesized, synthesized
from CTMicroSRLib.evaluation.variants import VARIANTS
from CTMicroSRLib.models import sha256_of
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.simulation.cases import CaseSettings
from CTMicroSRLib.simulation.sets import CaseSet

SMALL = CaseSettings(size_voxels=24, depth_mm=2.0, slice_mm=2.0, pixel_mm=0.7)
ONE_CASE = CaseSet(None, 0, ((2, SMALL),))
UP_4X = {"channels": 8, "blocks": 1, "doublings": 2, "norm": "instance"}


@pytest.fixture
def instance_4x(make_model):
    """A tiny SR-CycleGAN generator of 4x, whole slices only, no dropout."""
    return make_model("srcg-4x", "sr-cyclegan", UP_4X, gain=0.1, method="sr-cyclegan (preset small)")


@pytest.fixture
def micro_file(tmp_path):
    """Micro-CT of bright tubes, grey values of 2000 (air) to 9000."""
    j, i = np.mgrid[:70, :90]
    plane = 2000.0 + 7000.0 * ((np.hypot(j - 35, i - 45) < 12) | (np.hypot(j - 20, i - 20) < 5))
    array = np.stack([plane + 100.0 * np.sin((i + k) / 3.0) for k in range(4)]).astype(np.uint16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.05, 0.05, 0.05))
    sitk.WriteImage(image, str(tmp_path / "micro.nrrd"))
    return tmp_path / "micro.nrrd"


def test_block_means_are_the_means_and_the_rest_at_the_border_is_cut_evenly():
    fine = np.random.default_rng(0).normal(size=(2, 21, 26))
    whole = whole_blocks(fine, 4)
    np.testing.assert_array_equal(whole, fine[:, 0:20, 1:25])
    means = block_means(whole, 4)
    assert means.shape == (2, 5, 6)
    assert means[1, 2, 3] == pytest.approx(whole[1, 8:12, 12:16].mean())


def test_point_samples_are_scipys_zoom_of_the_official_code_but_for_its_lost_border():
    from scipy import ndimage

    fine = np.random.default_rng(0).normal(-800.0, 100.0, (1, 64, 64))
    expected = ndimage.zoom(fine[0], 0.125, order=3)
    found = point_samples(fine, 8)[0]
    assert found.shape == (8, 8)
    np.testing.assert_allclose(found[1:-1, 1:-1], expected[1:-1, 1:-1], rtol=0, atol=1.0)
    # Read at the very ends, where a block's mean is not.
    assert found[0, 0] == pytest.approx(fine[0, 0, 0], abs=0.5)
    assert found[-1, -1] == pytest.approx(fine[0, -1, -1], abs=0.5)


def test_the_pyramid_halves_and_keeps_flat_grey_values():
    flat = pyramid_levels(np.full((1, 32, 48), -700.0), 3)
    assert flat.shape == (1, 4, 6)
    np.testing.assert_allclose(flat, -700.0, atol=1e-3)


@pytest.mark.parametrize(("count", "wanted", "expected"), [(9, 3, [1, 4, 7]), (2, 5, [0, 1]), (10, 1, [5])])
def test_slices_are_spread_evenly(count, wanted, expected):
    assert spread_slices(count, wanted) == expected


def test_simulated_micro_ct_is_its_specimen_in_hu_inside_the_holder():
    (hu,) = MicroSource(ONE_CASE, slices=2).volumes(8)
    assert hu.shape[0] == 2
    assert hu.shape[1] == hu.shape[2]
    assert hu.shape[1] % 8 == 0
    assert 96 <= hu.shape[1] <= 136  # a circle of less than 96 voxels' radius around it
    # Lung of some -850 HU with vessels: in HU, not grey values; the air outside the holder would be -1000.
    assert -950.0 < np.median(hu) < -650.0
    assert np.percentile(hu, 99.5) > -400.0


def test_a_users_micro_ct_is_read_through_the_window_and_its_slices_cut_to_whole_blocks(micro_file):
    source = MicroSource(ONE_CASE, (micro_file,), (2000.0, 9000.0), slices=2)
    (hu,) = source.volumes(4)
    assert hu.shape == (2, 68, 88)
    assert hu.min() == pytest.approx(-1000.0)
    assert hu.max() == pytest.approx(2500.0)


def test_micro_self_has_rows_for_both_ways_to_shrink_and_measures_against_the_micro_ct(instance_4x, micro_file):
    source = MicroSource(ONE_CASE, (micro_file,), (2000.0, 9000.0), slices=2)
    table, shown = evaluate_micro_self([str(instance_4x)], source, SilentProgress())
    by_name = {row.method: row.numbers for row in table.rows}
    assert list(by_name) == [
        f"{method}, {sampling}"
        for sampling in ("block means", "point samples")
        for method in ("bicubic", "B-spline", "Lanczos", "srcg-4x, consistency off", "srcg-4x, scan (default)")
    ]
    (truth,) = source.volumes(4)
    from CTMicroSRLib.interpolators import bicubic

    expected = np.mean([psnr_db(bicubic(block_means(truth, 4)[k], 4), truth[k]) for k in range(2)])
    assert by_name["bicubic, block means"]["psnr_db"] == pytest.approx(expected, abs=1e-6)
    # Points that are not the blocks' centres are another image.
    assert by_name["bicubic, point samples"]["psnr_db"] < expected - 0.5
    assert "block_residual_hu" not in by_name["bicubic, point samples"]
    row = next(row for row in table.rows if row.method == "srcg-4x, consistency off, block means")
    assert row.published["paper_psnr_db"].value == 17.71
    assert table.protocol["name"] == "micro-self"
    assert shown.truth_ji.shape == (68, 88)


def test_micro_self_of_simulated_specimens_asks_a_model_with_dropout_for_its_uncertainty(tiny_model):
    table, _ = evaluate_micro_self([str(tiny_model)], MicroSource(ONE_CASE, slices=1), SilentProgress())
    assert set(table.coverage) == {"tiny, block means", "tiny, point samples"}
    assert "specimens of own cases (seeds 2 to 2), 1 slices each" in table.protocol["text"]


def test_models_of_different_scales_are_not_measured_together(instance_4x, tiny_model, micro_file):
    source = MicroSource(ONE_CASE, (micro_file,), (2000.0, 9000.0))
    with pytest.raises(UsageError, match="tiny is 8x and the micro-CT is shrunk 4x"):
        evaluate_micro_self([str(instance_4x), str(tiny_model)], source, SilentProgress())


def test_micro_ct_that_can_not_be_used_is_refused(micro_file):
    with pytest.raises(UsageError, match="--micro-window LOW HIGH"):
        MicroSource(ONE_CASE, (micro_file,))
    with pytest.raises(UsageError, match="empty"):
        MicroSource(ONE_CASE, (micro_file,), (9000.0, 2000.0))
    with pytest.raises(RefusedInputError, match="no grey values between"):
        list(MicroSource(ONE_CASE, (micro_file,), (50000.0, 60000.0)).volumes(4))
    with pytest.raises(RefusedInputError, match="smaller than 96 voxels"):
        list(MicroSource(ONE_CASE, (micro_file,), (0.0, 9000.0)).volumes(8))


def chest(path: Path) -> Path:
    """Two lungs with vessels in a body, in air; int16 HU, 1.5 mm."""
    k, j, i = np.mgrid[:30, :160, :160]
    array = np.full(k.shape, -1000.0)
    array[((j - 80) / 70.0) ** 2 + ((i - 80) / 76.0) ** 2 < 1.0] = 40.0
    for centre in (48, 112):
        array[((j - 80) / 46.0) ** 2 + ((i - centre) / 26.0) ** 2 < 1.0] = -860.0
        array[np.hypot(j - 80, i - centre) < 4] = 30.0
    array += np.random.default_rng(0).normal(0.0, 10.0, array.shape)
    image = sitk.GetImageFromArray(np.rint(array).astype(np.int16))
    image.SetSpacing((2.0, 2.0, 5.0))
    sitk.WriteImage(image, str(path))
    return path


def test_ct_self_measures_the_scan_whole_and_inside_the_lungs(instance_4x, tmp_path):
    scan = chest(tmp_path / "chest.nrrd")
    table, shown = evaluate_ct_self([str(instance_4x)], [scan], SilentProgress(), slices=2, variants="papers")
    bicubic, *_, model = table.rows
    assert [row.method for row in table.rows] == ["bicubic", "B-spline", "Lanczos", "srcg-4x, consistency off"]
    # Inside the lungs there are fewer edges than at the body's border.
    assert bicubic.numbers["lung_psnr_db"] > bicubic.numbers["psnr_db"]
    assert 0 < bicubic.numbers["lung_ssim"] < 1
    assert model.published["paper_psnr_db"].value == 26.10
    assert shown.clinical_ji.shape == (40, 40)
    assert shown.pixel_mm == pytest.approx(8.0)
    assert table.protocol["text"].startswith("Protocol ct-self: 1 clinical scans, 2 slices each, shrunk 4x")


def test_a_scan_that_is_too_small_is_refused(tiny_model, tmp_path, make_scan):
    from CTMicroSRLib.files import write_volume

    write_volume(make_scan((2, 70, 90)), tmp_path / "small.nrrd")
    with pytest.raises(RefusedInputError, match=r"small.nrrd are smaller than 96 voxels"):
        evaluate_ct_self([str(tiny_model)], [tmp_path / "small.nrrd"], SilentProgress())
    with pytest.raises(UsageError, match="--clinical"):
        evaluate_ct_self([str(tiny_model)], [], SilentProgress())


@pytest.fixture
def synthesizer(make_model):
    """``synthesizer(bias)``: a network of scale 1, as the two-stage run's; its grey values lie around tanh(bias)."""

    def make(bias):
        parameters = {"channels": 8, "blocks": 1, "doublings": 0, "norm": "instance"}
        folder = make_model("maker", "sr-cyclegan", parameters, gain=0.3)
        weights = load_file(folder / "model.safetensors")
        weights["tail.bias"] = torch.full_like(weights["tail.bias"], bias)
        save_file(weights, folder / "model.safetensors")
        card = json.loads((folder / "card.json").read_text())
        card["sha256"] = sha256_of(folder / "model.safetensors")
        del card["card_sha256"]
        (folder / "card.json").write_text(json.dumps(card))
        return folder

    return make


def test_synthesized_compares_with_the_micro_ct_what_a_network_made_of_it(instance_4x, synthesizer, micro_file):
    source = MicroSource(ONE_CASE, (micro_file,), (2000.0, 9000.0), slices=1)
    maker = synthesizer(-1.0)
    table, shown = evaluate_synthesized([str(instance_4x)], str(maker), source, SilentProgress())
    (truth,) = source.volumes(4)
    coarse = synthesized(pyramid_levels(truth, 2), find_candidates([str(maker)])[0])
    np.testing.assert_array_equal(shown.clinical_ji, coarse[0])
    np.testing.assert_array_equal(shown.truth_ji, truth[0])
    assert np.abs(coarse - pyramid_levels(truth, 2)).max() > 1.0  # it is no identity
    row = next(row for row in table.rows if row.method == "srcg-4x, consistency off")
    assert row.published["paper_ssim"].value == 0.40
    assert table.protocol["synthesizer"]["name"] == "maker"


def test_a_synthesizer_whose_images_are_no_ct_is_refused(instance_4x, synthesizer, micro_file):
    source = MicroSource(ONE_CASE, (micro_file,), (2000.0, 9000.0), slices=1)
    with pytest.raises(RefusedInputError, match=r"do not look like CT; train the synthesizer maker longer"):
        evaluate_synthesized([str(instance_4x)], str(synthesizer(3.0)), source, SilentProgress())


def test_a_synthesizer_that_enlarges_is_refused(instance_4x, tiny_model, micro_file):
    source = MicroSource(ONE_CASE, (micro_file,), (2000.0, 9000.0))
    with pytest.raises(UsageError, match="tiny is 8x; give the synthesize network"):
        evaluate_synthesized([str(instance_4x)], str(tiny_model), source, SilentProgress())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"micro": (Path("m.nrrd"),)}, "--micro belongs to micro-self and synthesized, not to simulated"),
        ({"clinical": (Path("c.nrrd"),)}, "--clinical belongs to ct-self"),
        ({"protocol": "ct-self"}, "--clinical FILES"),
        ({"protocol": "ct-self", "clinical": (Path("c"),), "set": "test-1"}, "--set belongs to"),
        ({"protocol": "synthesized"}, "--synthesizer MODEL_FOLDER"),
        ({"protocol": "micro-self", "quick": True}, "--quick belongs to simulated"),
        ({"protocol": "micro-self", "micro": (Path("m"),), "cases": 1}, "beside --micro"),
        ({"protocol": "micro-self", "micro_window": (0.0, 1.0)}, "--micro-window belongs to --micro"),
        ({"protocol": "micro-self", "slices": 0}, "--slices 1 or more"),
        ({"processes": 0}, "--processes 1 or more"),
        ({"set": "best"}, "no set 'best'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        prepare_protocol(ProtocolOptions(**options))


def test_the_command_writes_all_kinds_of_table_and_a_figure(ctmicrosr, instance_4x, micro_file, tmp_path):
    arguments = ("--protocol", "micro-self", "--micro", micro_file, "--micro-window", 2000, 9000, "--slices", 1)
    outcome = ctmicrosr(
        *("evaluate", instance_4x, *arguments, "--output", f"{tmp_path}/tables/"),
        *("--figure", tmp_path / "f.png", "--progress", "none", "--variants", "papers"),
    )
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "Protocol micro-self" in outcome.stdout
    names = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert names == ["evaluation.csv", "evaluation.html", "evaluation.json", "evaluation.md"]
    kept = json.loads((tmp_path / "tables" / "evaluation.json").read_text())
    assert kept["protocol"]["window"] == [2000.0, 9000.0]
    assert (tmp_path / "f.png").stat().st_size > 10_000


def test_the_command_offers_every_protocol_and_kind_of_variants():
    """The parser has names of its own, so that the command's help needs no heavy import."""
    from CTMicroSRLib.cli import build_parser

    for protocol in PROTOCOLS:
        for variants in VARIANTS:
            arguments = ["evaluate", "m", "--output", "t", "--protocol", protocol, "--variants", variants]
            assert build_parser().parse_args(arguments).protocol == protocol


def test_a_scan_that_is_given_twice_by_whatever_path_is_refused(micro_file, tmp_path):
    import os

    linked, other = tmp_path / "linked.nrrd", micro_file.parent / ".." / micro_file.parent.name / micro_file.name
    os.link(micro_file, linked)
    for again in (micro_file, linked, other):
        with pytest.raises(UsageError, match=r"^The scan .* is given twice; leave one out\.$"):
            MicroSource(ONE_CASE, (micro_file, again), (2000.0, 9000.0))
        with pytest.raises(UsageError, match="is given twice"):
            evaluate_ct_self(["compact-8x"], [micro_file, again], SilentProgress())


def test_a_warning_is_said_once_in_an_evaluation_and_again_in_the_next(caplog, monkeypatch):
    import logging

    def warn(*_arguments, **_options):
        for text in ("a", "a", "b", "a"):
            logging.getLogger("CTMicroSRLib.acquisition.estimation").warning("estimated: %s", text)

    monkeypatch.setattr("CTMicroSRLib.evaluation.simulated.evaluate_models", warn)
    for _ in range(2):
        run_protocol(["compact-8x"], ProtocolOptions(cases=1), SilentProgress())
        assert [record.getMessage() for record in caplog.records] == ["estimated: a", "estimated: b"]
        caplog.clear()
