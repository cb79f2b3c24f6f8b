"""Monte-Carlo dropout: many passes under dropout, their mean and standard deviation in one sweep.

Whole channels are dropped (Dropout2d), and pass t drops the same channels in every tile and every slice: each
pass is one network applied to the whole volume, so a tiling can't be seen in the statistics. Memory
does not grow with the number of passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from CTMicroSRLib.card import Calibration
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.networks.generator import Border, Generator, Masks


@dataclass(frozen=True)
class PassStatistics:
    """Fine tiles in HU, float32: the pass without dropout, and mean and standard deviation under dropout.

    ``standard_deviation`` is the sample's (division by T - 1), not yet calibrated.
    """

    plain: Tensor
    mean: Tensor
    standard_deviation: Tensor


def channel_masks(network: Generator, seed: int, index: int, device: torch.device) -> Masks:
    """The channel factors (0 or 1 / (1 - p)) of pass ``index``: a function of seed, pass and layer alone."""
    keep = 1.0 - network.dropout_rate
    masks = []
    for layer, channels in enumerate(network.dropout_channels):
        rng = np.random.default_rng([seed, index, layer, 0x44524F50])
        factors = (rng.random(channels) < keep) / keep
        masks.append(torch.from_numpy(factors.astype(np.float32)).to(device))
    return masks


def pass_statistics(
    network: Generator, tile: Tensor, border: Border, masks: Sequence[Masks], window: IntensityWindow
) -> PassStatistics:
    """Run the passes and gather their statistics relative to the pass without dropout.

    Sums of differences from the plain pass are as stable as Welford's recurrence, since the passes lie
    close around it, and cost two running images, kept before the pixel shuffle.
    """
    state = network.prefix(tile, border)
    plain = network.suffix(state, border, None)
    total = torch.zeros_like(plain)
    squares = torch.zeros_like(plain)
    for mask in masks:
        difference = network.suffix(state, border, mask).sub_(plain)
        total.add_(difference)
        squares.addcmul_(difference, difference)
    count = len(masks)
    mean_difference = total / count
    variance = (squares - total * mean_difference).clamp_(min=0.0) / max(1, count - 1)
    image, mean, deviation = (
        network.to_image(phases)[0, 0].float() for phases in (plain, plain + mean_difference, variance.sqrt_())
    )
    return PassStatistics(window.to_hu(image), window.to_hu(mean), deviation * window.hu_per_unit)


def calibrated(standard_deviation_hu: Tensor, calibration: Calibration) -> Tensor:
    """Standard deviation that covers the error: sqrt((scale s)^2 + floor^2), HU."""
    scaled = standard_deviation_hu * calibration.scale
    return torch.sqrt(scaled * scaled + calibration.floor_hu**2)
