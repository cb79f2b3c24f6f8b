"""Training: pairs, batches, the schedule, a short run, resuming it, and what stops it; export to a model folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from CTMicroSRLib.errors import ModelError
from CTMicroSRLib.models import find_model, verify_model
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.point_spread import scan_slice
from CTMicroSRLib.session import load_model
from CTMicroSRLib.simulation.cases import CaseSettings
from CTMicroSRLib.simulation.kernels import GAUSSIAN_RATIO
from CTMicroSRLib.simulation.sets import CaseSet
from CTMicroSRLib.training import export, supervised
from CTMicroSRLib.training.pairs import Pairs, PairSettings, load_pairs, make_pairs
from CTMicroSRLib.training.supervised import (
    CLINICAL_WINDOW,
    PLANES,
    TrainingSettings,
    learning_rate,
    make_batch,
    train,
    training_batches,
)

PAIRS = PairSettings(specimens=2, pairs_per_specimen=6, patch_voxels=12, block_voxels=20, scale=4)
SETTINGS = TrainingSettings(
    parameters={"channels": 8, "blocks": 2, "scale": 4, "planes": 2, "dropout_rate": 0.1},
    pairs=PAIRS,
    steps=12,
    batch=4,
    warm_up_steps=3,
    checkpoint_steps=4,
    learning_rate=3e-3,
)


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder, PAIRS)
    return folder


@pytest.fixture(scope="module")
def pairs(pairs_folder):
    return load_pairs(pairs_folder)


def trained(run, settings, pairs_folder, **options):
    return load_file(train(run, settings, pairs_folder=pairs_folder, **options))


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_pairs_have_the_shapes_that_were_asked_for(pairs):
    assert len(pairs) == 12
    assert pairs.truth.shape == (12, 48, 48)
    assert pairs.clean.shape == (12, 12, 12)
    assert (pairs.truth.dtype, pairs.clean.dtype) == (np.int16, np.float32)
    pixel_mm, psf_mm, slice_mm, ratio = pairs.scanner.T
    for values, (low, high) in (
        (pixel_mm, PAIRS.pixel_mm),
        (psf_mm, PAIRS.psf_fwhm_mm),
        (slice_mm, PAIRS.slice_thickness_mm),
        (ratio, PAIRS.kernel_ratio),
    ):
        assert low - 1e-6 <= values.min() <= values.max() <= high + 1e-6


def test_a_pairs_clean_scan_is_its_truth_scanned(pairs):
    """Away from the patch's edge, where the scan saw more of the specimen than the patch shows."""
    checked = 0
    for truth, clean, (pixel_mm, psf_mm, _, ratio) in zip(pairs.truth, pairs.clean, pairs.scanner, strict=True):
        if ratio == pytest.approx(GAUSSIAN_RATIO):
            width = psf_mm / pixel_mm * 4
            scanned = scan_slice(truth.astype(np.float32), 4, (width, width))
            np.testing.assert_allclose(scanned[4:-4, 4:-4], clean[4:-4, 4:-4], rtol=0, atol=1.0)
            checked += 1
    assert checked >= 3


def test_pairs_are_made_once_and_again_for_other_settings(tmp_path, monkeypatch):
    small = replace(PAIRS, specimens=1, pairs_per_specimen=2)
    first = make_pairs(tmp_path, small).truth.copy()
    monkeypatch.setattr("CTMicroSRLib.training.pairs.make_specimen", None)
    assert np.array_equal(make_pairs(tmp_path, small).truth, first)
    monkeypatch.undo()
    assert not np.array_equal(make_pairs(tmp_path, replace(small, seed=2)).truth, first)
    assert np.array_equal(make_pairs(tmp_path, small).truth, first)


def test_the_batch_of_a_step_depends_on_seed_and_step_alone(pairs):
    def batches(first, count, seed=1):
        source = training_batches(pairs, replace(SETTINGS, seed=seed), first)
        return [next(source) for _ in range(count)]

    torch.manual_seed(0)
    five, later = batches(0, 5), batches(4, 1)
    assert torch.equal(five[4].tile, later[0].tile)
    assert torch.equal(five[4].target, later[0].target)
    assert not torch.equal(five[4].tile, five[3].tile)
    assert not torch.equal(batches(4, 1, seed=2)[0].tile, later[0].tile)


