"""What supervised methods learn from: pairs, or what the papers used for want of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from CTMicroSRLib.resampling import block_mean
from CTMicroSRLib.training.method import Batch, Domain

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
