"""What every protocol measures and returns: rows of a table, one case for the figure, and how cases are gathered."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.hu_moments import hu_moments, minimum_distances
from CTMicroSRLib.evaluation.metrics import quality
from CTMicroSRLib.evaluation.paper_metrics import paper_quality
from CTMicroSRLib.evaluation.published import Published
from CTMicroSRLib.evaluation.residuals import InputResidual
from CTMicroSRLib.evaluation.sparsification import sparsification
from CTMicroSRLib.evaluation.yardsticks import Readings, summarise

Float32 = NDArray[np.float32]

LEVELS = {0.80: 1.2816, 0.90: 1.6449, 0.95: 1.9600}
"""Two-sided coverage and its half-width in standard deviations."""

SIMULATED_NOTICE = "Simulated specimen: not a patient, not micro-CT of one."


@dataclass(frozen=True)
class Row:
    """A method's numbers: means over the slices of all cases, and its yardsticks where they were read.

    ``published`` holds what the papers say of the method, by the name of the number; all of other data sets.
    """

    method: str
    numbers: dict[str, float]
    published: dict[str, Published] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows by method, coverage of the uncertainty by model, and what was measured on."""

    rows: list[Row]
    coverage: dict[str, dict[str, float]]
    protocol: dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """One case through every method, for the figure: slices (j, i) in HU."""

    clinical_ji: Float32
    truth_ji: Float32
    images_ji: dict[str, Float32]
    pixel_mm: float
    notice: str = SIMULATED_NOTICE


@dataclass
class Collected:
    """What the cases gave so far, by method or by model."""

    slices: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    residuals: dict[str, list[InputResidual]] = field(default_factory=dict)
    lungs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    readings: dict[str, list[Readings]] = field(default_factory=dict)
    moments: dict[str, list[NDArray[np.float64] | None]] = field(default_factory=dict)
    true_moments: list[NDArray[np.float64] | None] = field(default_factory=list)
    errors: dict[str, list[tuple[Float32, Float32]]] = field(default_factory=dict)
    uncertain: dict[str, str] = field(default_factory=dict)
    shown: Shown | None = None

    def add(self, part: Collected, *, show: bool) -> None:
        """Take over what another case gave."""
        for name in ("slices", "residuals", "lungs", "readings", "moments", "errors"):
            mine = getattr(self, name)
            for key, values in getattr(part, name).items():
                mine.setdefault(key, []).extend(values)
        self.true_moments.extend(part.true_moments)
        self.uncertain |= part.uncertain
        if show:
            self.shown = part.shown

    def note_truth(self, truth_kji: NDArray[Any]) -> None:
        """Keep the shapes of a case's truth; once per case."""
        self.true_moments.extend(hu_moments(plane) for plane in truth_kji)

    def note(self, method: str, image_kji: Float32, truth_kji: NDArray[Any]) -> None:
        """Measure one method's image of a case against its truth, slice by slice."""
        for plane, true_plane in zip(image_kji, truth_kji, strict=True):
            truth = np.asarray(true_plane, dtype=np.float32)
            numbers = asdict(quality(plane, truth)) | asdict(paper_quality(plane, truth))
            self.slices.setdefault(method, []).append(numbers)
            self.moments.setdefault(method, []).append(hu_moments(plane))

    def note_uncertainty(self, model: str, method: str, error: Float32, deviation: Float32) -> None:
        """Keep a model's errors and the deviations that it told, of the result that ``method`` names."""
        self.errors.setdefault(model, []).append((error, deviation))
        self.uncertain[model] = method

    def rows(self) -> list[Row]:
        """A row for each method, in the order they came."""
        return [Row(method, self._numbers(method)) for method in self.slices]

    def coverage(self) -> dict[str, dict[str, float]]:
        """Coverage and ranking of each model's uncertainty."""
        return {name: coverage(pairs) | _ranking(pairs) for name, pairs in self.errors.items()}

    def _numbers(self, method: str) -> dict[str, float]:
        numbers = mean_numbers(self.slices[method])
        numbers |= mean_numbers(self.lungs.get(method, []))
        shapes = minimum_distances(self.moments[method], self.true_moments)
        if shapes is not None:
            numbers |= {
                "m_hum": shapes.m_hum,
                "m_hum_mean_of_minima": shapes.mean_of_minima,
                "m_hum_median_of_minima": shapes.median_of_minima,
            }
        numbers |= mean_numbers([asdict(residual) for residual in self.residuals.get(method, [])])
        if method in self.readings:
            numbers |= summarise(self.readings[method])
        for model, of_method in self.uncertain.items():
            if of_method == method:
                ranking = _ranking(self.errors[model])
                numbers |= {"ause": ranking["AUSE"], "ause_of_chance": ranking["AUSE of chance"]}
        return numbers


def mean_numbers(values: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of every number that some of the values have; those that are NaN don't count, all NaN is none."""
    kept = {key: [v[key] for v in values if not math.isnan(v.get(key, math.nan))] for v in values for key in v}
    return {key: float(np.mean(numbers)) for key, numbers in kept.items() if numbers}


def coverage(pairs: Sequence[tuple[Float32, Float32]]) -> dict[str, float]:
    """Share of voxels whose error lies within the interval of each level."""
    error = np.concatenate([np.abs(e).ravel() for e, _ in pairs])
    deviation = np.concatenate([d.ravel() for _, d in pairs])
    return {f"{level:.0%}": float(np.mean(error <= width * deviation)) for level, width in LEVELS.items()}


def machine() -> str:
    """What the numbers were computed on, in a few words."""
    return f"{platform.processor() or platform.machine()}, {platform.system()}"


def _ranking(pairs: Sequence[tuple[Float32, Float32]]) -> dict[str, float]:
    """How well the uncertainty ranks the errors: 0 as well as the errors themselves, 1 as badly as chance."""
    curves = [sparsification(error, deviation) for error, deviation in pairs]
    return {
        "AUSE": float(np.mean([c.ause for c in curves])),
        "AUSE of chance": float(np.mean([c.ause_random for c in curves])),
    }