def test_a_batch_is_turned_together_with_its_target_and_told_blur_and_noise(pairs):
    quiet = replace(SETTINGS, noise_hu=(1e-3, 1.1e-3), misjudged_psf=0.0, misjudged_noise=0.0)
    chosen = np.array([0, 3, 7])
    for seed in range(8):  # all turns and mirrors
        batch = make_batch(pairs, chosen, np.random.default_rng(seed), quiet)
        assert batch.tile.shape == (3, 3, 12, 12)
        assert batch.target.shape == (3, 1, 48, 48)
        for n, (tile, target) in enumerate(zip(batch.tile, batch.target, strict=True)):
            pixel_mm, psf_mm, _, _ = pairs.scanner[chosen[n]].tolist()
            width = psf_mm / pixel_mm * 4
            scanned = scan_slice(target[0].numpy(), 4, (width, width))
            if pairs.scanner[chosen[n]][3] == pytest.approx(GAUSSIAN_RATIO):
                assert np.abs(scanned - tile[0].numpy())[4:-4, 4:-4].max() * CLINICAL_WINDOW.hu_per_unit < 2.5
            assert tile[1].unique().item() == pytest.approx(PLANES[0].value(psf_mm / pixel_mm, 1.0), abs=1e-5)
            assert tile[2].unique().item() == pytest.approx((math.log(2.0) - 2.7) / 0.9, abs=1e-5)


def test_the_noise_of_a_batch_is_the_one_it_is_told(pairs):
    loud = replace(SETTINGS, noise_hu=(50.0, 50.1), misjudged_psf=0.0, misjudged_noise=0.0)
    chosen = np.arange(12)
    added = [
        make_batch(pairs, chosen, np.random.default_rng(seed), loud).tile[:, 0]
        - make_batch(pairs, chosen, np.random.default_rng(seed), replace(loud, noise_hu=(1e-3, 1e-3))).tile[:, 0]
        for seed in range(6)
    ]
    noise_hu = torch.stack(added)[:, :, 4:8, 4:8] * CLINICAL_WINDOW.hu_per_unit
    assert noise_hu.std().item() == pytest.approx(50.0, rel=0.15)  # a little is lost where air is clipped at -1000 HU


def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine():
    settings = TrainingSettings(steps=1_100, warm_up_steps=100, learning_rate=2.0)
    assert learning_rate(0, settings) == pytest.approx(0.02)
    assert learning_rate(49, settings) == pytest.approx(1.0)
    assert learning_rate(99, settings) == learning_rate(100, settings) == pytest.approx(2.0)
    assert learning_rate(600, settings) == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert learning_rate(1_100, settings) == learning_rate(5_000, settings) == pytest.approx(0.02)
    falling = [learning_rate(step, settings) for step in range(100, 1_101)]
    assert falling == sorted(falling, reverse=True)


def discs(count):
    """Pairs that can be learnt in seconds: soft tissue in lung, blurred by 1.2 mm, pixels of 0.7 mm."""
    rng = np.random.default_rng(0)
    j, i = np.mgrid[:48, :48]
    truth = np.full((count, 48, 48), -870.0, np.float32)
    for image in truth:
        for _ in range(4):
            row, column, radius = rng.uniform(0, 48), rng.uniform(0, 48), rng.uniform(4, 12)
            image[(j - row) ** 2 + (i - column) ** 2 < radius**2] = 40.0
    width = 1.2 / 0.7 * 4
    clean = np.stack([scan_slice(image, 4, (width, width)) for image in truth])
    return Pairs(truth.astype(np.int16), clean, np.tile(np.float32([0.7, 1.2, 1.0, GAUSSIAN_RATIO]), (count, 1)))


def test_a_short_run_lowers_the_loss(tmp_path, monkeypatch):
    pairs = discs(40)
    monkeypatch.setattr(supervised, "make_pairs", lambda _folder, _settings: pairs)
    settings = replace(
        SETTINGS, steps=90, checkpoint_steps=30, average_decay=0.9, noise_hu=(3.0, 10.0), learning_rate=0.01
    )
    weights = trained(tmp_path, settings, None)
    batch = make_batch(discs(60), np.arange(40, 60), np.random.default_rng(99), settings)

    def loss(state):
        network = build_network(settings.architecture, settings.parameters).eval()
        if state is not None:
            network.load_state_dict(state)
        with torch.inference_mode():
            return float((network(batch.tile) - batch.target).abs().mean()) * CLINICAL_WINDOW.hu_per_unit

    torch.manual_seed(settings.seed)
    assert loss(weights) < 0.95 * loss(None)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [30, 60, 90]
    assert log[-1]["loss"] < log[0]["loss"]


