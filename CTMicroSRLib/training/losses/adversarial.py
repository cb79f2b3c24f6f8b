"""What the two sides of a generative adversarial network are told, from a discriminator's logits.

A discriminator's answer is a tensor of any shape, or a list of them (one for each of its scales), whose losses are
averaged. Discriminators' losses are half the sum of their two terms, as in CycleGAN's and ESRGAN's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Adversarial = Literal["lsgan", "log", "relativistic"]
"""Least squares (Mao et al., ICCV 2017), logarithm (Goodfellow et al., NIPS 2014, the form that does not saturate), or
relativistic average (Jolicoeur-Martineau, ICLR 2019; ESRGAN)."""

Answer: TypeAlias = Tensor | Sequence[Tensor]


def generator_loss(kind: Adversarial, fake: Answer, real: Answer | None = None) -> Tensor:
    """How far the discriminator is from taking the generator's images for real ones.

    Args:
        kind: see :data:`Adversarial`.
        fake: its logits for generated images.
        real: its logits for real ones; only ``relativistic`` asks for them (they need no gradient).

    Raises:
        ValueError: an unknown kind, or ``relativistic`` without ``real``.
    """
    if kind == "lsgan":
        return _mean([(logits - 1.0).square().mean() for logits in _list(fake)])
    if kind == "log":
        return _mean([functional.softplus(-logits).mean() for logits in _list(fake)])
    if kind != "relativistic":
        raise ValueError(f"the adversarial loss {kind!r} is unknown")
    if real is None:
        raise ValueError("the relativistic loss needs the logits of real images")
    return _mean([_relativistic(a, b) for a, b in zip(_list(fake), _list(real), strict=True)])


def discriminator_loss(kind: Adversarial, real: Answer, fake: Answer) -> Tensor:
    """How far the discriminator is from telling real images from generated ones.

    Args:
        kind: see :data:`Adversarial`.
        real: its logits for real images.
        fake: its logits for generated ones, which must have been detached from the generator.

    Raises:
        ValueError: an unknown kind.
    """
    pairs = list(zip(_list(real), _list(fake), strict=True))
    if kind == "lsgan":
        return _mean([((a - 1.0).square().mean() + b.square().mean()) / 2 for a, b in pairs])
    if kind == "log":
        return _mean([(functional.softplus(-a).mean() + functional.softplus(b).mean()) / 2 for a, b in pairs])
    if kind != "relativistic":
        raise ValueError(f"the adversarial loss {kind!r} is unknown")
    return _mean([_relativistic(a, b) for a, b in pairs])


def _relativistic(better: Tensor, worse: Tensor) -> Tensor:
    """Half of -log s(better - mean(worse)) - log(1 - s(worse - mean(better))), s the logistic function."""
    first = functional.softplus(worse.mean() - better).mean()
    return (first + functional.softplus(worse - better.mean()).mean()) / 2


def _list(answer: Answer) -> Sequence[Tensor]:
    return [answer] if isinstance(answer, Tensor) else answer


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()
