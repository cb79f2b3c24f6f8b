"""This project's own compact generator, supervised on simulated pairs, with the scan's blur and noise as inputs.

The blur and noise that the network is told are off by up to a share of themselves, so that it can live with estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.networks.compact import CompactGenerator
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.training.losses.grid import grid_power
from CTMicroSRLib.training.method import Batch, Domain, Method, OptimiserSettings, Update
from CTMicroSRLib.training.samples import generator_input
from CTMicroSRLib.training.supervised import PLANES


@dataclass(frozen=True)
class Settings:
    """Network and loss; the defaults are those of the shipped model.

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
        if self.loss not in ("l1", "mean_square"):
            raise ValueError("loss must be one of l1, mean_square")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError("dropout_rate must be from 0 to less than 1")
        if not (0.0 <= self.misjudged_psf < 1.0 and 0.0 <= self.misjudged_noise < 1.0):
            raise ValueError("misjudged shares must be from 0 to less than 1")
        if min(self.grid_weight, self.learning_rate) < 0:
            raise ValueError("weights and learning rate must not be negative")


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

_SHIPPED = {
    "trainer.batch": 8,
    "trainer.steps": 9_000,
    "trainer.schedule": "cosine",
    "trainer.average_decay": 0.999,
    "trainer.gradient_clip": 1.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": _SHIPPED,
    "grid-free": {**_SHIPPED, "grid_weight": 100.0},
    "small": {"channels": 24, "blocks": 4},
}
"""There is no paper: ``paper`` is how the shipped model was trained, but for its warm-up."""
