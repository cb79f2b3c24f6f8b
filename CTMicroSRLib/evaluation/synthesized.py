"""The protocol ``synthesized`` (P0 section 3.4): clinical-like images made from micro-CT by a trained network.

Micro-CT goes through the Gaussian pyramid and the synthesize network of a two-stage run; what comes out is
super-resolved and compared with the micro-CT. A method that was trained on the same network's images has an advantage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.card import CARD_FILE, RUN_SYNTHESIZER
from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.evaluation.candidates import Candidate, check_scale, find_candidates, loaded
from CTMicroSRLib.evaluation.micro_slices import MicroSource
from CTMicroSRLib.evaluation.pairs import BLOCK_PSF_VOXELS, CLINICAL_PIXEL_MM, Pair, evaluate_pairs
from CTMicroSRLib.evaluation.results import SIMULATED_NOTICE, Shown, Table
from CTMicroSRLib.evaluation.shrinking import pyramid_levels
from CTMicroSRLib.evaluation.variants import Variants
from CTMicroSRLib.progress import Progress

TYPICAL_NOISE_HU = 15.0
"""Told to a synthesize network that asks for it."""


def evaluate_synthesized(
    names: Sequence[str],
    synthesizer: str,
    source: MicroSource,
    progress: Progress,
    *,
    variants: Variants = "default",
    device: str = "auto",
) -> tuple[Table, Shown]:
    """Measure interpolators and models on images that a synthesize network made of micro-CT.

    Args:
        names: installed models, model folders or training runs, all of one scale, a power of two.
        synthesizer: model folder of a network of scale 1.
        source: the micro-CT.
        progress: see :class:`Progress`.
        variants: of each model.
        device: as for ``superres``.

    Raises:
        ModelError: a model can't be found or is damaged.
        UsageError: a scale that does not fit.
        RefusedInputError: micro-CT that can't be used.
    """
    candidates = find_candidates(names)
    scale = candidates[0].card.scale
    check_scale(candidates, scale, "the micro-CT is shrunk")
    inside = Path(synthesizer) / RUN_SYNTHESIZER
    (maker,) = find_candidates([str(inside) if (inside / CARD_FILE).is_file() else synthesizer])
    if maker.card.scale != 1:
        raise UsageError(
            f"The synthesizer {maker.label} is {maker.card.scale}x; give the synthesize network of a two-stage run, "
            "which keeps the size."
        )
    levels = scale.bit_length() - 1
    if scale != 2**levels:
        raise UsageError(f"The synthesized images are halved a few times, which {scale}x is not; give other models.")
    protocol = {
        "name": "synthesized",
        "text": f"Protocol synthesized: {source.text}, made clinical-like by {maker.label} ({scale}x smaller), "
        "super-resolved and compared with the micro-CT.",
        "scale": scale,
        "synthesizer": {"name": maker.card.name, "sha256": maker.card.sha256},
        **source.facts(),
    }
    return evaluate_pairs(
        candidates,
        _pairs(source, maker, levels, device),
        len(source),
        protocol,
        progress,
        variants=variants,
        device=device,
        notice="Clinical-like images made from micro-CT." if source.files else SIMULATED_NOTICE,
    )


def _pairs(source: MicroSource, maker: Candidate, levels: int, device: str) -> Iterator[Pair]:
    for truth in source.volumes(2**levels):
        coarse = synthesized(pyramid_levels(truth, levels), maker, device)
        advice = f"train the synthesizer {maker.label} longer or give another"
        yield Pair(truth, coarse, 2**levels, CLINICAL_PIXEL_MM, is_means=False, advice=advice)


def synthesized(coarse_kji: NDArray[np.float32], maker: Candidate, device: str = "auto") -> NDArray[np.float32]:
    """Slices in HU through a synthesize network, one after the other."""
    import torch

    from CTMicroSRLib.networks.generator import WHOLE
    from CTMicroSRLib.session import ScanConditions

    model = loaded(maker.folder, device)
    conditions = ScanConditions(BLOCK_PSF_VOXELS, TYPICAL_NOISE_HU)
    made = [model.run(torch.from_numpy(plane), WHOLE, conditions).cpu().numpy() for plane in coarse_kji]
    return np.stack(made).astype(np.float32)
