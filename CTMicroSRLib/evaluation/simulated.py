"""The protocol ``simulated``: methods side by side on simulated scans of unseen specimens and scanners."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.interpolators import INTERPOLATORS, bicubic
from CTMicroSRLib.evaluation.metrics import Quality, quality
from CTMicroSRLib.progress import Progress, check_cancelled
from CTMicroSRLib.session import Model, load_model
from CTMicroSRLib.simulation.cases import CaseSettings, make_case
from CTMicroSRLib.simulation.scanner import PairedScan
from CTMicroSRLib.superresolve import Options, Result, super_resolve

MISJUDGED = 0.2
"""The point spread is also given this much too small and too large."""

SLICES_PER_CASE = 3

LEVELS = {0.80: 1.2816, 0.90: 1.6449, 0.95: 1.9600}
"""Two-sided coverage and its half-width in standard deviations."""

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """A method's means over the slices of all cases."""

    method: str
    psnr_db: float
    ssim: float
    ssim_lung_window: float
    mae_hu: float


@dataclass(frozen=True)
class Table:
    """Rows by method, coverage of the uncertainty by model, and what was measured on."""

    rows: list[Row]
    coverage: dict[str, dict[str, float]]
    protocol: dict[str, object]


def scanner_settings(count: int) -> list[CaseSettings]:
    """Scanner and protocol of each test case: fixed values between and beside those of training draws.

    Blur, slice, pixel and noise run through their own lists at different paces, so that they mix.
    """
    blur_mm, slices_mm = (0.75, 0.95, 1.15, 1.45, 1.75), (0.75, 1.25, 2.5)
    pixels_mm, noises_hu = (0.55, 0.68, 0.82), (6.0, 12.0, 20.0, 35.0)
    mixed = list(product(blur_mm, slices_mm))
    return [
        CaseSettings(
            psf_fwhm_mm=mixed[(7 * n) % len(mixed)][0],
            slice_mm=mixed[(7 * n) % len(mixed)][1],
            pixel_mm=pixels_mm[n % 3],
            noise_hu=noises_hu[n % 4],
            depth_mm=SLICES_PER_CASE * mixed[(7 * n) % len(mixed)][1],
        )
        for n in range(count)
    ]


def evaluate_models(names: Sequence[str], cases: int, seed: int, progress: Progress) -> Table:
    """Measure interpolators and models on ``cases`` specimens.

    Args:
        names: installed models or model folders.
        cases: number of specimens.
        seed: specimens have the seeds ``seed * 100000`` and on (training used 100000, validation 700000).
        progress: see :class:`Progress`.
    """
    models = [load_model(name, precision="fp32") for name in names]
    found: dict[str, list[Quality]] = {}
    errors: dict[str, list[tuple[Float32, Float32]]] = {}
    for n, settings in enumerate(scanner_settings(cases)):
        check_cancelled(progress)
        progress.update("evaluating", n, cases)
        case = make_case(settings, seed * 100_000 + n)
        for method, array in _interpolated(case, settings):
            found.setdefault(method, []).extend(_qualities(array, case))
        for model in models:
            for method, result in model_variants(model, case, settings):
                found.setdefault(method, []).extend(_qualities(result.volume.array_kji, case))
                if result.uncertainty is not None:
                    errors.setdefault(model.card.name, []).append(_error_and_deviation(result, case))
    progress.update("evaluating", cases, cases)
    protocol = {
        "cases": cases,
        "seeds": [seed * 100_000, seed * 100_000 + cases],
        "scanners": [asdict(settings) for settings in scanner_settings(cases)],
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
    }
    rows = [_mean_row(method, values) for method, values in found.items()]
    return Table(rows, {name: coverage(pairs) for name, pairs in errors.items()}, protocol)


def model_variants(model: Model, case: PairedScan, settings: CaseSettings) -> Iterator[tuple[str, Result]]:
    """The model without consistency, with each kind, and with the point spread misjudged by 20 %."""
    known = Options(
        region="whole",
        model=model,
        psf_fwhm_mm=settings.psf_fwhm_mm,
        noise_hu=settings.noise_hu,
        consistency="off",
    )
    name = model.card.name
    yield f"{name}, consistency off", _resolve(case, known)
    yield f"{name}, scan (default)", _resolve(case, replace(known, consistency="scan", uncertainty=True))
    for factor in (1.0 - MISJUDGED, 1.0 + MISJUDGED):
        wrong = replace(known, psf_fwhm_mm=settings.psf_fwhm_mm * factor)
        yield f"{name}, off, point spread x{factor:.1f}", _resolve(case, wrong)
        yield f"{name}, scan, point spread x{factor:.1f}", _resolve(case, replace(wrong, consistency="scan"))
    yield f"{name}, block", _resolve(case, replace(known, consistency="block"))


def coverage(pairs: Sequence[tuple[Float32, Float32]]) -> dict[str, float]:
    """Share of voxels whose error lies within the interval of each level."""
    error = np.concatenate([np.abs(e).ravel() for e, _ in pairs])
    deviation = np.concatenate([d.ravel() for _, d in pairs])
    return {f"{level:.0%}": float(np.mean(error <= width * deviation)) for level, width in LEVELS.items()}


def _resolve(case: PairedScan, options: Options) -> Result:
    return super_resolve(case.clinical, **{key: getattr(options, key) for key in options.__dataclass_fields__})


def _interpolated(case: PairedScan, settings: CaseSettings) -> Iterator[tuple[str, Float32]]:
    coarse = np.asarray(case.clinical.array_kji, dtype=np.float32)
    for name, interpolate in INTERPOLATORS.items():
        yield name, np.stack([interpolate(plane, settings.scale) for plane in coarse])
    yield "bicubic, scan", back_projected(coarse, settings)


def back_projected(coarse_kji: Float32, settings: CaseSettings) -> Float32:
    """Bicubic interpolation made consistent with the scanner: what consistency alone gives."""
    import torch

    from CTMicroSRLib.consistency import ConsistencySettings, ScannerConsistency

    scanner = ConsistencySettings("scan", settings.psf_fwhm_mm, settings.noise_hu)
    shape = (coarse_kji.shape[1], coarse_kji.shape[2])
    engine = ScannerConsistency(shape, settings.scale, (settings.pixel_mm,) * 2, scanner, torch.device("cpu"))
    planes = []
    for plane in coarse_kji:
        fine = torch.from_numpy(bicubic(plane, settings.scale))
        engine.apply(fine, torch.from_numpy(plane))
        planes.append(fine.numpy())
    return np.stack(planes)


def _qualities(array: NDArray[np.generic], case: PairedScan) -> list[Quality]:
    truth = np.asarray(case.truth.array_kji, dtype=np.float32)
    return [quality(np.asarray(image, dtype=np.float32), plane) for image, plane in zip(array, truth, strict=True)]


def _error_and_deviation(result: Result, case: PairedScan) -> tuple[Float32, Float32]:
    assert result.uncertainty is not None
    error = np.asarray(result.volume.array_kji, np.float32) - np.asarray(case.truth.array_kji, np.float32)
    return error, np.asarray(result.uncertainty.array_kji, np.float32)


def _mean_row(method: str, values: Sequence[Quality]) -> Row:
    means = {key: float(np.mean([getattr(v, key) for v in values])) for key in Quality.__dataclass_fields__}
    return Row(method, **means)
