"""ESRGAN (Wang et al., ECCV Workshops 2018), the supervised baseline of SR-CycleGAN (P1, sections 3.6 and 3.7).

L1 and relativistic adversarial loss after pretraining with L1. The published loss has a third term, the distance of
VGG19 features (weight 1); its weights are of photographs and are not downloaded here, so that term is left out of
every preset. With the published weights the adversarial term is then almost alone, and pulls the result away from the
truth; in the presets ``l1-content`` and ``small`` the L1 distance takes the VGG term's weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn import functional

from CTMicroSRLib.networks.discriminators import DiscriminatorNorm, PooledDiscriminator
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.networks.rrdb import RrdbGenerator
from CTMicroSRLib.training.method import Batch, Domain, Method, OptimiserSettings, Update
from CTMicroSRLib.training.pairing import NEEDS, Pairing, check_pairing, gan_step, input_and_target


@dataclass(frozen=True)
class Settings:
    """Networks and loss; the defaults are those of ESRGAN's public implementation.

    Attributes:
        scale: fine voxels per coarse voxel, a power of 2.
        channels: width of the generator's trunk.
        growth: channels that each of its dense layers adds.
        blocks: its residual-in-residual dense blocks.
        discriminator_channels: of the discriminator's first layers.
        discriminator_norm: ``batch``, ``instance`` or ``none``.
        pixel_weight: of the L1 distance.
        adversarial_weight: of the relativistic loss.
        pretrain_share: share of the training with the L1 distance alone (1,000,000 of 1,400,000 steps).
        pairing: see :data:`~CTMicroSRLib.training.pairing.Pairing`.
        noise: of the input, normalised.
        learning_rate: of both networks.
    """

    scale: int = 8
    channels: int = 64
    growth: int = 32
    blocks: int = 23
    discriminator_channels: int = 64
    discriminator_norm: DiscriminatorNorm = "batch"
    pixel_weight: float = 1e-2
    adversarial_weight: float = 5e-3
    pretrain_share: float = 5 / 7
    pairing: Pairing = "paired"
    noise: float = 0.0
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        check_pairing(self.pairing)
        if not 0.0 <= self.pretrain_share <= 1.0:
            raise ValueError("pretrain_share must be from 0 to 1")
        if min(self.pixel_weight, self.adversarial_weight, self.noise, self.learning_rate) < 0:
            raise ValueError("weights, noise and learning rate must not be negative")


class EsrGan(Method):
    """See the module."""

    needs: frozenset[Domain]  # depends on the pairing

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.needs = NEEDS[settings.pairing]
        self.scale = settings.scale
        self.network = RrdbGenerator(**self.architecture()[1])
        self.discriminator = PooledDiscriminator(
            channels=settings.discriminator_channels, norm=settings.discriminator_norm
        )

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """Adam as published for both, on one schedule; the discriminator rests in the pretraining."""
        rate = self.settings.learning_rate
        return {
            "generator": OptimiserSettings(("network",), rate, betas=(0.9, 0.99)),
            "discriminator": OptimiserSettings(("discriminator",), rate, betas=(0.9, 0.99)),
        }

    def step(self, batch: Batch, update: Update) -> None:
        """Generator by L1 and relativistic loss, then the discriminator."""
        settings = self.settings
        coarse, target = input_and_target(batch, settings.pairing, self.scale, settings.noise)
        result = self.network(coarse)
        content = {"l1": settings.pixel_weight * functional.l1_loss(result, target)}
        if update.progress < settings.pretrain_share:
            update("generator", content)
            return
        weight = settings.adversarial_weight
        gan_step(result, target, content, self.discriminator, update, kind="relativistic", weight=weight)

    def generator(self) -> Generator:
        """The network of residual-in-residual dense blocks."""
        return self.network

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """``rrdb``."""
        settings = self.settings
        return "rrdb", {
            "channels": settings.channels,
            "growth": settings.growth,
            "blocks": settings.blocks,
            "scale": settings.scale,
        }


METHOD = EsrGan

_PUBLISHED = {
    "trainer.batch": 16,
    "trainer.steps": 1_400_000,
    "trainer.schedule": "halving",
    "trainer.halving_shares": tuple((1_000_000 + step) / 1_400_000 for step in (50_000, 100_000, 200_000, 300_000)),
    "trainer.average_decay": 0.999,
}
_CONTENT = {"pixel_weight": 1.0}
_SMALL = {**_CONTENT, "channels": 16, "growth": 8, "blocks": 2, "discriminator_channels": 12}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PUBLISHED,
    "l1-content": {**_PUBLISHED, **_CONTENT},
    "jmi2022": {**_PUBLISHED, "pairing": "unpaired"},
    "small": _SMALL,
    "small-unpaired": {**_SMALL, "pairing": "unpaired"},
}
"""None has the VGG term. ``jmi2022`` is P1's comparison: the targets are micro-CT of other specimens."""
