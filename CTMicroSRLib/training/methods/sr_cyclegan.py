"""SR-CycleGAN with the MMSR loss (Zheng et al., J Med Imaging 2022: P1), and its ablations as presets.

G1 makes micro-CT of clinical CT and G2 the reverse; two PatchGANs judge them; G2(G1(x)) must be x and G1(G2(y)) y; and
the MMSR loss keeps what each makes close to what it was made of. With the paper's text and the published code apart
in many places, a preset stands for each: ``jmi2022`` and ``jmi2022-code``. Both have the code's layers, whose number of
parameters is the one that the paper states (19,264,369 for all four networks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.networks.discriminators import PatchDiscriminator
from CTMicroSRLib.networks.down_blocks import DownBlocksGenerator
from CTMicroSRLib.networks.encoded_blocks import STRIDE
from CTMicroSRLib.networks.generator import Generator, doublings_of
from CTMicroSRLib.networks.initialisation import initialise_normal
from CTMicroSRLib.networks.micro_to_clinical import MicroToClinicalGenerator
from CTMicroSRLib.networks.sr_cyclegan import ClinicalToMicroGenerator
from CTMicroSRLib.resampling import block_mean
from CTMicroSRLib.training.critics import adversarial_loss, critic_losses
from CTMicroSRLib.training.losses.adversarial import Adversarial
from CTMicroSRLib.training.losses.mmsr import MmsrWeights, mmsr_losses
from CTMicroSRLib.training.losses.ssim import SSIM_CONSTANTS
from CTMicroSRLib.training.method import (
    Batch,
    Domain,
    Method,
    OptimiserSettings,
    Update,
    check_whole_strides,
    frozen,
)
from CTMicroSRLib.training.setting_checks import check_above_zero, check_choice

DOMAINS = ("micro", "clinical")

SMALLEST_SHRUNK = 4
"""Rows and columns that G2's last layer needs to reflect three of them."""

_WEIGHTS = (
    "ssim_clinical",
    "ssim_micro",
    "downsample",
    "upsample",
    "adversarial_clinical",
    "adversarial_micro",
    "cycle",
    "identity_clinical",
    "identity_micro",
)


@dataclass(frozen=True)
class Settings:
    """Networks and losses; the weights are P1's Table 1. A loss of weight 0 is left out.

    Attributes:
        scale: 2, 4 or 8.
        channels: width of both generators.
        blocks: residual blocks of both.
        first_kernel: edge of G1's first kernel.
        middle_kernel: edge of G1's kernel after the residual blocks.
        generator: G1 with three pixel shuffles (``up-blocks``: the proposed one) or with down- and up-blocks.
        discriminator_channels: width of the discriminators' first layer.
        ssim_clinical: SSIM of a clinical patch and its shrunk super-resolution.
        ssim_micro: SSIM of a micro-CT patch and its enlarged shrunk one.
        downsample: distance of the same two as ``ssim_clinical``.
        upsample: distance of the same two as ``ssim_micro``.
        adversarial_clinical: how real G2's results look.
        adversarial_micro: how real G1's results look.
        cycle: there and back again, of either domain.
        identity_clinical: distance of a clinical patch and G2's shrinking of it, enlarged (code only).
        identity_micro: distance of a micro-CT patch and the block means of its own super-resolution (code only): G1 on
            a fine patch costs scale^2 times as much as on a coarse one.
        power: distances are absolute (1: the code) or squared (2: the text).
        ssim_constants: a key of :data:`~CTMicroSRLib.training.losses.ssim.SSIM_CONSTANTS`.
        adversarial: ``lsgan`` (the code), ``log`` (the text) or ``relativistic``.
        learning_rate: of both optimisers.
    """

    scale: int = 8
    channels: int = 64
    blocks: int = 9
    first_kernel: int = 7
    middle_kernel: int = 3
    generator: Literal["up-blocks", "down-blocks"] = "up-blocks"
    discriminator_channels: int = 64
    ssim_clinical: float = 1.0
    ssim_micro: float = 1.0
    downsample: float = 0.7
    upsample: float = 0.3
    adversarial_clinical: float = 1.0
    adversarial_micro: float = 1.0
    cycle: float = 1.0
    identity_clinical: float = 0.0
    identity_micro: float = 0.0
    power: Literal[1, 2] = 1
    ssim_constants: Literal["standard", "paper", "code"] = "standard"
    adversarial: Adversarial = "lsgan"
    learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        check_choice(self, "scale", (2, 4, 8))
        if self.channels < self.scale or self.channels % self.scale:
            raise ValueError(f"channels is {self.channels}, not a multiple of the scale")
        check_choice(self, "generator", ("up-blocks", "down-blocks"))
        if self.generator == "down-blocks" and (self.first_kernel, self.middle_kernel) != (7, 3):
            raise ValueError("down-blocks have no other kernels than 7 and 3")
        check_choice(self, "ssim_constants", SSIM_CONSTANTS)
        check_choice(self, "power", (1, 2))
        check_choice(self, "adversarial", get_args(Adversarial))
        check_above_zero(self, "learning_rate")
        weights = [getattr(self, name) for name in _WEIGHTS]
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError("the losses' weights are negative or all 0")


