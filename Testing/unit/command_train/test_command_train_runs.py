"""``ctmicrosr train`` as a user runs it: from scans to a model that the other commands take."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from train_command import CUT, EVERY, METHOD, SCALE, SMALL, TINY, sets, voxels
from written_files import tree

from CTMicroSRLib.card import read_card


def test_a_run_on_own_scans_leaves_a_model_log_pictures_and_checkpoint(trained):
    assert {"model", "patches", "checkpoint.safetensors", "weights.safetensors", "settings.json", "log.jsonl"} <= {
        path.name for path in trained.iterdir()
    }
    assert sorted(path.name for path in (trained / "model").iterdir()) == ["card.json", "model.safetensors"]
    assert list((trained / "samples").iterdir())
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    card = read_card(trained / "model")
    assert (card.name, card.scale, card.window.low_hu, card.window.high_hu) == ("mine", SCALE, -1000.0, 2500.0)
    assert card.training_data == "Clinical scans: ct.nrrd. Micro-CT: micro.nrrd."
    settings = json.loads((trained / "settings.json").read_text())
    assert settings["method"] == METHOD
    assert settings["patches"]["patches_per_case"] == 8
    assert [source["domain"] for source in settings["sources"]] == ["clinical", "micro"]


@pytest.mark.slow
def test_the_model_super_resolves_a_scan(ctmicrosr, trained, scans, tmp_path):
    arguments = ("--region", "whole", "--psf-fwhm-mm", "1.0", "--noise-hu", "10", "--report", tmp_path / "r.json")
    outcome = ctmicrosr("superres", scans["clinical"], tmp_path / "sr.nrrd", "--model", trained / "model", *arguments)
    assert outcome.status == 0, outcome
    coarse, fine = voxels(scans["clinical"]), voxels(tmp_path / "sr.nrrd")
    assert fine.dtype == np.int16
    assert fine.shape == (coarse.shape[0], SCALE * coarse.shape[1], SCALE * coarse.shape[2])
    assert json.loads((tmp_path / "r.json").read_text())["model"]["name"] == "mine"


@pytest.mark.slow
def test_the_run_is_evaluated_by_its_folder(ctmicrosr, trained, scans, tmp_path):
    arguments = ("--protocol", "micro-self", "--micro", scans["micro"], "--slices", 1, "--variants", "papers")
    window = ("--micro-window", *scans["micro_window"])
    outcome = ctmicrosr("evaluate", trained, *arguments, *window, "--output", tmp_path / "table.json")
    assert outcome.status == 0, outcome
    assert f'"method": "{trained.name}, consistency off, block means"' in (tmp_path / "table.json").read_text()


def test_a_models_name_is_the_methods_and_its_runs_where_none_is_given(ctmicrosr, patches, tmp_path):
    run = tmp_path / "My run_2"
    outcome = ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL)
    assert outcome.status == 0
    assert outcome.stdout.strip() == f"{run / 'model'}: a model folder for --model"
    card = read_card(run / "model")
    assert card.name == f"{METHOD}-2x-my-run-2"
    changed = "scale, channels, blocks, discriminator_channels, steps, batch, pool_size, patch_voxels"
    assert card.method == f"{METHOD} (changed: {changed})"
    assert card.title == f"{card.method}, 2x in-plane"
    assert card.training_data == "Patches of the user's own scans."
    assert "--patches PATCHES" in card.command
    assert not (tmp_path / "run" / "patches").exists()


def test_the_patches_of_another_run_train_the_same_model(ctmicrosr, trained, patches, tmp_path):
    assert ctmicrosr("train", METHOD, "--output", tmp_path / "run", "--patches", patches, *SMALL).status == 0
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "run", trained))
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def test_stop_at_0_only_makes_the_patches_and_the_next_call_trains_on_them(ctmicrosr, own, tmp_path):
    run = tmp_path / "run"
    outcome = ctmicrosr("train", METHOD, "--output", run, *own, *SMALL, "--stop-at", 0)
    assert outcome.status == 0
    assert outcome.stdout.startswith(f"{run / 'patches'}: the patches are made")
    assert [path.name for path in run.iterdir()] == ["patches"]
    before = tree(run)
    assert ctmicrosr("train", METHOD, "--output", run, *SMALL).status == 0
    assert {name: content for name, content in tree(run).items() if name in before} == before
    assert read_card(run / "model").scale == SCALE


def test_a_run_in_two_parts_ends_with_the_bits_of_one_in_one_piece(ctmicrosr, trained, own, tmp_path):
    run = tmp_path / "run"
    outcome = ctmicrosr("train", METHOD, "--output", run, *own, *SMALL, "--name", "mine", "--stop-at", 3)
    assert outcome.status == 0
    assert outcome.stdout.strip() == f"{run}: stopped at step 3; go on with --resume"
    assert not (run / "model").exists()
    assert ctmicrosr("train", METHOD, "--output", run, *own, *SMALL, "--name", "mine", "--resume").status == 0
    ours, theirs = (load_file(folder / "checkpoint.safetensors") for folder in (run, trained))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    assert tree(run / "model") == tree(trained / "model")


def test_a_finished_run_is_exported_again_by_resume(ctmicrosr, patches, tmp_path):
    run = tmp_path / "run"
    assert ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL).status == 0
    model = tree(run / "model")
    shutil.rmtree(run / "model")
    assert ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL, "--resume").status == 0
    assert tree(run / "model") == model


def test_simulated_patches_are_made_where_no_scans_are_given(ctmicrosr, tmp_path):
    few = sets(["simulation.patches_per_specimen=2", "simulation.scans_per_specimen=1", "simulation.margin_voxels=9"])
    arguments = ("--specimens", 1, "--seed", 5, *few, *SMALL, "--stop-at", 0)
    assert ctmicrosr("train", METHOD, "--output", tmp_path / "run", *arguments).status == 0
    manifest = json.loads((tmp_path / "run" / "patches" / "manifest.json").read_text())
    assert manifest["simulated"]
    assert manifest["patches"] == {"clinical": 2, "micro": 2}
    assert [source["specimen_seed"] for source in manifest["sources"]] == [500_000, 550_000]


def test_a_preset_file_and_single_settings_arrive_in_the_run(ctmicrosr, patches, tmp_path):
    preset = {**TINY, "scale": SCALE, "trainer.seed": 3, "trainer.steps": 9, "trainer.batch": 2, "cycle": 5}
    (tmp_path / "mine.json").write_text(json.dumps(preset))
    more = ("--preset", tmp_path / "mine.json", "--set", "cycle=7", "--set", "adversarial=log", "--steps", 1)
    outcome = ctmicrosr("train", METHOD, "--output", tmp_path / "run", "--patches", patches, *more, "--device", "cpu")
    assert outcome.status == 0, outcome
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    method, trainer = settings["method_settings"], settings["trainer"]
    assert (method["channels"], method["cycle"], method["adversarial"]) == (4, 7, "log")
    assert (trainer["steps"], trainer["seed"], trainer["batch"]) == (1, 3, 2)
    card = read_card(tmp_path / "run" / "model")
    assert "mine.json" in card.method
    assert card.parameters["channels"] == 4


def test_the_seed_is_that_of_weights_batches_and_patches(ctmicrosr, own, trained, tmp_path):
    assert ctmicrosr("train", METHOD, "--output", tmp_path / "run", *own, *SMALL, "--seed", 2).status == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["trainer"]["seed"], settings["patches"]["seed"]) == (2, 2)
    ours, theirs = (load_file(run / "weights.safetensors") for run in (tmp_path / "run", trained))
    assert not all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def test_progress_is_told_as_json(ctmicrosr, patches, tmp_path):
    arguments = ("--output", tmp_path / "run", "--patches", patches, *SMALL, "--progress", "json")
    outcome = ctmicrosr("train", METHOD, *arguments)
    assert (outcome.status, outcome.stderr) == (0, "")
    events = [json.loads(line) for line in outcome.stdout.splitlines() if line.startswith("{")]
    assert {"training"} <= {event.get("stage") for event in events}


def test_a_supervised_method_that_is_set_to_unpaired_takes_own_scans(ctmicrosr, own, tmp_path):
    small = sets(["pairing=unpaired", "channels=4", "depth=2", *EVERY])
    arguments = ("--output", tmp_path / "run", *own, *CUT, "--steps", 1, "--batch", 2, "--device", "cpu", *small)
    assert ctmicrosr("train", "unet", *arguments).status == 0
    assert read_card(tmp_path / "run" / "model").architecture == "unet"


@pytest.mark.parametrize("file", ["weights.safetensors", "checkpoint.safetensors"])
def test_a_run_starts_from_the_weights_of_another(ctmicrosr, trained, patches, tmp_path, file):
    arguments = ("--output", tmp_path / "run", "--patches", patches, *SMALL, "--set", "learning_rate=1e-30")
    outcome = ctmicrosr("train", METHOD, *arguments, "--initial", trained / file)
    if file == "checkpoint.safetensors":  # holds more than the generator
        assert outcome.status == 5
        assert not (tmp_path / "run").exists()
        return
    assert outcome.status == 0, outcome
    ours, theirs = (load_file(run / "weights.safetensors") for run in (tmp_path / "run", trained))
    assert all(np.allclose(ours[key], theirs[key], rtol=0, atol=1e-20) for key in theirs)
    command = read_card(tmp_path / "run" / "model").command
    assert "--initial weights.safetensors" in command
    assert str(trained) not in command


@pytest.mark.parametrize(
    ("more", "left"), [((), "run/model"), (("--stop-at", 2), "run"), (("--stop-at", 0), "cut/patches")]
)
def test_progress_as_json_ends_with_an_event_that_names_the_folder(ctmicrosr, patches, tmp_path, more, left):
    shutil.copytree(patches, tmp_path / "cut" / "patches")
    arguments = ("--output", tmp_path / "run", "--patches", tmp_path / "cut" / "patches", *SMALL, *more)
    outcome = ctmicrosr("train", METHOD, *arguments, "--progress", "json")
    assert outcome.status == 0, outcome
    events = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert events[-1] == {"event": "done", "files": [str(tmp_path / left)]}
    assert all(event["event"] == "progress" for event in events[:-1])
