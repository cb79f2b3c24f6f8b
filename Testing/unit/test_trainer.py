"""The trainer: bit-equal resume, schedules, averages, the log, sample pictures, and what stops a run."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_method import KIND, PATCH, SCALE, Settings, TinyGan, TinyGenerator, tiny_batches
from torch import nn

from CTMicroSRLib.card import Plane
from CTMicroSRLib.errors import CancelledError, ModelError, ResourceError, UsageError
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.training.gradients import clip_gradients, gradient_norm
from CTMicroSRLib.training.method import Batch, OptimiserSettings
from CTMicroSRLib.training.methods import MethodKind, changed
from CTMicroSRLib.training.samples import generator_input
from CTMicroSRLib.training.schedules import schedule_factor
from CTMicroSRLib.training.settings import TrainerSettings
from CTMicroSRLib.training.trainer import train
from CTMicroSRLib.training.training_log import read_log
from CTMicroSRLib.training.weight_average import WeightAverage

SETTINGS = TrainerSettings(
    steps=6, batch=4, pool_size=8, average_decay=0.9, checkpoint_steps=100, log_steps=2, image_steps=4
)


def run_tiny(run, settings=SETTINGS, method=None, *, kind=KIND, batches=None, **options):
    return train(kind, method or Settings(), settings, batches or tiny_batches(), run, device="cpu", **options)


def checkpoint(run):
    return load_file(run / "checkpoint.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    run_tiny(run)
    return run


# --- resume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(3,), (1, 4), (0, 5)])
def test_a_run_in_parts_ends_with_the_bits_of_one_in_one_piece(tmp_path, finished, stops):
    for part, stop in enumerate((*stops, None)):
        run_tiny(tmp_path, stop_at=stop, resume=part > 0)
    whole = checkpoint(finished)
    assert {key.split(".")[0] for key in whole} == {"method", "average", "adam", "pool"}
    assert whole["adam.critic.0.exp_avg"].abs().max() > 0
    assert whole["method.maker.norm.running_mean"].abs().max() > 0
    assert_same(checkpoint(tmp_path), whole)
    assert_same(load_file(tmp_path / "weights.safetensors"), load_file(finished / "weights.safetensors"))


def test_resumed_runs_write_the_log_of_one_in_one_piece(tmp_path, finished):
    run_tiny(tmp_path, stop_at=4)
    with (tmp_path / "log.jsonl").open("a") as log:  # a run that was killed after its last checkpoint
        log.write(json.dumps({"step": 5, "losses": {}, "seconds": 1e9}) + '\n{"step": 6, "los')
    run_tiny(tmp_path, resume=True)
    for parts, whole in zip(read_log(tmp_path), read_log(finished), strict=True):
        assert (parts["step"], parts["losses"], parts["learning_rates"]) == (
            whole["step"],
            whole["losses"],
            whole["learning_rates"],
        )
    seconds = [record["seconds"] for record in read_log(tmp_path)]
    assert seconds == sorted(seconds)
    assert seconds[-1] < 1e6


def test_a_finished_run_that_is_resumed_gives_its_weights_again(tmp_path):
    first = load_file(run_tiny(tmp_path))
    (tmp_path / "weights.safetensors").unlink()
    assert_same(load_file(run_tiny(tmp_path, resume=True)), first)
    assert checkpoint(tmp_path)["pool.fake.counts"].tolist() == [2, 2, 2, 2]


def test_dropout_batches_and_weights_depend_on_the_seed(tmp_path, finished):
    other = load_file(run_tiny(tmp_path / "seed", replace(SETTINGS, seed=2)))
    assert not torch.equal(other["head.weight"], load_file(finished / "weights.safetensors")["head.weight"])
    dry = load_file(run_tiny(tmp_path / "dry", method=Settings(dropout=0.0)))
    assert not torch.equal(dry["head.weight"], load_file(finished / "weights.safetensors")["head.weight"])


def test_training_leaves_the_random_numbers_of_its_caller_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_tiny(tmp_path, replace(SETTINGS, steps=1))
    assert torch.equal(torch.rand(3), expected)


def test_mixed_precision_trains_float32_weights_bit_equal_over_a_resume(tmp_path):
    settings = replace(SETTINGS, steps=4, precision="bf16-mixed")
    run_tiny(tmp_path / "whole", settings)
    run_tiny(tmp_path / "parts", settings, stop_at=2)
    run_tiny(tmp_path / "parts", settings, resume=True)
    whole = checkpoint(tmp_path / "whole")
    assert_same(checkpoint(tmp_path / "parts"), whole)
    assert {value.dtype for value in whole.values()} == {torch.float32, torch.int64}
    run_tiny(tmp_path / "plain", replace(settings, precision="32-true"))
    plain = checkpoint(tmp_path / "plain")["method.maker.head.weight"]
    assert not torch.equal(whole["method.maker.head.weight"], plain)
    torch.testing.assert_close(whole["method.maker.head.weight"], plain, rtol=0, atol=5e-3)


def test_mixed_precision_sees_the_weights_that_the_same_step_has_moved(tmp_path):
    """Autocast's cache would keep the cast of the weights from before."""
    differences = []

    class Peeking(TinyGan):
        def step(self, batch, update):
            with torch.no_grad():
                before = self.critic(batch.micro)
            super().step(batch, update)
            with torch.no_grad():
                differences.append((self.critic(batch.micro) - before).abs().max().item())

    settings = replace(SETTINGS, steps=2, precision="bf16-mixed")
    run_tiny(tmp_path, settings, Settings(learning_rate=0.1), kind=replace(KIND, method=Peeking))
    assert checkpoint(tmp_path)["adam.critic.0.exp_avg"].abs().max() > 0
    assert min(differences) > 0.01


