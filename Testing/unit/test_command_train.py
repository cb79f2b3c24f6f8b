"""``ctmicrosr train`` as a user runs it: from scans to a model that the other commands take, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from safetensors.numpy import load_file

from CTMicroSRLib.card import read_card
from CTMicroSRLib.simulation.cases import CaseSettings, simulate_case
from CTMicroSRLib.training.methods import METHODS, method_kind

USAGE, REFUSED, RESOURCE, MODEL = 2, 3, 4, 5

METHOD = "cyclegan"
"""Interpolated input, instance norms, two optimisers, pools: and steps of some hundredths of a second."""

TINY = {"channels": 4, "blocks": 1, "discriminator_channels": 4}
EVERY = ("trainer.checkpoint_steps=2", "trainer.log_steps=1", "trainer.image_steps=100", "trainer.pool_size=4")
SCALE, PATCH = 2, 24
CUT = ("--scale", SCALE, "--patch", PATCH)


def sets(values):
    return [word for value in values for word in ("--set", value)]


SMALL = (*CUT, "--steps", 4, "--batch", 2, "--device", "cpu", *sets([*EVERY, *(f"{k}={v}" for k, v in TINY.items())]))
"""Options of a training that takes a second."""


def write(path, array_kji, spacing_mm=(0.7, 0.7, 1.5)):
    image = sitk.GetImageFromArray(np.asarray(array_kji))
    image.SetSpacing(spacing_mm)
    sitk.WriteImage(image, str(path))
    return path


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """The files of a user: a clinical CT of one simulated specimen, the micro-CT of another, and a mask of either."""
    folder = tmp_path_factory.mktemp("scans")
    settings = CaseSettings(size_voxels=40, depth_mm=4.5, slice_mm=1.5, noise_hu=10.0, pixel_mm=0.7, scale=SCALE)
    seen, other = (simulate_case(settings, seed) for seed in (3, 4))
    clinical, micro = seen.scan.clinical.array_kji, other.micro.array_kji
    inside = np.zeros(micro.shape, np.uint8)
    inside[:, 8:-8, 8:-8] = 1
    files = {
        "clinical": write(folder / "ct.nrrd", clinical, (0.7, 0.7, 1.5)),
        "clinical_mask": write(folder / "lungs.nrrd", np.ones(clinical.shape, np.uint8), (0.7, 0.7, 1.5)),
        "micro": write(folder / "micro.nrrd", micro, (0.35, 0.35, 1.05)),
        "micro_mask": write(folder / "specimen.nrrd", inside, (0.35, 0.35, 1.05)),
    }
    low, high = (float(f"{value:g}") for value in np.quantile(micro[:, 8:-8, 8:-8], (0.01, 0.99)))
    return files | {"micro_window": (low, high)}


@pytest.fixture(scope="module")
def own(scans):
    """Options that give these files."""
    return (
        *("--clinical", scans["clinical"], "--clinical-mask", scans["clinical_mask"], "--patches-per-case", 8),
        *("--micro", scans["micro"], "--micro-mask", scans["micro_mask"], "--micro-window", *scans["micro_window"]),
    )


@pytest.fixture(scope="module")
def module_command(tmp_path_factory):
    """The command for fixtures of the whole module."""
    from CTMicroSRLib.cli import main

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 0

    return run


@pytest.fixture(scope="module")
def patches(module_command, own, tmp_path_factory):
    """The folder of patches that ``--stop-at 0`` leaves."""
    run = tmp_path_factory.mktemp("cut") / "run"
    module_command("train", METHOD, "--output", run, *own, *SMALL, "--stop-at", 0)
    return run / "patches"


@pytest.fixture(scope="module")
def trained(module_command, own, tmp_path_factory):
    """A run on the user's scans, with its model; not to be changed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    module_command("train", METHOD, "--output", run, *own, *SMALL, "--name", "mine")
    return run


def tree(folder):
    """Every file below a folder, with its content."""
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None for f in folder.rglob("*")}


