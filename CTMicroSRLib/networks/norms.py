"""Normalisation layers: instance norm to train with, and its frozen form that makes tiles exact."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["instance", "frozen", "none"]

VARIANCE_EPSILON = 1e-5


class InstanceNorm(nn.Module):
    """(x - mean) / std of every image's every channel; no weights, nothing kept.

    The same as torch's own instance norm, which copies channels-last features to and fro on a CPU: there this takes
    half of its time.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalised features ``(b, c, rows, columns)``."""
        if features.device.type != "cpu":
            return functional.instance_norm(features, eps=VARIANCE_EPSILON)
        if features.shape[-2] * features.shape[-1] < 2:
            raise ValueError("instance norm needs more than one voxel by channel")
        if features.dtype == torch.bfloat16:
            features = features.float()  # as autocast would: the sums are long
        result: Tensor = _InstanceNormalisation.apply(features)  # type: ignore[no-untyped-call]
        return result


class _InstanceNormalisation(torch.autograd.Function):
    """Mean and variance as plain sums, which are faster by far than Welford's on channels-last features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:  # noqa: ANN401 - torch's context has no public type
        centred = features - features.mean(dim=(2, 3), keepdim=True)
        rate = torch.rsqrt_((centred * centred).mean(dim=(2, 3), keepdim=True).add_(VARIANCE_EPSILON))
        ctx.save_for_backward(centred, rate)
        return centred * rate

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        centred, rate = ctx.saved_tensors
        along = (gradient * centred).mean(dim=(2, 3), keepdim=True).mul_(rate).mul_(rate).neg_()
        flat = gradient - gradient.mean(dim=(2, 3), keepdim=True)
        return torch.addcmul(flat, centred, along).mul_(rate)


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


def fold_norm(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: FrozenNorm) -> None:
    """Put frozen statistics into the weights of the convolution before them."""
    std = torch.sqrt(norm.variance.double() + VARIANCE_EPSILON)
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    outputs = (1, -1, 1, 1) if isinstance(convolution, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    with torch.no_grad():
        bias.copy_((bias.double() - norm.mean.double()) / std)
        weight.copy_(weight.double() / std.view(outputs))
