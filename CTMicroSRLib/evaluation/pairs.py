"""Methods on fine images and what they were shrunk to: common to ``micro-self``, ``ct-self`` and ``synthesized``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.evaluation.candidates import Candidate, loaded
from CTMicroSRLib.evaluation.masked import SSIM_BORDER, masked_quality
from CTMicroSRLib.evaluation.metrics import Quality
from CTMicroSRLib.evaluation.residuals import input_residual
from CTMicroSRLib.evaluation.results import Collected, Shown, Table, machine
from CTMicroSRLib.evaluation.tables import with_published
from CTMicroSRLib.evaluation.variants import (
    Scanner,
    Variants,
    error_and_deviation,
    model_variants,
)
from CTMicroSRLib.files import check_is_ct
from CTMicroSRLib.interpolators import INTERPOLATORS
from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.volume import Geometry, Volume

Float32 = NDArray[np.float32]

BLOCK_PSF_VOXELS = 0.1
"""Point spread, in coarse voxels, that models are told of block means: next to none, and above the zero not allowed."""

CLINICAL_PIXEL_MM = 0.625
"""Shrunk micro-CT is given to the models as a scan of this pixel, as the papers do (P1 section 3.1)."""


@dataclass(frozen=True)
class Pair:
    """Slices and what they were shrunk to.

    Attributes:
        truth_kji: fine slices, HU.
        coarse_kji: the same on the coarse grid, HU.
        scale: fine voxels per coarse voxel.
        pixel_mm: coarse pixel.
        sampling: how they were shrunk, for the rows' names; empty where there is one way only.
        is_means: whether a coarse voxel is the mean of its block.
        lung_kji: the lungs on the fine grid; None where nothing is known of them.
        advice: what to do where the coarse slices turn out to be no CT.
    """

    truth_kji: Float32
    coarse_kji: Float32
    scale: int
    pixel_mm: float
    sampling: str = ""
    is_means: bool = True
    lung_kji: NDArray[np.bool_] | None = None
    advice: str = "give other scans"


def evaluate_pairs(
    candidates: Sequence[Candidate],
    pairs: Iterator[Pair],
    count: int,
    protocol: dict[str, Any],
    progress: Progress,
    *,
    variants: Variants = "default",
    device: str = "auto",
    notice: str = "",
) -> tuple[Table, Shown]:
    """Measure interpolators and models on pairs.

    Args:
        candidates: the models, all of the pairs' scale.
        pairs: one after the other, made as they are needed.
        count: how many there will be.
        protocol: ``name``, ``text`` (a sentence on what was measured on) and whatever else tells the data.
        progress: see :class:`Progress`.
        variants: of each model.
        device: as for ``superres``.
        notice: below the figure.

    Returns:
        The table, and the first pair's middle slice through every method.

    Raises:
        RefusedInputError: coarse slices that don't look like CT.
    """
    found = Collected()
    progress.update("evaluating", 0, count)
    truth: Float32 | None = None
    for n, pair in enumerate(pairs):
        check_cancelled(progress)
        # Two ways to shrink the same slices share a truth, whose shapes count once.
        if pair.truth_kji is not truth:
            truth = pair.truth_kji
            found.note_truth(truth)
        found.add(_measure(pair, candidates, variants, device, notice), show=n == 0)
        progress.update("evaluating", n + 1, count)
    assert found.shown is not None  # the protocols refuse to have no pair
    rows = with_published(found.rows(), candidates, protocol["name"])
    whole = {**protocol, "slices": len(next(iter(found.slices.values()))), "machine": machine()}
    return Table(rows, found.coverage(), whole), found.shown


def _measure(pair: Pair, candidates: Sequence[Candidate], variants: Variants, device: str, notice: str) -> Collected:
    found = Collected()
    coarse = _as_scan(pair)
    images: dict[str, Float32] = {}
    suffix = f", {pair.sampling}" if pair.sampling else ""
    for name, interpolate in INTERPOLATORS.items():
        image = np.stack([interpolate(plane, pair.scale) for plane in pair.coarse_kji])
        images[name + suffix] = image
        _note(found, name + suffix, image, pair)
    scanner = Scanner(BLOCK_PSF_VOXELS * pair.pixel_mm, None, misjudged=False)
    for candidate in candidates:
        model = loaded(candidate.folder, device)
        for name, result in model_variants(model, candidate.label, coarse, scanner, variants):
            image = np.asarray(result.volume.array_kji, dtype=np.float32)
            images[name + suffix] = image
            _note(found, name + suffix, image, pair)
            if result.uncertainty is not None:
                pair_of_errors = error_and_deviation(result, pair.truth_kji)
                found.note_uncertainty(candidate.label + suffix, name + suffix, *pair_of_errors)
    k = len(pair.truth_kji) // 2
    shown = {name: image[k] for name, image in images.items()}
    found.shown = Shown(pair.coarse_kji[k], pair.truth_kji[k], shown, pair.pixel_mm, notice)
    return found


def _note(found: Collected, method: str, image: Float32, pair: Pair) -> None:
    found.note(method, image, pair.truth_kji)
    if pair.is_means:
        residual = input_residual(image, pair.coarse_kji, pair.scale, psf_fwhm_voxels=0.0, noise_hu=None)
        found.residuals.setdefault(method, []).append(residual)
    if pair.lung_kji is not None and pair.lung_kji.any() and min(image.shape[1:]) > 2 * SSIM_BORDER:
        lung: Quality = masked_quality(image, pair.truth_kji, pair.lung_kji)
        found.lungs.setdefault(method, []).append({f"lung_{key}": value for key, value in asdict(lung).items()})


def _as_scan(pair: Pair) -> Volume:
    """The coarse slices as a clinical scan; refused where they can't be one."""
    slices, rows, columns = pair.coarse_kji.shape
    geometry = Geometry((columns, rows, slices), (pair.pixel_mm, pair.pixel_mm, 1.0))
    scan = Volume(pair.coarse_kji, geometry, {"Modality": "CT"})
    try:
        check_is_ct(scan)
    except RefusedInputError:
        lowest, highest = float(pair.coarse_kji.min()), float(pair.coarse_kji.max())
        raise RefusedInputError(
            f"The slices that the models would be given ({lowest:.0f} to {highest:.0f} HU, {pair.pixel_mm:g} mm) do "
            f"not look like CT; {pair.advice}."
        ) from None
    return scan
