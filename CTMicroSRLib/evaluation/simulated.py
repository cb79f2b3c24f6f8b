"""The protocol ``simulated``: methods side by side on simulated scans of unseen specimens and scanners."""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.interpolators import INTERPOLATORS, bicubic
from CTMicroSRLib.evaluation.metrics import Quality, quality
from CTMicroSRLib.evaluation.sparsification import Sparsification, sparsification
from CTMicroSRLib.evaluation.yardsticks import Readings, Reference, prepare_reference, read_image, summarise
from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.session import Model, load_model
from CTMicroSRLib.simulation.cases import Case, CaseSettings, simulate_case
from CTMicroSRLib.simulation.sets import CaseSet
from CTMicroSRLib.superresolve import Options, Result, super_resolve

MISJUDGED = 0.2
"""The point spread is also given this much too small and too large."""

LEVELS = {0.80: 1.2816, 0.90: 1.6449, 0.95: 1.9600}
"""Two-sided coverage and its half-width in standard deviations."""

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """A method's numbers: means over the slices of all cases, and its yardsticks where they were read."""

    method: str
    numbers: dict[str, float]


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


@dataclass
class _Found:
    """What the cases gave so far, by method or model."""

    qualities: dict[str, list[Quality]] = field(default_factory=dict)
    readings: dict[str, list[Readings]] = field(default_factory=dict)
    errors: dict[str, list[tuple[Float32, Float32]]] = field(default_factory=dict)
    shown: Shown | None = None

    def add(self, part: _Found, *, show: bool) -> None:
        """Take over what another case gave."""
        for method, qualities in part.qualities.items():
            self.qualities.setdefault(method, []).extend(qualities)
        for method, readings in part.readings.items():
            self.readings.setdefault(method, []).extend(readings)
        for name, errors in part.errors.items():
            self.errors.setdefault(name, []).extend(errors)
        if show:
            self.shown = part.shown


def evaluate_models(
    names: Sequence[str],
    cases: CaseSet,
    progress: Progress,
    *,
    yardsticks: bool = True,
    show_case: int = 0,
    workers: int = 1,
) -> tuple[Table, Shown]:
    """Measure interpolators and models on simulated cases.

    Args:
        names: installed models or model folders.
        cases: seeds and settings, for instance the set ``test-1``.
        progress: see :class:`Progress`.
        yardsticks: also measure edges, airways, vessels, nodules, tissues and spectra, which takes as long again.
        show_case: which case the figure shows.
        workers: processes that share the cases, each on one thread; the numbers don't depend on it.

    Returns:
        The table, and one case through every method.
    """
    found = _Found()
    for n, part in enumerate(_measured(names, cases, progress, yardsticks, workers)):
        found.add(part, show=n == min(show_case, len(cases) - 1))
        progress.update("evaluating", n + 1, len(cases))
    assert found.shown is not None  # a set has at least one case
    return _table(found, cases), found.shown


def _measured(
    names: Sequence[str], cases: CaseSet, progress: Progress, yardsticks: bool, workers: int
) -> Iterator[_Found]:
    """What each case gives, in the set's order."""
    progress.update("evaluating", 0, len(cases))
    if workers <= 1 or len(cases) == 1:
        for seed, settings in cases.cases:
            check_cancelled(progress)
            yield _measure_case(tuple(names), settings, seed, yardsticks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(cases)), mp_context=context, initializer=_one_thread)
    try:
        parts = [pool.submit(_measure_case, tuple(names), settings, seed, yardsticks) for seed, settings in cases.cases]
        for part in parts:
            while not part.done():
                check_cancelled(progress)
                wait([part], timeout=0.5)
            yield part.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@lru_cache(maxsize=8)
def _model(name: str) -> Model:
    return load_model(name, precision="fp32")


def _measure_case(names: tuple[str, ...], settings: CaseSettings, seed: int, yardsticks: bool) -> _Found:
    """One case through every method."""
    found = _Found()
    case = simulate_case(settings, seed)
    reference = prepare_reference(case) if yardsticks else None
    images: dict[str, Float32] = {}
    for method, image in _interpolated(case):
        _note(found, method, image, case, reference)
        images[method] = image
    for name in names:
        model = _model(name)
        for method, result in model_variants(model, case):
            misjudged = "point spread x" in method
            image = np.asarray(result.volume.array_kji, dtype=np.float32)
            _note(found, method, image, case, None if misjudged else reference)
            if result.uncertainty is not None:
                found.errors.setdefault(model.card.name, []).append(_error_and_deviation(result, case))
            if not misjudged:
                images[method] = image
    found.shown = _shown(case, images)
    return found


