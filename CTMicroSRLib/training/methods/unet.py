"""The U-Net (Ronneberger et al., MICCAI 2015) on interpolated input, a baseline of the Bayesian CycleGAN (P3).

P3 makes its input of micro-CT, shrunk and noisy, and gives neither loss nor schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.networks.unet import UnetGenerator
from CTMicroSRLib.training.method import Losses
from CTMicroSRLib.training.paired_method import PairedMethod, PairedSettings
from CTMicroSRLib.training.setting_checks import check_choice

Distance = Literal["l1", "mean_square"]


@dataclass(frozen=True)
class Settings(PairedSettings):
    """Network and loss, beside what all supervised methods are told.

    Attributes:
        channels: of the network's first depth.
        depth: how often it halves the image.
        loss: ``l1`` or ``mean_square``.
    """

    channels: int = 64
    depth: int = 4
    loss: Distance = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "loss", get_args(Distance))


class Unet(PairedMethod):
    """See the module."""

    settings: Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, UnetGenerator)

    def distances(self, result: Tensor, target: Tensor) -> Losses:
        """The one that the settings choose."""
        loss = self.settings.loss
        distance = functional.l1_loss if loss == "l1" else functional.mse_loss
        return {loss: distance(result, target)}

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
