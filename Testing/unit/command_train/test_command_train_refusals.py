"""Wrong use of ``ctmicrosr train``: refused in one sentence, before anything is made."""

from __future__ import annotations

import shutil

import pytest
import SimpleITK as sitk
from train_command import METHOD, MODEL, PATCH, REFUSED, RESOURCE, SCALE, SMALL, USAGE

from CTMicroSRLib.training.methods import METHODS, method_kind


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


@pytest.mark.parametrize(
    "options",
    [
        *(("--steps", 0), ("--batch", 0), ("--patch", 4), ("--scale", 5), ("--stop-at", -1)),
        *(("--threads", 0), ("--threads", -3)),
    ],
)
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
    small = ("--scale", SCALE, "--patch", 12, "--patches-per-case", 4)
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


def test_the_method_that_once_made_the_shipped_model_is_refused_with_what_does_it_now(refused, tmp_path):
    line = refused(USAGE, "supervised", "--output", tmp_path / "run", method="supervised")
    assert "'ctmicrosr train compact --preset shipped'" in line


def test_a_setting_of_the_trainer_without_its_room_is_refused_with_it(refused, own, tmp_path):
    refused(USAGE, r"write trainer\.steps", "--output", tmp_path / "run", *own, *SMALL, "--set", "steps=5")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--specimens", 3), "--specimens has"),
        (("--set", "simulation.specimens=3"), r"simulation\.specimens has"),
        (("--set", "patches.least_lung_share=0.9"), r"patches\.least_lung_share has"),
        (("--patches-per-case", 9), "cut with --patches-per-case 8"),
    ],
)
def test_what_would_change_patches_that_exist_is_refused(refused, patches, tmp_path, words, named):
    refused(USAGE, f"{named}.* leave", "--output", tmp_path / "run", "--patches", patches, *SMALL, *words)


def test_specimens_beside_scans_are_refused(refused, own, tmp_path):
    refused(USAGE, "Beside --clinical .* --specimens has", "--output", tmp_path / "run", *own, *SMALL, "--specimens", 3)


@pytest.mark.parametrize("option", ["--calibrate", "--measure"])
def test_what_can_not_be_judged_is_refused_before_the_training(refused, patches, tmp_path, option):
    refused(USAGE, f"cases of {option} are 8x", "--output", tmp_path / "run", "--patches", patches, *SMALL, option)


@pytest.mark.parametrize("content", [b"\x80\x04 a pickle, say", b"", None], ids=["a pickle", "nothing", "no file"])
def test_a_file_without_weights_to_start_from_is_refused_before_patches_are_made(refused, own, tmp_path, content):
    if content is not None:
        (tmp_path / "bait.safetensors").write_bytes(content)
    arguments = ("--output", tmp_path / "run", *own, *SMALL, "--initial", tmp_path / "bait.safetensors")
    refused(MODEL, r"bait\.safetensors can't start this training", *arguments)


def test_weights_of_another_network_are_refused_before_patches_are_made(refused, own, trained, tmp_path):
    initial = ("--initial", trained / "weights.safetensors")
    wider = ["channels=8" if word == "channels=4" else word for word in SMALL]
    refused(MODEL, "can't start this training .* same network", "--output", tmp_path / "run", *own, *wider, *initial)


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("sr-cyclegan", ("--patch", 16), "Patches of 16 voxels are too small for this discriminator; make them 24"),
        ("two-stage", ("--patch", 20), "Patches of 20 voxels are too small"),
        ("unit", ("--patch", 9, "--scale", 2), "no multiples of the 4"),
        ("srgan", ("--patch", 8, "--scale", 2, "--batch", 1), "One patch of 16 voxels at a time is too little"),
        ("sr-cyclegan", ("--batch", 2, "--devices", 4), "A batch of 2 can't be divided among 4 processes"),
        ("sr-cyclegan", ("--devices", 0), "0 devices are not enough"),
    ],
)
def test_sizes_that_can_not_work_are_refused_before_patches_are_cut_or_processes_started(
    refused, tmp_path, monkeypatch, method, options, match
):
    def started(*_arguments, **_options):
        raise AssertionError

    monkeypatch.setattr("CTMicroSRLib.training.simulated_patches.simulate_patches", started)
    monkeypatch.setattr("CTMicroSRLib.training.trainer.launch", started)
    small = ("--preset", "small", "--device", "cpu")
    refused(USAGE, match, "--output", tmp_path / "run", *small, *options, method=method)
