"""The pipeline: a clinical CT in, its super-resolution out. Panel, command and Python all end here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib import __version__
from CTMicroSRLib.acquisition import Acquisition, estimate_acquisition
from CTMicroSRLib.errors import RefusedInputError, ResourceError, UsageError, shown
from CTMicroSRLib.files import check_is_ct
from CTMicroSRLib.lungs import LungMask, segment_lungs
from CTMicroSRLib.options import OPTION_NAMES, Options
from CTMicroSRLib.plan import Plan, make_plan
from CTMicroSRLib.progress import Progress, SilentProgress, check_cancelled
from CTMicroSRLib.report import NOTICE, Report, Stopwatch, peak_memory_mb, software_versions
from CTMicroSRLib.volume import Geometry, Volume, grid_difference

if TYPE_CHECKING:
    from CTMicroSRLib.session import Model

logger = logging.getLogger(__name__)

Bool = NDArray[np.bool_]
Mask = NDArray[np.bool_] | NDArray[np.integer[Any]] | LungMask | Volume

COARSE_SPACING_MM = 1.0

LARGEST_PIXEL_RATIO = 1.5
"""No scanner's pixels are so far from square; a plane that is holds the axis of the slices."""

LARGEST_UNEXPLAINED_SHARE = 0.02
"""So much of a result may lie at edges that no slice explains (the field of view's, metal's) without a warning."""

LARGEST_BEYOND_NOISE_SHARE = 0.01
"""So much of a result may differ from the scan by more than its noise without a warning."""


@dataclass(frozen=True)
class Result:
    """A super-resolved volume (int16 HU), its uncertainty if asked for, and the report.

    ``uncertainty`` is the calibrated standard deviation in HU (int16) on the same grid; 0 where the network
    did not run and nothing is known.
    """

    volume: Volume
    uncertainty: Volume | None
    report: Report


class Sink(Protocol):
    """Takes the result slice by slice."""

    def write_slice(self, array_ji: NDArray[Any]) -> None:
        """The next slice, int16."""


