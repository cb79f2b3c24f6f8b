"""The intensity window that maps HU to what a network sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from CTMicroSRLib.errors import ModelError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Array = TypeVar("Array", "NDArray[Any]", "torch.Tensor")


LUNG_WINDOW_HU = (-1350.0, 150.0)
"""The window lungs are read at."""


@dataclass(frozen=True)
class IntensityWindow:
    """HU from ``low_hu`` to ``high_hu`` map linearly to -1 to 1.

    Raises:
        ModelError: ``low_hu`` is not below ``high_hu``, or one of them not finite.
    """

    low_hu: float
    high_hu: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low_hu < self.high_hu < math.inf:
            raise ModelError(
                f"The intensity window {self.low_hu}..{self.high_hu} HU is empty or endless; correct the model's card."
            )

    @property
    def hu_per_unit(self) -> float:
        """HU that one unit of the normalised range stands for."""
        return (self.high_hu - self.low_hu) / 2.0

    def normalise(self, hu: Array) -> Array:
        """Clip HU to the window and map it to [-1, 1] (NumPy array or torch tensor)."""
        return (hu.clip(self.low_hu, self.high_hu) - self.low_hu) / self.hu_per_unit - 1.0

    def to_hu(self, normalised: Array) -> Array:
        """Map normalised intensities back to HU, without clipping."""
        return normalised * self.hu_per_unit + (self.hu_per_unit + self.low_hu)
