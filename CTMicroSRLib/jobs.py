"""One scan in a file in, its super-resolution in files out: what the command and the panel run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from CTMicroSRLib.errors import CancelledError, ResourceError, UsageError
from CTMicroSRLib.files import KeptAsideError, VolumeWriter, check_room, check_writable, read_mask, read_volume
from CTMicroSRLib.options import Options
from CTMicroSRLib.progress import Progress
from CTMicroSRLib.report import Report, peak_memory_mb, write_report
from CTMicroSRLib.signals import held_signals
from CTMicroSRLib.superresolve import Prepared, prepare, result_metadata, run
from CTMicroSRLib.volume import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """The files of one run and its options.

    ``mask``, ``uncertainty``, ``report`` and ``figure`` are None where they are not wanted; ``options`` say whether the
    uncertainty is computed.
    """

    input: Path
    output: Path
    options: Options = field(default_factory=Options)
    mask: Path | None = None
    uncertainty: Path | None = None
    report: Path | None = None
    figure: Path | None = None
    overwrite: bool = False

    def outputs(self) -> list[Path]:
        """The files the job writes."""
        return [path for path in (self.output, self.uncertainty, self.report, self.figure) if path is not None]


def run_job(job: Job, progress: Progress) -> Report:
    """Run a job; each file appears complete or not at all: uncertainty, result, figure, report.

    Raises:
        UsageError, RefusedInputError, ResourceError, ModelError, CancelledError: see ``errors``.
    """
    check_outputs(job)
    progress.update("reading", 0, 1)
    volume = read_volume(job.input)
    mask = None if job.mask is None else read_mask(job.mask, volume.geometry)
    progress.update("reading", 1, 1)
    prepared = prepare(volume, job.options, mask, progress)
    geometry = prepared.plan.output_geometry
    volumes = [path for path in (job.output, job.uncertainty) if path is not None]
    check_room(volumes, geometry, np.int16, overwrite=job.overwrite)
    with ExitStack() as stack:
        header = result_metadata(prepared)
        writers = [
            stack.enter_context(VolumeWriter(path, geometry, np.dtype(np.int16), header, overwrite=job.overwrite))
            for path in volumes
        ]
        report = run(prepared, writers[0], writers[1] if len(writers) > 1 else None, progress)
        progress.update("writing", 0, 1)
        committed = False
        try:
            with held_signals():
                _commit(writers)
                committed = True
                # those that lie there tell of the result that has just been replaced
                for extra in (job.report, job.figure):
                    if extra is not None:
                        extra.unlink(missing_ok=True)
            _complete(report, job, prepared)
            if job.figure is not None:
                _draw(job, volume, prepared)
            if job.report is not None:
                write_report(report, job.report)
            progress.update("writing", 1, 1)
        except KeyboardInterrupt:
            if not committed:
                raise
            raise CancelledError(
                f"Cancelled after {job.output} was complete; what follows it was not written."
            ) from None
    return report


def _commit(writers: Sequence[VolumeWriter]) -> None:
    """Commit the volumes, the result last; where that fails, an uncertainty does not stay without its result.

    One that can't replace the file of its name lies beside it; the others take their names all the same.
    """
    for writer in writers:
        writer.finish()
    committed: list[Path] = []
    kept_aside: KeptAsideError | None = None
    try:
        for writer in reversed(writers):
            try:
                writer.commit()
                committed.append(writer.path)
            except KeptAsideError as error:
                kept_aside = kept_aside or error
    except BaseException:
        for path in committed:
            path.unlink(missing_ok=True)
        raise
    if kept_aside is not None:
        raise kept_aside


def check_outputs(job: Job) -> None:
    """Refuse outputs that can't be written, before any work.

    Raises:
        UsageError: a file exists and ``overwrite`` is off, two outputs are the same file, an output is the input, a
            suffix is wrong, or a folder is missing or takes no file.
        ResourceError: a figure is wanted and matplotlib is not installed.
    """
    paths = [path.resolve() for path in job.outputs()]
    if len(set(paths)) < len(paths):
        raise UsageError("Two of the outputs are the same file; give each its own name.")
    inputs = [path.resolve() for path in (job.input, job.mask) if path is not None]
    for path in paths:
        if path in inputs:
            raise UsageError(f"The output {path.name} is an input; give the output another name.")
    for volume_path in (job.output, job.uncertainty):
        if volume_path is not None:
            check_writable(volume_path, 0, overwrite=job.overwrite)
    for extra, suffix in ((job.report, ".json"), (job.figure, ".png")):
        if extra is not None:
            _check_extra(extra, suffix, overwrite=job.overwrite)
    if job.figure is not None and find_spec("matplotlib") is None:
        raise ResourceError(
            "A figure needs matplotlib; install it (pip install 'ctmicrosr[figures]') or leave --figure out."
        )


def _check_extra(path: Path, suffix: str, *, overwrite: bool) -> None:
    if path.suffix.lower() != suffix:
        raise UsageError(f"{path} does not end in {suffix}, the format it would have; change its name.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} to write {path.name} to; create it first.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file to write.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already; choose another name or allow overwriting (--overwrite).")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); choose another folder or name.") from None


def _complete(report: Report, job: Job, prepared: Prepared) -> None:
    """Add the files' names, and the time and memory of the whole job."""
    inputs: dict[str, Any] = report["input"]
    inputs["path"] = str(job.input)
    outputs: dict[str, Any] = report["output"]
    outputs["path"] = str(job.output)
    outputs["uncertainty"] = None if job.uncertainty is None else str(job.uncertainty)
    report["seconds"] = prepared.stopwatch.by_stage()
    report["peak_memory_mb"] = round(peak_memory_mb(), 1)


def _draw(job: Job, volume: Volume, prepared: Prepared) -> None:
    from CTMicroSRLib.figure import draw_result

    assert job.figure is not None
    draw_result(job.figure, volume, prepared.plan.region, job.output, job.uncertainty)
