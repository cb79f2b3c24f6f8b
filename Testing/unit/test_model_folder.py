"""From a run's weights to a model folder: frozen norms, the card, the command on it, and nothing half done."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from CTMicroSRLib.card import Calibration, read_card
from CTMicroSRLib.cli import build_parser
from CTMicroSRLib.errors import ModelError, ResourceError, UsageError
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.norms import FrozenNorm
from CTMicroSRLib.session import load_model
from CTMicroSRLib.training import command
from CTMicroSRLib.training.methods import METHODS, changed, method_kind
from CTMicroSRLib.training.model_folder import Export, export_generator
from CTMicroSRLib.training.patches import Patches, PatchSettings
from CTMicroSRLib.training.presets import parse_values, run_settings

SCALE, PATCH = 2, 16
EXPORT = Export("tiny", "the method", "the data", "the command", {})


@pytest.fixture
def patches(tmp_path):
    """Random patches of two cases, as a run opens them."""
    rng = np.random.default_rng(1)
    settings = PatchSettings(patch_voxels=PATCH, scale=SCALE, clinical_window=(-950.0, 350.0))
    cases, places = np.repeat(np.int32([0, 1]), 3), np.zeros((6, 4), np.int32)
    clinical, micro = (rng.integers(-32767, 32767, (6, n, n), dtype=np.int16) for n in (PATCH, PATCH * SCALE))
    sources = ({"case": 0, "domain": "clinical"},)
    return Patches(tmp_path / "patches", settings, True, sources, clinical, cases, places, micro, cases, places)


def small(name):
    settings = run_settings(name, "small", {"scale": SCALE}).method
    torch.manual_seed(3)
    return method_kind(name).build(settings)


def export(method, patches, folder, **fields):
    weights = method.generator().state_dict()
    return export_generator(folder, weights, method.architecture(), patches, replace(EXPORT, **fields))


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_generator_is_exported_and_loaded_and_takes_tiles(patches, tmp_path, name):
    method = small(name)
    folder = export(method, patches, tmp_path / "run" / "model", card_fields=method.card_fields())
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    model = load_model(folder, device="cpu", precision="fp32")
    assert not model.network.whole_slice_only
    assert model.network.scale == SCALE


@pytest.mark.parametrize("name", ["sr-cyclegan", "cyclegan", "bayesian-cyclegan", "sr-unit", "unit"])
def test_instance_norms_are_frozen_at_the_mean_of_their_statistics(patches, tmp_path, name):
    method = small(name).eval()
    architecture, parameters = method.architecture()
    folder = export(method, patches, tmp_path / "model", card_fields=method.card_fields())
    card = read_card(folder)
    assert parameters["norm"] == "instance"
    assert card.parameters == parameters | {"norm": "frozen"}
    frozen = build_network(architecture, dict(card.parameters))
    frozen.load_state_dict(load_file(folder / "model.safetensors"))
    norms = {path: module for path, module in frozen.named_modules() if isinstance(module, FrozenNorm)}
    assert norms
    generator = method.generator()
    seen = {path: [] for path in norms}
    for path, values in seen.items():
        generator.get_submodule(path).register_forward_pre_hook(
            lambda _module, inputs, values=values: values.append(inputs[0].double().numpy())
        )
    with torch.no_grad():
        for patch in patches.clinical:
            generator(torch.from_numpy(patch.astype(np.float32) / 32767.0)[None, None])
    for path, norm in norms.items():
        axes = (0, 1, 2, 3) if norm.mean.numel() == 1 else (0, 2, 3)  # a layer norm's, or an instance norm's
        means = np.mean([features.mean(axis=axes) for features in seen[path]], axis=0)
        variances = np.mean([features.var(axis=axes) for features in seen[path]], axis=0)
        np.testing.assert_allclose(norm.mean, means, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.variance, variances, rtol=1e-4, atol=1e-6)


def test_weights_without_instance_norms_are_exported_as_they_are(patches, tmp_path):
    method = small("unet")
    folder = export(method, patches, tmp_path / "model")
    weights, written = method.generator().state_dict(), load_file(folder / "model.safetensors")
    assert weights.keys() == written.keys()
    assert all(torch.equal(weights[key], written[key]) for key in weights)


def test_the_card_says_what_the_model_is(patches, tmp_path):
    method = small("bayesian-cyclegan")
    folder = export(method, patches, tmp_path / "model", card_fields=method.card_fields(), name="bayes")
    card = read_card(folder)
    assert (card.name, card.method, card.training_data, card.command) == (
        *("bayes", "the method", "the data"),
        "the command",
    )
    assert (card.architecture, card.scale, card.halo) == ("resnet", SCALE, method.generator().halo)
    assert (card.window.low_hu, card.window.high_hu) == (-950.0, 350.0)
    assert card.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert card.result == "mean"
    assert (card.postprocess.histogram_cells, card.postprocess.median_voxels) == (True, 3)
    assert card.title == "the method, 2x in-plane"


def test_the_compact_models_card_asks_for_its_planes(patches, tmp_path):
    method = small("compact")
    card = read_card(export(method, patches, tmp_path / "model", card_fields=method.card_fields()))
    assert [plane.quantity for plane in card.planes] == ["psf_fwhm_voxels", "log_noise_hu"]


# --- complete or not at all ------------------------------------------------------------------------------------------


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", ["_card", "sha256_of"])
def test_an_interrupted_export_leaves_no_half_folder(patches, tmp_path, monkeypatch, error, place):
    def fail(*_arguments):
        raise error

    method = small("unet")
    monkeypatch.setattr(f"CTMicroSRLib.training.model_folder.{place}", fail)
    with pytest.raises(error):
        export(method, patches, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "error"), [("ENOSPC", ResourceError), ("EACCES", UsageError)])
@pytest.mark.parametrize("file", ["model.safetensors", "card.json"])
def test_a_full_disk_leaves_the_model_that_was_there_before(patches, tmp_path, monkeypatch, number, error, file):
    import errno

    export(small("unet"), patches, tmp_path / "model", name="before")
    before = content(tmp_path / "model")
    sync = os.fsync

    def full(descriptor):
        if file in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(getattr(errno, number), number)
        sync(descriptor)

    monkeypatch.setattr("CTMicroSRLib.whole_files.os.fsync", full)
    with pytest.raises(error, match=r"^[^\n]*[^.]\.$"):
        export(small("unet"), patches, tmp_path / "model", name="after")
    assert content(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_new_model_that_can_not_take_its_place_leaves_the_one_before(patches, tmp_path, monkeypatch):
    export(small("unet"), patches, tmp_path / "model", name="before")
    before = content(tmp_path / "model")
    rename = Path.rename

    def held(path, target):
        if path.name == "model.part":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", held)
    with pytest.raises(UsageError, match="cannot be written"):
        export(small("unet"), patches, tmp_path / "model", name="after")
    assert content(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_takes_up_what_one_that_was_killed_in_the_change_had_put_aside(patches, tmp_path):
    method = small("compact")
    folder = export(method, patches, tmp_path / "model")
    judged = replace(read_card(folder), calibration=Calibration(scale=2.0, floor_hu=3.0))
    (folder / "card.json").write_text(judged.to_json(), encoding="utf-8")
    folder.rename(tmp_path / ".model.before")
    export(method, patches, folder)
    assert read_card(folder).calibration == judged.calibration
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_calibration_that_was_altered_by_hand_is_not_kept(patches, tmp_path):
    method = small("compact")
    folder = export(method, patches, tmp_path / "model")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"calibration": {"scale": 9.0, "floor_hu": 9.0}}))
    assert read_card(export(method, patches, folder)).calibration == Calibration()


def test_an_export_replaces_the_one_before_and_what_a_killed_one_left(patches, tmp_path):
    (tmp_path / "model.part").mkdir()
    (tmp_path / "model.part" / "junk").write_bytes(b"x")
    export(small("unet"), patches, tmp_path / "model", name="before")
    export(small("unet"), patches, tmp_path / "model", name="after")
    assert read_card(tmp_path / "model").name == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_same_weights_keep_their_calibration_and_numbers_and_others_do_not(patches, tmp_path):
    method = small("compact")
    folder = export(method, patches, tmp_path / "model")
    judged = replace(read_card(folder), calibration=Calibration(scale=2.0, floor_hu=3.0), metrics={"psnr_db": 30.0})
    (folder / "card.json").write_text(judged.to_json(), encoding="utf-8")
    again = read_card(export(method, patches, folder, training_data="told otherwise"))
    assert (again.calibration, again.metrics) == (judged.calibration, judged.metrics)
    assert again.training_data == "told otherwise"
    with torch.no_grad():
        next(method.generator().parameters()).add_(1.0)
    other = read_card(export(method, patches, folder))
    assert (other.calibration, other.metrics) == (Calibration(), {})


def test_weights_of_another_network_are_refused(patches, tmp_path):
    method = small("unet")
    weights = {key: value[:1] for key, value in method.generator().state_dict().items()}
    with pytest.raises(ModelError, match=r"^The run's weights are not those of its network \(.*\); train it again\.$"):
        export_generator(tmp_path / "model", weights, method.architecture(), patches, EXPORT)
    assert list(tmp_path.iterdir()) == []


# --- the command on the card -----------------------------------------------------------------------------------------


def parsed(*words):
    """Options and settings as the command has them."""
    options = build_parser().parse_args(["train", *map(str, words)])
    values = command._named(options) | parse_values(options.set or [])
    return options, run_settings(options.method, options.preset, values)


def round_trip(patches, *words):
    """The settings before, and those of the command that the card would have; and that command's options."""
    options, before = parsed(*words)
    text = command._command(options, before, patches)
    program, train, *again = shlex.split(text)
    assert (program, train) == ("ctmicrosr", "train")
    options, after = parsed(*again)
    return before, after, options


