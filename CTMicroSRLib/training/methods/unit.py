"""UNIT as it was published (Liu et al., NIPS 2017), on cubically interpolated clinical CT: a baseline of P2 that fails.

Two variational autoencoders, of clinical and of micro-CT, share their latent space: a latent code of either domain
decodes to both. :mod:`~CTMicroSRLib.training.methods.sr_unit` is the same made for super-resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.discriminators import MultiScaleDiscriminator
from CTMicroSRLib.networks.generator import Generator, doublings_of
from CTMicroSRLib.networks.initialisation import initialise_normal
from CTMicroSRLib.networks.unit import UnitGenerator, UnitReverse, sampled
from CTMicroSRLib.training.critics import critic_losses
from CTMicroSRLib.training.losses.adversarial import generator_loss
from CTMicroSRLib.training.losses.latent import kl_to_unit_normal
from CTMicroSRLib.training.method import (
    Batch,
    Domain,
    Method,
    OptimiserSettings,
    Update,
    check_whole_strides,
    frozen,
)
from CTMicroSRLib.training.setting_checks import check_above_zero, check_at_least, check_not_negative, check_weights

STRIDE = 4
"""The original's latent code has every fourth row and column of the fine grid."""


@dataclass(frozen=True)
class Settings:
    """Sizes, weights and rates; the defaults are those of UNIT's published code, its perceptual term left out.

    Attributes:
        scale: fine voxels per coarse voxel, a power of two.
        channels: of the encoders' first layers; the latent code has four times as many.
        blocks: residual blocks of each encoder and decoder, the shared one included.
        shared: one last block for both encoders and one first block for both decoders.
        critic_channels: of the discriminators' first layers.
        critic_layers: convolutions of each discriminator.
        critic_scales: sizes of the image that discriminators look at.
        gan_weight: of the adversarial loss, summed over these sizes.
        reconstruction_weight: of each autoencoder's own absolute error.
        kl_weight: of the latent codes' squares.
        cycle_weight: of the absolute error after the way to the other domain and back.
        cycle_kl_weight: of the latent codes' squares on the way back.
        learning_rate: of both sides.
        weight_decay: of both sides.
    """

    scale: int = 8
    channels: int = 64
    blocks: int = 4
    shared: bool = True
    critic_channels: int = 64
    critic_layers: int = 4
    critic_scales: int = 3
    gan_weight: float = 1.0
    reconstruction_weight: float = 10.0
    kl_weight: float = 0.01
    cycle_weight: float = 10.0
    cycle_kl_weight: float = 0.01
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        doublings_of(self.scale)
        check_at_least(self, 1, "channels", "blocks", "critic_channels", "critic_layers", "critic_scales")
        check_weights(self)
        check_not_negative(self, "weight_decay")
        check_above_zero(self, "learning_rate")


@dataclass(frozen=True)
class Translation:
    """What both autoencoders make of a batch; ``clinical`` is on the grid that the clinical encoder sees."""

    clinical: Tensor
    micro: Tensor
    clinical_mean: Tensor
    micro_mean: Tensor
    clinical_again: Tensor
    micro_again: Tensor
    super_resolved: Tensor
    shrunk: Tensor


