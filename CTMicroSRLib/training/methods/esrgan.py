"""ESRGAN (Wang et al., ECCV Workshops 2018), the supervised baseline of SR-CycleGAN (P1, sections 3.6 and 3.7).

L1 and relativistic adversarial loss after pretraining with L1. The published loss has a third term, the distance of
VGG19 features (weight 1); its weights are of photographs and are not downloaded here, so that term is left out of
every preset. With the published weights the adversarial term is then almost alone, and pulls the result away from the
truth; in the presets ``l1-content`` and ``small`` the L1 distance takes the VGG term's weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.networks.rrdb import RrdbGenerator
from CTMicroSRLib.training.losses.adversarial import Adversarial
from CTMicroSRLib.training.method import Losses
from CTMicroSRLib.training.paired_method import PairedGan, PairedGanSettings


@dataclass(frozen=True)
class Settings(PairedGanSettings):
    """The generator and its weights, beside what all such methods are told; the defaults are ESRGAN's public code's.

    That pretrains for 1,000,000 of 1,400,000 steps.

    Attributes:
        channels: width of the generator's trunk.
        growth: channels that each of its dense layers adds.
        blocks: its residual-in-residual dense blocks.
        pixel_weight: of the L1 distance.
    """

    adversarial_weight: float = 5e-3
    pretrain_share: float = 5 / 7
    channels: int = 64
    growth: int = 32
    blocks: int = 23
    pixel_weight: float = 1e-2


class EsrGan(PairedGan):
    """See the module; Adam's moments are the published ones."""

    settings: Settings
    betas: ClassVar[tuple[float, float]] = (0.9, 0.99)
    adversarial: ClassVar[Adversarial] = "relativistic"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, RrdbGenerator)

    def distances(self, result: Tensor, target: Tensor) -> Losses:
        """The L1 distance."""
        return {"l1": self.settings.pixel_weight * functional.l1_loss(result, target)}

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