def model_variants(model: Model, case: Case) -> Iterator[tuple[str, Result]]:
    """The model without consistency, with each kind, and with the point spread misjudged by 20 %."""
    known = Options(
        region="whole",
        model=model,
        psf_fwhm_mm=case.settings.psf_fwhm_mm,
        noise_hu=case.settings.image_noise_hu,
        consistency="off",
    )
    name = model.card.name
    yield f"{name}, consistency off", _resolve(case, known)
    yield f"{name}, scan (default)", _resolve(case, replace(known, consistency="scan", uncertainty=True))
    for factor in (1.0 - MISJUDGED, 1.0 + MISJUDGED):
        wrong = replace(known, psf_fwhm_mm=case.settings.psf_fwhm_mm * factor)
        yield f"{name}, off, point spread x{factor:.1f}", _resolve(case, wrong)
        yield f"{name}, scan, point spread x{factor:.1f}", _resolve(case, replace(wrong, consistency="scan"))
    yield f"{name}, block", _resolve(case, replace(known, consistency="block"))


def coverage(pairs: Sequence[tuple[Float32, Float32]]) -> dict[str, float]:
    """Share of voxels whose error lies within the interval of each level."""
    error = np.concatenate([np.abs(e).ravel() for e, _ in pairs])
    deviation = np.concatenate([d.ravel() for _, d in pairs])
    return {f"{level:.0%}": float(np.mean(error <= width * deviation)) for level, width in LEVELS.items()}


def back_projected(coarse_kji: Float32, settings: CaseSettings) -> Float32:
    """Bicubic interpolation made consistent with the scanner: what consistency alone gives."""
    import torch

    from CTMicroSRLib.consistency import ConsistencySettings, ScannerConsistency

    scanner = ConsistencySettings("scan", settings.psf_fwhm_mm, settings.image_noise_hu)
    shape = (coarse_kji.shape[1], coarse_kji.shape[2])
    engine = ScannerConsistency(shape, settings.scale, (settings.pixel_mm,) * 2, scanner, torch.device("cpu"))
    planes = []
    for plane in coarse_kji:
        fine = torch.from_numpy(bicubic(plane, settings.scale))
        engine.apply(fine, torch.from_numpy(plane))
        planes.append(fine.numpy())
    return np.stack(planes)


def _resolve(case: Case, options: Options) -> Result:
    return super_resolve(case.scan.clinical, **{key: getattr(options, key) for key in options.__dataclass_fields__})


def _interpolated(case: Case) -> Iterator[tuple[str, Float32]]:
    coarse = np.asarray(case.scan.clinical.array_kji, dtype=np.float32)
    for name, interpolate in INTERPOLATORS.items():
        yield name, np.stack([interpolate(plane, case.settings.scale) for plane in coarse])
    yield "bicubic, scan", back_projected(coarse, case.settings)


def _note(found: _Found, method: str, image: Float32, case: Case, reference: Reference | None) -> None:
    truth = np.asarray(case.scan.truth.array_kji, dtype=np.float32)
    pairs = zip(image, truth, strict=True)
    found.qualities.setdefault(method, []).extend(quality(plane, true_plane) for plane, true_plane in pairs)
    if reference is not None:
        found.readings.setdefault(method, []).append(read_image(image, reference))


def _error_and_deviation(result: Result, case: Case) -> tuple[Float32, Float32]:
    assert result.uncertainty is not None
    error = np.asarray(result.volume.array_kji, np.float32) - np.asarray(case.scan.truth.array_kji, np.float32)
    return error, np.asarray(result.uncertainty.array_kji, np.float32)


def _shown(case: Case, images: dict[str, Float32]) -> Shown:
    k = case.scan.truth.array_kji.shape[0] // 2
    return Shown(
        np.asarray(case.scan.clinical.array_kji[k], dtype=np.float32),
        np.asarray(case.scan.truth.array_kji[k], dtype=np.float32),
        {method: image[k] for method, image in images.items()},
        case.settings.pixel_mm,
    )


def _table(found: _Found, cases: CaseSet) -> Table:
    rows = []
    for method, values in found.qualities.items():
        numbers = {key: float(np.mean([getattr(v, key) for v in values])) for key in Quality.__dataclass_fields__}
        if method in found.readings:
            numbers |= summarise(found.readings[method])
        rows.append(Row(method, numbers))
    uncertainty = {name: coverage(pairs) | _ranking(pairs) for name, pairs in found.errors.items()}
    protocol = {
        "set": cases.name or "own cases",
        "cases": len(cases),
        "slices": len(next(iter(found.qualities.values()))),
        "seeds": [cases.seeds[0], cases.seeds[-1]],
        "set_sha256": cases.sha256,
        "scanners": [asdict(settings) for _, settings in cases.cases],
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
    }
    return Table(rows, uncertainty, protocol)


def _ranking(pairs: Sequence[tuple[Float32, Float32]]) -> dict[str, float]:
    """How well the uncertainty ranks the errors: 0 as well as the errors themselves, 1 as badly as chance."""
    curves: list[Sparsification] = [sparsification(error, deviation) for error, deviation in pairs]
    return {
        "AUSE": float(np.mean([c.ause for c in curves])),
        "AUSE of chance": float(np.mean([c.ause_random for c in curves])),
    }