def test_a_run_repeats_bit_for_bit_and_another_seed_gives_another(tmp_path, pairs_folder):
    one, again = (trained(tmp_path / name, SETTINGS, pairs_folder) for name in "ab")
    assert_same_weights(one, again)
    other = trained(tmp_path / "c", replace(SETTINGS, seed=2), pairs_folder)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path, pairs_folder, monkeypatch):
    whole = trained(tmp_path / "whole", SETTINGS, pairs_folder)

    def interrupted(step, settings):
        if step == 10:
            raise KeyboardInterrupt
        return learning_rate(step, settings)

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "learning_rate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", SETTINGS, pairs_folder)
    torch.manual_seed(12345)
    assert_same_weights(trained(tmp_path / "parts", SETTINGS, pairs_folder, resume=True), whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [4, 8, 12]


def test_resuming_a_run_that_has_no_checkpoint_starts_it(tmp_path, pairs_folder):
    settings = replace(SETTINGS, steps=4)
    one = trained(tmp_path / "a", settings, pairs_folder, resume=True)
    assert_same_weights(one, trained(tmp_path / "b", settings, pairs_folder))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path, pairs_folder, monkeypatch, where
):
    batches = 0

    def poisoned(*arguments):
        nonlocal batches
        batches += 1
        batch = make_batch(*arguments)
        if batches == 7:
            batch.target[0, 0, 0, 0] = math.nan
        return batch

    def steep(output, target):
        loss = (output - torch.nan_to_num(target)).abs().mean()
        return loss + torch.sqrt(output * 0.0).sum() if torch.isnan(target).any() else loss

    monkeypatch.setattr(supervised, "make_batch", poisoned)
    if where == "gradient":  # finite, but the slope of a square root at 0 is not
        monkeypatch.setitem(supervised.LOSSES, "l1", steep)
    with pytest.raises(ModelError, match=f"{where} stopped being finite at step 6"):
        trained(tmp_path, SETTINGS, pairs_folder)
    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "weights.safetensors").values())
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [4]


def test_settings_are_kept_beside_the_run(tmp_path, pairs_folder):
    trained(tmp_path, replace(SETTINGS, steps=2, checkpoint_steps=2), pairs_folder)
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert kept["steps"] == 2
    assert kept["pairs"]["patch_voxels"] == 12
    assert not list(tmp_path.glob("*.part"))


@pytest.fixture
def small_protocol(monkeypatch):
    """One small case each to calibrate and to measure."""
    one = CaseSettings(size_voxels=20, depth_mm=4.0, slice_mm=2.0, scale=4, pixel_mm=0.7)
    monkeypatch.setattr("CTMicroSRLib.training.export.case_set", lambda _name: CaseSet(None, 0, ((0, one),)))
    monkeypatch.setattr("CTMicroSRLib.superresolve.check_is_ct", lambda _volume: None)


def test_an_exported_run_is_a_verified_model_with_calibration_and_metrics(tmp_path, pairs_folder, small_protocol):
    settings = replace(SETTINGS, steps=4)
    trained(tmp_path, settings, pairs_folder)
    folder = export.export_run(tmp_path, settings, "exported")
    found = find_model(folder)
    verify_model(found)
    card = found.card
    assert (card.name, card.scale, card.halo, card.planes) == ("exported", 4, 6, PLANES)
    assert card.calibration.floor_hu > 0 or card.calibration.scale > 0
    assert card.metrics["protocol"]["cases"] >= 1
    assert {row["method"] for row in card.metrics["rows"]} >= {
        "bicubic",
        "B-spline",
        "Lanczos",
        "exported, scan (default)",
    }
    assert set(card.metrics["coverage"]["exported"]) >= {"80%", "90%", "95%"}
    assert "simulated" in card.training_data.lower()
    model = load_model(folder, precision="fp32")
    assert_same_weights(load_file(folder / "model.safetensors"), load_file(tmp_path / "weights.safetensors"))
    assert model.network.scale == 4


def test_a_run_starts_from_given_weights_and_refuses_what_is_not_theirs(tmp_path, pairs_folder):
    settings = replace(SETTINGS, steps=2, checkpoint_steps=2)
    trained(tmp_path / "first", settings, pairs_folder)
    weights = tmp_path / "first" / "weights.safetensors"
    still = replace(settings, learning_rate=0.0)
    train(tmp_path / "second", still, pairs_folder=pairs_folder, initial=weights)
    assert_same_weights(load_file(tmp_path / "second" / "weights.safetensors"), load_file(weights))
    (tmp_path / "bait.safetensors").write_bytes(b"\x80\x04 a pickle, say")
    for wrong in (tmp_path / "bait.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(ModelError, match="can't start this training"):
            train(tmp_path / "third", settings, pairs_folder=pairs_folder, initial=wrong)
