"""The protocol ``simulated``: methods side by side on simulated scans of unseen specimens and scanners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.candidates import Candidate, check_scale, find_candidates, loaded
from CTMicroSRLib.evaluation.residuals import input_residual
from CTMicroSRLib.evaluation.results import Collected, Row, Shown, Table, coverage, machine
from CTMicroSRLib.evaluation.tables import with_published
from CTMicroSRLib.evaluation.variants import Scanner, Variants, error_and_deviation, is_misjudged, model_variants
from CTMicroSRLib.evaluation.yardsticks import Reference, prepare_reference, read_image
from CTMicroSRLib.interpolators import INTERPOLATORS, bicubic
from CTMicroSRLib.progress import Progress
from CTMicroSRLib.simulation.cases import Case, CaseSettings, simulate_case
from CTMicroSRLib.simulation.sets import CaseSet
from CTMicroSRLib.workers import results_of

__all__ = ["Row", "Shown", "Table", "back_projected", "coverage", "evaluate_models"]

Float32 = NDArray[np.float32]


def evaluate_models(
    names: Sequence[str],
    cases: CaseSet,
    progress: Progress,
    *,
    variants: Variants = "all",
    yardsticks: bool = True,
    show_case: int = 0,
    workers: int = 1,
    device: str = "auto",
    by_card: bool = False,
) -> tuple[Table, Shown]:
    """Measure interpolators and models on simulated cases.

    Args:
        names: installed models, model folders or training runs.
        cases: seeds and settings, for instance the set ``test-1``.
        progress: see :class:`Progress`.
        variants: of each model: ``all`` with every consistency and misjudged point spreads, ``default`` without and
            with consistency, ``papers`` the network alone.
        yardsticks: also measure edges, airways, vessels, nodules, tissues and spectra, which takes as long again.
        show_case: which case the figure shows.
        workers: processes that share the cases, each on one thread; the numbers don't depend on it.
        device: as for ``superres``.
        by_card: call runs by their card's name, not by their folder.

    Returns:
        The table, and one case through every method.

    Raises:
        ModelError: a model can't be found or is damaged.
        UsageError: a model of another scale than the cases.
    """
    candidates = find_candidates(names, by_card=by_card)
    for _, settings in cases.cases:
        check_scale(candidates, settings.scale, "the simulated cases are")
    found = Collected()
    task = _Task(tuple(candidates), variants, yardsticks, device)
    progress.update("evaluating", 0, len(cases))
    for n, part in enumerate(results_of(task.measure, cases.cases, progress, workers=workers)):
        found.add(part, show=n == min(show_case, len(cases) - 1))
        progress.update("evaluating", n + 1, len(cases))
    assert found.shown is not None  # a set has at least one case
    return _table(found, cases, candidates), found.shown


class _Task:
    """What is done with every case; goes to the processes as it is."""

    def __init__(self, candidates: tuple[Candidate, ...], variants: Variants, yardsticks: bool, device: str) -> None:
        self.candidates, self.variants = candidates, variants
        self.yardsticks, self.device = yardsticks, device

    def measure(self, seed_and_settings: tuple[int, CaseSettings]) -> Collected:
        """One case through every method."""
        seed, settings = seed_and_settings
        found = Collected()
        case = simulate_case(settings, seed)
        reference = prepare_reference(case) if self.yardsticks else None
        found.note_truth(case.scan.truth.array_kji)
        images: dict[str, Float32] = {}
        for method, image in _interpolated(case):
            _note(found, method, image, case, reference)
            images[method] = image
        scanner = Scanner(settings.psf_fwhm_mm, settings.image_noise_hu)
        for candidate in self.candidates:
            model = loaded(candidate.folder, self.device)
            for method, result in model_variants(model, candidate.label, case.scan.clinical, scanner, self.variants):
                misjudged = is_misjudged(method)
                image = np.asarray(result.volume.array_kji, dtype=np.float32)
                _note(found, method, image, case, None if misjudged else reference)
                if result.uncertainty is not None:
                    pair = error_and_deviation(result, case.scan.truth.array_kji)
                    found.note_uncertainty(candidate.label, method, *pair)
                if not misjudged:
                    images[method] = image
        found.shown = _shown(case, images)
        return found


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


def _interpolated(case: Case) -> Iterator[tuple[str, Float32]]:
    coarse = np.asarray(case.scan.clinical.array_kji, dtype=np.float32)
    for name, interpolate in INTERPOLATORS.items():
        yield name, np.stack([interpolate(plane, case.settings.scale) for plane in coarse])
    yield "bicubic, scan", back_projected(coarse, case.settings)


def _note(found: Collected, method: str, image: Float32, case: Case, reference: Reference | None) -> None:
    settings = case.settings
    found.note(method, image, case.scan.truth.array_kji)
    residual = input_residual(
        image,
        case.scan.clinical.array_kji,
        settings.scale,
        psf_fwhm_voxels=settings.psf_fwhm_mm / settings.pixel_mm,
        noise_hu=settings.image_noise_hu,
    )
    found.residuals.setdefault(method, []).append(residual)
    if reference is not None:
        found.readings.setdefault(method, []).append(read_image(image, reference))


def _shown(case: Case, images: dict[str, Float32]) -> Shown:
    k = case.scan.truth.array_kji.shape[0] // 2
    return Shown(
        np.asarray(case.scan.clinical.array_kji[k], dtype=np.float32),
        np.asarray(case.scan.truth.array_kji[k], dtype=np.float32),
        {method: image[k] for method, image in images.items()},
        case.settings.pixel_mm,
    )


def _table(found: Collected, cases: CaseSet, candidates: Sequence[Candidate]) -> Table:
    rows = with_published(found.rows(), candidates, "simulated")
    protocol = {
        "set": cases.name or "own cases",
        "cases": len(cases),
        "slices": len(next(iter(found.slices.values()))),
        "seeds": [cases.seeds[0], cases.seeds[-1]],
        "set_sha256": cases.sha256,
        "scanners": [asdict(settings) for _, settings in cases.cases],
        "machine": machine(),
    }
    return Table(rows, found.coverage(), protocol)