class UnitMethod(Method):
    """See the module; ``to_micro`` super-resolves, ``to_clinical`` is the way back."""

    needs: frozenset[Domain] = frozenset({"clinical", "micro"})
    interpolated: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        _, parameters = self.architecture()
        self.to_micro = UnitGenerator(**parameters)
        self.to_clinical = UnitReverse(**parameters, shared=settings.shared)
        self.clinical_critic, self.micro_critic = (
            MultiScaleDiscriminator(
                channels=settings.critic_channels, layers=settings.critic_layers, scales=settings.critic_scales
            )
            for _ in range(2)
        )
        for network in (self.to_micro, self.to_clinical):
            initialise_kaiming(network)
        for critic in (self.clinical_critic, self.micro_critic):
            initialise_normal(critic)

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """One for both autoencoders, one for both discriminators."""
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        networks = {"generators": ("to_micro", "to_clinical"), "critics": ("clinical_critic", "micro_critic")}
        return {name: OptimiserSettings(moved, rate, weight_decay=decay) for name, moved in networks.items()}

    def check_patch(self, patch_voxels: int, batch: int = 2) -> None:
        """The original halves the fine grid twice.

        Raises:
            UsageError: patches that are not multiples of 4 on the fine grid, or too small.
        """
        super().check_patch(patch_voxels, batch)
        if self.interpolated:
            check_whole_strides(patch_voxels * self.scale, STRIDE)

    def step(self, batch: Batch, update: Update) -> None:
        """Translate both ways, move the discriminators, then the autoencoders."""
        made = self.translate(batch)
        update("critics", self._critic_losses(made))
        with frozen(self.clinical_critic, self.micro_critic):
            update("generators", self.generator_losses(batch, made))

    def translate(self, batch: Batch) -> Translation:
        """Both autoencoders on both domains, each latent code drawn once.

        Raises:
            UsageError: the original's patches are not multiples of 4 on the fine grid.
        """
        self.check_patch(batch.clinical.shape[-1])
        clinical, micro = self.to_micro.own_grid(batch.clinical), batch.micro
        clinical_mean = self.to_micro.encode(clinical)
        micro_mean = self.to_clinical.encode(micro, self.to_micro)
        clinical_code, micro_code = sampled(clinical_mean), sampled(micro_mean)
        return Translation(
            clinical,
            micro,
            clinical_mean,
            micro_mean,
            clinical_again=self.to_clinical.decode(clinical_code, self.to_micro),
            micro_again=self.to_micro.decode(micro_code),
            super_resolved=self.to_micro.decode(clinical_code),
            shrunk=self.to_clinical.decode(micro_code, self.to_micro),
        )

    def generator_losses(self, batch: Batch, made: Translation) -> dict[str, Tensor]:
        """UNIT's weighted losses by name (NIPS 2017, eq 2)."""
        weights = self.settings
        sizes = weights.gan_weight * weights.critic_scales
        reconstruction, cycle = weights.reconstruction_weight, weights.cycle_weight
        clinical_mean = self.to_micro.encode(made.shrunk)
        micro_mean = self.to_clinical.encode(made.super_resolved, self.to_micro)
        clinical_back = self.to_clinical.decode(sampled(micro_mean), self.to_micro)
        micro_back = self.to_micro.decode(sampled(clinical_mean))
        return {
            "gan_micro": sizes * generator_loss("lsgan", self.micro_critic(made.super_resolved)),
            "gan_clinical": sizes * generator_loss("lsgan", self.clinical_critic(made.shrunk)),
            "reconstruction_clinical": reconstruction * functional.l1_loss(made.clinical_again, made.clinical),
            "reconstruction_micro": reconstruction * functional.l1_loss(made.micro_again, made.micro),
            "kl_clinical": weights.kl_weight * kl_to_unit_normal(made.clinical_mean),
            "kl_micro": weights.kl_weight * kl_to_unit_normal(made.micro_mean),
            "cycle_clinical": cycle * functional.l1_loss(clinical_back, made.clinical),
            "cycle_micro": cycle * functional.l1_loss(micro_back, made.micro),
            "cycle_kl_clinical": weights.cycle_kl_weight * kl_to_unit_normal(clinical_mean),
            "cycle_kl_micro": weights.cycle_kl_weight * kl_to_unit_normal(micro_mean),
        }

    def _critic_losses(self, made: Translation) -> dict[str, Tensor]:
        judged = {
            "critic_clinical": (self.clinical_critic, made.clinical, made.shrunk),
            "critic_micro": (self.micro_critic, made.micro, made.super_resolved),
        }
        # UNIT's code sums both terms and all sizes, which counts beside the decay of the weights.
        weight = 2 * self.settings.gan_weight * self.settings.critic_scales
        return {name: weight * loss for name, loss in critic_losses("lsgan", judged).items()}

    def generator(self) -> Generator:
        """The way to micro-CT."""
        return self.to_micro

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """``unit`` and its parameters."""
        settings = self.settings
        return "unit", {
            "channels": settings.channels,
            "blocks": settings.blocks,
            "scale": settings.scale,
            "norm": "instance",
            "interpolated": self.interpolated,
        }


@torch.no_grad()
def initialise_kaiming(module: nn.Module) -> None:
    """Normal weights that keep a ReLU's variance (He et al., ICCV 2015), biases 0, as UNIT's code starts."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


METHOD = UnitMethod
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "trainer.steps": 1_000_000,
        "trainer.batch": 1,
        "trainer.schedule": "halving",
        "trainer.halving_shares": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "trainer.pool_size": 0,
    },
    "small": {
        "channels": 8,
        "blocks": 2,
        "critic_channels": 16,
        "critic_layers": 3,
        "learning_rate": 5e-4,
        "trainer.batch": 2,
        "trainer.pool_size": 0,
    },
}
