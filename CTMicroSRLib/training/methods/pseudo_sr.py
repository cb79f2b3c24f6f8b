"""Pseudo-supervised super-resolution of unpaired images (Maeda, CVPR 2020), the unsupervised baseline of P1.

G_yx makes a clinical patch of micro-CT that was shrunk by block means (the paper shrinks bicubically), G_xy cleans a
clinical patch, and U enlarges what G_xy makes of G_yx's patches: pairs with the whole micro-CT as truth. One
discriminator for each of the three kinds of image; the last one holds U's results of real and of made patches alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.networks.discriminators import StridedDiscriminator
from CTMicroSRLib.networks.generator import Generator, doublings_of
from CTMicroSRLib.networks.pseudo_sr import PseudoSrGenerator, TransferNetwork, TransferNorm
from CTMicroSRLib.resampling import block_mean
from CTMicroSRLib.training.critics import critic_losses
from CTMicroSRLib.training.losses.adversarial import generator_loss
from CTMicroSRLib.training.method import Batch, Domain, Method, OptimiserSettings, Update, frozen
from CTMicroSRLib.training.setting_checks import check_above_zero, check_at_least, check_choice, check_weights


@dataclass(frozen=True)
class Settings:
    """Sizes, weights and rates; the defaults are the paper's, with more strides in its discriminators above 4x.

    Attributes:
        scale: fine voxels per coarse voxel, a power of two.
        channels: width of G_xy, G_yx and U.
        groups: residual groups of G_xy and U.
        clean_blocks: attention blocks in each group of G_xy.
        enlarge_blocks: those of U.
        reduction: of the attention.
        transfer_blocks: residual blocks of G_yx.
        transfer_norm: ``batch`` (the paper), ``instance`` or ``none``, of G_yx; with ``batch`` the result depends on
            how many processes share a batch.
        critic_channels: of the discriminators' first layers.
        cycle_weight: of G_xy's mean absolute error on what G_yx made.
        identity_weight: of G_xy's mean absolute change of what is clean.
        geometry_weight: of the mean absolute difference between G_xy's result and its mean over the eight ways to turn
            and mirror the patch; 0 leaves out their seven passes.
        fine_critic_weight: of the adversarial loss behind U.
        learning_rate: of everything.
    """

    scale: int = 8
    channels: int = 64
    groups: int = 5
    clean_blocks: int = 10
    enlarge_blocks: int = 20
    reduction: int = 16
    transfer_blocks: int = 6
    transfer_norm: TransferNorm = "batch"
    critic_channels: int = 64
    cycle_weight: float = 1.0
    identity_weight: float = 2.0
    geometry_weight: float = 1.0
    fine_critic_weight: float = 0.1
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        doublings_of(self.scale)
        counts = ("groups", "clean_blocks", "enlarge_blocks", "reduction", "transfer_blocks", "critic_channels")
        check_at_least(self, 1, *counts)
        check_at_least(self, 2, "channels")
        check_choice(self, "transfer_norm", get_args(TransferNorm))
        check_weights(self)
        check_above_zero(self, "learning_rate")


class PseudoSrMethod(Method):
    """See the module: ``to_micro`` holds G_xy and U, ``to_clinical`` is G_yx."""

    needs: frozenset[Domain] = frozenset({"clinical", "micro"})

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        _, parameters = self.architecture()
        self.to_micro = PseudoSrGenerator(**parameters)
        self.to_clinical = TransferNetwork(
            channels=settings.channels, blocks=settings.transfer_blocks, norm=settings.transfer_norm
        )
        self.clinical_critic, self.clean_critic, self.fine_critic = (
            StridedDiscriminator(channels=settings.critic_channels, strides=_strides(scale), norm="none")
            for scale in (1, 1, settings.scale)
        )

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """One for G_xy, G_yx and U, one for the three discriminators."""
        rate = self.settings.learning_rate
        return {
            "generators": OptimiserSettings(("to_micro", "to_clinical"), rate),
            "critics": OptimiserSettings(("clinical_critic", "clean_critic", "fine_critic"), rate),
        }

    def check_patch(self, patch_voxels: int, batch: int = 2) -> None:
        """Two discriminators see the coarse grid, one the fine grid.

        Raises:
            UsageError: a size that one of them can't work on.
        """
        super().check_patch(patch_voxels, batch)
        for critic, scale in ((self.clinical_critic, 1), (self.clean_critic, 1), (self.fine_critic, self.scale)):
            critic.check_edge(patch_voxels * scale)

    def step(self, batch: Batch, update: Update) -> None:
        """Make clinical patches and clean them, move the discriminators, then the generators."""
        clean = block_mean(batch.micro, self.scale)
        made = self.to_clinical(clean, self.to_clinical.draw_noise(clean))
        recovered = self.to_micro.clean(made)
        cleaned = self.to_micro.clean(batch.clinical)
        with frozen(self.to_micro.enlarge):  # adversarial gradients pass through U and leave it as it is
            fine = self.to_micro.enlarge(recovered)
        with torch.no_grad():
            fine_of_scan = self.to_micro.enlarge(cleaned)
        judged = {
            "critic_clinical": (self.clinical_critic, batch.clinical, made),
            "critic_clean": (self.clean_critic, clean, cleaned),
            "critic_fine": (self.fine_critic, fine_of_scan, fine),
        }
        update("critics", critic_losses("lsgan", judged))
        with frozen(self.clinical_critic, self.clean_critic, self.fine_critic):
            losses = {
                "gan_clinical": generator_loss("lsgan", self.clinical_critic(made)),
                "gan_clean": generator_loss("lsgan", self.clean_critic(cleaned)),
                "gan_fine": self.settings.fine_critic_weight * generator_loss("lsgan", self.fine_critic(fine)),
            }
            update("generators", losses | self._distances(batch, clean, recovered, cleaned))

    def _distances(self, batch: Batch, clean: Tensor, recovered: Tensor, cleaned: Tensor) -> dict[str, Tensor]:
        weights = self.settings
        losses = {
            "cycle": weights.cycle_weight * functional.l1_loss(recovered, clean),
            "identity": weights.identity_weight * functional.l1_loss(self.to_micro.clean(clean), clean),
            "enlarging": functional.l1_loss(self.to_micro.enlarge(recovered.detach()), batch.micro),
        }
        if weights.geometry_weight:
            ensemble = geometry_ensemble(self.to_micro.clean, batch.clinical, cleaned)
            losses["geometry"] = weights.geometry_weight * functional.l1_loss(cleaned, ensemble)
        return losses

    def generator(self) -> Generator:
        """G_xy and U."""
        return self.to_micro

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """``pseudo-sr`` and its parameters."""
        settings = self.settings
        return "pseudo-sr", {
            "channels": settings.channels,
            "groups": settings.groups,
            "clean_blocks": settings.clean_blocks,
            "enlarge_blocks": settings.enlarge_blocks,
            "reduction": settings.reduction,
            "scale": settings.scale,
            "norm": "instance",
        }


def geometry_ensemble(function: Callable[[Tensor], Tensor], images: Tensor, result: Tensor) -> Tensor:
    """Mean of a function over the eight ways to turn and mirror its images, each turned back (Maeda, section 3.3).

    Args:
        function: from square images to images of that size; each image's result must not depend on the others.
        images: ``(b, 1, n, n)``.
        result: ``function(images)``, the first of the eight.
    """
    ways = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)][1:]
    turned = [torch.rot90(images.flip(-1) if mirrored else images, turns, (-2, -1)) for turns, mirrored in ways]
    results = function(torch.cat(turned)).chunk(len(ways))
    back = [torch.rot90(image, -turns, (-2, -1)) for image, (turns, _) in zip(results, ways, strict=True)]
    mirrored_back = [image.flip(-1) if mirrored else image for image, (_, mirrored) in zip(back, ways, strict=True)]
    return torch.stack([result, *mirrored_back]).mean(dim=0)


def _strides(scale: int) -> tuple[int, ...]:
    """As many layers of stride 2 as the scale has doublings, then of stride 1; four layers or more."""
    halvings = 0 if scale == 1 else doublings_of(scale)
    return (2,) * halvings + (1,) * max(1, 4 - halvings)


METHOD = PseudoSrMethod
_PAPER: Mapping[str, Any] = {
    "trainer.steps": 300_000,
    "trainer.batch": 16,
    "trainer.schedule": "halving",
    "trainer.halving_shares": (1 / 3, 0.6, 0.8, 14 / 15),
    "trainer.pool_size": 0,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": _PAPER,
    "paper-4x": {**_PAPER, "scale": 4},
    "small": {
        "channels": 16,
        "groups": 2,
        "clean_blocks": 2,
        "enlarge_blocks": 4,
        "reduction": 4,
        "transfer_blocks": 2,
        "critic_channels": 16,
        "geometry_weight": 0.0,
        "learning_rate": 5e-4,
        "trainer.pool_size": 0,
    },
}
