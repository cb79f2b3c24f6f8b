"""Super-resolution from synthesized pairs (P0): a CycleGAN makes clinical CT of micro-CT, an SRGAN learns the way back.

First part of the training: a CycleGAN with SSIM terms between the Gaussian pyramid f(x) of micro-CT and clinical CT,
both coarse (eqs 1 and 2). Second part: that network stands still; a super-resolution network learns from pairs of the
clinical CT that it makes of f(x), and x (eqs 3 to 5). The paper trains either for 200 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.card import RUN_SYNTHESIZER
from CTMicroSRLib.networks.discriminators import PatchDiscriminator, PooledDiscriminator
from CTMicroSRLib.networks.generator import Generator, doublings_of
from CTMicroSRLib.networks.initialisation import initialise_normal
from CTMicroSRLib.networks.resnet import ResnetGenerator
from CTMicroSRLib.networks.srresnet import SrResnetGenerator
from CTMicroSRLib.resampling import gaussian_pyramid
from CTMicroSRLib.training.critics import adversarial_loss, critic_losses
from CTMicroSRLib.training.losses.adversarial import Adversarial
from CTMicroSRLib.training.losses.ssim import SSIM_CONSTANTS, ssim
from CTMicroSRLib.training.method import (
    Batch,
    Companion,
    Domain,
    Method,
    OptimiserSettings,
    Update,
    frozen,
)
from CTMicroSRLib.training.methods.cyclegan import CycleWeights, Side, cycle_losses, judge_losses
from CTMicroSRLib.training.setting_checks import check_above_zero, check_choice, check_not_negative, check_weights

SYNTHESIS = ("micro_to_clinical", "clinical_to_micro")
SYNTHESIS_JUDGES = ("clinical_discriminator", "coarse_micro_discriminator")


@dataclass(frozen=True)
class Settings:
    """Networks and losses; the defaults are P0's, and CycleGAN's and SRGAN's where it gives none.

    Attributes:
        scale: 2, 4 or 8.
        channels: width of the super-resolution network.
        blocks: its residual blocks.
        discriminator_channels: width of every discriminator's first layer.
        synthesis_channels: width of the synthesize networks.
        synthesis_blocks: their residual blocks (CycleGAN's rule for patches up to 128 voxels).
        first_share: share of the training that the synthesize networks take.
        ssim_micro: weight of 1 - SSIM(f(x), G1(f(x))), lambda 1.
        ssim_clinical: weight of 1 - SSIM(y, G2(y)), lambda 2.
        ssim_constants: a key of :data:`~CTMicroSRLib.training.losses.ssim.SSIM_CONSTANTS`.
        cycle: weight of there and back again in the first part.
        identity: as a share of ``cycle``.
        synthesis_adversarial: adversarial loss of the first part.
        adversarial_weight: of -log D in the second part, lambda.
        synthesis_learning_rate: of the first part.
        learning_rate: of the second part.
    """

    scale: int = 8
    channels: int = 64
    blocks: int = 16
    discriminator_channels: int = 64
    synthesis_channels: int = 64
    synthesis_blocks: int = 6
    first_share: float = 0.5
    ssim_micro: float = 0.5
    ssim_clinical: float = 0.4
    ssim_constants: Literal["standard", "paper", "code"] = "paper"
    cycle: float = 10.0
    identity: float = 0.5
    synthesis_adversarial: Adversarial = "lsgan"
    adversarial_weight: float = 1e-3
    synthesis_learning_rate: float = 2e-4
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        check_choice(self, "scale", (2, 4, 8))
        if not 0.0 < self.first_share < 1.0:
            raise ValueError(f"first_share is {self.first_share}, not between 0 and 1")
        check_choice(self, "ssim_constants", SSIM_CONSTANTS)
        check_choice(self, "synthesis_adversarial", get_args(Adversarial))
        check_not_negative(self, "ssim_micro", "ssim_clinical", "cycle", "identity")
        check_weights(self)
        check_above_zero(self, "synthesis_learning_rate", "learning_rate")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        # 200 epochs of 6 cases of 2000 patches for either part.
        "trainer.steps": 75_000,
        "trainer.batch": 64,
        "trainer.schedule": "linear",
        "trainer.constant_share": 0.5,
        "trainer.average_decay": 0.0,
    },
    "small": {
        "channels": 16,
        "blocks": 4,
        "discriminator_channels": 16,
        "synthesis_channels": 16,
        "synthesis_blocks": 3,
        "learning_rate": 4e-4,
        "trainer.steps": 400,
        "trainer.batch": 2,
        "patches.patch_voxels": 24,
    },
    "4x": {"scale": 4},
}


class TwoStage(Method):
    """See the module.

    Attributes:
        micro_to_clinical: the synthesize network G1, coarse micro-CT to clinical CT.
        clinical_to_micro: G2, the reverse, on the coarse grid too.
        clinical_discriminator: judges G1's results.
        coarse_micro_discriminator: judges G2's.
        super_resolution: GS, from clinical CT to micro-CT; the one that is exported.
        micro_discriminator: DS, judges GS's results.
    """

    needs: frozenset[Domain] = frozenset({"clinical", "micro"})

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        _, shape = self.synthesizer_architecture()
        self.micro_to_clinical = ResnetGenerator(**shape)
        self.clinical_to_micro = ResnetGenerator(**shape)
        self.clinical_discriminator = PatchDiscriminator(channels=settings.discriminator_channels)
        self.coarse_micro_discriminator = PatchDiscriminator(channels=settings.discriminator_channels)
        for name in (*SYNTHESIS, *SYNTHESIS_JUDGES):
            initialise_normal(getattr(self, name))
        self.super_resolution = SrResnetGenerator(
            channels=settings.channels, blocks=settings.blocks, scale=settings.scale
        )
        self.micro_discriminator = PooledDiscriminator(channels=settings.discriminator_channels)

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """Two for either part of the training."""
        s = self.settings
        first, second = (0.0, s.first_share), (s.first_share, 1.0)
        return {
            "synthesis": OptimiserSettings(SYNTHESIS, s.synthesis_learning_rate, span=first),
            "synthesis_discriminators": OptimiserSettings(SYNTHESIS_JUDGES, s.synthesis_learning_rate, span=first),
            "super_resolution": OptimiserSettings(("super_resolution",), s.learning_rate, (0.9, 0.999), span=second),
            "discriminator": OptimiserSettings(("micro_discriminator",), s.learning_rate, (0.9, 0.999), span=second),
        }

    def generator(self) -> Generator:
        """GS."""
        return self.super_resolution

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """Of GS."""
        s = self.settings
        return "srresnet", {"channels": s.channels, "blocks": s.blocks, "scale": s.scale}

    def synthesizer(self) -> Generator:
        """G1, which makes clinical CT of micro-CT that :func:`shrink` has brought to the coarse grid."""
        return self.micro_to_clinical

    def synthesizer_architecture(self) -> tuple[str, dict[str, Any]]:
        """Of G1."""
        s = self.settings
        return "resnet", {
            "channels": s.synthesis_channels,
            "blocks": s.synthesis_blocks,
            "scale": 1,
            "norm": "instance",
        }

    def companions(self) -> Mapping[str, Companion]:
        """G1: the protocol ``synthesized`` makes its coarse images with it."""
        purpose = "synthesize network: makes clinical CT of shrunk micro-CT"
        return {
            RUN_SYNTHESIZER: Companion("micro_to_clinical", self.synthesizer_architecture(), self.shrink, purpose),
        }

    def shrink(self, micro: Tensor) -> Tensor:
        """f: the level of the Gaussian pyramid that has the coarse grid's size."""
        with torch.autocast(micro.device.type, enabled=False):  # the result is a target too
            return gaussian_pyramid(micro, doublings_of(self.scale))

    def check_patch(self, patch_voxels: int, batch: int = 2) -> None:
        """The first part's discriminators see the coarse grid, the second part's the fine one.

        Raises:
            UsageError: a size that one of them can't work on.
        """
        super().check_patch(patch_voxels, batch)
        self.clinical_discriminator.check_edge(patch_voxels)
        self.micro_discriminator.check_edge(patch_voxels * self.scale, batch)

    def step(self, batch: Batch, update: Update) -> None:
        """A step of the part of the training that it falls into."""
        if update.progress < self.settings.first_share:
            self._synthesis_step(batch, update)
        else:
            self._super_resolution_step(batch, update)

    def _synthesis_step(self, batch: Batch, update: Update) -> None:
        s = self.settings
        coarse_micro = self.shrink(batch.micro)
        sides = (
            Side("clinical", batch.clinical, self.micro_to_clinical, self.clinical_discriminator),
            Side("coarse_micro", coarse_micro, self.clinical_to_micro, self.coarse_micro_discriminator),
        )
        weights = CycleWeights(cycle=s.cycle, identity=s.identity)
        constants = SSIM_CONSTANTS[s.ssim_constants]
        with frozen(self.clinical_discriminator, self.coarse_micro_discriminator):
            losses, made = cycle_losses(sides, weights, s.synthesis_adversarial)
            if s.ssim_micro:
                losses["ssim_micro"] = s.ssim_micro * (1.0 - ssim(coarse_micro, made["clinical"], constants))
            if s.ssim_clinical:
                losses["ssim_clinical"] = s.ssim_clinical * (
                    1.0 - ssim(batch.clinical, made["coarse_micro"], constants)
                )
            update("synthesis", losses)
        update("synthesis_discriminators", judge_losses(sides, made, s.synthesis_adversarial, update))

    def _super_resolution_step(self, batch: Batch, update: Update) -> None:
        weight = self.settings.adversarial_weight
        with torch.no_grad():
            synthesized = self.micro_to_clinical(self.shrink(batch.micro))
        made = self.super_resolution(synthesized)
        with frozen(self.micro_discriminator):
            losses = {"squared_error": functional.mse_loss(made, batch.micro)}
            if weight:
                losses["adversarial"] = weight * adversarial_loss("log", self.micro_discriminator, batch.micro, made)
            update("super_resolution", losses)
        if weight:
            judged = {"micro": (self.micro_discriminator, batch.micro, made)}
            update("discriminator", critic_losses("log", judged))


METHOD = TwoStage
