"""The U-Net (Ronneberger et al., MICCAI 2015) on interpolated input, a baseline of the Bayesian CycleGAN (P3).

P3 makes its input of micro-CT, shrunk and noisy, and gives neither loss nor schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch.nn import functional

from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.networks.unet import UnetGenerator
from CTMicroSRLib.training.method import Batch, Domain, Method, OptimiserSettings, Update
from CTMicroSRLib.training.pairing import NEEDS, Pairing, check_pairing, input_and_target


@dataclass(frozen=True)
class Settings:
    """Network and loss.

    Attributes:
        scale: fine voxels per coarse voxel, a power of 2.
        channels: of the network's first depth.
        depth: how often it halves the image.
        loss: ``l1`` or ``mean_square``.
        pairing: see :data:`~CTMicroSRLib.training.pairing.Pairing`.
        noise: standard deviation of the noise added to the input, normalised (0.01 is 17.5 HU of a 3,500 HU window).
        learning_rate: Adam's.
    """

    scale: int = 8
    channels: int = 64
    depth: int = 4
    loss: Literal["l1", "mean_square"] = "l1"
    pairing: Pairing = "paired"
    noise: float = 0.0
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        check_pairing(self.pairing)
        if self.loss not in ("l1", "mean_square"):
            raise ValueError("loss must be one of l1, mean_square")
        if min(self.noise, self.learning_rate) < 0:
            raise ValueError("noise and learning rate must not be negative")


class Unet(Method):
    """See the module."""

    needs: frozenset[Domain]  # depends on the pairing

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.needs = NEEDS[settings.pairing]
        self.scale = settings.scale
        self.network = UnetGenerator(**self.architecture()[1])

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """Adam with the usual moments."""
        return {"generator": OptimiserSettings(("network",), self.settings.learning_rate, betas=(0.9, 0.999))}

    def step(self, batch: Batch, update: Update) -> None:
        """One step against the target."""
        settings = self.settings
        coarse, target = input_and_target(batch, settings.pairing, self.scale, settings.noise)
        distance = functional.l1_loss if settings.loss == "l1" else functional.mse_loss
        update("generator", {settings.loss: distance(self.network(coarse), target)})

    def generator(self) -> Generator:
        """The U-Net."""
        return self.network

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """``unet``."""
        settings = self.settings
        return "unet", {"channels": settings.channels, "depth": settings.depth, "scale": settings.scale}


METHOD = Unet

_P3 = {"trainer.batch": 5, "trainer.steps": 50_000, "trainer.schedule": "constant", "trainer.average_decay": 0.0}
_SMALL = {"channels": 8, "depth": 4}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**_P3, "pairing": "shrunk", "noise": 0.01},
    "paired": _P3,
    "unpaired": {**_P3, "pairing": "unpaired"},
    "small": _SMALL,
    "small-unpaired": {**_SMALL, "pairing": "unpaired"},
}
"""``paper`` is P3's comparison, with the batch and the 50 epochs of 5,000 patches of P3's own method and an assumed
noise; ``paired`` learns from simulated scans instead."""
