"""The protocol ``micro-self`` (P1 section 3.3.3): micro-CT shrunk, super-resolved and compared with itself.

The paper says bicubic and its code samples points, so both are rows of their own: block means, which know the whole
slice, and point samples. The clinical scanner has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from CTMicroSRLib.evaluation.candidates import check_scale, find_candidates
from CTMicroSRLib.evaluation.micro_slices import MicroSource
from CTMicroSRLib.evaluation.pairs import CLINICAL_PIXEL_MM, Pair, evaluate_pairs
from CTMicroSRLib.evaluation.results import SIMULATED_NOTICE, Shown, Table
from CTMicroSRLib.evaluation.shrinking import block_means, point_samples
from CTMicroSRLib.evaluation.variants import Variants
from CTMicroSRLib.progress import Progress


def evaluate_micro_self(
    names: Sequence[str],
    source: MicroSource,
    progress: Progress,
    *,
    variants: Variants = "default",
    device: str = "auto",
) -> tuple[Table, Shown]:
    """Measure interpolators and models on micro-CT shrunk by the models' scale.

    Raises:
        ModelError: a model can't be found or is damaged.
        UsageError: models of different scales.
        RefusedInputError: micro-CT that can't be used.
    """
    candidates = find_candidates(names)
    scale = candidates[0].card.scale
    check_scale(candidates, scale, "the micro-CT is shrunk")
    protocol = {
        "name": "micro-self",
        "text": f"Protocol micro-self: {source.text}, shrunk {scale}x by block means and by the official code's point "
        "samples, and compared with itself.",
        "scale": scale,
        **source.facts(),
    }
    return evaluate_pairs(
        candidates,
        _pairs(source, scale),
        2 * len(source),
        protocol,
        progress,
        variants=variants,
        device=device,
        notice="Micro-CT compared with itself." if source.files else SIMULATED_NOTICE,
    )


def _pairs(source: MicroSource, scale: int) -> Iterator[Pair]:
    for truth in source.volumes(scale):
        means = Pair(truth, block_means(truth, scale), scale, CLINICAL_PIXEL_MM, "block means", advice=source.advice)
        yield means
        yield replace(means, coarse_kji=point_samples(truth, scale), sampling="point samples", is_means=False)