# --- optimisers, schedules, averages -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear", "constant_share": 0.5}, [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "linear", "constant_share": 0.0}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"schedule": "linear", "constant_share": 1.0}, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (
            {"schedule": "halving", "halving_shares": (0.25, 0.5, 0.8)},
            [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125],
        ),
        (
            {"schedule": "cosine"},
            [1, 0.97552826, 0.90450850, 0.79389263, 0.65450850, 0.5, 0.34549150, 0.20610737, 0.09549150, 0.02447174],
        ),
    ],
)
def test_schedules_are_those_computed_by_hand(schedule, expected):
    settings = TrainerSettings(steps=10, **schedule)
    assert [schedule_factor(settings, step / 10) for step in range(10)] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_rate_rises_evenly_over_its_warm_up_and_then_follows_its_schedule(schedule):
    plain = TrainerSettings(steps=1_000, schedule=schedule)
    warm = replace(plain, warm_up_share=0.1)
    factors, without = (np.array([schedule_factor(s, n / 1_000) for n in range(1_000)]) for s in (warm, plain))
    np.testing.assert_allclose(factors[:100] / without[:100], np.arange(1, 101) / 100, rtol=1e-9)
    np.testing.assert_array_equal(factors[100:], without[100:])


def test_a_warm_up_begins_where_the_span_of_its_optimiser_does():
    settings = TrainerSettings(steps=100, schedule="constant", warm_up_share=0.2)
    factors = [schedule_factor(settings, n / 100, (0.5, 1.0)) for n in (49, 50, 54, 59, 60, 99)]
    assert factors == pytest.approx([0, 0.1, 0.5, 1, 1, 1])


def test_a_schedule_runs_over_its_span_and_rests_outside():
    settings = TrainerSettings(schedule="linear", constant_share=0.5)
    span = (0.2, 0.6)
    factors = [schedule_factor(settings, progress, span) for progress in (0, 0.19, 0.2, 0.4, 0.5, 0.55, 0.6, 0.99)]
    assert factors == pytest.approx([0, 0, 1, 1, 0.5, 0.25, 0, 0])


@given(st.integers(1, 500), st.integers(0, 500), st.sampled_from(["linear", "halving", "cosine", "constant"]))
def test_a_schedule_never_rises(steps, step, schedule):
    settings = TrainerSettings(steps=steps, schedule=schedule, halving_shares=(0.3, 0.7))
    now, later = (schedule_factor(settings, min(at, steps - 1) / steps) for at in (step, step + 1))
    assert 0 < later <= now <= 1