class MemorySink:
    """Keeps the slices in one array."""

    def __init__(self, geometry: Geometry) -> None:
        self.array_kji = np.empty(geometry.shape_kji, dtype=np.int16)
        self._next = 0

    def write_slice(self, array_ji: NDArray[Any]) -> None:
        """Copy the slice."""
        self.array_kji[self._next] = array_ji
        self._next += 1


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to go: everything decided, nothing computed."""

    volume: Volume
    options: Options
    model: Model
    plan: Plan
    acquisition: Acquisition
    stopwatch: Stopwatch
    warnings: tuple[str, ...]


def super_resolve(
    volume: Volume,
    *,
    mask: Mask | None = None,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401 - the fields of Options, checked there
) -> Result:
    """Super-resolve a volume in memory.

    Args:
        volume: a chest CT in HU.
        mask: where the network runs: what :func:`segment_lungs` gives, or a boolean or integer array,
            ``(k, j, i)`` on the volume's grid, or a Volume of one, of which every non-zero voxel is inside; None
            segments the lungs when ``region`` is ``lungs`` and is everywhere otherwise.
        progress: hears how far it is and is asked whether to stop.
        **options: fields of :class:`Options`, for example ``region="whole", uncertainty=True``.

    Raises:
        RefusedInputError, UsageError, ResourceError, ModelError, CancelledError: see ``errors``.
    """
    listener = progress or SilentProgress()
    unknown = next((name for name in options if name not in OPTION_NAMES), None)
    if unknown is not None:
        raise UsageError(f"super_resolve has no such option ({unknown!r}); choose one of {', '.join(OPTION_NAMES)}.")
    chosen = Options(**options)
    prepared = prepare(volume, chosen, mask, listener)
    geometry = prepared.plan.output_geometry
    _check_memory(geometry, copies=2 if chosen.uncertainty else 1)
    sink = MemorySink(geometry)
    deviation = MemorySink(geometry) if chosen.uncertainty else None
    report = run(prepared, sink, deviation, listener)
    header = result_metadata(prepared)
    return Result(
        Volume(sink.array_kji, geometry, header),
        None if deviation is None else Volume(deviation.array_kji, geometry, header),
        report,
    )


def prepare(volume: Volume, options: Options, mask: Mask | None, progress: Progress) -> Prepared:
    """Check the input, load the model, find the lungs, estimate blur and noise, and plan.

    Raises:
        RefusedInputError, UsageError, ResourceError, ModelError, CancelledError: see ``errors``.
    """
    from CTMicroSRLib.session import Model, load_model

    stopwatch = Stopwatch()
    if not isinstance(volume, Volume):
        raise UsageError(f"The scan is {shown(volume)}, not a Volume; read it with read_volume first.")
    check_is_ct(volume)
    inside = None if mask is None else _inside(mask, volume.geometry)
    progress.update("loading the model", 0, 1)
    with stopwatch.stage("model"):
        model = (
            options.model
            if isinstance(options.model, Model)
            else load_model(options.model, device=options.device, precision=options.precision)
        )
    progress.update("loading the model", 1, 1)
    if options.uncertainty:
        check_has_dropout(model)
    if min(volume.array_kji.shape[1:]) < model.network.smallest:
        raise RefusedInputError(
            f"The slices are smaller than the {model.network.smallest} voxels that {model.card.name} needs; give the "
            "whole scan."
        )
    warnings = coarse_pixel_warnings(volume.geometry)
    if inside is None and options.region == "lungs":
        with stopwatch.stage("lungs"):
            found = segment_lungs(volume, progress=progress)
            inside, warnings = found.array_kji.astype(bool, copy=False), (*warnings, *found.warnings)
    with stopwatch.stage("plan"):
        plan = make_plan(
            volume.geometry,
            options.region,
            inside,
            scale=model.card.scale,
            halo=model.card.halo,
            tile=options.tile,
        )
    with stopwatch.stage("acquisition"):
        acquisition = estimate_acquisition(
            volume, psf_fwhm_mm=options.psf_fwhm_mm, noise_hu=options.noise_hu, progress=progress
        )
    return Prepared(volume, options, model, plan, acquisition, stopwatch, warnings)


def _inside(mask: Mask, geometry: Geometry) -> Bool:
    """The voxels of a mask that are not zero.

    Raises:
        UsageError: it is no mask, its voxels are neither booleans nor integers, or its shape or grid is not the
            scan's.
    """
    if isinstance(mask, Volume) and (difference := grid_difference(mask.geometry, geometry)):
        raise UsageError(f"The mask is not on the scan's grid (its {difference}); resample it onto the scan first.")
    array: Any = mask.array_kji if isinstance(mask, LungMask | Volume) else mask
    if not isinstance(array, np.ndarray):
        raise UsageError(
            f"The mask is {shown(array)}; give a boolean or integer array, a Volume of one, or a LungMask."
        )
    if array.dtype.kind not in "biu":
        raise UsageError(f"The mask's voxels are {array.dtype}; give booleans or integers, for example mask > 0.5.")
    if array.shape != geometry.shape_kji:
        raise UsageError(f"The mask's shape {array.shape} is not the scan's {geometry.shape_kji}; use one grid.")
    return array.astype(np.bool_, copy=False)


def check_has_dropout(model: Model) -> None:
    """Refuse an uncertainty that the model can't tell.

    Raises:
        UsageError: its network has no dropout.
    """
    if not (model.network.dropout_channels and model.network.dropout_rate > 0):
        raise UsageError(
            f"The model {model.card.name} has no dropout to tell its uncertainty from; leave the uncertainty out or "
            "choose another model."
        )


def coarse_pixel_warnings(geometry: Geometry) -> tuple[str, ...]:
    """A sentence where the pixels are coarser than any the shipped models were trained on, or slices lie elsewhere."""
    finest_mm, coarsest_mm = sorted(geometry.spacing_mm[:2])
    if coarsest_mm > LARGEST_PIXEL_RATIO * finest_mm:
        i_mm, j_mm, _ = geometry.spacing_mm
        return (
            f"The pixels are {i_mm:.2f} x {j_mm:.2f} mm: the slices seem to be stored along another axis than the "
            "third, along which nothing is refined; reorder the axes first if so.",
        )
    if coarsest_mm <= COARSE_SPACING_MM:
        return ()
    return (f"The pixels are {coarsest_mm:.2f} mm wide: expect less detail than from a thin-section CT.",)


def run(prepared: Prepared, sink: Sink, deviation_sink: Sink | None, progress: Progress) -> Report:
    """Compute every slice of the plan and hand it to the sinks.

    Args:
        prepared: from :func:`prepare`.
        sink: takes the result, int16 HU.
        deviation_sink: takes the calibrated standard deviation, int16 HU; needs ``options.uncertainty``.
        progress: see :class:`Progress`.
    """
    from CTMicroSRLib.slices import SliceEngine

    plan, stopwatch = prepared.plan, prepared.stopwatch
    first, last = plan.region.k
    with _memory_errors():
        engine = SliceEngine(prepared)
        for k, slice_plan in plan.slice_plans():
            progress.update("super-resolving", k - first, last - first)
            outcome = engine.compute(k, slice_plan, lambda: check_cancelled(progress))
            with stopwatch.stage("write"):
                sink.write_slice(outcome.result_hu)
                if deviation_sink is not None and outcome.deviation_hu is not None:
                    deviation_sink.write_slice(outcome.deviation_hu)
    progress.update("super-resolving", last - first, last - first)
    return _report(prepared, engine.measured())


def result_metadata(prepared: Prepared) -> dict[str, str]:
    """What the header of a result's own file says of its origin."""
    card = prepared.model.card
    return {
        "Modality": "CT",
        "CTMicroSR.derived": "true",
        "CTMicroSR.model": f"{card.name} {card.sha256[:16]}",
        "CTMicroSR.version": __version__,
        "CTMicroSR.region": str(prepared.plan.region),
        "CTMicroSR.notice": NOTICE,
    }


