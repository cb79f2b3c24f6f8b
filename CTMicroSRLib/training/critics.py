"""A method's discriminators asked about images: what its generators and they themselves learn from the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

from CTMicroSRLib.training.losses.adversarial import Adversarial, Answer, discriminator_loss, generator_loss

Critic: TypeAlias = Callable[[Tensor], Answer]
"""A discriminator: from images to logits."""

Judged: TypeAlias = tuple[Critic, Tensor, Tensor]
"""A discriminator, real images, and made ones."""


def adversarial_loss(kind: Adversarial, critic: Critic, real: Tensor, made: Tensor) -> Tensor:
    """How far a discriminator is from taking made images for real; its parameters should be frozen meanwhile."""
    answer = critic(real) if kind == "relativistic" else None
    return generator_loss(kind, critic(made), answer)


def critic_losses(kind: Adversarial, judged: Mapping[str, Judged]) -> dict[str, Tensor]:
    """How far each discriminator is from telling real images from made ones, without gradient to their generators."""
    return {
        name: discriminator_loss(kind, critic(real), critic(made.detach()))
        for name, (critic, real, made) in judged.items()
    }
