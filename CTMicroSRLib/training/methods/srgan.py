"""SRGAN (Ledig et al., CVPR 2017) as the two-stage paper uses it (P0, section 2.3): mean square and adversarial loss.

The loss is the mean square distance plus 0.001 times -log D(G(x)). The 2017 paper compares VGG features instead; P0
mentions none, and their weights are of photographs, so there is no such term here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.networks.srresnet import Norm, SrResnetGenerator
from CTMicroSRLib.training.losses.adversarial import Adversarial
from CTMicroSRLib.training.method import Losses
from CTMicroSRLib.training.paired_method import PairedGan, PairedGanSettings


@dataclass(frozen=True)
class Settings(PairedGanSettings):
    """The generator, beside what all such methods are told; the defaults are P0's, else the 2017 paper's.

    ``adversarial_weight`` is P0's lambda. P0 does not pretrain; the 2017 paper does so for 5/6 of its training.

    Attributes:
        channels: width of the generator.
        blocks: its residual blocks.
        norm: its norm: ``batch`` or ``none``.
    """

    channels: int = 64
    blocks: int = 16
    norm: Norm = "batch"


class SrGan(PairedGan):
    """See the module."""

    settings: Settings
    adversarial: ClassVar[Adversarial] = "log"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, SrResnetGenerator)

    def distances(self, result: Tensor, target: Tensor) -> Losses:
        """The mean square (P0 eq 3)."""
        return {"mean_square": functional.mse_loss(result, target)}

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
