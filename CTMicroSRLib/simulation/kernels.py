"""Reconstruction kernels: how much of each spatial frequency a clinical scanner passes on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError

RATIOS = (1.25, 2.5)
"""Least and greatest MTF10 / MTF50: a shape exponent from 5.4 (a steep cut that rings) down to 1.3 (long tails)."""

GAUSSIAN_RATIO = math.sqrt(math.log(10.0) / math.log(2.0))
"""MTF10 / MTF50 of a Gaussian point spread, 1.82."""


@dataclass(frozen=True)
class Kernel:
    """A kernel by the frequencies, in cycles/mm, at which its modulation transfer is 50 % and 10 %.

    In between and beyond it is ``exp(-ln2 (f / mtf50)^p)`` with the ``p`` that both figures ask for. A ``p`` of 2 is
    a Gaussian point spread, which measured ones resemble (Nickoloff and Riley, Med Phys 1985;12:437); a greater one
    keeps more of the middle frequencies, cuts the high ones more steeply, and so over- and undershoots at edges as
    sharp kernels do. A gain above 1, as some very sharp kernels have in the middle, is not part of this form.

    The transfer is that of the point spread before the mean over the pixel.

    Raises:
        UsageError: figures that are not positive and finite, or whose ratio lies outside :data:`RATIOS`.
    """

    mtf50_per_mm: float
    mtf10_per_mm: float

    def __post_init__(self) -> None:
        if not (0 < self.mtf50_per_mm < math.inf and self.mtf50_per_mm < self.mtf10_per_mm < math.inf):
            raise UsageError(
                f"A kernel with MTF50 {self.mtf50_per_mm} and MTF10 {self.mtf10_per_mm} cycles/mm is not possible; "
                "give a positive MTF50 and a greater MTF10."
            )
        low, high = RATIOS
        if not low <= self.mtf10_per_mm / self.mtf50_per_mm <= high:
            raise UsageError(
                f"A kernel's MTF10 must be {low} to {high} times its MTF50 (a Gaussian's is {GAUSSIAN_RATIO:.2f}), "
                f"not {self.mtf10_per_mm / self.mtf50_per_mm:.2f} times; change one."
            )

    @staticmethod
    def gaussian(psf_fwhm_mm: float) -> Kernel:
        """The kernel with a Gaussian point spread of that full width at half maximum.

        Raises:
            UsageError: the width is not positive and finite.
        """
        if not 0 < psf_fwhm_mm < math.inf:
            raise UsageError(f"A point spread of {psf_fwhm_mm} mm is not possible; give a width above zero.")
        mtf50 = 2.0 * math.log(2.0) / (math.pi * psf_fwhm_mm)
        return Kernel(mtf50, mtf50 * GAUSSIAN_RATIO)

    @property
    def shape(self) -> float:
        """The exponent ``p``."""
        return math.log(math.log(10.0) / math.log(2.0)) / math.log(self.mtf10_per_mm / self.mtf50_per_mm)

    @property
    def psf_fwhm_mm(self) -> float:
        """Full width at half maximum of the Gaussian with the same MTF50: what networks and consistency are told."""
        return 2.0 * math.log(2.0) / (math.pi * self.mtf50_per_mm)

    def mtf(self, frequency_per_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Modulation transfer at radial frequencies (cycles/mm, any shape), 1 at zero."""
        relative = np.abs(np.asarray(frequency_per_mm, dtype=np.float64)) / self.mtf50_per_mm
        return np.asarray(np.exp(-math.log(2.0) * relative**self.shape))

    def frequency_at(self, transfer: float) -> float:
        """Frequency in cycles/mm at which the modulation transfer has fallen to ``transfer`` (between 0 and 1)."""
        return float(self.mtf50_per_mm * (-math.log(transfer) / math.log(2.0)) ** (1.0 / self.shape))


KERNELS: dict[str, Kernel] = {
    "smooth": Kernel(0.31, 0.59),
    "soft": Kernel(0.35, 0.59),
    "standard": Kernel(0.40, 0.80),
    "body": Kernel(0.47, 0.97),
    "medium": Kernel(0.56, 0.94),
    "detail": Kernel(0.62, 1.00),
    "bone": Kernel(0.70, 1.10),
}
"""Kernels from soft to sharp, in cycles/mm.

Measured figures: ``soft`` and ``medium`` are Siemens B30 (3.5 and 5.9 lp/cm) and D45 (5.6 and 9.4 lp/cm), as stated in
the source of the FDA's simulated image quality phantoms (B. Nelson and R. Zeng, ``make_CTP404.m``, 2022). ``smooth``,
``body`` and ``detail`` are the abdominal protocol of an ultra-high-resolution scanner with hybrid iterative
reconstruction at a quarter of the dose, with filtered back-projection, and with deep-learning reconstruction (Shirasaka
et al., J Appl Clin Med Phys 2021;22(7):286, table 5). ``bone`` has the in-plane MTF10 of kernel FC30 at normal
resolution (Med Phys 2021, "Location and direction dependence in the 3D MTF for a high-resolution CT system"); its MTF50
is ours, and so are both figures of ``standard``, which lies between its neighbours.

Measured figures hold for the whole scanner, the simulated image has the mean over its pixel on top: with a pixel of
0.65 mm its MTF50 is 5 % (``smooth``) to 16 % (``bone``) lower.
"""
