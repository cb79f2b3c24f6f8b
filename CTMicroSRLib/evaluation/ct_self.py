"""The protocol ``ct-self`` (P1 section 3.7): real CT shrunk by block means, super-resolved, compared with itself.

The paper shrinks 4x; here each table has the scale of its models. It says how well a method undoes averaging on real
anatomy, nothing of what lies beyond the scanner's own resolution.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.evaluation.candidates import check_scale, find_candidates
from CTMicroSRLib.evaluation.micro_slices import LEAST_COARSE_VOXELS, check_given_once, spread_slices
from CTMicroSRLib.evaluation.pairs import Pair, evaluate_pairs
from CTMicroSRLib.evaluation.results import Shown, Table
from CTMicroSRLib.evaluation.shrinking import block_means, whole_blocks
from CTMicroSRLib.evaluation.variants import Variants
from CTMicroSRLib.files import read_volume
from CTMicroSRLib.lungs import segment_lungs
from CTMicroSRLib.progress import Progress

logger = logging.getLogger(__name__)

LEAST_LUNG_SHARE = 0.05
"""Slices with less lung are not taken where others have more."""

PAPERS_SCALE = 4


def evaluate_ct_self(
    names: Sequence[str],
    files: Sequence[Path],
    progress: Progress,
    *,
    slices: int = 8,
    variants: Variants = "default",
    device: str = "auto",
) -> tuple[Table, Shown]:
    """Measure interpolators and models on CT shrunk by the models' scale, in whole slices and inside the lungs.

    Args:
        names: installed models, model folders or training runs, all of one scale.
        files: clinical scans.
        progress: see :class:`Progress`.
        slices: of each scan, evenly spaced among those that show lung.
        variants: of each model.
        device: as for ``superres``.

    Raises:
        ModelError: a model can't be found or is damaged.
        UsageError: models of different scales, no scan, one given twice, or no slice.
        RefusedInputError: a scan that is no chest CT, or too small.
    """
    if not files:
        raise UsageError("The protocol ct-self needs scans; give --clinical FILES.")
    check_given_once(files)
    if slices < 1:
        raise UsageError(f"{slices} slices are none; give --slices 1 or more.")
    candidates = find_candidates(names)
    scale = candidates[0].card.scale
    check_scale(candidates, scale, "the scans are shrunk")
    papers = "as in the paper" if scale == PAPERS_SCALE else f"the paper's are {PAPERS_SCALE}x"
    protocol = {
        "name": "ct-self",
        "text": f"Protocol ct-self: {len(files)} clinical scans, {slices} slices each, shrunk {scale}x by block means "
        f"({papers}) and compared with themselves.",
        "scale": scale,
        "files": [path.name for path in files],
    }
    return evaluate_pairs(
        candidates,
        _pairs(files, scale, slices),
        len(files),
        protocol,
        progress,
        variants=variants,
        device=device,
        notice="Clinical CT compared with itself; not for diagnosis.",
    )


def _pairs(files: Sequence[Path], scale: int, slices: int) -> Iterator[Pair]:
    for path in files:
        volume = read_volume(path)
        size = min(volume.array_kji.shape[1:])
        if size < LEAST_COARSE_VOXELS * scale:
            raise RefusedInputError(
                f"The slices of {path.name} are smaller than {LEAST_COARSE_VOXELS * scale} voxels, which {scale}x "
                "needs; give the whole scan."
            )
        try:
            lung = segment_lungs(volume).array_kji.astype(bool)
        except RefusedInputError as error:
            logger.warning("%s: no lungs to measure in (%s)", path.name, error)
            lung = np.zeros(volume.array_kji.shape, dtype=bool)
        shows_lung = np.flatnonzero(lung.mean(axis=(1, 2)) >= LEAST_LUNG_SHARE)
        possible = shows_lung if len(shows_lung) else np.arange(len(lung))
        chosen = possible[spread_slices(len(possible), slices)]
        truth = np.ascontiguousarray(whole_blocks(volume.array_kji[chosen], scale), dtype=np.float32)
        pixel_mm = scale * float(np.mean(volume.geometry.spacing_mm[:2]))
        yield Pair(
            truth, block_means(truth, scale), scale, pixel_mm, lung_kji=np.array(whole_blocks(lung[chosen], scale))
        )
