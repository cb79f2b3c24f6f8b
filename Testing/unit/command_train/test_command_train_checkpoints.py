"""Folders and checkpoints of ``ctmicrosr train`` that can't be trained in, gone on from or used."""

from __future__ import annotations

import re
import shutil

import pytest
from train_command import CUT, METHOD, MODEL, REFUSED, SMALL, USAGE, stopped


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