@pytest.mark.parametrize(
    ("name", "preset"), [(name, preset) for name in METHODS for preset in (None, *method_kind(name).presets)]
)
def test_the_cards_command_makes_the_settings_again(patches, name, preset):
    words = (name, "--output", "RUN", *(("--preset", preset) if preset else ()))
    before, after, options = round_trip(patches, *words)
    assert after == before
    assert (options.preset, options.set) == (preset, None)


MANY = (
    *("--steps", 2000, "--batch", 4, "--seed", 5, "--precision", "bf16-mixed", "--specimens", 3, "--scale", 4),
    *("--patch", 20, "--clinical-window", -900, 250.5, "--set", "trainer.halving_shares=[0.25, 0.5]"),
    *("--set", "trainer.gradient_clip=1", "--set", "learning_rate=3e-05", "--set", "simulation.noise_hu=[4, 7]"),
    *("--set", "adversarial=relativistic", "--set", "patches.least_lung_share=0.75"),
)


@pytest.mark.parametrize("preset", [None, "paper", "small", "jmi2022", "blocks-6", "4x"])
def test_values_that_differ_from_the_preset_are_in_the_command_even_where_they_are_the_default(patches, preset):
    words = ("sr-cyclegan", "--output", "RUN", *(("--preset", preset) if preset else ()))
    before, after, _ = round_trip(patches, *words, *MANY)
    assert after == before
    assert (after.trainer.steps, after.simulation.specimens, after.patches.patch_voxels) == (2000, 3, 20)
    assert (after.method.adversarial, after.trainer.gradient_clip) == ("relativistic", 1)


