"""``ctmicrosr batch``: its options as a batch, and what it tells at the end."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from CTMicroSRLib.batch import SUMMARY, Batch, BatchSettings, Workers
from CTMicroSRLib.batch_scan import ScanOutcome
from CTMicroSRLib.batch_workers import DaskWorkers, LocalWorkers
from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.models import InstalledModel, find_model, verify_model
from CTMicroSRLib.options import Options
from CTMicroSRLib.progress import Progress
from CTMicroSRLib.volume import Region

PASSED_ON = (
    "region",
    "model",
    "passes",
    "seed",
    "consistency",
    "psf_fwhm_mm",
    "noise_hu",
    "device",
    "precision",
    "tile",
)
"""The options that go to every scan as they are."""


def run_batch(options: Namespace, progress: Progress) -> list[ScanOutcome]:
    """Run the batch of the command's options.

    Raises:
        UsageError, RefusedInputError, ResourceError, ModelError, CancelledError: see ``errors``; what a single scan is
            refused for is in its outcome.
    """
    if options.resume and options.overwrite:
        raise UsageError("Going on (--resume) and starting over (--overwrite) exclude each other; leave one out.")
    model = _checked_model(options)
    given = {name: getattr(options, name) for name in PASSED_ON}
    if not model.shipped and Path(options.model).is_dir():
        given["model"] = Path(options.model).resolve()
    settings = BatchSettings(
        arguments=tuple((f"--{name.replace('_', '-')}", str(v)) for name, v in given.items() if v is not None),
        model_sha256=model.card.sha256,
        uncertainty=options.uncertainty,
        figure=options.figure,
        suffix=options.format,
        tries=options.tries,
    )
    workers = _workers(options)
    batch = Batch(options.inputs, options.output_dir, settings, resume=options.resume, overwrite=options.overwrite)
    return batch.run(workers, progress)


def _workers(options: Namespace) -> Workers:
    if options.scheduler is not None:
        return DaskWorkers(options.scheduler)
    return LocalWorkers() if options.workers is None else LocalWorkers(options.workers)


def sentences(outcomes: list[ScanOutcome], folder: Path) -> list[str]:
    """What became of a batch, for a person: failures and warnings by scan, then the sum."""
    told = []
    for outcome in outcomes:
        told += [f"{outcome.input}: {outcome.message}"] if outcome.exit_status else []
        told += [f"{outcome.input}: Warning: {warning}" for warning in outcome.warnings]
    failed = sum(outcome.exit_status != 0 for outcome in outcomes)
    again = f"; {failed} failed, try them again with --resume" if failed else ""
    return [*told, f"{folder}: {len(outcomes) - failed} of {len(outcomes)} scans done{again} ({SUMMARY} has them all)"]


def _checked_model(options: Namespace) -> InstalledModel:
    """Find what is wrong for every scan before the first; returns the model."""
    if options.scheduler is not None and options.workers is not None:
        raise UsageError("A Dask cluster has its own workers; leave out --workers or --scheduler.")
    values = {name: getattr(options, name) for name in PASSED_ON}
    text = values.pop("region")
    Options(region=text if text in ("lungs", "whole") else Region.parse(text), **values)
    model = find_model(options.model)
    verify_model(model)
    return model
