"""A small GAN with everything that the trainer must keep: two optimisers, a pool, dropout, a running statistic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from CTMicroSRLib.networks.generator import WHOLE, Generator
from CTMicroSRLib.training.method import Batch, Method, OptimiserSettings, frozen
from CTMicroSRLib.training.methods import MethodKind

PATCH, SCALE = 6, 2


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-3
    dropout: float = 0.3
    batch_norm: bool = True
    breaks_at: float = 2.0  # share of the training at which the loss is NaN
    broken: str = "loss"
    critic_span: tuple[float, float] = (0.0, 1.0)


class TinyGenerator(Generator):
    scale, halo = SCALE, 2

    def __init__(self, *, channels: int = 4, dropout: float = 0.0, batch_norm: bool = True) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.drop = nn.Dropout2d(dropout)
        self.tail = nn.Conv2d(channels, SCALE**2, 3, padding=1)

    def prefix(self, tile, border=WHOLE):
        return (self.norm(torch.relu(self.head(tile))),)

    def suffix(self, state, border=WHOLE, masks=None):
        return self.tail(self.drop(state[0]))


class TinyGan(Method):
    needs: ClassVar = frozenset({"clinical", "micro"})
    scale = SCALE

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.maker = TinyGenerator(dropout=settings.dropout, batch_norm=settings.batch_norm)
        self.critic = nn.Sequential(nn.Conv2d(1, 4, 4, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3))
        self.calls: list[str] = []

    def optimisers(self):
        rate, span = self.settings.learning_rate, self.settings.critic_span
        return {
            "maker": OptimiserSettings(("maker",), rate),
            "critic": OptimiserSettings(("critic",), 2 * rate, span=span),
        }

    def step(self, batch: Batch, update) -> None:
        with frozen(self.critic):
            fake = self.maker(batch.clinical)
            gan = functional.mse_loss(self.critic(fake), torch.ones(()).expand_as(self.critic(fake)))
            down = functional.l1_loss(functional.avg_pool2d(fake, SCALE), batch.clinical)
            if update.progress >= self.settings.breaks_at:
                gan = gan * float("nan") if self.settings.broken == "loss" else torch.sqrt(0.0 * gan)
            update("maker", {"gan": gan, "down": down})
        shown = update.pool("fake", fake)
        real, false = self.critic(batch.micro), self.critic(shown)
        update("critic", {"real": functional.mse_loss(real, torch.ones_like(real)), "fake": (false**2).mean()})

    def generator(self):
        return self.maker

    def architecture(self):
        return "tiny", {"dropout": self.settings.dropout}


KIND = MethodKind("tiny", TinyGan, Settings, {})


def tiny_batches(total=4, truth=True, patch=PATCH):
    """``batches(step, process, processes)``: every slot's patches depend on step and slot alone."""

    def slot(step, number):
        rng = np.random.default_rng([step, number])
        fine = rng.uniform(-1, 1, (2, patch * SCALE, patch * SCALE)).astype(np.float32)
        coarse = fine[0].reshape(patch, SCALE, patch, SCALE).mean((1, 3), dtype=np.float32)
        return coarse, fine[1], fine[0]

    def batches(step, process, processes):
        own = total // processes
        slots = [slot(step, number) for number in range(process * own, (process + 1) * own)]
        clinical, micro, true = (torch.from_numpy(np.stack(images))[:, None] for images in zip(*slots, strict=True))
        unknown = torch.full((own,), float("nan"))
        return Batch(clinical, micro, true if truth else None, unknown, unknown)

    return batches