_PAPER_TRAINER: dict[str, Any] = {
    "trainer.steps": 500_000,  # 200 epochs of 10,000 patches
    "trainer.batch": 4,
    "trainer.schedule": "linear",
    "trainer.constant_share": 0.5,
    "trainer.pool_size": 50,
    "trainer.average_decay": 0.0,
}
_WITHOUT_MMSR = {"ssim_clinical": 0.0, "ssim_micro": 0.0, "downsample": 0.0, "upsample": 0.0}
_JMI2022: dict[str, Any] = {**_PAPER_TRAINER, "power": 2, "adversarial": "log"}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER_TRAINER,
    "jmi2022": _JMI2022,
    "jmi2022-code": {
        **_PAPER_TRAINER,
        "ssim_constants": "code",
        "downsample": 1.0,
        "upsample": 1.0,
        "identity_clinical": 0.02,
        "identity_micro": 0.2,
        "trainer.mix_ratio": 0.25,
    },
    "small": {
        "channels": 16,
        "blocks": 4,
        "discriminator_channels": 16,
        "learning_rate": 2e-4,
        "trainer.steps": 200,
        "trainer.batch": 2,
        "patches.patch_voxels": 24,
    },
    "2x": {"scale": 2},
    "4x": {"scale": 4},
    # Conditions A to L of P1's Table 3, and Table 7.
    "cyclegan-upblocks": {"generator": "down-blocks", **_WITHOUT_MMSR},
    "down-blocks": {"generator": "down-blocks"},
    "no-mmsr": _WITHOUT_MMSR,
    "only-upsample": {**_WITHOUT_MMSR, "upsample": 0.3},
    "only-downsample": {**_WITHOUT_MMSR, "downsample": 0.7},
    "only-ssim-clinical": {**_WITHOUT_MMSR, "ssim_clinical": 1.0},
    "only-ssim-micro": {**_WITHOUT_MMSR, "ssim_micro": 1.0},
    "no-ssim": {"ssim_clinical": 0.0, "ssim_micro": 0.0},
    "only-ssim": {"downsample": 0.0, "upsample": 0.0},
    "no-upsample": {"upsample": 0.0},
    "no-downsample": {"downsample": 0.0},
    "blocks-6": {"blocks": 6},
    "blocks-12": {"blocks": 12},
    "kernels-3-7": {"first_kernel": 3, "middle_kernel": 7},
    "kernels-7-7": {"first_kernel": 7, "middle_kernel": 7},
    "kernels-3-3": {"first_kernel": 3, "middle_kernel": 3},
    "patch-24": {"patches.patch_voxels": 24},
    "patch-48": {"patches.patch_voxels": 48},
}


