"""SRGAN (Ledig et al., CVPR 2017) as the two-stage paper uses it (P0, section 2.3): mean square and adversarial loss.

The loss is the mean square distance plus 0.001 times -log D(G(x)). The 2017 paper compares VGG features instead; P0
mentions none, and their weights are of photographs, so there is no such term here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn import functional

from CTMicroSRLib.networks.discriminators import DiscriminatorNorm, PooledDiscriminator
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.networks.srresnet import Norm, SrResnetGenerator
from CTMicroSRLib.training.method import Batch, Domain, Method, OptimiserSettings, Update
from CTMicroSRLib.training.pairing import NEEDS, Pairing, check_pairing, gan_step, input_and_target


@dataclass(frozen=True)
class Settings:
    """Networks and loss; the defaults are P0's where it gives them, else the 2017 paper's.

    Attributes:
        scale: fine voxels per coarse voxel, a power of 2.
        channels: width of the generator.
        blocks: its residual blocks.
        norm: its norm: ``batch`` or ``none``.
        discriminator_channels: of the discriminator's first layers.
        discriminator_norm: ``batch``, ``instance`` or ``none``.
        adversarial_weight: of -log D(G(x)); P0's lambda.
        pretrain_share: share of the training with the mean square alone (none in P0; 5/6 in the 2017 paper).
        pairing: see :data:`~CTMicroSRLib.training.pairing.Pairing`.
        noise: of the input, normalised; P3 adds some to its shrunk patches and does not say how much.
        learning_rate: of both networks.
    """

    scale: int = 8
    channels: int = 64
    blocks: int = 16
    norm: Norm = "batch"
    discriminator_channels: int = 64
    discriminator_norm: DiscriminatorNorm = "batch"
    adversarial_weight: float = 1e-3
    pretrain_share: float = 0.0
    pairing: Pairing = "paired"
    noise: float = 0.0
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        check_pairing(self.pairing)
        if not 0.0 <= self.pretrain_share <= 1.0:
            raise ValueError("pretrain_share must be from 0 to 1")
        if min(self.adversarial_weight, self.noise, self.learning_rate) < 0:
            raise ValueError("weights, noise and learning rate must not be negative")


class SrGan(Method):
    """See the module."""

    needs: frozenset[Domain]  # depends on the pairing

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.needs = NEEDS[settings.pairing]
        self.scale = settings.scale
        self.network = SrResnetGenerator(**self.architecture()[1])
        self.discriminator = PooledDiscriminator(
            channels=settings.discriminator_channels, norm=settings.discriminator_norm
        )

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """Adam with the usual moments for both, on one schedule; the discriminator rests in the pretraining."""
        rate = self.settings.learning_rate
        return {
            "generator": OptimiserSettings(("network",), rate, betas=(0.9, 0.999)),
            "discriminator": OptimiserSettings(("discriminator",), rate, betas=(0.9, 0.999)),
        }

    def step(self, batch: Batch, update: Update) -> None:
        """Generator by mean square and adversarial loss (P0 eqs 3 and 4), then the discriminator."""
        settings = self.settings
        coarse, target = input_and_target(batch, settings.pairing, self.scale, settings.noise)
        result = self.network(coarse)
        content = {"mean_square": functional.mse_loss(result, target)}
        if update.progress < settings.pretrain_share:
            update("generator", content)
            return
        weight = settings.adversarial_weight
        gan_step(result, target, content, self.discriminator, update, kind="log", weight=weight)

    def generator(self) -> Generator:
        """SRResNet."""
        return self.network

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """``srresnet``."""
        settings = self.settings
        return "srresnet", {
            "channels": settings.channels,
            "blocks": settings.blocks,
            "scale": settings.scale,
            "norm": settings.norm,
        }


METHOD = SrGan

_P0 = {"trainer.batch": 64, "trainer.steps": 37_500, "trainer.schedule": "constant", "trainer.average_decay": 0.0}
_SMALL = {"channels": 16, "blocks": 4, "discriminator_channels": 12}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _P0,  # 200 epochs of 6 specimens' 2,000 patches; its schedule is not given
    "ledig2017": {
        "pretrain_share": 5 / 6,
        "trainer.batch": 16,
        "trainer.steps": 1_200_000,
        "trainer.schedule": "halving",
        "trainer.halving_shares": (11 / 12,) * 3,  # the paper divides by 10
        "trainer.average_decay": 0.0,
    },
    "shrunk": {**_P0, "pairing": "shrunk", "noise": 0.01},
    "unpaired": {**_P0, "pairing": "unpaired"},
    "small": _SMALL,
    "small-unpaired": {**_SMALL, "pairing": "unpaired"},
}
"""``shrunk`` is P3's comparison (its noise is not given), ``unpaired`` P1's way of training supervised methods."""
