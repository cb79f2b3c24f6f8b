"""This project's own compact generator, supervised on simulated pairs, with the scan's blur and noise as inputs.

The blur and noise that the network is told are off by up to a share of themselves, so that it can live with estimates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.card import Plane
from CTMicroSRLib.networks.compact import CompactGenerator
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.training.losses.grid import grid_power
from CTMicroSRLib.training.method import Batch, Domain, Method, OptimiserSettings, Update
from CTMicroSRLib.training.samples import generator_input
from CTMicroSRLib.training.setting_checks import check_above_zero, check_choice, check_weights

PLANES = (
    Plane("psf_fwhm_voxels", mean=1.8, std=0.7, low=0.65, high=4.0),
    Plane("log_noise_hu", mean=2.7, std=0.9, low=math.log(2.0), high=math.log(70.0)),
)
"""What the network is told of a scan; the limits are those of the simulated scanners."""


@dataclass(frozen=True)
class Settings:
    """Network and loss; the network's defaults are those of the shipped model.

    Attributes:
        scale: fine voxels per coarse voxel.
        channels: width of the network.
        blocks: its residual blocks.
        dropout_rate: probability that a channel is dropped.
        dropout_blocks: how many of the last blocks have dropout.
        loss: ``l1`` or ``mean_square``.
        grid_weight: of the power with which result minus truth repeats every ``scale`` voxels. 0 leaves it out; at 100
            a grid of 5 HU (root mean square) counts like a distance of 1.4 HU.
        same_start: the last layer starts alike for all phases (Aitken et al., arXiv 1707.02937), without a grid.
        misjudged_psf: largest share by which the point spread is misjudged.
        misjudged_noise: that of the noise.
        learning_rate: Adam's.
    """

    scale: int = 8
    channels: int = 48
    blocks: int = 8
    dropout_rate: float = 0.1
    dropout_blocks: int = 1
    loss: Literal["l1", "mean_square"] = "l1"
    grid_weight: float = 0.0
    same_start: bool = True
    misjudged_psf: float = 0.12
    misjudged_noise: float = 0.2
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_choice(self, "loss", ("l1", "mean_square"))
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError("dropout_rate must be from 0 to less than 1")
        if not (0.0 <= self.misjudged_psf < 1.0 and 0.0 <= self.misjudged_noise < 1.0):
            raise ValueError("misjudged shares must be from 0 to less than 1")
        check_weights(self)
        check_above_zero(self, "learning_rate")


class Compact(Method):
    """See the module."""

    needs: frozenset[Domain] = frozenset({"clinical", "truth"})

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.scale = settings.scale
        self.network = CompactGenerator(**self.architecture()[1])
        if settings.same_start:
            with torch.no_grad():
                self.network.tail.weight.copy_(self.network.tail.weight[:1].expand_as(self.network.tail.weight))

    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """Adam with the usual moments."""
        return {"generator": OptimiserSettings(("network",), self.settings.learning_rate, betas=(0.9, 0.999))}

    def step(self, batch: Batch, update: Update) -> None:
        """One step against the truth."""
        assert batch.truth is not None
        settings = self.settings
        result = self.network(self.told(batch))
        distance = functional.l1_loss if settings.loss == "l1" else functional.mse_loss
        losses: dict[str, Tensor] = {settings.loss: distance(result, batch.truth)}
        if settings.grid_weight:
            losses["grid"] = settings.grid_weight * grid_power(result - batch.truth, self.scale)
        update("generator", losses)

    def told(self, batch: Batch) -> Tensor:
        """The network's input ``(b, 3, P, P)``: image, misjudged point spread and noise (the mean where unknown)."""
        settings = self.settings
        psf = batch.psf_fwhm_voxels * _misjudgement(batch.psf_fwhm_voxels, settings.misjudged_psf)
        noise = batch.noise_hu * _misjudgement(batch.noise_hu, settings.misjudged_noise)
        return generator_input(replace(batch, psf_fwhm_voxels=psf, noise_hu=noise), PLANES)

    def generator(self) -> Generator:
        """The compact generator."""
        return self.network

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """``compact``."""
        settings = self.settings
        return "compact", {
            "channels": settings.channels,
            "blocks": settings.blocks,
            "scale": settings.scale,
            "planes": len(PLANES),
            "dropout_rate": settings.dropout_rate,
            "dropout_blocks": settings.dropout_blocks,
        }

    def card_fields(self) -> dict[str, Any]:
        """The constant planes."""
        return {"planes": PLANES}


def _misjudgement(values: Tensor, share: float) -> Tensor:
    """Factors of uniform distribution, 1 - share to 1 + share."""
    return 1.0 + share * (2.0 * torch.rand_like(values) - 1.0)


METHOD = Compact

PRESETS: dict[str, dict[str, Any]] = {
    "shipped": {
        "loss": "mean_square",
        "grid_weight": 20.0,
        "trainer.batch": 8,
        "trainer.steps": 9_000,
        "trainer.schedule": "cosine",
        "trainer.warm_up_share": 0.03,
        "trainer.gradient_clip": 1.0,
        "patches.patch_voxels": 40,
        "patches.least_lung_share": 0.3,
        "simulation.specimens": 120,
        "simulation.micro_specimens": 1,
        "simulation.patches_per_specimen": 60,
        "simulation.shaped_share": 0.35,
        "simulation.slice_mm": (0.5, 5.0),
    },
    "small": {"channels": 24, "blocks": 4},
}
"""There is no paper: ``shipped`` is how the shipped model is trained, with the patches that it wants."""
