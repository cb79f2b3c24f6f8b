"""Networks that work on the fine grid throughout: the coarse image is interpolated onto it first."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.interpolation import REACH


def onto_fine_grid(coarse: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """Cubic interpolation, under autocast in the image's own precision: training takes the result for a target too.

    Args:
        coarse: ``(b, 1, rows, columns)``; its outermost voxels are repeated beyond the border.
        kernels: :func:`~CTMicroSRLib.interpolation.phase_kernels` of the scale. They are a buffer of the generator
            itself and not of a layer, because the engine brings layers to bfloat16.
        scale: fine voxels per coarse voxel.

    Returns:
        ``(b, 1, rows * scale, columns * scale)``.
    """
    padded = functional.pad(coarse, (REACH,) * 4, mode="replicate")
    kind = coarse.device.type
    # Elsewhere nothing of ours autocasts, and older torch knows no autocast of some devices.
    with torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext():
        phases = functional.conv2d(padded, kernels.to(coarse.dtype))
    return functional.pixel_shuffle(phases, scale)
