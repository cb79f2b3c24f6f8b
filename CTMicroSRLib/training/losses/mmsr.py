"""The multi-modality super-resolution loss (P1 eqs 3-8, P2): a result must shrink to its input, and the reverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.resampling import block_mean, repeat
from CTMicroSRLib.training.losses.ssim import SSIM_CONSTANTS, SsimConstants, ssim


@dataclass(frozen=True)
class MmsrWeights:
    """Weights of the four terms; the defaults are P1's Table 1. A term of weight 0 is left out.

    Attributes:
        ssim_clinical: 1 - SSIM of the clinical patch and its shrunk super-resolution.
        ssim_micro: 1 - SSIM of the micro-CT patch and its enlarged shrunk one.
        downsample: distance of the same two as ``ssim_clinical``.
        upsample: distance of the same two as ``ssim_micro``.
    """

    ssim_clinical: float = 1.0
    ssim_micro: float = 1.0
    downsample: float = 0.7
    upsample: float = 0.3


def mmsr_losses(
    clinical: Tensor,
    super_resolved: Tensor,
    micro: Tensor,
    shrunk: Tensor,
    *,
    weights: MmsrWeights | None = None,
    constants: SsimConstants = SSIM_CONSTANTS["standard"],
    power: Literal[1, 2] = 1,
) -> dict[str, Tensor]:
    """The weighted terms by name: ``ssim_clinical``, ``ssim_micro``, ``downsample``, ``upsample``.

    Args:
        clinical: coarse patches x, ``(b, 1, P, P)``.
        super_resolved: G1(x), ``(b, 1, P * scale, P * scale)``.
        micro: fine patches y, ``(b, 1, P * scale, P * scale)``.
        shrunk: G2(y), ``(b, 1, P, P)``.
        weights: None takes P1's Table 1.
        constants: of the SSIM.
        power: 1 for the mean absolute distance (the published code), 2 for the mean square (P1's text).

    Raises:
        ValueError: a power other than 1 and 2.
    """
    if power not in (1, 2):
        raise ValueError(f"power is {power}")
    weights = weights or MmsrWeights()
    distance = functional.l1_loss if power == 1 else functional.mse_loss
    losses: dict[str, Tensor] = {}
    if weights.ssim_clinical or weights.downsample:
        again = block_mean(super_resolved, super_resolved.shape[-1] // clinical.shape[-1])
        if weights.ssim_clinical:
            losses["ssim_clinical"] = weights.ssim_clinical * (1.0 - ssim(clinical, again, constants))
        if weights.downsample:
            losses["downsample"] = weights.downsample * distance(again, clinical)
    if weights.ssim_micro or weights.upsample:
        enlarged = repeat(shrunk, micro.shape[-1] // shrunk.shape[-1])
        if weights.ssim_micro:
            losses["ssim_micro"] = weights.ssim_micro * (1.0 - ssim(micro, enlarged, constants))
        if weights.upsample:
            losses["upsample"] = weights.upsample * distance(enlarged, micro)
    return losses