class SrCycleGan(Method):
    """See the module.

    Attributes:
        clinical_to_micro: G1.
        micro_to_clinical: G2.
        micro_discriminator: tells real micro-CT from G1's.
        clinical_discriminator: tells real clinical CT from G2's.
    """

    needs: frozenset[Domain] = frozenset({"clinical", "micro"})

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        kind = DownBlocksGenerator if settings.generator == "down-blocks" else ClinicalToMicroGenerator
        self.clinical_to_micro: Generator = kind(**self.architecture()[1])
        self.micro_to_clinical = MicroToClinicalGenerator(
            channels=settings.channels, blocks=settings.blocks, doublings=doublings_of(settings.scale)
        )
        self.micro_discriminator = PatchDiscriminator(channels=settings.discriminator_channels)
        self.clinical_discriminator = PatchDiscriminator(channels=settings.discriminator_channels)
        initialise_normal(self)

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """``generators`` and, where there is an adversarial loss, ``discriminators``."""
        rate = self.settings.learning_rate
        judges = tuple(f"{domain}_discriminator" for domain in DOMAINS if self._adversarial_weight(domain))
        generators = OptimiserSettings(("clinical_to_micro", "micro_to_clinical"), rate)
        return {"generators": generators} | ({"discriminators": OptimiserSettings(judges, rate)} if judges else {})

    def generator(self) -> Generator:
        """G1."""
        return self.clinical_to_micro

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """Of G1."""
        s = self.settings
        parameters: dict[str, Any] = {
            "channels": s.channels,
            "blocks": s.blocks,
            "doublings": doublings_of(s.scale),
            "norm": "instance",
        }
        if s.generator == "down-blocks":
            return "down-blocks", parameters
        return "sr-cyclegan", {**parameters, "first_kernel": s.first_kernel, "middle_kernel": s.middle_kernel}

    def check_patch(self, patch_voxels: int, batch: int = 2) -> None:
        """G2 shrinks the micro patches, with ``identity_clinical`` the clinical ones too; discriminators see either.

        Raises:
            UsageError: a size that one of them can't work on.
        """
        super().check_patch(patch_voxels, batch)
        edges = {"micro": patch_voxels * self.scale, "clinical": patch_voxels}
        check_whole_strides(edges["micro"], max(STRIDE, self.scale))
        for domain in DOMAINS:
            if self._adversarial_weight(domain):
                self._discriminator(domain).check_edge(edges[domain])
        if self.settings.identity_clinical:
            least = SMALLEST_SHRUNK * self.scale
            if patch_voxels < least:
                raise UsageError(
                    f"identity_clinical shrinks the clinical patches, which need {least} voxels for that; make larger "
                    "patches or set it to 0."
                )
            check_whole_strides(patch_voxels, max(STRIDE, self.scale))

    def step(self, batch: Batch, update: Update) -> None:
        """Both generators, then both discriminators.

        Raises:
            UsageError: patches of a size that the networks can't work on.
        """
        self.check_patch(batch.clinical.shape[-1])
        made_micro = self.clinical_to_micro(batch.clinical)
        made_clinical = self.micro_to_clinical(batch.micro)
        with frozen(self.micro_discriminator, self.clinical_discriminator):
            losses = self._mmsr(batch, made_micro, made_clinical)
            losses |= self._adversarial(batch, made_micro, made_clinical)
            losses |= self._cycle(batch, made_micro, made_clinical)
            losses |= self._identity(batch)
            update("generators", losses)
        made = {"micro": made_micro.detach(), "clinical": made_clinical.detach()}
        real = {"micro": batch.micro, "clinical": batch.clinical}
        judged = {
            domain: (self._discriminator(domain), real[domain], update.pool(domain, made[domain]))
            for domain in DOMAINS
            if self._adversarial_weight(domain)
        }
        if judged:
            update("discriminators", critic_losses(self.settings.adversarial, judged))

    def _mmsr(self, batch: Batch, made_micro: Tensor, made_clinical: Tensor) -> dict[str, Tensor]:
        s = self.settings
        return mmsr_losses(
            batch.clinical,
            made_micro,
            batch.micro,
            made_clinical,
            weights=MmsrWeights(s.ssim_clinical, s.ssim_micro, s.downsample, s.upsample),
            constants=SSIM_CONSTANTS[s.ssim_constants],
            power=s.power,
        )

    def _adversarial(self, batch: Batch, made_micro: Tensor, made_clinical: Tensor) -> dict[str, Tensor]:
        losses = {}
        for domain, made, real in (("clinical", made_clinical, batch.clinical), ("micro", made_micro, batch.micro)):
            weight = self._adversarial_weight(domain)
            if weight:
                judge = self._discriminator(domain)
                losses[f"adversarial_{domain}"] = weight * adversarial_loss(
                    self.settings.adversarial, judge, real, made
                )
        return losses

    def _cycle(self, batch: Batch, made_micro: Tensor, made_clinical: Tensor) -> dict[str, Tensor]:
        if not self.settings.cycle:
            return {}
        return {
            "cycle_clinical": self.settings.cycle * self._distance(self.micro_to_clinical(made_micro), batch.clinical),
            "cycle_micro": self.settings.cycle * self._distance(self.clinical_to_micro(made_clinical), batch.micro),
        }

    def _identity(self, batch: Batch) -> dict[str, Tensor]:
        """Absolute distances, as in the code, which alone has them."""
        s, losses = self.settings, {}
        if s.identity_micro:
            again = block_mean(self.clinical_to_micro(batch.micro), self.scale)
            losses["identity_micro"] = s.identity_micro * functional.l1_loss(again, batch.micro)
        if s.identity_clinical:
            shrunk = self.micro_to_clinical(batch.clinical)
            again = functional.interpolate(shrunk, scale_factor=self.scale, mode="bilinear", align_corners=False)
            losses["identity_clinical"] = s.identity_clinical * functional.l1_loss(again, batch.clinical)
        return losses

    def _adversarial_weight(self, domain: str) -> float:
        return self.settings.adversarial_micro if domain == "micro" else self.settings.adversarial_clinical

    def _discriminator(self, domain: str) -> PatchDiscriminator:
        return self.micro_discriminator if domain == "micro" else self.clinical_discriminator

    def _distance(self, first: Tensor, second: Tensor) -> Tensor:
        difference = first - second
        return torch.mean(difference.abs() if self.settings.power == 1 else difference.square())


METHOD = SrCycleGan
