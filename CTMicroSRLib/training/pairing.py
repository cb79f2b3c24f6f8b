"""What supervised methods learn from: pairs, or what the papers used for want of them; and their step."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from CTMicroSRLib.training.losses.adversarial import Adversarial, discriminator_loss, generator_loss
from CTMicroSRLib.training.losses.resampling import block_mean
from CTMicroSRLib.training.method import Batch, Domain, Losses, Update, frozen

Pairing = Literal["paired", "unpaired", "shrunk"]
"""Where input and target of a supervised method come from.

``paired``: a clinical patch and what it is a scan of, which only simulation has. ``unpaired``: a clinical patch and a
micro-CT patch of another specimen, as P1 trained its supervised baseline (sections 3.6 and 3.7): the target has nothing
to do with the input. ``shrunk``: a micro-CT patch's block means and the patch itself, as P3 trained its baselines (P3
says bicubic, and adds Gaussian noise): paired, but no clinical scan is seen."""

NEEDS: dict[Pairing, frozenset[Domain]] = {
    "paired": frozenset({"clinical", "truth"}),
    "unpaired": frozenset({"clinical", "micro"}),
    "shrunk": frozenset({"clinical", "micro"}),
}
"""Domains that a batch must have. Clinical patches are what the sample pictures show, whatever is learnt from."""


def check_pairing(pairing: str) -> None:
    """Raise ValueError for an unknown pairing."""
    if pairing not in get_args(Pairing):
        raise ValueError(f"pairing must be one of {', '.join(get_args(Pairing))}")


def input_and_target(batch: Batch, pairing: Pairing, scale: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Coarse input ``(b, 1, P, P)`` and fine target ``(b, 1, P * scale, P * scale)``.

    Args:
        batch: holds the domains that the pairing needs.
        pairing: see :data:`Pairing`.
        scale: fine voxels per coarse voxel.
        noise: standard deviation of Gaussian noise that is added to the input, in normalised units.
    """
    if pairing == "shrunk":
        coarse, fine = block_mean(batch.micro, scale), batch.micro
    elif pairing == "unpaired":
        coarse, fine = batch.clinical, batch.micro
    else:
        assert batch.truth is not None
        coarse, fine = batch.clinical, batch.truth
    return (coarse + noise * torch.randn_like(coarse) if noise else coarse), fine


def gan_step(
    result: Tensor,
    target: Tensor,
    content: Losses,
    discriminator: nn.Module,
    update: Update,
    *,
    kind: Adversarial,
    weight: float,
) -> None:
    """Move the generator (``generator``) by content and adversarial loss, then the discriminator (``discriminator``).

    Args:
        result: the generator's image.
        target: the image it should be.
        content: losses that say how far they are apart, weighted.
        discriminator: of the fine domain.
        update: the trainer's.
        kind: of adversarial loss.
        weight: of the adversarial loss.
    """
    with frozen(discriminator):
        real = discriminator(target).detach() if kind == "relativistic" else None
        adversarial = weight * generator_loss(kind, discriminator(result), real)
    update("generator", {**content, "adversarial": adversarial})
    loss = discriminator_loss(kind, discriminator(target), discriminator(result.detach()))
    update("discriminator", {"discriminator": loss})