def test_an_optimiser_moves_only_within_its_span(tmp_path):
    method = Settings(critic_span=(0.5, 1.0))
    run_tiny(tmp_path, method=method, stop_at=3)
    torch.manual_seed(SETTINGS.seed)
    start = TinyGan(method).critic[0].weight
    assert torch.equal(checkpoint(tmp_path)["method.critic.0.weight"], start)
    run_tiny(tmp_path, method=method, resume=True)
    assert not torch.equal(checkpoint(tmp_path)["method.critic.0.weight"], start)
    assert checkpoint(tmp_path)["adam.critic.0.step"].item() == 3


def test_the_weights_follow_adam_at_the_scheduled_rate(tmp_path):
    """Adam's first step is the learning rate in the gradient's direction, whatever its size."""
    settings = replace(SETTINGS, steps=1, average_decay=0.0)
    after = load_file(run_tiny(tmp_path, settings, Settings(learning_rate=0.01)))
    torch.manual_seed(settings.seed)
    before = TinyGan(Settings()).maker.state_dict()
    moved = (after["tail.weight"] - before["tail.weight"]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=0)


def test_the_average_is_that_recomputed_in_double_precision():
    network = TinyGenerator()
    average = WeightAverage(network, 0.95)
    expected = network.head.weight.detach().double().clone()
    for step in range(40):
        with torch.no_grad():
            network.head.weight.add_(torch.randn_like(network.head.weight))
            network.norm.running_mean.fill_(float(step))
        average.follow(network, step)
        decay = min(0.95, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.head.weight.detach().double()
    torch.testing.assert_close(average.network.head.weight.double(), expected, rtol=1e-6, atol=1e-6)
    assert average.network.norm.running_mean.tolist() == [39.0] * 4
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_without_an_average_the_weights_are_the_generators_own(tmp_path):
    weights = load_file(run_tiny(tmp_path, replace(SETTINGS, average_decay=0.0)))
    own = checkpoint(tmp_path)
    assert all(torch.equal(value, own[f"method.maker.{key}"]) for key, value in weights.items())


def test_gradients_are_clipped_to_the_norm_that_was_asked_for():
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    norm = gradient_norm(gradients, torch.zeros(1))
    assert norm.item() == 5.0
    clip_gradients(gradients, norm, 2.0)
    assert torch.cat([gradient.reshape(-1) for gradient in gradients]).tolist() == pytest.approx([1.2, 0.0, 1.6])
    clip_gradients(gradients, gradient_norm(gradients, torch.zeros(1)), 2.5)
    assert gradients[1].item() == pytest.approx(1.6)


def test_a_small_clip_changes_what_adam_remembers(tmp_path, finished):
    run_tiny(tmp_path, replace(SETTINGS, gradient_clip=1e-3))
    remembered = [value for key, value in checkpoint(tmp_path).items() if key.endswith("exp_avg")]
    assert 0 < max(value.abs().max() for value in remembered) <= 1e-3
    assert max(value.abs().max() for k, value in checkpoint(finished).items() if k.endswith("exp_avg")) > 1e-3


class Twins(TinyGan):
    """Two generators that share a layer (as SR-UNIT's encoders do)."""

    def __init__(self, settings):
        super().__init__(settings)
        self.twin = TinyGenerator()
        self.twin.head = self.maker.head

    def optimisers(self):
        return {**super().optimisers(), "maker": OptimiserSettings(("maker", "twin"), 1e-3)}


def test_networks_that_share_weights_are_saved_and_resumed(tmp_path):
    kind = replace(KIND, method=Twins)
    run_tiny(tmp_path / "whole", kind=kind)
    run_tiny(tmp_path / "parts", kind=kind, stop_at=2)
    run_tiny(tmp_path / "parts", kind=kind, resume=True)
    whole = checkpoint(tmp_path / "whole")
    assert_same(checkpoint(tmp_path / "parts"), whole)
    assert torch.equal(whole["method.twin.head.weight"], whole["method.maker.head.weight"])


# --- log and pictures --------------------------------------------------------------------------------------------


def test_the_log_has_the_means_of_the_losses_and_the_learning_rates(tmp_path):
    every = replace(SETTINGS, log_steps=1)
    run_tiny(tmp_path / "every", every)
    run_tiny(tmp_path / "fourth", replace(SETTINGS, log_steps=4))
    single, records = read_log(tmp_path / "every"), read_log(tmp_path / "fourth")
    assert [record["step"] for record in records] == [4, 6]
    assert set(records[0]["losses"]) == {"maker/gan", "maker/down", "critic/real", "critic/fake"}
    for record, steps in zip(records, (single[:4], single[4:]), strict=True):
        for name, value in record["losses"].items():
            assert value == pytest.approx(np.mean([step["losses"][name] for step in steps]), rel=1e-6)
    assert [record["learning_rates"]["maker"] for record in single] == pytest.approx(
        [1e-3, 1e-3, 1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3]
    )
    assert records[0]["learning_rates"]["critic"] == pytest.approx(2e-3)
    assert all(record["steps_per_second"] > 0 for record in records)


def test_the_first_loss_is_that_of_the_untrained_method(tmp_path):
    run_tiny(tmp_path, replace(SETTINGS, log_steps=1), Settings(dropout=0.0), stop_at=1)
    torch.manual_seed(SETTINGS.seed)
    method = TinyGan(Settings(dropout=0.0)).train()
    batch = tiny_batches()(0, 0, 1)
    fake = method.maker(batch.clinical)
    down = (torch.nn.functional.avg_pool2d(fake, SCALE) - batch.clinical).abs().mean()
    assert read_log(tmp_path)[0]["losses"]["maker/down"] == pytest.approx(down.item(), rel=1e-5)


def test_tensorboard_shows_the_numbers_of_the_log_and_the_pictures(finished):
    board = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    for record in read_log(finished):
        for name, value in record["losses"].items():
            shown = {event.step: event.value for event in board.Scalars(f"loss/{name}")}
            assert shown[record["step"]] == pytest.approx(value, rel=1e-6)
    assert {"learning_rate/maker", "learning_rate/critic", "steps_per_second"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Images("sample")] == [4, 6]


@pytest.mark.parametrize(("truth", "columns"), [(True, 3), (False, 2)])
def test_sample_pictures_show_clinical_result_and_truth_side_by_side(tmp_path, truth, columns):
    run_tiny(tmp_path, batches=tiny_batches(truth=truth))
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-0000004.png", "step-0000006.png"]
    edge = PATCH * SCALE
    picture = np.asarray(Image.open(tmp_path / "samples" / "step-0000006.png"), dtype=np.float32)
    assert picture.shape == (4 * edge, columns * edge)
    batch = tiny_batches(truth=truth)(0, 0, 1)
    low, high = batch.clinical.min(), batch.clinical.max()
    grey = ((batch.clinical[1, 0] - low) / (high - low) * 255).round().numpy()
    np.testing.assert_allclose(picture[edge : 2 * edge : SCALE, 1:edge:SCALE], grey, atol=1)
    network = TinyGenerator(dropout=0.3).eval()
    network.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    result = ((network(batch.clinical)[1, 0] - low) / (high - low) * 255).clamp(0, 255).round().detach().numpy()
    np.testing.assert_allclose(picture[edge : 2 * edge, edge : 2 * edge], result, atol=1)


def test_a_generator_that_is_told_the_scan_gets_its_planes():
    planes = (Plane("psf_fwhm_voxels", 2.0, 0.5, 0.0, 9.0), Plane("log_noise_hu", 1.0, 2.0, 0.0, 9.0))
    image = torch.zeros((2, 1, 3, 3))
    batch = Batch(image, image, None, torch.tensor([3.0, float("nan")]), torch.tensor([float(np.exp(3)), 1.0]))
    told = generator_input(batch, planes)
    assert told.shape == (2, 3, 3, 3)
    np.testing.assert_allclose(told[:, 1:, 1, 2], [[2.0, 1.0], [0.0, -0.5]], atol=1e-6)


def test_the_settings_of_the_run_are_beside_it(tmp_path):
    run_tiny(tmp_path, replace(SETTINGS, steps=1), extra={"patches": {"folder": "here"}})
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["method"], settings["method_settings"]["learning_rate"]) == ("tiny", 1e-3)
    assert (settings["trainer"]["steps"], settings["patches"]) == (1, {"folder": "here"})


