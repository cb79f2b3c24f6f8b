"""The trainer's part in a method's step, small: plain Adam over the method's own optimisers, one process."""

from __future__ import annotations

import torch

from CTMicroSRLib.training.method import Batch


class PlainUpdate:
    """What the trainer offers a step; records each call's losses as ``OPTIMISER/NAME`` and who got a gradient."""

    def __init__(self, method, *, move=True):
        self.method = method
        self.move = move
        self.progress = 0.0
        self.losses = {}
        self.with_gradient = set()
        self.adam = {
            name: torch.optim.Adam(
                [p for network in settings.networks for p in getattr(method, network).parameters()],
                lr=settings.learning_rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
            )
            for name, settings in method.optimisers().items()
        }

    def __call__(self, optimiser, losses):
        assert losses, f"{optimiser} got no losses"
        for name, value in losses.items():
            assert value.dim() == 0, name
            self.losses[f"{optimiser}/{name}"] = float(value.detach())
        adam = self.adam[optimiser]
        adam.zero_grad(set_to_none=True)
        before = {name: p.grad for name, p in self.method.named_parameters()}
        sum(losses.values()).backward()
        moved = {id(p) for group in adam.param_groups for p in group["params"]}
        for name, p in self.method.named_parameters():
            if id(p) in moved:
                if p.grad is not None and bool((p.grad != 0).any()):
                    self.with_gradient.add(name)
            else:
                assert p.grad is before[name], f"{optimiser} does not move {name}, which got a gradient"
        if self.move:
            adam.step()
        adam.zero_grad(set_to_none=True)

    def pool(self, name, images):
        return images.detach()


def run_steps(method, batch, steps, *, seed=0, start=0.0, stop=1.0, learning_rate=None):
    """Losses of every step, as ``OPTIMISER/NAME``; the steps' progress runs from ``start`` to below ``stop``."""
    update = PlainUpdate(method)
    for adam in update.adam.values():
        for group in adam.param_groups:
            group["lr"] = group["lr"] if learning_rate is None else learning_rate
    method.train()
    record = []
    for step in range(steps):
        torch.manual_seed(seed * 100_003 + step)
        update.progress = start + (stop - start) * step / steps
        update.losses = {}
        method.step(batch, update)
        record.append(update.losses)
    return record


def parameters_without_gradient(method, batch, progresses=(0.0,), *, seed=0):
    """Names of the method's parameters that no step at these points of the training gave a gradient other than 0."""
    update = PlainUpdate(method, move=False)
    method.train()
    torch.manual_seed(seed)
    for progress in progresses:
        update.progress = progress
        method.step(batch, update)
    return {name for name, _ in method.named_parameters()} - update.with_gradient


def make_batch(patch=24, scale=2, count=2, *, seed=0, truth=True, blob=2):
    """Smooth random patches: micro of other random fields than clinical, truth the finer field of clinical.

    Structures are about ``blob`` fine voxels wide.
    """
    generator = torch.Generator().manual_seed(seed)

    def field(edge):
        coarse = torch.randn((count, 1, edge // blob + 2, edge // blob + 2), generator=generator)
        fine = torch.nn.functional.interpolate(coarse, size=(edge, edge), mode="bicubic", align_corners=False)
        return torch.tanh(0.7 * fine)

    true, micro = field(patch * scale), field(patch * scale)
    clinical = torch.nn.functional.avg_pool2d(true, scale)
    clinical = (clinical + 0.02 * torch.randn(clinical.shape, generator=generator)).clamp(-1, 1)
    return Batch(
        clinical=clinical,
        micro=micro,
        truth=true if truth else None,
        psf_fwhm_voxels=torch.full((count,), 1.5),
        noise_hu=torch.full((count,), 20.0),
    )
