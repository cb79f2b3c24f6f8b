"""The ways in which a model is run for an evaluation: with and without consistency, and told a wrong point spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.candidates import tells_uncertainty
from CTMicroSRLib.options import Options
from CTMicroSRLib.session import Model
from CTMicroSRLib.superresolve import Result, super_resolve
from CTMicroSRLib.volume import Volume

Variants = Literal["all", "default", "papers"]
VARIANTS: tuple[Variants, ...] = ("all", "default", "papers")

MISJUDGED = 0.2
"""The point spread is also given this much too small and too large."""

ALONE = "consistency off"
"""What a row of the network alone is called after its model."""

_MISJUDGED_WORDS = "point spread x"

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Scanner:
    """What a model is told of the scan; None is estimated from it.

    ``misjudged``: whether ``all`` variants are also told a wrong point spread.
    """

    psf_fwhm_mm: float
    noise_hu: float | None
    misjudged: bool = True


def model_variants(
    model: Model, label: str, clinical: Volume, scanner: Scanner, variants: Variants = "all"
) -> Iterator[tuple[str, Result]]:
    """A model's results, each with its row's name.

    ``papers`` is the network alone; ``default`` adds consistency with the scanner; ``all`` adds the point spread
    misjudged by 20 % (where the scanner says so) and consistency of block means. The uncertainty is asked for once,
    with consistency if that is run, and only where the network has dropout.
    """
    uncertain = tells_uncertainty(model)
    known = Options(
        region="whole",
        model=model,
        psf_fwhm_mm=scanner.psf_fwhm_mm,
        noise_hu=scanner.noise_hu,
        consistency="off",
    )
    alone = replace(known, uncertainty=uncertain and variants == "papers")
    yield f"{label}, {ALONE}", _resolve(clinical, alone)
    if variants == "papers":
        return
    yield f"{label}, scan (default)", _resolve(clinical, replace(known, consistency="scan", uncertainty=uncertain))
    if variants == "default":
        return
    for factor in (1.0 - MISJUDGED, 1.0 + MISJUDGED) if scanner.misjudged else ():
        wrong = replace(known, psf_fwhm_mm=scanner.psf_fwhm_mm * factor)
        yield f"{label}, off, {_MISJUDGED_WORDS}{factor:.1f}", _resolve(clinical, wrong)
        yield f"{label}, scan, {_MISJUDGED_WORDS}{factor:.1f}", _resolve(clinical, replace(wrong, consistency="scan"))
    yield f"{label}, block", _resolve(clinical, replace(known, consistency="block"))


def is_misjudged(method: str) -> bool:
    """Whether a row is of a model that was told a wrong point spread."""
    return _MISJUDGED_WORDS in method


def error_and_deviation(result: Result, truth_kji: NDArray[Any]) -> tuple[Float32, Float32]:
    """Errors of a result and the standard deviations that it tells."""
    assert result.uncertainty is not None
    error = np.asarray(result.volume.array_kji, np.float32) - np.asarray(truth_kji, np.float32)
    return error, np.asarray(result.uncertainty.array_kji, np.float32)


def _resolve(clinical: Volume, options: Options) -> Result:
    return super_resolve(clinical, **{option.name: getattr(options, option.name) for option in fields(options)})
