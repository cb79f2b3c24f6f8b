"""Gradients of one optimiser: averaged over the processes, measured and clipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def average_over_processes(fabric: Fabric, gradients: list[Tensor], values: Tensor) -> Tensor:
    """Replace the gradients by their mean over the processes, in place, in one exchange.

    The networks are not wrapped (``DistributedDataParallel`` allows one forward pass for each backward pass, which no
    GAN keeps to), so any step works as long as the same parameters get gradients on every process.

    Args:
        fabric: knows the processes.
        gradients: of one optimiser, the same shapes on every process.
        values: ``(n,)`` more numbers to average (the losses), float32.

    Returns:
        The mean of ``values`` over the processes, which every process thus has alike.
    """
    if fabric.world_size == 1:
        return values
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), values])
    mean = fabric.all_reduce(flat, reduce_op="mean")
    assert isinstance(mean, Tensor)
    parts: tuple[Tensor, ...] = mean.split([*(gradient.numel() for gradient in gradients), len(values)])
    for gradient, part in zip(gradients, parts[:-1], strict=True):
        gradient.copy_(part.view(gradient.shape))
    return parts[-1]


def gradient_norm(gradients: list[Tensor], values: Tensor) -> Tensor:
    """Euclidean norm of all of them together, a scalar on the device of ``values``; 0 without gradients."""
    if not gradients:
        return values.new_zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


def clip_gradients(gradients: list[Tensor], norm: Tensor, largest: float) -> None:
    """Scale the gradients, in place, so that their norm is at most ``largest``."""
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
