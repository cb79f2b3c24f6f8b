"""What a model's card tells after its training: a calibrated uncertainty and the numbers of test cases."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from train_command import sets

from CTMicroSRLib import super_resolve
from CTMicroSRLib.card import Calibration, read_card
from CTMicroSRLib.errors import CancelledError, UsageError
from CTMicroSRLib.models import find_model, verify_model
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.simulation.cases import CaseSettings, make_case
from CTMicroSRLib.simulation.sets import CaseSet
from CTMicroSRLib.training.calibration import calibrate, fit_calibration
from CTMicroSRLib.training.judgement import check_judgeable, judge
from CTMicroSRLib.training.methods.compact import PLANES

COMPACT = (
    *("--specimens", 1, "--patch", 12, "--scale", 4, "--batch", 2, "--steps", 2, "--device", "cpu"),
    *sets(["channels=8", "blocks=2", "simulation.patches_per_specimen=4", "simulation.scans_per_specimen=1"]),
    *sets(["simulation.margin_voxels=9", "simulation.slice_mm=[0.5, 1.0]"]),
)


@pytest.fixture
def small_sets(monkeypatch):
    """One small case of 4x each to calibrate and to measure on; and by which names they were asked for."""
    asked = []

    def one_case(name):
        asked.append(name)
        return CaseSet(None, 0, ((0, CaseSettings(size_voxels=20, depth_mm=4.0, slice_mm=2.0, scale=4, pixel_mm=0.7)),))

    for module in ("calibration", "judgement"):
        monkeypatch.setattr(f"CTMicroSRLib.training.{module}.case_set", one_case)
    monkeypatch.setattr("CTMicroSRLib.superresolve.check_is_ct", lambda _volume: None)
    return asked


def test_a_trained_model_is_calibrated_and_measured_by_the_command(ctmicrosr, tmp_path, small_sets):
    run = tmp_path / "run"
    judged = ("--calibrate", "--measure", "--name", "mine", "--licence", "CC0-1.0")
    outcome = ctmicrosr("train", "compact", "--output", run, *COMPACT, *judged)
    assert outcome.status == 0, outcome
    found = find_model(run / "model")
    verify_model(found)
    card = found.card
    assert (card.name, card.scale, card.halo, card.planes, card.licence) == ("mine", 4, 6, PLANES, "CC0-1.0")
    assert card.calibration != Calibration()
    assert card.calibration.floor_hu > 0 or card.calibration.scale > 0
    assert {row["method"] for row in card.metrics["rows"]} >= {"bicubic", "B-spline", "Lanczos", "mine, scan (default)"}
    assert set(card.metrics["coverage"]["mine"]) >= {"80%", "90%", "95%"}
    assert "--calibrate --measure" in card.command
    assert "slices 0.5 to 1 mm, pixels 0.5 to 0.9 mm, noise 3 to 60 HU" in card.training_data
    assert set(small_sets) == {"validation-1", "test-1"}


def test_the_calibration_is_fitted_to_error_and_deviation_of_the_validation_cases(make_model, small_sets):
    folder = make_model("random", parameters={"channels": 8, "blocks": 2, "scale": 4, "dropout_rate": 0.2})
    settings = CaseSettings(size_voxels=20, depth_mm=4.0, slice_mm=2.0, scale=4, pixel_mm=0.7)
    case = make_case(settings, 0)
    told = {"psf_fwhm_mm": settings.psf_fwhm_mm, "noise_hu": settings.image_noise_hu, "precision": "fp32"}
    result = super_resolve(case.clinical, region="whole", model=str(folder), uncertainty=True, **told)
    error = np.abs(result.volume.array_kji.astype(np.float32) - case.truth.array_kji).ravel()
    expected = fit_calibration(error, result.uncertainty.array_kji.astype(np.float32).ravel())
    judge(folder, SilentProgress(), calibrated=True, measured=False)
    found = read_card(folder).calibration
    assert (found.scale, found.floor_hu) == pytest.approx((expected.scale, expected.floor_hu), rel=1e-6)


def test_a_model_that_is_not_measured_has_no_numbers(make_model, small_sets):
    folder = make_model("random", parameters={"channels": 8, "blocks": 2, "scale": 4, "dropout_rate": 0.2})
    before = json.loads((folder / "card.json").read_text())
    judge(folder, SilentProgress(), calibrated=True, measured=False)
    after = json.loads((folder / "card.json").read_text())
    for changed in ("calibration", "card_sha256"):
        assert after.pop(changed) != before.pop(changed)
    assert after == before


def test_judging_twice_gives_the_same_card(make_model, small_sets):
    folder = make_model("random", parameters={"channels": 8, "blocks": 2, "scale": 4, "dropout_rate": 0.2})
    judge(folder, SilentProgress(), calibrated=True, measured=False)
    first = (folder / "card.json").read_bytes()
    judge(folder, SilentProgress(), calibrated=True, measured=False)
    assert (folder / "card.json").read_bytes() == first


def test_a_deviation_that_tells_nothing_of_the_errors_is_warned_of(make_model, small_sets, monkeypatch, caplog):
    folder = make_model("random", parameters={"channels": 8, "blocks": 2, "scale": 4, "dropout_rate": 0.2})
    monkeypatch.setattr("CTMicroSRLib.training.calibration.fit_calibration", lambda *_: Calibration(0.0, 12.0))
    judge(folder, SilentProgress(), calibrated=True, measured=False)
    assert "calibrated uncertainty is 12.0 HU everywhere" in caplog.text


def test_calibration_tells_how_far_it_is_and_stops_where_it_is_asked_to(make_model, small_sets):
    folder = make_model("random", parameters={"channels": 8, "blocks": 2, "scale": 4, "dropout_rate": 0.2})
    told = []

    class Recorder(SilentProgress):
        def update(self, stage, done, total):
            told.append((stage, done, total))

    calibrate(folder, Recorder())
    assert told == [("calibrating", 1, 1)]

    class Cancelled(SilentProgress):
        def cancelled(self):
            return True

    with pytest.raises(CancelledError, match=r"the model .* is there, and the same command with --resume judges it"):
        judge(folder, Cancelled(), calibrated=True, measured=True)
    assert read_card(folder).calibration == Calibration()


@pytest.mark.parametrize(("option", "judged"), [("--calibrate", (True, False)), ("--measure", (False, True))])
def test_a_network_of_another_scale_than_the_cases_is_refused(option, judged):
    network = build_network("compact", {"scale": 2, "channels": 4, "blocks": 1})
    with pytest.raises(UsageError, match=f"cases of {option} are 8x, the method is set to 2x; leave {option} out"):
        check_judgeable(network, calibrated=judged[0], measured=judged[1])
    check_judgeable(network, calibrated=False, measured=False)


@pytest.mark.parametrize("parameters", [{"dropout_rate": 0.0}, {"dropout_rate": 0.5, "dropout_blocks": 0}])
def test_only_a_network_with_dropout_is_calibrated(parameters):
    with torch.device("meta"):
        network = build_network("compact", {"channels": 4, "blocks": 1, **parameters})
    check_judgeable(network, calibrated=False, measured=True)
    if parameters["dropout_rate"]:  # the layer before the last convolution is always there
        check_judgeable(network, calibrated=True, measured=True)
        return
    with pytest.raises(UsageError, match="no dropout, and so no uncertainty to calibrate"):
        check_judgeable(network, calibrated=True, measured=False)
