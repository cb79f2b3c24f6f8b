"""Every method and preset at its real width in one training step, and patches of a size that a method can't work on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method_steps import PlainUpdate, make_batch
from test_methods_train import TINY

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.training.methods import METHODS, changed, method_kind
from CTMicroSRLib.training.presets import run_settings

SHALLOW = {
    **dict.fromkeys(("blocks", "edsr_blocks", "synthesis_blocks", "clean_blocks", "enlarge_blocks"), 1),
    **dict.fromkeys(("transfer_blocks", "groups"), 1),
}
"""Layers that repeat others of the same width: one of each is enough."""

PROGRESSES = (0.0, 0.45, 0.999)
"""Points of a training at which each of its stages is reached."""


class OneStep(PlainUpdate):
    """A step without Adam, whose moments would take as long as the step."""

    def __init__(self, method):
        self.method, self.progress, self.called = method, 0.0, []

    def __call__(self, optimiser, losses):
        self.called.append(optimiser)
        total = torch.stack([loss.reshape(()) for loss in losses.values()]).sum()
        self.method.zero_grad(set_to_none=True)
        total.backward()
        assert torch.isfinite(total)


def smallest_patch(method):
    """The smallest patch of at least 8 voxels that the method's networks take."""
    for patch in range(8, 65):
        try:
            method.check_patch(patch)
        except UsageError:
            continue
        return patch
    raise AssertionError


def real_width(name, preset):
    """A preset's settings but for its depth, and at 2x, where a step takes a second."""
    settings = run_settings(name, preset, {}).method
    return replace(settings, scale=2, **{key: value for key, value in SHALLOW.items() if hasattr(settings, key)})


def distinct():
    """Every method and preset, but for presets that differ in the trainer or the depth alone."""
    seen = {}
    for name in METHODS:
        for preset in (None, *method_kind(name).presets):
            settings = real_width(name, preset)
            seen.setdefault((name, settings), (name, preset))
    return list(seen.values())


@pytest.mark.parametrize(("name", "preset"), distinct())
def test_a_step_at_the_real_width(name, preset):
    torch.manual_seed(0)
    method = method_kind(name).build(real_width(name, preset)).train()
    update = OneStep(method)
    patch = smallest_patch(method)
    stages = PROGRESSES if name in ("two-stage", "cincgan", "srgan", "esrgan") else PROGRESSES[:1]
    for update.progress in stages:
        method.step(make_batch(patch=patch, scale=method.scale, count=2), update)
    assert update.called


@pytest.mark.parametrize(
    ("scale", "count", "patches"), [(2, 1, (8, 9, 15)), (2, 2, (8, 10, 12, 15, 22, 24)), (4, 1, (8, 9))]
)
@pytest.mark.parametrize("name", METHODS)
def test_a_size_is_refused_where_a_step_fails_and_nowhere_else(name, scale, count, patches):
    values = {"scale": scale, **TINY[name]} | ({"depth": 4} if name == "unet" else {})
    torch.manual_seed(0)
    method = method_kind(name).build(changed(method_kind(name).settings(), values, name)).train()
    for patch in patches:
        refused = failed = None
        try:
            method.check_patch(patch, count)
        except UsageError as error:
            refused = error
        update = OneStep(method)
        try:
            for update.progress in PROGRESSES:
                method.step(make_batch(patch=patch, scale=scale, count=count), update)
        except (UsageError, RuntimeError, ValueError, AssertionError) as error:
            failed = error
        assert (refused is None) == (failed is None), (patch, refused, failed)
