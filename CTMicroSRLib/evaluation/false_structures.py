"""Structures that an image shows in plain parenchyma, where the truth has none.

The rule, slice by slice:

1. *Plain parenchyma* is every voxel labelled ``PARENCHYMA`` that is further than ``margin_mm`` in its slice from any
   other label. Nothing else is read: elsewhere both images go on with the local mean of the nearest plain parenchyma.
2. *Contrast* at a voxel and a width w (full width at half maximum; 0.3, 0.55 and 1 mm, thin walls to small vessels)
   is the height in HU of a bright ridge of Gaussian profile that would bend as much (Lindeberg, Int. J. Comput. Vis.
   30, 1998): ``-(l1 + max(l2, 0)) * sigma^2 * 3 sqrt(3) / 2`` with eigenvalues l1 <= l2 of the Hessian matrix after
   smoothing by a Gaussian of ``sigma = sqrt(2) w / 2.355``, never below 0. A round blob counts about 0.6 of its height;
   the fading side of a blurred vessel counts nothing, as it bends upwards more than downwards.
3. *Thresholds*: for each width the value that the truth's own contrast exceeds on 0.1 % (``truth_share``) of the plain
   parenchyma, so that texture of the truth's strength is not counted at any width; at least ``least_contrast_hu``.
   Relative contrast is the largest over widths of contrast over threshold; its limit again is what the truth exceeds
   on 0.1 % (at least 1). A voxel over the limit is *over*. With a ``contrast_hu`` that is the threshold for all widths
   and the limit is 1: for faint structures in images that lack the truth's texture.
4. A *structure* is an 8-connected set of such voxels of at least ``least_area_mm2``. It is *false* if the truth
   doesn't show it: the truth's bend in the direction across the image's ridge, at the same width, is on average over
   the structure less than half (``shown_share``) of the image's relative contrast. (The bend has a sign, so texture
   that has nothing to do with the structure averages to nothing.)

The truth itself has an area ratio of 1 and no false structure; pure blurring has a ratio below 1. Noise counts where it
looks like a structure. Dark structures aren't looked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.masked import as_slices, checked_pair
from CTMicroSRLib.evaluation.spectra import check_pixel
from CTMicroSRLib.point_spread import FWHM_PER_SIGMA
from CTMicroSRLib.simulation.description import Label

Float32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

UNIT = 1.5 * math.sqrt(3.0)
"""Makes the second derivative, times sigma^2, of a ridge at its best width the ridge's height."""


@dataclass(frozen=True)
class StructureSettings:
    """The rule's numbers, see the module; a block of ``block_mm`` is plain if ``block_share`` of its voxels are.

    :data:`FAINT` are the settings for faint structures.

    Raises:
        ValueError: no width, a length or contrast that is not positive, or a share out of 0 to 1.
    """

    widths_mm: tuple[float, ...] = (0.3, 0.55, 1.0)
    margin_mm: float = 1.0
    truth_share: float = 0.001
    contrast_hu: float | None = None
    least_contrast_hu: float = 5.0
    least_area_mm2: float = 0.05
    shown_share: float = 0.5
    block_mm: float = 2.5
    block_share: float = 0.9

    def __post_init__(self) -> None:
        positive = (*self.widths_mm, self.least_contrast_hu, self.contrast_hu or 1.0, self.block_mm)
        if not self.widths_mm or min(positive) <= 0 or min(self.margin_mm, self.least_area_mm2) < 0:
            raise ValueError("Widths, contrasts and block must be positive, margin and area not negative.")
        if not (0 < self.truth_share < 1 and 0 <= self.shown_share <= 1 and 0 < self.block_share <= 1):
            raise ValueError("Shares must lie between 0 and 1.")


FAINT = StructureSettings(contrast_hu=40.0)


