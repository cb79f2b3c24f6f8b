"""What a run's model is called by default, and what its card says of settings that are not the preset's."""

from __future__ import annotations

import pytest

from CTMicroSRLib.card import check_name
from CTMicroSRLib.models import list_models
from CTMicroSRLib.training.methods import METHODS
from CTMicroSRLib.training.patches import PatchSettings
from CTMicroSRLib.training.presets import run_settings
from CTMicroSRLib.training.run_names import default_name, described_method


@pytest.mark.parametrize("run", ["RUN a", "ß", "x" * 200, "..", "2024.01_Lunge"])
@pytest.mark.parametrize("method", METHODS)
def test_a_default_name_is_a_name_and_none_of_a_shipped_model(tmp_path, run, method):
    name = default_name(tmp_path / run, method, 8)
    check_name(name)
    check_name(f"{name}.synthesizer")
    assert name.startswith(f"{method}-8x-")
    assert name not in {model.card.name for model in list_models()[0]}


def test_a_name_that_an_installed_model_has_is_numbered(make_model, tmp_path, monkeypatch):
    for name in ("unet-8x-run", "unet-8x-run-2"):
        make_model(name)
    monkeypatch.setenv("CTMICROSR_MODELS", str(tmp_path / "models"))
    assert default_name(tmp_path / "run", "unet", 8) == "unet-8x-run-3"


@pytest.mark.parametrize(
    ("preset", "values", "patch", "words"),
    [
        (None, {}, 32, "sr-cyclegan"),
        ("jmi2022", {}, 32, "sr-cyclegan (preset jmi2022)"),
        ("jmi2022", {"trainer.seed": 5, "trainer.log_steps": 3}, 32, "sr-cyclegan (preset jmi2022)"),
        ("jmi2022", {"blocks": 2, "channels": 16}, 32, "sr-cyclegan (preset jmi2022, changed: channels, blocks)"),
        ("jmi2022", {"trainer.steps": 9}, 24, "sr-cyclegan (preset jmi2022, changed: steps, patch_voxels)"),
        (None, {"channels": 16}, 32, "sr-cyclegan (changed: channels)"),
    ],
)
def test_the_settings_that_are_not_the_presets_are_named(preset, values, patch, words):
    settings = run_settings("sr-cyclegan", preset, values)
    assert described_method(settings, preset, PatchSettings(patch_voxels=patch)) == words
