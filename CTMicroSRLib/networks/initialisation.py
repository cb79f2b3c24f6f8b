"""Random starting weights."""

from __future__ import annotations

from torch import nn


def initialise_normal(module: nn.Module, std: float = 0.02) -> None:
    """Weights N(0, std^2) and biases 0, as CycleGAN's and the SR-CycleGAN's (P1) published code start.

    Covers convolutions, transposed convolutions and linear layers; the factors of batch norms are N(1, std^2).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, std)
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.normal_(layer.weight, 1.0, std)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