@pytest.fixture
def refused(ctmicrosr, tmp_path):
    """Run ``train``; check the status and the one line, and that no file came, went or changed."""

    def run(status, match, *arguments, method=METHOD):
        before = tree(tmp_path)
        outcome = ctmicrosr("train", method, *arguments)
        assert (outcome.status, outcome.stdout) == (status, ""), outcome
        assert re.fullmatch(r"ctmicrosr: [^\n]*[^\n.]\.\n", outcome.stderr), outcome.stderr
        assert re.search(match, outcome.stderr), outcome.stderr
        assert tree(tmp_path) == before
        return outcome.stderr

    return run


def stopped(ctmicrosr, run, patches, *more, at=2):
    """A run that ended with a checkpoint."""
    outcome = ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL, *more, "--stop-at", at)
    assert outcome.status == 0, outcome
    assert (run / "checkpoint.safetensors").is_file()
    return outcome


# --- from scans to a model -------------------------------------------------------------------------------------------


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
    assert "mine" in (tmp_path / "table.json").read_text()


def test_a_models_name_is_the_methods_where_none_is_given(ctmicrosr, patches, tmp_path):
    outcome = ctmicrosr("train", METHOD, "--output", tmp_path / "run", "--patches", patches, *SMALL)
    assert outcome.status == 0
    assert outcome.stdout.strip() == f"{tmp_path / 'run' / 'model'}: a model folder for --model"
    card = read_card(tmp_path / "run" / "model")
    assert card.name == f"{METHOD}-2x"
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


# --- wrong use -------------------------------------------------------------------------------------------------------


def test_an_unknown_method_is_refused_with_those_that_there_are(refused, tmp_path):
    line = refused(USAGE, "gan", "--output", tmp_path / "run", method="gan")
    assert all(name in line for name in METHODS)


def test_an_unknown_preset_is_refused_with_those_that_there_are(refused, own, tmp_path):
    line = refused(USAGE, "no preset 'tiny'", "--output", tmp_path / "run", *own, *SMALL, "--preset", "tiny")
    assert all(name in line for name in method_kind(METHOD).presets)


@pytest.mark.parametrize(
    ("setting", "named"),
    [("learnin_rate=1", "learning_rate"), ("trainer.step=1", "steps"), ("simulation.count=2", "specimens")],
)
def test_a_wrong_key_is_refused_with_those_that_there_are(refused, own, tmp_path, setting, named):
    line = refused(USAGE, "There is no setting", "--output", tmp_path / "run", *own, *SMALL, "--set", setting)
    assert named in line


@pytest.mark.parametrize(
    "setting",
    [
        *("learning_rate=-1", "learning_rate=fast", "learning_rate=NaN", "channels=0", "blocks=1.5", "scale=3"),
        *("trainer.schedule=slow", "trainer.gradient_clip=0", "patches.clinical_window=[1]", "cycle", "cycle=null"),
    ],
)
def test_a_bad_value_is_refused(refused, own, tmp_path, setting):
    small = ("--patch", PATCH, "--steps", 4, "--batch", 2, *(() if setting.startswith("scale") else ("--scale", SCALE)))
    named = setting.partition("=")[0].rpartition(".")[2].replace("_", "[_ ]")
    refused(USAGE, named, "--output", tmp_path / "run", *own, *small, "--set", setting)


@pytest.mark.parametrize("options", [("--steps", 0), ("--batch", 0), ("--patch", 4), ("--scale", 5), ("--stop-at", -1)])
def test_a_number_out_of_range_is_refused(refused, own, tmp_path, options):
    refused(USAGE, str(options[1]) if options[1] else "1", "--output", tmp_path / "run", *own, *SMALL, *options)


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("srgan", "scale=3"),
        ("srgan", "channels=0"),
        ("unet", "depth=-1"),
        ("esrgan", "growth=0"),
        ("compact", "scale=0"),
    ],
)
def test_networks_that_can_not_be_built_are_refused(refused, tmp_path, method, setting):
    refused(USAGE, "", "--output", tmp_path / "run", "--set", setting, method=method)


