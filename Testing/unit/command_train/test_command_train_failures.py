"""What goes wrong while ``ctmicrosr train`` runs: the last checkpoint stays, and one sentence says what to do."""

from __future__ import annotations

import errno
import os
import re

from train_command import METHOD, MODEL, RESOURCE, SMALL, USAGE, sets, stopped


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


def fill_the_disk_at_checkpoints(monkeypatch):
    """From now on no checkpoint fits on the disk; everything else does."""
    sync = os.fsync

    def full(descriptor):
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr("CTMicroSRLib.whole_files.os.fsync", full)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(ctmicrosr, patches, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stopped(ctmicrosr, run, patches)
    before = (run / "checkpoint.safetensors").read_bytes()
    fill_the_disk_at_checkpoints(monkeypatch)
    outcome = ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL, "--resume")
    assert outcome.status == RESOURCE
    assert re.fullmatch(r"ctmicrosr: There is no space left to write [^\n]* with --resume\.\n", outcome.stderr)
    assert (run / "checkpoint.safetensors").read_bytes() == before
    assert not [path for path in run.iterdir() if path.suffix == ".part"]
    monkeypatch.undo()
    assert ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL, "--resume").status == 0
    assert (run / "model" / "card.json").is_file()


def test_a_disk_that_fills_up_before_any_checkpoint_says_to_train_again(ctmicrosr, patches, tmp_path, monkeypatch):
    run = tmp_path / "run"
    fill_the_disk_at_checkpoints(monkeypatch)
    outcome = ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL)
    assert outcome.status == RESOURCE
    advice = r"free some space and train again \(there was no checkpoint yet\)"
    assert re.fullmatch(rf"ctmicrosr: There is no space left to write [^\n]*; {advice}\.\n", outcome.stderr)
    monkeypatch.undo()
    assert ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL).status == 0


def test_a_disk_too_small_for_the_patches_is_refused(refused, own, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("CTMicroSRLib.training.patch_writing.shutil.disk_usage", lambda path: usage)
    refused(RESOURCE, "free some space", "--output", tmp_path / "run", *own, *SMALL)


def test_a_folder_that_can_not_be_made_is_refused(refused, patches, own, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    refused(USAGE, "cannot be written", "--output", tmp_path / "file" / "run", "--patches", patches, *SMALL)
    refused(USAGE, "cannot be written", "--output", tmp_path / "file" / "run", *own, *SMALL)


def test_cancelling_while_patches_are_made_leaves_nothing(ctmicrosr, own, tmp_path, monkeypatch):
    def cancel(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("CTMicroSRLib.training.patch_sources._Cutter.cut", cancel)
    outcome = ctmicrosr("train", METHOD, "--output", tmp_path / "run", *own, *SMALL)
    assert outcome.status == 130
    assert list(tmp_path.iterdir()) == []
