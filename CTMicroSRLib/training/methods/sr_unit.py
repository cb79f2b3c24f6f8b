"""SR-UNIT (P2, SPIE 2020): UNIT's two autoencoders made for super-resolution, held together by the MMSR loss.

The latent grid is the clinical CT's, see :mod:`CTMicroSRLib.networks.unit`; the rest of the losses is UNIT's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from CTMicroSRLib.training.losses.mmsr import MmsrWeights, mmsr_losses
from CTMicroSRLib.training.losses.ssim import SSIM_CONSTANTS
from CTMicroSRLib.training.method import Batch
from CTMicroSRLib.training.methods import unit
from CTMicroSRLib.training.setting_checks import check_choice


@dataclass(frozen=True)
class Settings(unit.Settings):
    """UNIT's, and the MMSR loss; the defaults are P2's (section 3.2, eqs 1-4).

    Attributes:
        ssim_clinical_weight: lambda 1, of 1 - SSIM of the clinical patch and its shrunk super-resolution.
        ssim_micro_weight: lambda 2, of 1 - SSIM of the micro-CT patch and its enlarged shrunk one.
        downsample_weight: lambda 3, of the distance of the first two.
        upsample_weight: lambda 4, of the distance of the second two.
        ssim_constants: a key of :data:`~CTMicroSRLib.training.losses.ssim.SSIM_CONSTANTS`.
        distance_power: 2 for mean squares (P2 eqs 2 and 3), 1 for mean absolute distances.
    """

    ssim_clinical_weight: float = 2.0
    ssim_micro_weight: float = 1.0
    downsample_weight: float = 1.0
    upsample_weight: float = 1.0
    ssim_constants: str = "paper"
    distance_power: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "ssim_constants", SSIM_CONSTANTS)
        check_choice(self, "distance_power", (1, 2))


class SrUnitMethod(unit.UnitMethod):
    """See the module."""

    interpolated: ClassVar[bool] = False
    settings: Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)

    def generator_losses(self, batch: Batch, made: unit.Translation) -> dict[str, Tensor]:
        """UNIT's losses and the four terms of MMSR."""
        settings = self.settings
        mmsr = mmsr_losses(
            batch.clinical,
            made.super_resolved,
            batch.micro,
            made.shrunk,
            weights=MmsrWeights(
                ssim_clinical=settings.ssim_clinical_weight,
                ssim_micro=settings.ssim_micro_weight,
                downsample=settings.downsample_weight,
                upsample=settings.upsample_weight,
            ),
            constants=SSIM_CONSTANTS[settings.ssim_constants],
            power=settings.distance_power,
        )
        return super().generator_losses(batch, made) | mmsr


METHOD = SrUnitMethod
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # 200 epochs of 10,000 patches; the batch is not stated, UNIT's is 1.
    # UNIT halves every 100,000 steps, here too.
    "paper": {
        **unit.PRESETS["paper"],
        "trainer.steps": 2_000_000,
        "trainer.halving_shares": tuple(round(0.05 * n, 2) for n in range(1, 20)),
    },
    "small": {**unit.PRESETS["small"], "channels": 12},
}