@dataclass(frozen=True)
class Bends:
    """Second derivatives at one width, as ridge heights in HU: ``(jj + ii) / 2``, ``(jj - ii) / 2`` and ``ji``."""

    middle: Float32
    difference: Float32
    mixed: Float32

    @property
    def spread(self) -> Float32:
        """Half the distance of the eigenvalues ``middle - spread`` and ``middle + spread``."""
        return np.asarray(np.hypot(self.difference, self.mixed))

    @property
    def contrast(self) -> Float32:
        """``-(l1 + max(l2, 0))``, never below 0."""
        spread = self.spread
        return np.asarray(np.maximum(spread - self.middle - np.maximum(self.middle + spread, 0), 0))

    def shown_across(self, ridges: Bends) -> Float32:
        """Contrast, with sign, in the direction across the ridges of another image at each voxel."""
        spread = np.maximum(ridges.spread, np.float32(1e-6))
        turned = ridges.difference * self.difference + ridges.mixed * self.mixed
        return np.asarray(turned / spread - self.middle)


@dataclass(frozen=True)
class PlainParenchyma:
    """What a truth shows in its plain parenchyma.

    ``plain_kji`` marks it, ``bends_hu`` holds the truth's second derivatives by width, ``width_thresholds_hu`` are the
    thresholds of the widths, ``limit`` that of the relative contrast, ``over_kji`` where the truth is over it.
    """

    plain_kji: Bools
    over_kji: Bools
    bends_hu: tuple[Bends, ...]
    width_thresholds_hu: tuple[float, ...]
    limit: float
    pixel_mm: float
    settings: StructureSettings

    @property
    def least_contrasts_hu(self) -> tuple[float, ...]:
        """Contrast from which on a ridge of each width is seen."""
        return tuple(self.limit * threshold for threshold in self.width_thresholds_hu)


@dataclass(frozen=True)
class FalseStructures:
    """Counts of one image (or, added up, of several); areas in cm^2 of plain parenchyma.

    ``over_cm2``: area over the limit in the image, ``truth_over_cm2`` in the truth, ``allowed_cm2`` the 0.1 % that
    the limit allows for (with a fixed contrast what the truth has). ``structures`` of the image, of them
    ``false_structures`` with ``false_cm2``, and ``truth_structures``. ``blocks`` are the squares of plain parenchyma,
    free of airways and vessels; ``false_blocks`` those that a false structure reaches into.
    """

    plain_cm2: float
    allowed_cm2: float
    over_cm2: float
    truth_over_cm2: float
    structures: int
    truth_structures: int
    false_structures: int
    false_cm2: float
    blocks: int
    false_blocks: int

    @property
    def area_ratio(self) -> float:
        """Area over the limit, relative to what the limit allows: 1 is as much as the truth; NaN without parenchyma."""
        return _share(self.over_cm2, self.allowed_cm2)

    @property
    def structures_per_cm2(self) -> float:
        """Structures of the image per cm^2 of plain parenchyma; NaN without any."""
        return _share(self.structures, self.plain_cm2)

    @property
    def truth_structures_per_cm2(self) -> float:
        """Structures of the truth per cm^2 of plain parenchyma; NaN without any."""
        return _share(self.truth_structures, self.plain_cm2)

    @property
    def false_per_cm2(self) -> float:
        """False structures per cm^2 of plain parenchyma; NaN without any."""
        return _share(self.false_structures, self.plain_cm2)

    @property
    def false_area_share(self) -> float:
        """Share of the plain parenchyma that false structures cover; NaN without any."""
        return _share(self.false_cm2, self.plain_cm2)

    @property
    def false_block_rate(self) -> float:
        """Share of the blocks without airway and vessel that a false structure reaches into; NaN without any."""
        return _share(self.false_blocks, self.blocks)

    @staticmethod
    def pool(cases: Sequence[FalseStructures]) -> FalseStructures:
        """The sums over cases, so that every cm^2 counts alike.

        Raises:
            ValueError: no case.
        """
        if not cases:
            raise ValueError("There is no case to pool.")
        return FalseStructures(*(sum(values) for values in zip(*(vars(case).values() for case in cases), strict=True)))


