"""Training on two processes: the weights of one process with the same total batch, and errors that all of them see.

Weights are close to, not bit for bit, those of one process: the mean over the batch is summed in another order (first
within each process, then over both), which moves the last bits of the gradients.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_method import KIND, SCALE, Settings, tiny_batches

from CTMicroSRLib.training.methods import method_kind
from CTMicroSRLib.training.optimisers import build_optimisers
from CTMicroSRLib.training.settings import TrainerSettings
from CTMicroSRLib.training.trainer import train
from CTMicroSRLib.training.training_log import read_log

pytestmark = pytest.mark.slow

METHOD = Settings(dropout=0.0, batch_norm=False)  # dropout's masks and batch norm's statistics are a process's own
SETTINGS = TrainerSettings(steps=12, batch=4, pool_size=8, checkpoint_steps=4, log_steps=3, image_steps=50)

PAPER_METHOD = {"scale": SCALE, "channels": 4, "blocks": 1, "discriminator_channels": 4, "learning_rate": 2e-4}
PAPER_SETTINGS = TrainerSettings(steps=4, batch=4, pool_size=4, log_steps=2)

SCRIPT = """
import errno, json, os, sys
from dataclasses import replace
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path[:0] = [{tests!r}, {repository!r}]
from test_trainer_processes import KIND, METHOD, PAPER_METHOD, PAPER_SETTINGS, SETTINGS, tiny_batches

from CTMicroSRLib.errors import CTMicroSRError
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib import whole_files
from CTMicroSRLib.training.methods import method_kind
from CTMicroSRLib.training.trainer import train

folder, devices = Path({folder!r}), int(sys.argv[1])
rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def outcome(name, settings=SETTINGS, method=METHOD, batches=None, kind=KIND, run=None, **options):
    run, batches = folder / (run or name), batches or tiny_batches()
    try:
        train(kind, method, settings, batches, run, device="cpu", devices=devices, **options)
        message = "done"
    except CTMicroSRError as error:
        message = type(error).__name__ + ": " + str(error)
    (folder / f"{{name}}-{{rank}}.txt").write_text(message)


class StopsHere(SilentProgress):
    def __init__(self):
        self.steps = 0

    def update(self, stage, done, total):
        self.steps = done

    def cancelled(self):
        return rank == 1 and self.steps >= 5


def broken_here(step, process, processes):
    batch = tiny_batches()(step, process, processes)
    return replace(batch, clinical=batch.clinical * float("nan")) if rank == 1 and step == 6 else batch


def full_disk(run, checkpoint):
    if checkpoint.step == 8:
        with whole_files.writing(run):
            raise OSError(errno.ENOSPC, "full")
    return write(run, checkpoint)


outcome(f"launched-{{devices}}")
if devices == 1:
    paper = method_kind("sr-cyclegan")
    outcome("paper", PAPER_SETTINGS, paper.settings(**PAPER_METHOD), tiny_batches(patch=24), paper)
    outcome("resumed", resume=True)
    outcome("broken", batches=broken_here)
    outcome("cancelled", progress=StopsHere())
    outcome("cancelled-again", run="cancelled")
    outcome("odd", replace(SETTINGS, batch=3), batches=tiny_batches(6))
    from CTMicroSRLib.training import training_run

    write = training_run.write_checkpoint
    training_run.write_checkpoint = full_disk
    outcome("full")
"""


def run_script(folder, launcher, devices):
    script = folder / "script.py"
    repository = Path(__file__).resolve().parents[2]
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), repository=str(repository), folder=str(folder)))
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(devices)],
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone")
    train(KIND, METHOD, SETTINGS, tiny_batches(), run, device="cpu")
    return run


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes under torchrun left, a folder for each run and what each process said."""
    folder = tmp_path_factory.mktemp("together")
    train(KIND, METHOD, SETTINGS, tiny_batches(), folder / "resumed", device="cpu", stop_at=5)
    run_script(
        folder, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--local-ranks-filter", "0"], 1
    )
    return folder


