"""m-HuM: how alike the shapes of two sets of images are, by the Hu moments of what is bright in them.

The Bayesian CycleGAN paper (P3, equation 5) takes the smallest Hu moment distance over all pairs of two unpaired sets
and leaves the distance open; the three here are those of OpenCV's ``matchShapes``. A smallest distance rewards any one
accidental likeness, so images with next to nothing bright are left out, and the mean and the median over the images of
one set of their smallest distances are told too (the mean is what the paper's table averages).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Form = Literal["I1", "I2", "I3"]

LEAST_MOMENT = 1e-5
"""Smaller moments are left out of a distance, as in OpenCV: their logarithm is that of rounding errors."""


@dataclass(frozen=True)
class ShapeSettings:
    """What counts as a shape.

    Attributes:
        threshold_hu: voxels above it are foreground; -500 parts vessels and walls from lung.
        least_area_voxels: images with less foreground have no shape.

    Raises:
        ValueError: no area.
    """

    threshold_hu: float = -500.0
    least_area_voxels: int = 100

    def __post_init__(self) -> None:
        if self.least_area_voxels < 1:
            raise ValueError(f"An area of {self.least_area_voxels} voxels is none.")


@dataclass(frozen=True)
class HuDistances:
    """Of all pairs the smallest distance, and mean and median over the images of their own smallest."""

    m_hum: float
    mean_of_minima: float
    median_of_minima: float


def hu_moments(image_hu: NDArray[Any], settings: ShapeSettings | None = None) -> Float | None:
    """The seven Hu moments (Hu 1962) of a slice's foreground as a binary shape; None where it is too small.

    They do not change when the shape is moved, turned or enlarged.
    """
    from skimage.measure import moments_central, moments_hu, moments_normalized

    settings = settings or ShapeSettings()
    foreground = np.asarray(image_hu) > settings.threshold_hu
    if int(foreground.sum()) < settings.least_area_voxels:
        return None
    central = moments_central(foreground.astype(np.float64), order=3)
    return np.asarray(moments_hu(moments_normalized(central, order=3)), dtype=np.float64)


def hu_distance(first: Float, second: Float, form: Form = "I2") -> float:
    """Distance of two shapes by their Hu moments h, with m = sign(h) log10 |h|.

    I1 = sum |1 / m1 - 1 / m2|, I2 = sum |m1 - m2|, I3 = max |m1 - m2| / |m1|, over the moments above
    :data:`LEAST_MOMENT` in both. NaN where there is none. I2 is the default: 1 / m of a moment near 1, as of vessels
    that are spread over a slice, is endless.
    """
    used = (np.abs(first) > LEAST_MOMENT) & (np.abs(second) > LEAST_MOMENT)
    if not used.any():
        return float("nan")
    m1, m2 = (np.sign(h[used]) * np.log10(np.abs(h[used])) for h in (first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        if form == "I1":
            return float(np.sum(np.abs(1.0 / m1 - 1.0 / m2)))
        if form == "I2":
            return float(np.sum(np.abs(m1 - m2)))
        return float(np.max(np.abs(m1 - m2) / np.abs(m1)))


def minimum_distances(
    images: Sequence[Float | None], others: Sequence[Float | None], form: Form = "I2"
) -> HuDistances | None:
    """m-HuM of two sets of Hu moments; None where one of them holds no shape."""
    rows = [
        [hu_distance(first, second, form) for second in others if second is not None]
        for first in images
        if first is not None
    ]
    minima = [min(kept) for row in rows if (kept := [d for d in row if np.isfinite(d)])]
    if not minima:
        return None
    return HuDistances(min(minima), float(np.mean(minima)), float(np.median(minima)))
