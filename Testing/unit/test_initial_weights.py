"""Weights that a training starts from: taken by the generator and its average, and refused where they don't fit."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_method import KIND, Settings, TinyGenerator, tiny_batches

from CTMicroSRLib.errors import ModelError, UsageError
from CTMicroSRLib.training.settings import TrainerSettings
from CTMicroSRLib.training.trainer import train

SETTINGS = TrainerSettings(steps=4, batch=4, checkpoint_steps=2, log_steps=2, image_steps=100)
NO_STEP = Settings(learning_rate=0.0, batch_norm=False)
PICKLE = pickle.dumps({"head.weight": [1.0]})


def run_tiny(run, method=NO_STEP, **options):
    return load_file(train(KIND, method, SETTINGS, tiny_batches(), run, device="cpu", **options))


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def given(tmp_path):
    """A file of weights that no seed draws, and the weights."""
    torch.manual_seed(99)
    weights = TinyGenerator(batch_norm=False).state_dict()
    save_file(weights, tmp_path / "given.safetensors")
    return tmp_path / "given.safetensors", weights


def test_generator_and_average_start_from_the_weights_that_are_given(tmp_path, given):
    path, weights = given
    assert_same(run_tiny(tmp_path / "run", initial=path), weights)
    checkpoint = load_file(tmp_path / "run" / "checkpoint.safetensors")
    for part in ("method.maker.", "average."):
        assert_same({key.removeprefix(part): v for key, v in checkpoint.items() if key.startswith(part)}, weights)
    drawn = run_tiny(tmp_path / "drawn")
    assert not torch.equal(drawn["head.weight"], weights["head.weight"])


def test_the_training_moves_away_from_the_weights_that_are_given(tmp_path, given):
    path, weights = given
    trained = run_tiny(tmp_path / "run", replace(NO_STEP, learning_rate=1e-3), initial=path)
    assert not torch.equal(trained["head.weight"], weights["head.weight"])
    torch.testing.assert_close(trained["head.weight"], weights["head.weight"], rtol=0, atol=0.01)


def test_the_files_name_stands_in_the_settings_without_its_folder(tmp_path, given):
    run_tiny(tmp_path / "run", initial=given[0])
    text = (tmp_path / "run" / "settings.json").read_text()
    assert json.loads(text)["initial"] == "given.safetensors"
    assert str(tmp_path) not in text
    run_tiny(tmp_path / "drawn")
    assert "initial" not in json.loads((tmp_path / "drawn" / "settings.json").read_text())


def test_a_resumed_run_names_the_same_file_again_and_does_not_read_it(tmp_path, given):
    path, moving = given[0], replace(NO_STEP, learning_rate=1e-3)
    whole = run_tiny(tmp_path / "whole", moving, initial=path)
    run_tiny(tmp_path / "parts", moving, initial=path, stop_at=2)
    path.unlink()
    with pytest.raises(UsageError, match=r"trained with initial = given\.safetensors, not nothing"):
        run_tiny(tmp_path / "parts", moving, resume=True)
    assert_same(run_tiny(tmp_path / "parts", moving, initial=path, resume=True), whole)


@pytest.mark.parametrize("content", [PICKLE, b"", None], ids=["a pickle", "an empty file", "no file"])
def test_a_file_that_holds_no_weights_is_refused_and_nothing_is_made(tmp_path, content):
    if content is not None:
        (tmp_path / "bait.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"bait\.safetensors can't start this training \(.*\); give a .* same network"):
        run_tiny(tmp_path / "run", initial=tmp_path / "bait.safetensors")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["wider", "another name", "one more", "not finite"])
def test_weights_of_another_network_are_refused_and_nothing_is_made(tmp_path, wrong):
    weights = TinyGenerator(channels=8 if wrong == "wider" else 4, batch_norm=False).state_dict()
    if wrong == "another name":
        weights["body.weight"] = weights.pop("head.weight")
    if wrong == "one more":
        weights["body.weight"] = torch.zeros(3)
    if wrong == "not finite":
        weights["tail.bias"] = torch.full_like(weights["tail.bias"], torch.nan)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="can't start this training") as raised:
        run_tiny(tmp_path / "run", initial=tmp_path / "other.safetensors")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