def said(folder, name):
    first, second = ((folder / f"{name}-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    return first


def assert_close(run, other):
    """Weights within 1e-6 of their size, optimisers and pools too, and the same counts."""
    one, two = (load_file(folder / "checkpoint.safetensors") for folder in (run, other))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, two[key], rtol=1e-6, atol=2e-7, msg=lambda text, key=key: f"{key}: {text}"
            )
        else:
            assert torch.equal(value, two[key]), key


def test_two_processes_under_torchrun_train_the_weights_of_one(together, alone):
    assert said(together, "launched-1") == "done"
    assert_close(together / "launched-1", alone)
    moved = load_file(alone / "checkpoint.safetensors")
    assert moved["pool.fake.counts"].tolist() == [2, 2, 2, 2]
    assert moved["adam.maker.0.step"].item() == 12


def test_two_processes_train_the_papers_method_as_one_does(together, tmp_path):
    kind = method_kind("sr-cyclegan")
    train(kind, kind.settings(**PAPER_METHOD), PAPER_SETTINGS, tiny_batches(patch=24), tmp_path, device="cpu")
    assert said(together, "paper") == "done"
    one, two = (load_file(run / "checkpoint.safetensors") for run in (tmp_path, together / "paper"))
    method = kind.build(kind.settings(**PAPER_METHOD))
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    compared = set()
    for optimiser, adam in build_optimisers(method).items():
        for index, parameter in enumerate(adam.parameters):
            name = names[id(parameter)]
            if one[f"adam.{optimiser}.{index}.exp_avg_sq"].max() < 1e-10:
                # An instance norm takes this bias away again: its gradient is rounding, which Adam makes steps of.
                assert name.endswith(".bias")
                continue
            key = f"method.{name}"
            # Of the 8e-4 that four steps can move a weight.
            torch.testing.assert_close(
                one[key], two[key], rtol=0, atol=4e-6, msg=lambda text, key=key: f"{key}: {text}"
            )
            compared.add(name)
    assert {name for name in names.values() if name.endswith(".weight")} <= compared
    network, clinical = method.generator().eval(), tiny_batches(patch=24)(9, 0, 1).clinical
    results = []
    for run in (tmp_path, together / "paper"):
        network.load_state_dict(load_file(run / "weights.safetensors"))
        results.append(network(clinical))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


def test_two_processes_log_the_losses_of_the_whole_batch(together, alone):
    for two, one in zip(read_log(together / "launched-1"), read_log(alone), strict=True):
        assert two["step"] == one["step"]
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)


def test_two_processes_go_on_from_the_checkpoint_of_one(together, alone):
    assert said(together, "resumed") == "done"
    assert_close(together / "resumed", alone)


def test_a_loss_that_is_not_finite_on_one_process_stops_both(together):
    assert said(together, "broken").startswith("ModelError: The loss maker/gan stopped being finite in step 7;")
    assert load_file(together / "broken" / "checkpoint.safetensors")["adam.maker.0.step"].item() == 4


def test_both_processes_stop_in_the_same_step_when_one_is_asked_to(together, alone):
    assert said(together, "cancelled").startswith("CancelledError: Training was cancelled after step 5;")
    assert load_file(together / "cancelled" / "checkpoint.safetensors")["adam.maker.0.step"].item() == 5


def test_both_processes_refuse_a_folder_that_has_a_checkpoint(together):
    assert "has a checkpoint already" in said(together, "cancelled-again")


def test_a_full_disk_stops_both_processes_with_the_last_checkpoint_kept(together):
    assert said(together, "full").startswith("ResourceError: There is no space left to write")
    assert load_file(together / "full" / "checkpoint.safetensors")["adam.maker.0.step"].item() == 4


def test_a_batch_that_two_processes_cannot_share_is_refused(together):
    assert said(together, "odd").startswith("UsageError: A batch of 3 can't be divided among 2 processes;")


def test_the_trainer_starts_the_processes_itself(tmp_path, alone):
    run_script(tmp_path, [], 2)
    assert said(tmp_path, "launched-2") == "done"
    assert_close(tmp_path / "launched-2", alone)
    assert json.loads((tmp_path / "launched-2" / "settings.json").read_text())["method"] == "tiny"