def test_a_preset_file_is_spelled_out_in_the_command(patches, tmp_path):
    values = {"blocks": 3, "trainer.seed": 4, "trainer.halving_shares": [0.5, 0.75], "simulation.specimens": 2}
    (tmp_path / "my preset.json").write_text(json.dumps(values))
    before, after, options = round_trip(
        patches, "sr-cyclegan", "--output", "RUN", "--preset", tmp_path / "my preset.json"
    )
    assert options.preset is None
    assert after == before
    assert (after.method.blocks, after.trainer.seed) == (3, 4)


def test_the_command_names_the_scans_without_their_folders(patches, tmp_path):
    names = {"clinical": ["a b.nrrd", "c.nrrd"], "micro": ["m.nrrd"], "clinical-mask": ["l.nrrd", "k.nrrd"]}
    words = [w for key, files in names.items() for w in (f"--{key}", *(tmp_path / file for file in files))]
    own = replace(patches, simulated=False)
    before, after, options = round_trip(
        own, "unit", "--output", "RUN", *words, "--micro-window", 0, 5000, "--patches-per-case", 30
    )
    assert after == before
    for key, files in names.items():
        assert getattr(options, key.replace("-", "_")) == [Path(file) for file in files]
    assert options.micro_mask is None
    assert after.patches.patches_per_case == 30


def test_patches_that_were_given_stand_for_their_settings(patches):
    before, after, options = round_trip(patches, "unit", "--output", "RUN", "--patches", "FOLDER", "--set", "blocks=3")
    assert options.patches == Path("PATCHES")
    assert (after.method, after.trainer) == (before.method, before.trainer)


def test_the_seed_of_the_command_is_one_where_none_is_given():
    options, settings = parsed("unit", "--output", "RUN")
    assert options.seed is None
    assert (settings.trainer.seed, settings.patches.seed, settings.simulation.seed) == (1, 1, 1)
    _, settings = parsed("unit", "--output", "RUN", "--seed", 3)
    assert (settings.trainer.seed, settings.patches.seed, settings.simulation.seed) == (3, 3, 3)


def test_every_methods_card_fields_make_a_card(patches, tmp_path):
    for name in METHODS:
        method = small(name)
        changed(type(method.settings)(), {}, name)
        card = read_card(export(method, patches, tmp_path / name, card_fields=method.card_fields(), name=name))
        assert card.name == name
