"""The Bayesian CycleGAN (P3): dropout in training and in every pass at inference, whose mean is the result.

A CycleGAN on bicubically interpolated clinical CT with the absolute cycle loss (weight 10) and the logarithmic
adversarial loss (eqs 1 to 3). P3 gives neither the place of its dropout layer nor its rate; CycleGAN's is after the
first ReLU of every residual block, with 0.5. Where that drops single values, this drops whole channels, so that a pass
is one network on the whole volume and a tiling can't be seen in its statistics. Intensities stay in [-1, 1], which the
last layer's tanh needs; P3's [0, 1] does not fit its own head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from CTMicroSRLib.card import Postprocess
from CTMicroSRLib.training.losses.adversarial import Adversarial
from CTMicroSRLib.training.methods import cyclegan


@dataclass(frozen=True)
class Settings(cyclegan.Settings):
    """As :class:`~CTMicroSRLib.training.methods.cyclegan.Settings`, with P3's values."""

    adversarial: Adversarial = "log"
    identity: float = 0.0
    learning_rate: float = 1e-4
    dropout_rate: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dropout_rate > 0:
            raise ValueError("dropout_rate is 0, which leaves nothing to vary")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "trainer.steps": 50_000,  # 50 epochs of 5,000 patches
        "trainer.batch": 5,
        "trainer.schedule": "constant",
        "trainer.average_decay": 0.0,
    },
    "small": {**cyclegan.SMALL, "learning_rate": 2e-4, "dropout_rate": 0.2},
    "4x": {"scale": 4},
}


class BayesianCycleGan(cyclegan.CycleGan):
    """See the module; the networks are :class:`~CTMicroSRLib.training.methods.cyclegan.CycleGan`'s."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)

    def card_fields(self) -> dict[str, Any]:
        """The mean of the passes is the result (P3 eq 4), and what follows it; the median's size is not given there."""
        return {"result": "mean", "postprocess": Postprocess(histogram_cells=True, median_voxels=3)}


METHOD = BayesianCycleGan