@pytest.mark.parametrize("name", ["My Model", "", "../model", "model/", "größe"])
def test_a_name_that_is_none_is_refused_before_the_training(refused, patches, tmp_path, name):
    arguments = ("--output", tmp_path / "run", "--patches", patches, *SMALL, "--name", name)
    refused(MODEL, "model name .* is not allowed", *arguments)


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_seeds_that_models_are_judged_on_are_refused(refused, tmp_path, seed):
    refused(USAGE, "judged on", "--output", tmp_path / "run", *SMALL, "--seed", seed)


@pytest.mark.parametrize("missing", ["clinical", "micro"])
def test_one_domain_alone_is_refused_and_the_other_named(refused, scans, tmp_path, missing):
    given = {"clinical": "micro", "micro": "clinical"}[missing]
    refused(USAGE, f"--{missing} ", "--output", tmp_path / "run", f"--{given}", scans[given], *SMALL)


def test_a_mask_without_its_scan_is_refused(refused, scans, tmp_path):
    refused(USAGE, "--clinical ", "--output", tmp_path / "run", "--clinical-mask", scans["clinical_mask"], *SMALL)


@pytest.mark.parametrize("copied", [False, True])
def test_the_same_scan_in_both_domains_is_refused(refused, own, scans, tmp_path, copied):
    file = shutil.copy(scans["clinical"], tmp_path / "copy.nrrd") if copied else scans["clinical"]
    arguments = ("--clinical", scans["clinical"], "--clinical-mask", scans["clinical_mask"], "--micro", file)
    small = ("--scale", SCALE, "--patch", 8, "--patches-per-case", 4)
    masks = ("--micro-mask", scans["clinical_mask"], "--micro-window", -1000, 500)
    refused(USAGE, "in both domains", "--output", tmp_path / "run", *arguments, *masks, *small)


@pytest.mark.parametrize("domain", ["clinical", "micro"])
def test_an_empty_mask_is_refused_by_its_name(refused, own, scans, tmp_path, domain):
    image = sitk.ReadImage(str(scans[f"{domain}_mask"]))
    sitk.WriteImage(image * 0, str(tmp_path / "empty.nrrd"))
    options = (*own, f"--{domain}-mask", tmp_path / "empty.nrrd")
    refused(REFUSED, r"empty\.nrrd is empty", "--output", tmp_path / "run", *options, *SMALL)


@pytest.mark.parametrize("domain", ["clinical", "micro"])
def test_a_window_that_holds_nothing_of_the_scan_is_refused(refused, own, tmp_path, domain):
    window = (f"--{domain}-window", 500_000, 600_000) if domain == "micro" else ("--clinical-window", 5000, 6000)
    refused(
        REFUSED,
        f"leaves nothing; choose another --{domain}-window",
        "--output",
        tmp_path / "run",
        *own,
        *window,
        *SMALL,
    )


def test_a_window_upside_down_is_refused(refused, own, tmp_path):
    refused(USAGE, "lower value first", "--output", tmp_path / "run", *own, "--clinical-window", 500, -1000, *SMALL)


def test_a_missing_scan_is_refused(refused, own, tmp_path):
    refused(USAGE, "no file or folder", "--output", tmp_path / "run", *own, "--micro", tmp_path / "none.nrrd", *SMALL)


@pytest.mark.parametrize("method", ["srgan", "esrgan", "unet", "compact"])
def test_a_supervised_method_refuses_scans_which_have_no_truth(refused, own, patches, tmp_path, method):
    refused(USAGE, "pairs", "--output", tmp_path / "run", *own, "--scale", 2, method=method)
    refused(USAGE, "pairs", "--output", tmp_path / "run", "--patches", patches, "--scale", 2, method=method)


def test_scans_beside_patches_are_refused(refused, own, patches, tmp_path):
    refused(USAGE, "--patches", "--output", tmp_path / "run", *own, "--patches", patches, *SMALL)


def test_patches_of_another_scale_are_refused(refused, patches, tmp_path):
    refused(USAGE, "patches are 2x", "--output", tmp_path / "run", "--patches", patches, *SMALL, "--scale", 4)


