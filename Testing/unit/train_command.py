"""A training by the command that takes a second: its options, and helpers that several files need."""

from __future__ import annotations

import SimpleITK as sitk

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


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def stopped(ctmicrosr, run, patches, *more, at=2):
    """A run that ended with a checkpoint."""
    outcome = ctmicrosr("train", METHOD, "--output", run, "--patches", patches, *SMALL, *more, "--stop-at", at)
    assert outcome.status == 0, outcome
    assert (run / "checkpoint.safetensors").is_file()
    return outcome