def plain_parenchyma(
    truth_hu: NDArray[Any], labels: NDArray[Any], pixel_mm: float, settings: StructureSettings | None = None
) -> PlainParenchyma:
    """Find the plain parenchyma and what the truth shows there; once for all methods of a case.

    Args:
        truth_hu: HU, shape (k, j, i) or (j, i).
        labels: :class:`Label` values, the same shape.
        pixel_mm: size of an in-plane voxel (square).
        settings: the rule's numbers.

    Raises:
        ValueError: shapes differ, a value that is not finite, or a pixel that is not positive.
    """
    chosen = settings or StructureSettings()
    if np.shape(labels) != np.shape(truth_hu):
        raise ValueError(f"The labels have shape {np.shape(labels)} but the truth {np.shape(truth_hu)}.")
    check_pixel(pixel_mm)
    truth = as_slices(truth_hu, "truth")
    parenchyma = np.asarray(labels).reshape(truth.shape) == Label.PARENCHYMA
    plain = np.stack([_without_margin(plane, chosen.margin_mm / pixel_mm) for plane in parenchyma])
    bends = _bends(truth, plain, pixel_mm, chosen.widths_mm)
    contrasts = [bend.contrast[plain] for bend in bends]
    thresholds, limit = _thresholds(contrasts, chosen)
    over = np.zeros(truth.shape, dtype=np.bool_)
    over[plain] = _relative(contrasts, thresholds).max(axis=0) > limit
    return PlainParenchyma(plain, over, bends, thresholds, limit, pixel_mm, chosen)


def false_structures(image_hu: NDArray[Any], reference: PlainParenchyma) -> FalseStructures:
    """Count what an image shows in plain parenchyma, by the rule of the module.

    Args:
        image_hu: HU, the shape of the truth that ``reference`` is of.
        reference: from :func:`plain_parenchyma`.

    Returns:
        The counts; all 0 where there is no plain parenchyma.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    from scipy.ndimage import label

    shape = reference.plain_kji.shape
    image, _ = checked_pair(
        np.reshape(image_hu, shape) if np.shape(image_hu) == shape[1:] else image_hu, np.zeros(shape)
    )
    chosen, plain = reference.settings, reference.plain_kji
    relative, shown = _against(_bends(image, plain, reference.pixel_mm, chosen.widths_mm), reference)
    over = plain & (relative > reference.limit)
    in_plane = np.zeros((3, 3, 3), dtype=int)
    in_plane[1] = 1
    numbers, truth_numbers = (label(marked, structure=in_plane)[0].ravel() for marked in (over, reference.over_kji))
    least = max(1.0, chosen.least_area_mm2 / reference.pixel_mm**2)
    large = np.bincount(numbers) >= least
    large[0] = False
    image_sum, shown_sum = (np.bincount(numbers, values.ravel()) for values in (relative, shown))
    false = large & (shown_sum < chosen.shown_share * image_sum)
    drawn = false[numbers].reshape(shape)
    blocks, false_blocks = _blocks(plain, drawn, round(chosen.block_mm / reference.pixel_mm), chosen.block_share)
    cm2 = (reference.pixel_mm / 10.0) ** 2
    truth_over = float(reference.over_kji.sum()) * cm2
    return FalseStructures(
        plain_cm2=float(plain.sum()) * cm2,
        allowed_cm2=truth_over if chosen.contrast_hu else float(plain.sum()) * chosen.truth_share * cm2,
        over_cm2=float(over.sum()) * cm2,
        truth_over_cm2=truth_over,
        structures=int(large.sum()),
        truth_structures=int((np.bincount(truth_numbers)[1:] >= least).sum()),
        false_structures=int(false.sum()),
        false_cm2=float(drawn.sum()) * cm2,
        blocks=blocks,
        false_blocks=false_blocks,
    )


def bends_of(image_ji: NDArray[Any], width_voxels: float) -> Bends:
    """Second derivatives of a slice at a width, scaled so that a ridge of that width counts its height in HU."""
    from scipy.ndimage import gaussian_filter

    sigma = math.sqrt(2.0) * width_voxels / FWHM_PER_SIGMA
    # Without its level: the weights of a derivative, cut at 4 sigma, do not quite add up to 0.
    image = ((image_ji - np.mean(image_ji)) * (sigma**2 * 1.5 * math.sqrt(3.0))).astype(np.float32)
    jj, ii, ji = (gaussian_filter(image, sigma, order=order, mode="nearest") for order in ((2, 0), (0, 2), (1, 1)))
    return Bends((jj + ii) / 2, (jj - ii) / 2, ji)


def _bends(slices: NDArray[np.float64], plain: Bools, pixel_mm: float, widths_mm: Sequence[float]) -> tuple[Bends, ...]:
    """Second derivatives of the plain parenchyma at each width; 0 in slices without any."""
    found = [np.zeros((3, *slices.shape), np.float32) for _ in widths_mm]
    for k in np.flatnonzero(plain.any(axis=(1, 2))):
        filled = _filled(slices[k], plain[k], max(widths_mm) / pixel_mm)
        for values, width_mm in zip(found, widths_mm, strict=True):
            bends = bends_of(filled, width_mm / pixel_mm)
            values[:, k] = bends.middle, bends.difference, bends.mixed
    return tuple(Bends(*values) for values in found)


def _thresholds(contrasts: Sequence[Float32], settings: StructureSettings) -> tuple[tuple[float, ...], float]:
    """Thresholds of the widths and limit of the relative contrast, from the truth's contrasts in plain parenchyma."""
    if settings.contrast_hu:
        return (settings.contrast_hu,) * len(contrasts), 1.0
    if not contrasts[0].size:
        return (settings.least_contrast_hu,) * len(contrasts), 1.0
    percentile = 100.0 * (1.0 - settings.truth_share)
    found = tuple(max(settings.least_contrast_hu, float(np.percentile(c, percentile))) for c in contrasts)
    return found, max(1.0, float(np.percentile(_relative(contrasts, found).max(axis=0), percentile)))