class Recorder(SilentProgress):
    def __init__(self, stop_after=None):
        self.seen, self.stop_after = [], stop_after

    def update(self, stage, done, total):
        self.seen.append((stage, done, total))

    def cancelled(self):
        return self.stop_after is not None and len(self.seen) >= self.stop_after


def test_progress_counts_the_steps_that_are_left(tmp_path):
    first, second = Recorder(), Recorder()
    run_tiny(tmp_path, stop_at=4, progress=first)
    run_tiny(tmp_path, resume=True, progress=second)
    assert first.seen == [("training", done, 4) for done in (1, 2, 3, 4)]
    assert second.seen == [("training", 1, 2), ("training", 2, 2)]


# --- what stops a run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "message"), [("loss", "loss maker/gan"), ("gradient", "gradient of maker")], ids=["loss", "gradient"]
)
def test_a_value_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, broken, message):
    settings = replace(SETTINGS, checkpoint_steps=2)
    with pytest.raises(ModelError, match=rf"^The {message} stopped being finite in step 5; .*gradient_clip") as error:
        run_tiny(tmp_path, settings, Settings(breaks_at=4 / 6, broken=broken))
    assert str(tmp_path) in str(error.value)
    kept = checkpoint(tmp_path)
    assert kept["adam.maker.0.step"].item() == 4
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert not list(tmp_path.glob(".*.part"))


