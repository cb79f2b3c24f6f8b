"""One training at a time in a run's folder: who holds it, who is refused, and what a killed process leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_method import KIND, Settings, tiny_batches

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.folder_lock import lock_file
from CTMicroSRLib.training.launching import only_training
from CTMicroSRLib.training.settings import TrainerSettings
from CTMicroSRLib.training.trainer import train

REPOSITORY = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from CTMicroSRLib.training.launching import only_training
with only_training(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``run``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def hold(run):
    with only_training(run):
        pass


def test_a_second_training_in_the_folder_is_refused_in_one_sentence_that_names_the_first(tmp_path, holder):
    run = tmp_path / "run"
    text = rf"Another training is running in {re.escape(str(run))} \(process {holder.pid} on [^)]*\); wait .*folder\."
    with pytest.raises(UsageError, match=f"^{text}$"):
        hold(run)
    with pytest.raises(UsageError, match="Another training"):
        train(KIND, Settings(), TrainerSettings(steps=1), tiny_batches(), run, device="cpu")
    hold(tmp_path / "another")


def test_the_command_refuses_before_patches_are_made(ctmicrosr, tmp_path, holder):
    outcome = ctmicrosr("train", "unet", "--output", tmp_path / "run", "--preset", "small", "--stop-at", "0")
    assert outcome.status == 2
    assert re.fullmatch(r"ctmicrosr: Another training is running in [^\n]*\.\n", outcome.stderr)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [lock_file(tmp_path, "training").name]


def test_the_folder_is_free_again_when_the_first_has_ended(tmp_path, holder):
    holder.communicate("")
    assert not (tmp_path / "run").exists()  # nothing was put into it
    hold(tmp_path / "run")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_what_a_killed_training_left_holds_nobody_up(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert lock_file(tmp_path / "run", "training").exists()
    hold(tmp_path / "run")
    assert not lock_file(tmp_path / "run", "training").exists()


def test_one_process_may_hold_its_folder_twice_and_the_others_of_its_training_do_not_ask(tmp_path, holder, monkeypatch):
    with only_training(tmp_path / "own"):
        hold(tmp_path / "own")
        assert lock_file(tmp_path / "own", "training").exists()
    monkeypatch.setenv("RANK", "1")
    hold(tmp_path / "run")


def test_an_error_inside_lets_go_and_leaves_what_was_there(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("kept")
    with pytest.raises(KeyError), only_training(tmp_path / "run"):
        raise KeyError
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_a_disk_that_knows_no_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    hold(tmp_path / "run")
    assert "can't be locked (Operation not supported); let no second training run in it" in caplog.text