def test_other_scans_than_those_of_the_runs_patches_are_refused(refused, ctmicrosr, own, tmp_path):
    run = tmp_path / "run"
    assert ctmicrosr("train", METHOD, "--output", run, *own, *SMALL, "--stop-at", 0).status == 0
    refused(USAGE, "holds patches of other scans", "--output", run, *own, *SMALL, "--clinical-window", -900, 900)


def test_a_device_that_is_not_there_is_refused(refused, patches, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device, which is then not refused")
    refused(RESOURCE, "cuda", "--output", tmp_path / "run", "--patches", patches, *SMALL, "--device", "cuda")


# --- folders and checkpoints -----------------------------------------------------------------------------------------


def test_a_folder_with_a_checkpoint_is_not_trained_in_anew(refused, ctmicrosr, patches, own, tmp_path):
    run = tmp_path / "run"
    stopped(ctmicrosr, run, patches)
    refused(
        USAGE, "has a checkpoint already; go on from it with --resume", "--output", run, "--patches", patches, *SMALL
    )
    refused(USAGE, "has a checkpoint already; go on from it with --resume", "--output", run, *own, *SMALL)


def test_resume_without_a_checkpoint_is_refused_and_nothing_is_made(refused, own, tmp_path):
    refused(USAGE, "no checkpoint in .* without --resume", "--output", tmp_path / "run", *own, *SMALL, "--resume")


def test_resume_without_its_patches_is_refused(refused, ctmicrosr, patches, tmp_path):
    run = tmp_path / "run"
    stopped(ctmicrosr, run, patches)
    refused(USAGE, "give --patches FOLDER", "--output", run, *SMALL, "--resume")


def test_a_checkpoint_of_another_method_is_refused(refused, ctmicrosr, patches, tmp_path):
    run = tmp_path / "run"
    stopped(ctmicrosr, run, patches)
    arguments = ("--output", run, "--patches", patches, *CUT, "--resume", "--set", "channels=4")
    refused(MODEL, f"of the method {METHOD}, not unit", *arguments, method="unit")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--steps", 6), r"trainer\.steps = 4, not 6"),
        (("--set", "cycle=3"), r"method_settings\.cycle = 10\.0, not 3"),
        (("--seed", 3), r"trainer\.seed = 1, not 3"),
        (("--batch", 4), r"trainer\.batch = 2, not 4"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(refused, ctmicrosr, patches, tmp_path, options, named):
    run = tmp_path / "run"
    stopped(ctmicrosr, run, patches)
    refused(USAGE, named, "--output", run, "--patches", patches, *SMALL, *options, "--resume")


def test_a_run_is_not_resumed_on_other_patches(refused, ctmicrosr, own, patches, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    stopped(ctmicrosr, run, patches)
    assert ctmicrosr("train", METHOD, "--output", other, *own, *SMALL, "--seed", 4, "--stop-at", 0).status == 0
    refused(USAGE, r"patches\.seed = 1, not 4", "--output", run, "--patches", other / "patches", *SMALL, "--resume")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_damaged_checkpoint_is_refused(refused, ctmicrosr, patches, tmp_path, keep):
    run = tmp_path / "run"
    stopped(ctmicrosr, run, patches)
    content = (run / "checkpoint.safetensors").read_bytes()
    (run / "checkpoint.safetensors").write_bytes(content[: int(keep * len(content))])
    refused(MODEL, "is damaged .*; restore it", "--output", run, "--patches", patches, *SMALL, "--resume")


@pytest.mark.parametrize(
    ("name", "content"),
    [("manifest.json", b"{"), ("manifest.json", b"[]"), ("clinical.npy", b"x"), ("micro.npy", None)],
)
def test_damaged_patches_are_refused(refused, patches, tmp_path, name, content):
    shutil.copytree(patches, tmp_path / "patches")
    (tmp_path / "patches" / name).unlink()
    if content is not None:
        (tmp_path / "patches" / name).write_bytes(content)
    arguments = ("--output", tmp_path / "run", "--patches", tmp_path / "patches", *SMALL)
    refused(REFUSED, "the patches are damaged; delete the folder", *arguments)


def test_a_folder_without_patches_is_refused(refused, tmp_path):
    refused(USAGE, "holds no patches", "--output", tmp_path / "run", "--patches", tmp_path / "none", *SMALL)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}'])
def test_a_damaged_card_is_refused_where_the_model_is_used(ctmicrosr, trained, scans, tmp_path, content):
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model" / "card.json").write_bytes(content)
    outcome = ctmicrosr("superres", scans["clinical"], tmp_path / "sr.nrrd", "--model", tmp_path / "model")
    assert outcome.status == MODEL
    assert re.fullmatch(r"ctmicrosr: The card [^\n]*[^\n.]\.\n", outcome.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- what goes wrong on the way --------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint_and_says_what_to_do(ctmicrosr, patches, tmp_path):
    run = tmp_path / "run"
    options = ("--output", run, "--patches", patches, *SMALL, *sets(["learning_rate=1e30", "trainer.steps=9"]))
    options = [word for word in options if word not in ("--steps", 4)]
    options += sets(["trainer.schedule=halving", "trainer.halving_shares=[0.5]"])
    outcome = ctmicrosr("train", METHOD, *options, "--stop-at", 1)
    assert outcome.status == 0, outcome
    before = (run / "checkpoint.safetensors").read_bytes()
    outcome = ctmicrosr("train", METHOD, *options, "--resume")
    assert outcome.status == MODEL
    assert outcome.stderr.count("\n") == 1
    assert re.search(
        r"stopped being finite in step \d+; the last checkpoint in .* is kept: resume with ", outcome.stderr
    )
    assert "lower learning rate" in outcome.stderr
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert not (run / "model").exists()
    cure = re.search(r"(--set trainer\.\S+=\d)", outcome.stderr)[1].split()
    assert ctmicrosr("train", METHOD, *options, "--resume", *cure, "--stop-at", 1).status == 0


def test_a_loss_that_is_not_finite_before_any_checkpoint_says_so(ctmicrosr, patches, tmp_path):
    run = tmp_path / "run"
    small = [
        word.replace("checkpoint_steps=2", "checkpoint_steps=9") if isinstance(word, str) else word for word in SMALL
    ]
    arguments = ("--output", run, "--patches", patches, *small, "--set", "learning_rate=1e30")
    outcome = ctmicrosr("train", METHOD, *arguments)
    assert outcome.status == MODEL
    assert outcome.stderr.count("\n") == 1
    assert re.search("there was no checkpoint yet: train again with .* lower learning rate", outcome.stderr)
    assert not (run / "checkpoint.safetensors").exists()
    assert not (run / "model").exists()


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(ctmicrosr, patches, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stopped(ctmicrosr, run, patches)
    before = (run / "checkpoint.safetensors").read_bytes()
    sync = os.fsync

    def full(descriptor):
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr("CTMicroSRLib.training.checkpoints.os.fsync", full)
    outcome = ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL, "--resume")
    assert outcome.status == RESOURCE
    assert re.fullmatch(r"ctmicrosr: There is no space left to write [^\n]* with --resume\.\n", outcome.stderr)
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert not [path for path in run.iterdir() if path.suffix == ".part"]
    monkeypatch.undo()
    assert ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL, "--resume").status == 0
    assert (run / "model" / "card.json").is_file()


def test_a_disk_too_small_for_the_patches_is_refused(refused, own, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("CTMicroSRLib.training.patches.shutil.disk_usage", lambda path: usage)
    refused(RESOURCE, "free some space", "--output", tmp_path / "run", *own, *SMALL)


def test_a_folder_that_can_not_be_made_is_refused(refused, patches, own, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refused(USAGE, "cannot be written", "--output", tmp_path / "file" / "run", "--patches", patches, *SMALL)
    refused(RESOURCE, "can't be written", "--output", tmp_path / "file" / "run", *own, *SMALL)


def test_cancelling_while_patches_are_made_leaves_nothing(ctmicrosr, own, tmp_path, monkeypatch):
    def cancel(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("CTMicroSRLib.training.patch_sources._Cutter.cut", cancel)
    outcome = ctmicrosr("train", METHOD, "--output", tmp_path / "run", *own, *SMALL)
    assert outcome.status == 130
    assert list(tmp_path.iterdir()) == []