def test_a_run_may_be_resumed_with_a_clip_and_other_intervals(tmp_path):
    run_tiny(tmp_path, stop_at=3)
    run_tiny(
        tmp_path, replace(SETTINGS, gradient_clip=1.0, log_steps=1, checkpoint_steps=1, image_steps=1), resume=True
    )
    assert json.loads((tmp_path / "settings.json").read_text())["trainer"]["gradient_clip"] == 1.0


class FullDisk:
    """Stands in for ``os.fsync``: the disk is full from the file ``after`` on."""

    def __init__(self, after):
        self.after = after

    def __call__(self, _descriptor):
        self.after -= 1
        if self.after < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_stops_the_run_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    settings = replace(SETTINGS, checkpoint_steps=2)
    run_tiny(tmp_path, settings, stop_at=2)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    monkeypatch.setattr("CTMicroSRLib.whole_files.os.fsync", FullDisk(after=2))
    with pytest.raises(ResourceError, match=r"^There is no space left to write .*; free some space .*--resume\.$"):
        run_tiny(tmp_path, replace(settings, image_steps=100), resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    run_tiny(tmp_path, settings, resume=True)


def test_a_cancelled_run_ends_with_a_checkpoint_of_its_last_step(tmp_path, finished):
    with pytest.raises(CancelledError, match=r"^Training was cancelled after step 3; .*--resume\.$"):
        run_tiny(tmp_path, progress=Recorder(stop_after=3))
    run_tiny(tmp_path, resume=True)
    assert_same(checkpoint(tmp_path), checkpoint(finished))


@pytest.mark.parametrize("at", ["between", "step"])
def test_an_interrupt_by_signal_waits_for_the_steps_end(tmp_path, finished, at):
    plain = tiny_batches()

    class Interrupting(TinyGan):
        def step(self, batch, update):
            if at == "step" and update.progress == 2 / 6:
                signal.raise_signal(signal.SIGINT)
            super().step(batch, update)

    class Between(SilentProgress):
        def update(self, stage, done, total):
            if at == "between" and done == 3:
                signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(CancelledError, match="after step 3"):
        run_tiny(tmp_path, kind=replace(KIND, method=Interrupting), batches=plain, progress=Between())
    assert signal.getsignal(signal.SIGINT) is handler
    run_tiny(tmp_path, resume=True)
    assert_same(checkpoint(tmp_path), checkpoint(finished))


@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelledError])
def test_an_interrupt_while_a_batch_is_made_leaves_a_checkpoint(tmp_path, finished, error):
    def batches(step, process, processes):
        if step == 3:
            raise error
        return tiny_batches()(step, process, processes)

    with pytest.raises(CancelledError, match="after step 3"):
        run_tiny(tmp_path, batches=batches)
    run_tiny(tmp_path, resume=True)
    assert_same(checkpoint(tmp_path), checkpoint(finished))


def test_an_interrupt_in_the_middle_of_a_step_keeps_the_last_checkpoint(tmp_path, finished):
    class Interrupted(TinyGan):
        def step(self, batch, update):
            super().step(batch, update)
            if update.progress == 4 / 6:
                raise KeyboardInterrupt

    with pytest.raises(CancelledError, match=r"in the middle of step 5; go on from the checkpoint of step 3\.$"):
        run_tiny(tmp_path, replace(SETTINGS, checkpoint_steps=3), kind=replace(KIND, method=Interrupted))
    run_tiny(tmp_path, resume=True)
    assert_same(checkpoint(tmp_path), checkpoint(finished))