def _report(prepared: Prepared, measured: Report) -> Report:
    options, model, acquisition = prepared.options, prepared.model, prepared.acquisition
    geometry = prepared.plan.output_geometry
    return {
        "input": {
            "size_ijk": list(prepared.volume.geometry.size_ijk),
            "spacing_mm": list(prepared.volume.geometry.spacing_mm),
            "metadata": dict(prepared.volume.metadata),
        },
        "output": {
            "size_ijk": list(geometry.size_ijk),
            "spacing_mm": list(geometry.spacing_mm),
            "origin_mm": list(geometry.origin_mm),
        },
        "model": {"name": model.card.name, "sha256": model.card.sha256},
        "region": str(prepared.plan.region),
        "tiles": {**measured["tiles"], "largest": prepared.plan.largest_tile, "halo": prepared.plan.halo},
        "device": str(model.device),
        "precision": model.precision,
        "precision_error_hu": round(model.precision_error_hu, 3),
        "seed": options.seed,
        "uncertainty": measured["uncertainty"],
        "seconds": prepared.stopwatch.by_stage(),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "consistency": {
            "mode": options.consistency,
            "psf_fwhm_mm": round(acquisition.psf_fwhm_mm, 4),
            "psf_source": acquisition.psf_source,
            "psf_edges": acquisition.edges,
            "noise_hu": round(acquisition.noise_hu, 3),
            "noise_source": acquisition.noise_source,
            **measured["residual"],
            "unexplained_share": round(measured["unexplained_share"], 5),
        },
        "warnings": [*prepared.warnings, *acquisition.notes, *_consistency_warnings(prepared, measured)],
        "software": software_versions(),
        "notice": NOTICE,
    }


def _consistency_warnings(prepared: Prepared, measured: Report) -> Iterator[str]:
    """Where the result could not be made consistent with the scan, if it was to be."""
    if prepared.options.consistency != "scan":
        return
    acquisition = prepared.acquisition
    unexplained, beyond_noise = measured["unexplained_share"], measured["residual"]["beyond_noise_share"]
    if unexplained > LARGEST_UNEXPLAINED_SHARE:
        yield (
            f"{unexplained:.0%} of the super-resolved voxels lie at edges sharper than a point spread of "
            f"{acquisition.psf_fwhm_mm:.2f} mm allows and were not made consistent with the scan; give a narrower one "
            "(--psf-fwhm-mm) if they are in the lungs."
        )
    if beyond_noise > LARGEST_BEYOND_NOISE_SHARE:
        yield (
            f"{beyond_noise:.0%} of the voxels still differ from the scan by more than twice a noise of "
            f"{acquisition.noise_hu:.1f} HU allows; if it or the point spread of {acquisition.psf_fwhm_mm:.2f} mm is "
            "not the scan's, give them (--noise-hu, --psf-fwhm-mm)."
        )


def _check_memory(geometry: Geometry, copies: int) -> None:
    from CTMicroSRLib.devices import free_memory_bytes

    needed = 2 * int(np.prod(geometry.size_ijk, dtype=np.int64)) * copies
    free = free_memory_bytes()
    if needed > 0.9 * free:
        raise ResourceError(
            f"The result needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; choose a smaller "
            "region, or write to a file, which needs no more than a slice."
        )


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn a failed allocation into one sentence."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise ResourceError("Not enough memory for one slice; choose a smaller --tile or region.") from None
    except RuntimeError as error:
        if "allocate memory" in str(error):
            raise ResourceError("Not enough memory for one slice; choose a smaller --tile or region.") from None
        raise
