"""CinCGAN (Yuan et al., CVPR Workshops 2018), the unsupervised baseline of P1.

Inner cycle: G1 cleans the clinical patch to look like micro-CT that was shrunk by block means (the paper shrinks
bicubically), G2 brings the noise back. Outer cycle: EDSR enlarges what G1 cleaned, G3 shrinks it to the clinical patch
again. The inner cycle is trained first, EDSR beside it on shrunk and whole micro-CT (the paper starts from an EDSR that
is trained already); then everything together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.networks.cincgan import CinCGenerator, Translator
from CTMicroSRLib.networks.discriminators import StridedDiscriminator
from CTMicroSRLib.networks.generator import Generator, doublings_of
from CTMicroSRLib.networks.initialisation import initialise_normal
from CTMicroSRLib.resampling import block_mean
from CTMicroSRLib.training.critics import Judged, critic_losses
from CTMicroSRLib.training.losses.adversarial import generator_loss
from CTMicroSRLib.training.losses.variation import total_variation
from CTMicroSRLib.training.method import Batch, Domain, Method, OptimiserSettings, Update, frozen
from CTMicroSRLib.training.setting_checks import check_above_zero, check_at_least, check_share, check_weights


@dataclass(frozen=True)
class Settings:
    """Sizes, weights and rates; the defaults are the paper's.

    Attributes:
        scale: fine voxels per coarse voxel, a power of two (4 in the paper).
        channels: width of G1, G2 and G3.
        blocks: residual blocks of each.
        skip: G1 and G2 add their input to their result, so that a short training starts near it; the paper does not.
        edsr_channels: width of EDSR.
        edsr_blocks: residual blocks of EDSR.
        critic_channels: of the discriminators' first layers.
        inner_share: share of the training before the outer cycle joins.
        inner_cycle_weight: w1, of the mean square after cleaning and back.
        inner_identity_weight: w2, of G1's mean absolute change of what is clean.
        inner_variation_weight: w3, of the cleaned patch's total variation.
        outer_gan_weight: gamma 0.
        outer_cycle_weight: gamma 1, of the mean square after super-resolution and back.
        outer_identity_weight: gamma 2, of EDSR's mean absolute error on shrunk micro-CT.
        outer_variation_weight: gamma 3, of the super-resolved patch's total variation.
        enlarging_weight: of EDSR's mean absolute error on shrunk micro-CT during the inner stage.
        inner_learning_rate: of everything during the inner stage.
        outer_learning_rate: of everything after it.
    """

    scale: int = 8
    channels: int = 64
    blocks: int = 6
    skip: bool = False
    edsr_channels: int = 256
    edsr_blocks: int = 32
    critic_channels: int = 64
    inner_share: float = 0.4
    inner_cycle_weight: float = 10.0
    inner_identity_weight: float = 5.0
    inner_variation_weight: float = 0.5
    outer_gan_weight: float = 1.0
    outer_cycle_weight: float = 10.0
    outer_identity_weight: float = 5.0
    outer_variation_weight: float = 2.0
    enlarging_weight: float = 1.0
    inner_learning_rate: float = 2e-4
    outer_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        doublings_of(self.scale)
        check_at_least(self, 1, "channels", "blocks", "edsr_channels", "edsr_blocks", "critic_channels")
        check_weights(self)
        check_above_zero(self, "inner_learning_rate", "outer_learning_rate")
        check_share(self, "inner_share")


class CinCMethod(Method):
    """See the module: ``to_micro`` holds G1 and EDSR, ``to_noisy`` is G2, ``to_coarse`` G3; critics are D1 and D2."""

    needs: frozenset[Domain] = frozenset({"clinical", "micro"})

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        halvings = doublings_of(settings.scale)
        _, parameters = self.architecture()
        self.to_micro = CinCGenerator(**parameters)
        self.to_noisy = Translator(channels=settings.channels, blocks=settings.blocks, skip=settings.skip)
        self.to_coarse = Translator(channels=settings.channels, blocks=settings.blocks, halvings=halvings)
        self.clean_critic = StridedDiscriminator(channels=settings.critic_channels, strides=(1, 1, 1, 1))
        self.micro_critic = StridedDiscriminator(channels=settings.critic_channels, strides=(2, 2, 2, 1))
        for critic in (self.clean_critic, self.micro_critic):
            initialise_normal(critic)

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """Generators and discriminators, of the inner stage and of what follows."""
        settings = self.settings
        inner, after = (0.0, settings.inner_share), (settings.inner_share, 1.0)
        first, second = settings.inner_learning_rate, settings.outer_learning_rate
        generators = ("to_micro", "to_noisy")
        return {
            "inner": OptimiserSettings(generators, first, span=inner),
            "inner_critic": OptimiserSettings(("clean_critic",), first, span=inner),
            "joint": OptimiserSettings((*generators, "to_coarse"), second, span=after),
            "joint_critics": OptimiserSettings(("clean_critic", "micro_critic"), second, span=after),
        }

    def check_patch(self, patch_voxels: int, batch: int = 2) -> None:
        """D1 sees the coarse grid, D2 the fine one.

        Raises:
            UsageError: a size that one of them can't work on.
        """
        super().check_patch(patch_voxels, batch)
        self.clean_critic.check_edge(patch_voxels)
        self.micro_critic.check_edge(patch_voxels * self.scale)

    def step(self, batch: Batch, update: Update) -> None:
        """The inner stage's losses; after ``inner_share`` of the training the outer cycle's too."""
        clean = block_mean(batch.micro, self.scale)
        cleaned = self.to_micro.clean(batch.clinical)
        judged: dict[str, Judged] = {"critic_clean": (self.clean_critic, clean, cleaned)}
        if update.progress < self.settings.inner_share:
            update("inner_critic", critic_losses("lsgan", judged))
            enlarged = functional.l1_loss(self.to_micro.enlarge(clean), batch.micro)
            with frozen(self.clean_critic):
                losses = self._inner_losses(batch.clinical, cleaned, clean)
                update("inner", losses | {"enlarging": self.settings.enlarging_weight * enlarged})
            return
        fine = self.to_micro.enlarge(cleaned)
        judged["critic_micro"] = (self.micro_critic, batch.micro, fine)
        update("joint_critics", critic_losses("lsgan", judged))
        with frozen(self.clean_critic, self.micro_critic):
            losses = self._inner_losses(batch.clinical, cleaned, clean)
            update("joint", losses | self._outer_losses(batch, fine, clean))

    def _inner_losses(self, clinical: Tensor, cleaned: Tensor, clean: Tensor) -> dict[str, Tensor]:
        weights = self.settings
        identity = functional.l1_loss(self.to_micro.clean(clean), clean)
        return {
            "inner_gan": generator_loss("lsgan", self.clean_critic(cleaned)),
            "inner_cycle": weights.inner_cycle_weight * functional.mse_loss(self.to_noisy(cleaned), clinical),
            "inner_identity": weights.inner_identity_weight * identity,
            "inner_variation": weights.inner_variation_weight * total_variation(cleaned),
        }

    def _outer_losses(self, batch: Batch, fine: Tensor, clean: Tensor) -> dict[str, Tensor]:
        weights = self.settings
        identity = functional.l1_loss(self.to_micro.enlarge(clean), batch.micro)
        return {
            "outer_gan": weights.outer_gan_weight * generator_loss("lsgan", self.micro_critic(fine)),
            "outer_cycle": weights.outer_cycle_weight * functional.mse_loss(self.to_coarse(fine), batch.clinical),
            "outer_identity": weights.outer_identity_weight * identity,
            "outer_variation": weights.outer_variation_weight * total_variation(fine),
        }

    def generator(self) -> Generator:
        """G1 and EDSR."""
        return self.to_micro

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """``cincgan`` and its parameters."""
        settings = self.settings
        return "cincgan", {
            "channels": settings.channels,
            "blocks": settings.blocks,
            "edsr_channels": settings.edsr_channels,
            "edsr_blocks": settings.edsr_blocks,
            "scale": settings.scale,
            "skip": settings.skip,
        }


METHOD = CinCMethod
_PAPER: Mapping[str, Any] = {
    "trainer.steps": 400_000,
    "trainer.batch": 16,
    "trainer.schedule": "halving",
    "trainer.halving_shares": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "trainer.pool_size": 0,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": _PAPER,
    "paper-4x": {**_PAPER, "scale": 4},
    "small": {
        "channels": 16,
        "blocks": 3,
        "skip": True,
        "edsr_channels": 24,
        "edsr_blocks": 4,
        "critic_channels": 16,
        "inner_learning_rate": 5e-4,
        "outer_learning_rate": 2.5e-4,
        "trainer.pool_size": 0,
    },
}