def _relative(contrasts: Sequence[Float32], thresholds: Sequence[float]) -> Float32:
    """Contrasts over thresholds, shape (widths, ...)."""
    return np.stack([c / np.float32(t) for c, t in zip(contrasts, thresholds, strict=True)])


def _against(bends: Sequence[Bends], reference: PlainParenchyma) -> tuple[Float32, Float32]:
    """Relative contrast of an image, and the truth's in the same direction and at the same width, where plain."""
    relative = _relative([bend.contrast for bend in bends], reference.width_thresholds_hu)
    shown = _relative(
        [truth.shown_across(bend) for truth, bend in zip(reference.bends_hu, bends, strict=True)],
        reference.width_thresholds_hu,
    )
    best = relative.argmax(axis=0)[None]
    return np.take_along_axis(relative, best, 0)[0], np.take_along_axis(shown, best, 0)[0]


def _filled(image_ji: NDArray[np.float64], plain: Bools, reach_voxels: float) -> Float32:
    """The plain voxels of a slice; everything else is the local mean at the nearest of them."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    level = image_ji[plain].mean()
    sigma = reach_voxels / FWHM_PER_SIGMA
    values = np.where(plain, image_ji - level, 0).astype(np.float32)
    weight = gaussian_filter(plain.astype(np.float32), sigma, mode="constant")
    mean = gaussian_filter(values, sigma, mode="constant") / np.maximum(weight, np.float32(1e-6))
    nearest = distance_transform_edt(~plain, return_distances=False, return_indices=True)
    return np.asarray(np.where(plain, values, mean[tuple(nearest)]), dtype=np.float32)


def _without_margin(region_ji: Bools, margin_voxels: float) -> Bools:
    """A region of a slice without what lies within a margin of its border; the image's own border is none."""
    from scipy.ndimage import distance_transform_edt

    return region_ji if region_ji.all() else np.asarray(distance_transform_edt(region_ji) > margin_voxels)


def _blocks(plain: Bools, drawn: Bools, edge: int, share: float) -> tuple[int, int]:
    """How many squares of ``edge`` voxels are plain, and how many of these hold a drawn voxel."""
    k, rows, columns = plain.shape[0], plain.shape[1] // edge, plain.shape[2] // edge
    cut = (slice(None), slice(rows * edge), slice(columns * edge))
    free = plain[cut].reshape(k, rows, edge, columns, edge).mean(axis=(2, 4)) >= share
    hit = drawn[cut].reshape(k, rows, edge, columns, edge).any(axis=(2, 4))
    return int(free.sum()), int((free & hit).sum())


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
