"""One trainer for all methods: what a training is given is checked, then it starts or goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from CTMicroSRLib.devices import settle_vector_math
from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.progress import Progress, SilentProgress
from CTMicroSRLib.training.checkpoints import (
    CHECKPOINT_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    check_same_settings,
    no_checkpoint,
    read_checkpoint,
)
from CTMicroSRLib.training.initial_weights import load_initial_weights
from CTMicroSRLib.training.launching import launch, only_training, planned
from CTMicroSRLib.training.method import Batch, Method
from CTMicroSRLib.training.methods import MethodKind
from CTMicroSRLib.training.settings import TrainerSettings
from CTMicroSRLib.training.training_run import BatchSource, TrainingRun


def train(
    kind: MethodKind,
    method_settings: Any,  # noqa: ANN401 - each method has its own settings' class
    settings: TrainerSettings,
    batches: BatchSource,
    run: Path,
    *,
    device: str = "auto",
    devices: int = 1,
    resume: bool = False,
    initial: Path | None = None,
    stop_at: int | None = None,
    progress: Progress | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Train a method; returns the file with the averaged generator's weights.

    ``run`` receives ``settings.json``, ``log.jsonl``, ``tensorboard``, ``samples``, ``checkpoint.safetensors`` (to
    resume from) and ``weights.safetensors``. A step depends on the settings and its number alone, so a resumed run ends
    with the same bits as one that was never stopped (on the CPU; a GPU's sums may be in another order).

    Under ``torchrun`` every process calls this with the same arguments and a folder that all can read; the total batch
    is divided among them. The result is that of one process up to the order of sums, but for methods whose networks
    have batch norm (its statistics are those of a process's own share) or draw dropout or latent noise (by process).

    Args:
        kind: the method.
        method_settings: an instance of ``kind.settings``.
        settings: what all methods have in common.
        batches: gives a process its share of a step's batch.
        run: folder of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: processes to start on this machine, one for each device, where ``torchrun`` hasn't started them: the
            program starts again in each.
        resume: go on from the folder's checkpoint.
        initial: weights (safetensors) that the generator and its average start from; a resumed run must be told the
            same file name, and doesn't read it again.
        stop_at: stop after so many steps, with a checkpoint, though the schedules are of a longer training.
        progress: is told how far the training is, and asked whether to stop.
        extra: more for ``settings.json`` (where the patches come from); a resumed run must have the same.

    Raises:
        UsageError: a folder that has a checkpoint, has none to resume from, or is being trained in; other settings than
            the checkpoint's; a batch that can't be divided among the processes, or lacks a domain.
        ModelError: a checkpoint that is damaged or of another method; initial weights that don't fit; a loss or
            gradient that is no longer finite (the last checkpoint stays).
        ResourceError: no such device, a package is missing, or the disk is full (the last checkpoint stays).
        CancelledError: stopped from outside; the checkpoint is of the last finished step.
    """
    described = {
        "method": kind.name,
        "method_settings": asdict(method_settings),
        "trainer": asdict(settings),
        **({"initial": initial.name} if initial is not None else {}),
        **(extra or {}),
    }
    settle_vector_math()
    with only_training(run):
        check_run(run, resume=resume)
        checkpoint = _checkpoint_to_resume(run, described) if resume else None
        fabric = launch(planned(device, devices, settings.batch), settings.precision)
        last = settings.steps if stop_at is None else min(settings.steps, stop_at)
        with torch.random.fork_rng(devices=[]):
            sample = batches(0, fabric.global_rank, fabric.world_size)
            torch.manual_seed(settings.seed)
            method = kind.build(method_settings)
            if initial is not None and checkpoint is None:
                load_initial_weights(method.generator(), initial)
            check_domains(method, kind.name, sample)
            training = TrainingRun(fabric, method, settings, described, run)
            if checkpoint is not None:
                training.restore(checkpoint)
            training.go_on(batches, sample, last, progress or SilentProgress())
    return run / WEIGHTS_FILE


def check_run(run: Path, *, resume: bool) -> None:
    """Refuse a folder that can't be trained in.

    Raises:
        UsageError: it has a checkpoint that is not to be resumed, or none to resume.
    """
    there = (run / CHECKPOINT_FILE).is_file()
    if there and not resume:
        raise UsageError(f"{run} has a checkpoint already; go on from it with --resume, or choose another folder.")
    if resume and not there:
        raise no_checkpoint(run)


def check_domains(method: Method, name: str, batch: Batch) -> None:
    """Refuse a batch without what the method needs.

    Raises:
        UsageError: a domain is missing; it names it.
    """
    for domain in sorted(method.needs):
        images = getattr(batch, domain)
        if images is None or len(images) == 0:
            raise UsageError(f"The method {name} needs {domain} patches and there are none; add them to the data.")


def _checkpoint_to_resume(run: Path, described: Mapping[str, Any]) -> Checkpoint:
    checkpoint = read_checkpoint(run)
    check_same_settings(run, checkpoint.settings, described)
    return checkpoint
