"""The exponential average of a generator's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from CTMicroSRLib.networks.generator import Generator


class WeightAverage:
    """A copy of a generator, in evaluation mode, whose weights follow the original's slowly.

    The decay starts low, as ``(1 + step) / (10 + step)``, so that the average forgets the random start. Buffers
    (running statistics) are copied as they are.

    Attributes:
        network: the copy.
    """

    def __init__(self, original: Generator, decay: float) -> None:
        self.network = copy.deepcopy(original).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def follow(self, original: Generator, step: int) -> None:
        """Take the weights after ``step`` (counted from 0) into the average."""
        kept: list[Tensor] = list(self.network.parameters())
        new: list[Tensor] = list(original.parameters())
        torch._foreach_lerp_(kept, new, 1.0 - min(self._decay, (1 + step) / (10 + step)))
        for buffer, current in zip(self.network.buffers(), original.buffers(), strict=True):
            buffer.copy_(current)
