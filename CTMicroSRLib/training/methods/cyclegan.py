"""The original CycleGAN (Zhu et al., ICCV 2017) between interpolated clinical CT and micro-CT: P1's and P2's baseline.

Clinical patches are interpolated onto the fine grid, so that both domains have the same size; nothing but the cycle and
the identity ties a result to its input, which is why the papers show it failing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.networks.discriminators import PatchDiscriminator
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.networks.initialisation import initialise_normal
from CTMicroSRLib.networks.resnet import ResnetGenerator
from CTMicroSRLib.training.critics import Critic, adversarial_loss, critic_losses
from CTMicroSRLib.training.losses.adversarial import Adversarial
from CTMicroSRLib.training.method import Batch, Domain, Method, OptimiserSettings, Update, frozen
from CTMicroSRLib.training.setting_checks import check_above_zero, check_at_least, check_choice, check_not_negative


@dataclass(frozen=True)
class CycleWeights:
    """Weights of a CycleGAN's losses; ``identity`` is a share of ``cycle``'s, as in the original."""

    adversarial: float = 1.0
    cycle: float = 10.0
    identity: float = 0.5


@dataclass(frozen=True)
class Side:
    """One of two domains on the same grid.

    Attributes:
        name: of the domain, for the losses' names.
        real: its images.
        make: the generator of its images from the other domain's.
        judge: its discriminator.
    """

    name: str
    real: Tensor
    make: Callable[[Tensor], Tensor]
    judge: Critic


def cycle_losses(
    sides: tuple[Side, Side], weights: CycleWeights, adversarial: Adversarial
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The generators' weighted losses, and what they made by domain.

    For each domain, where the weight is not 0: ``adversarial_NAME``, ``cycle_NAME`` (mean absolute distance of a real
    image and the same there and back again), ``identity_NAME`` (of a real image and what its own domain's generator
    makes of it).
    """
    losses: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for side, other in (sides, sides[::-1]):
        made[side.name] = side.make(other.real)
        if weights.adversarial:
            deceiving = adversarial_loss(adversarial, side.judge, side.real, made[side.name])
            losses[f"adversarial_{side.name}"] = weights.adversarial * deceiving
        if weights.cycle:
            back = other.make(made[side.name])
            losses[f"cycle_{other.name}"] = weights.cycle * functional.l1_loss(back, other.real)
        if weights.cycle * weights.identity:
            same = side.make(side.real)
            losses[f"identity_{side.name}"] = weights.cycle * weights.identity * functional.l1_loss(same, side.real)
    return losses, made


def judge_losses(
    sides: tuple[Side, Side], made: Mapping[str, Tensor], adversarial: Adversarial, update: Update
) -> dict[str, Tensor]:
    """The discriminators' losses by domain, on images made now and before."""
    judged = {side.name: (side.judge, side.real, update.pool(side.name, made[side.name].detach())) for side in sides}
    return critic_losses(adversarial, judged)


@dataclass(frozen=True)
class Settings:
    """Networks and losses; the defaults are the original's.

    Attributes:
        scale: 2, 4 or 8.
        channels: width of both generators on the fine grid.
        blocks: residual blocks of both.
        discriminator_channels: width of the discriminators' first layer.
        adversarial: ``lsgan``, ``log`` or ``relativistic``.
        adversarial_weight: of the adversarial losses.
        cycle: weight of there and back again.
        identity: as a share of ``cycle``.
        learning_rate: of both optimisers.
        dropout_rate: by channel in every residual block of both generators; 0 for none.
    """

    scale: int = 8
    channels: int = 64
    blocks: int = 9
    discriminator_channels: int = 64
    adversarial: Adversarial = "lsgan"
    adversarial_weight: float = 1.0
    cycle: float = 10.0
    identity: float = 0.5
    learning_rate: float = 2e-4
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self, "scale", (2, 4, 8))
        check_choice(self, "adversarial", get_args(Adversarial))
        check_at_least(self, 1, "channels", "blocks", "discriminator_channels")
        check_above_zero(self, "adversarial_weight", "learning_rate")
        check_not_negative(self, "cycle", "identity")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate is {self.dropout_rate}")


SMALL: dict[str, Any] = {
    "channels": 8,
    "blocks": 3,
    "discriminator_channels": 16,
    "trainer.steps": 150,
    "trainer.batch": 2,
    "patches.patch_voxels": 24,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "trainer.steps": 2_000_000,  # 200 epochs of 10,000 patches, one at a time
        "trainer.batch": 1,
        "trainer.schedule": "linear",
        "trainer.constant_share": 0.5,
        "trainer.pool_size": 50,
        "trainer.average_decay": 0.0,
    },
    "small": SMALL,
    "4x": {"scale": 4},
}


class CycleGan(Method):
    """See the module.

    Attributes:
        clinical_to_micro: from interpolated clinical CT to micro-CT.
        micro_to_clinical: the reverse, on the fine grid too.
        micro_discriminator: tells real micro-CT from made.
        clinical_discriminator: tells real interpolated clinical CT from made.
    """

    needs: frozenset[Domain] = frozenset({"clinical", "micro"})

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        self.clinical_to_micro = ResnetGenerator(scale=settings.scale, **self._shape())
        self.micro_to_clinical = ResnetGenerator(scale=1, **self._shape())
        self.micro_discriminator = PatchDiscriminator(channels=settings.discriminator_channels)
        self.clinical_discriminator = PatchDiscriminator(channels=settings.discriminator_channels)
        initialise_normal(self)

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """``generators`` and ``discriminators``."""
        rate = self.settings.learning_rate
        return {
            "generators": OptimiserSettings(("clinical_to_micro", "micro_to_clinical"), rate),
            "discriminators": OptimiserSettings(("micro_discriminator", "clinical_discriminator"), rate),
        }

    def generator(self) -> Generator:
        """From clinical CT to micro-CT, interpolation included."""
        return self.clinical_to_micro

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """Of the generator to micro-CT."""
        return "resnet", {"scale": self.scale, **self._shape()}

    def check_patch(self, patch_voxels: int, batch: int = 2) -> None:
        """Both discriminators see the fine grid.

        Raises:
            UsageError: a size that one of them can't work on.
        """
        super().check_patch(patch_voxels, batch)
        self.micro_discriminator.check_edge(patch_voxels * self.scale)

    def step(self, batch: Batch, update: Update) -> None:
        """Both generators, then both discriminators, all on the fine grid."""
        s = self.settings
        clinical = self.clinical_to_micro.interpolate(batch.clinical)
        sides = (
            Side("micro", batch.micro, self.clinical_to_micro.on_fine_grid, self.micro_discriminator),
            Side("clinical", clinical, self.micro_to_clinical.on_fine_grid, self.clinical_discriminator),
        )
        weights = CycleWeights(s.adversarial_weight, s.cycle, s.identity)
        with frozen(self.micro_discriminator, self.clinical_discriminator):
            losses, made = cycle_losses(sides, weights, s.adversarial)
            update("generators", losses)
        update("discriminators", judge_losses(sides, made, s.adversarial, update))

    def _shape(self) -> dict[str, Any]:
        s = self.settings
        shape: dict[str, Any] = {"channels": s.channels, "blocks": s.blocks, "norm": "instance"}
        if s.dropout_rate > 0:
            shape |= {"dropout_rate": s.dropout_rate, "dropout_blocks": s.blocks}
        return shape


METHOD = CycleGan
