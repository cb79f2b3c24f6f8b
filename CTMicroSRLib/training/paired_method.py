"""What the supervised methods of the papers share: one network that learns from pairs, with a discriminator or without.

:mod:`~CTMicroSRLib.training.pairing` says what the pairs are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from CTMicroSRLib.networks.discriminators import DiscriminatorNorm, PooledDiscriminator
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.training.critics import adversarial_loss, critic_losses
from CTMicroSRLib.training.losses.adversarial import Adversarial
from CTMicroSRLib.training.method import Batch, Losses, Method, OptimiserSettings, Update, frozen
from CTMicroSRLib.training.pairing import NEEDS, Pairing, input_and_target
from CTMicroSRLib.training.setting_checks import (
    check_above_zero,
    check_choice,
    check_not_negative,
    check_share,
    check_weights,
)


@dataclass(frozen=True)
class PairedSettings:
    """What every one of them is told.

    Attributes:
        scale: fine voxels per coarse voxel, a power of 2.
        pairing: see :data:`~CTMicroSRLib.training.pairing.Pairing`.
        noise: standard deviation of the noise added to the input, normalised (0.01 is 17.5 HU of a 3,500 HU window).
        learning_rate: of every network.
    """

    scale: int = 8
    pairing: Pairing = "paired"
    noise: float = 0.0
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        check_choice(self, "pairing", get_args(Pairing))
        check_not_negative(self, "noise")
        check_above_zero(self, "learning_rate")
        check_weights(self)


@dataclass(frozen=True)
class PairedGanSettings(PairedSettings):
    """And what those with a discriminator are told.

    Attributes:
        discriminator_channels: of the discriminator's first layers.
        discriminator_norm: ``batch``, ``instance`` or ``none``.
        adversarial_weight: of the adversarial loss.
        pretrain_share: share of the training with the distance to the target alone.
    """

    discriminator_channels: int = 64
    discriminator_norm: DiscriminatorNorm = "batch"
    adversarial_weight: float = 1e-3
    pretrain_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "pretrain_share")


class PairedMethod(Method):
    """A network and its step against the target.

    Attributes:
        network: it.
        betas: of its Adam.
    """

    settings: PairedSettings
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    def __init__(self, settings: PairedSettings, network: type[Generator]) -> None:
        super().__init__()
        self.settings = settings
        self.needs = NEEDS[settings.pairing]
        self.scale = settings.scale
        self.network = network(**self.architecture()[1])

    @abstractmethod
    def distances(self, result: Tensor, target: Tensor) -> Losses:
        """How far the network's image is from the target, weighted."""

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """``generator``."""
        return {"generator": OptimiserSettings(("network",), self.settings.learning_rate, betas=self.betas)}

    def step(self, batch: Batch, update: Update) -> None:
        """One step against the target."""
        coarse, target = self.pair(batch)
        update("generator", self.distances(self.network(coarse), target))

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Input and target, as :func:`~CTMicroSRLib.training.pairing.input_and_target`."""
        return input_and_target(batch, self.settings.pairing, self.scale, self.settings.noise)

    def generator(self) -> Generator:
        """The network."""
        return self.network


class PairedGan(PairedMethod):
    """A network and a discriminator, on one schedule; the discriminator rests in the pretraining.

    Attributes:
        adversarial: kind of the adversarial loss.
        discriminator: of the fine domain.
    """

    settings: PairedGanSettings
    adversarial: ClassVar[Adversarial]

    def __init__(self, settings: PairedGanSettings, network: type[Generator]) -> None:
        super().__init__(settings, network)
        self.discriminator = PooledDiscriminator(
            channels=settings.discriminator_channels, norm=settings.discriminator_norm
        )

    def check_patch(self, patch_voxels: int, batch: int = 2) -> None:
        """The discriminator's batch norms need more than one value.

        Raises:
            UsageError: patches that leave them one.
        """
        super().check_patch(patch_voxels, batch)
        self.discriminator.check_edge(patch_voxels * self.scale, batch)

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """``generator`` and ``discriminator``."""
        rate = self.settings.learning_rate
        return {
            **super().optimisers(),
            "discriminator": OptimiserSettings(("discriminator",), rate, betas=self.betas),
        }

    def step(self, batch: Batch, update: Update) -> None:
        """The network by distances and adversarial loss, then the discriminator."""
        coarse, target = self.pair(batch)
        result = self.network(coarse)
        distances = self.distances(result, target)
        if update.progress < self.settings.pretrain_share:
            update("generator", distances)
            return
        with frozen(self.discriminator):
            deceiving = adversarial_loss(self.adversarial, self.discriminator, target, result)
        update("generator", {**distances, "adversarial": self.settings.adversarial_weight * deceiving})
        judged = {"discriminator": (self.discriminator, target, result)}
        update("discriminator", critic_losses(self.adversarial, judged))
