"""Normalisation layers: instance norm to train with, and its frozen form that makes tiles exact."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["instance", "frozen", "none"]

VARIANCE_EPSILON = 1e-5


class InstanceNorm(nn.Module):
    """(x - mean) / std of every image's every channel; no weights, nothing kept.

    The same as torch's own instance norm, which copies channels-last features to and fro on a CPU; its batch norm of
    one image after the other does not, and takes less than half of the time (`make benchmark-training`).
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features ``(b, c, rows, columns)``."""
        if features.device.type != "cpu":
            return functional.instance_norm(features, eps=VARIANCE_EPSILON)
        if features.dtype == torch.bfloat16:  # in float32, as the sums are long; autocast brings it back where it wants
            exact: Tensor = self(features.float())
            return exact if torch.is_autocast_enabled("cpu") else exact.bfloat16()
        images = features.split(1)
        return torch.cat([functional.batch_norm(i, None, None, training=True, eps=VARIANCE_EPSILON) for i in images])


class FrozenNorm(nn.Module):
    """(x - mean) / std by channel with statistics measured once; folds into the convolution before it."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features."""
        std = torch.sqrt(self.variance + VARIANCE_EPSILON)
        result: Tensor = (features - self.mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
        return result

    def fold_into(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
        """Put the statistics into the weights of the convolution before this norm, which does both from then on."""
        std = torch.sqrt(self.variance.double() + VARIANCE_EPSILON)
        weight, bias = convolution.weight, convolution.bias
        assert bias is not None
        outputs = (1, -1, 1, 1) if isinstance(convolution, nn.ConvTranspose2d) else (-1, 1, 1, 1)
        with torch.no_grad():
            bias.copy_((bias.double() - self.mean.double()) / std)
            weight.copy_(weight.double() / std.view(outputs))

    @staticmethod
    def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance by channel of what came into the norm that this one replaces, float64."""
        variance, mean = torch.var_mean(features.double(), dim=(0, 2, 3), correction=0)
        return mean, variance


def make_norm(norm: Norm, channels: int) -> nn.Module | None:
    """The norm layer of a kind; None for ``none``."""
    if norm not in ("instance", "frozen", "none"):
        raise ValueError(f"norm is {norm!r}")
    if norm == "instance":
        return InstanceNorm()
    return FrozenNorm(channels) if norm == "frozen" else None


class FoldingLayer(nn.Module):
    """A convolution and, where there is one, the norm after it, which folds into it once its statistics are fixed."""

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.Module | None) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = norm

    def normalised(self, features: Tensor) -> Tensor:
        """The convolution and the norm of features."""
        result: Tensor = self.convolution(features)
        return result if self.norm is None else self.norm(result)

    def fold(self) -> None:
        """Put frozen statistics into the convolution's weights; other norms stay."""
        if isinstance(self.norm, FrozenNorm):
            self.norm.fold_into(self.convolution)
            self.norm = None


def fold_norms(network: nn.Module) -> None:
    """Fold every norm of a network whose statistics are fixed into the convolution before it, in place."""
    for module in network.modules():
        if isinstance(module, FoldingLayer):
            module.fold()