def test_a_folder_with_a_checkpoint_is_not_trained_in_anew(tmp_path):
    run_tiny(tmp_path, stop_at=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"has a checkpoint already; .*--resume"):
        run_tiny(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_missing_checkpoint_is_refused_and_nothing_is_made(tmp_path):
    with pytest.raises(UsageError, match=r"^There is no checkpoint in .*; start the run without --resume\.$"):
        run_tiny(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_method_or_other_settings_is_refused(tmp_path):
    run_tiny(tmp_path, stop_at=1)
    with pytest.raises(ModelError, match=r"is of the method tiny, not other;"):
        run_tiny(tmp_path, kind=replace(KIND, name="other"), resume=True)
    with pytest.raises(UsageError, match=r"trained with method_settings\.dropout = 0\.3, not 0\.5;"):
        run_tiny(tmp_path, method=Settings(dropout=0.5), resume=True)
    with pytest.raises(UsageError, match=r"trained with trainer\.batch = 4, not 2;"):
        run_tiny(tmp_path, replace(SETTINGS, batch=2), resume=True)
    with pytest.raises(UsageError, match=r"trained with patches\.seed = nothing, not 1;"):
        run_tiny(tmp_path, extra={"patches": {"seed": 1}}, resume=True)


@pytest.mark.parametrize("domain", ["clinical", "micro", "truth"])
def test_a_domain_that_is_missing_is_named_before_training_starts(tmp_path, domain):
    class Needy(TinyGan):
        needs = frozenset({"clinical", "micro", "truth"})

    def batches(step, process, processes):
        batch = tiny_batches()(step, process, processes)
        return replace(batch, **{domain: None if domain == "truth" else torch.zeros((0, 1, 4, 4))})

    with pytest.raises(UsageError, match=f"^The method tiny needs {domain} patches"):
        run_tiny(tmp_path / "run", kind=replace(KIND, method=Needy), batches=batches)
    assert not (tmp_path / "run").exists()


def test_devices_and_folders_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        run_tiny(tmp_path, devices=0)
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="no usable cuda"):
            train(KIND, Settings(), SETTINGS, tiny_batches(), tmp_path, device="cuda")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        run_tiny(tmp_path / "file")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("seed", -1),
        ("precision", "16"),
        ("schedule", "step"),
        ("constant_share", 1.1),
        ("halving_shares", (0.5, 2.0)),
        ("average_decay", 1.0),
        ("gradient_clip", 0.0),
        ("pool_size", -1),
        ("mix_ratio", -0.1),
    ],
)
def test_settings_that_make_no_sense_are_refused(key, value):
    with pytest.raises(UsageError, match=key):
        changed(TrainerSettings(), {key: value}, "the trainer")


def test_an_optimiser_of_something_that_is_no_network_is_a_mistake_of_the_method(tmp_path):
    class Wrong(TinyGan):
        def optimisers(self):
            return {"maker": OptimiserSettings(("settings",), 1e-3)}

    with pytest.raises(TypeError, match=r"Wrong\.settings is not a network"):
        run_tiny(tmp_path, kind=MethodKind("wrong", Wrong, Settings, {}))


def test_weights_in_another_memory_layout_are_resumed_bit_for_bit(tmp_path):
    """Adam's fused step takes moments in the memory layout of the weights for granted."""

    class Deep(TinyGan):
        def __init__(self, settings):
            super().__init__(settings)
            self.critic = nn.Sequential(
                nn.Conv2d(1, 6, 3), nn.PReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.Conv2d(6, 1, 3)
            )
            self.critic.to(memory_format=torch.channels_last)

    kind = replace(KIND, method=Deep)
    run_tiny(tmp_path / "whole", kind=kind)
    run_tiny(tmp_path / "parts", kind=kind, stop_at=3)
    run_tiny(tmp_path / "parts", kind=kind, resume=True)
    assert_same(checkpoint(tmp_path / "parts"), checkpoint(tmp_path / "whole"))
