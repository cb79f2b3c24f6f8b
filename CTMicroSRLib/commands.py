"""What each command of ``ctmicrosr`` does, after its options are read."""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from CTMicroSRLib import __version__, models
from CTMicroSRLib.errors import ModelError, UsageError
from CTMicroSRLib.progress import Progress
from CTMicroSRLib.terminal import BarProgress, JsonProgress, make_progress
from CTMicroSRLib.volume import Region


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


@contextmanager
def _progress(options: Namespace) -> Iterator[Progress]:
    """The progress of ``--progress``, whose bar is ended before anything else is printed."""
    progress = make_progress(options.progress)
    try:
        yield progress
    finally:
        if isinstance(progress, BarProgress):
            progress.close()


def _region(text: str) -> Any:  # noqa: ANN401 - RegionChoice, which needs a heavier import
    return text if text in ("lungs", "whole") else Region.parse(text)


def superres(options: Namespace) -> None:
    """``ctmicrosr superres``."""
    from CTMicroSRLib.jobs import Job, run_job
    from CTMicroSRLib.options import Options

    job = Job(
        input=options.input,
        output=options.output,
        options=Options(
            region=_region(options.region),
            model=options.model,
            uncertainty=options.uncertainty is not None,
            passes=options.passes,
            seed=options.seed,
            consistency=options.consistency,
            psf_fwhm_mm=options.psf_fwhm_mm,
            noise_hu=options.noise_hu,
            device=options.device,
            precision=options.precision,
            tile=options.tile,
        ),
        mask=options.mask,
        uncertainty=options.uncertainty,
        report=options.report,
        figure=options.figure,
        overwrite=options.overwrite,
    )
    with _progress(options) as progress:
        report = run_job(job, progress)
    if isinstance(progress, JsonProgress):
        progress.event("done", report=report)
        return
    consistency = report["consistency"]
    size = " x ".join(str(n) for n in report["output"]["size_ijk"])
    _say(f"{job.output}: {size} voxels in {report['seconds']['total']:.0f} s")
    _say(
        f"Scanned again it differs from the input by {consistency['residual_rms_hu']:.1f} HU (root mean square); the "
        f"scan's noise is {consistency['noise_hu']:.1f} HU ({consistency['noise_source']})."
    )
    for warning in report["warnings"]:
        _say(f"Warning: {warning}")
    _say(report["notice"])


def batch(options: Namespace) -> int:
    """``ctmicrosr batch``: the exit status of the first scan that failed."""
    from CTMicroSRLib.batch_command import run_batch, sentences

    with _progress(options) as progress:
        outcomes = run_batch(options, progress)
    failed = [outcome for outcome in outcomes if outcome.exit_status]
    if isinstance(progress, JsonProgress):
        progress.event("done", done=len(outcomes) - len(failed), failed=len(failed))
    else:
        for sentence in sentences(outcomes, options.output_dir):
            _say(sentence)
    return failed[0].exit_status if failed else 0


def segment(options: Namespace) -> None:
    """``ctmicrosr segment``."""
    from CTMicroSRLib.files import check_writable, read_volume, write_volume
    from CTMicroSRLib.lungs import LungSettings, segment_lungs
    from CTMicroSRLib.volume import Volume

    if options.mask.resolve() == options.input.resolve():
        raise UsageError(f"The mask {options.mask.name} is the input; give the mask another name.")
    check_writable(options.mask, 0, overwrite=options.overwrite)
    volume = read_volume(options.input)
    with _progress(options) as progress:
        found = segment_lungs(volume, LungSettings(include_airways=options.airways), progress)
    mask = Volume(found.array_kji.astype(np.uint8), volume.geometry)
    write_volume(mask, options.mask, overwrite=options.overwrite)
    if isinstance(progress, JsonProgress):
        progress.event("done", volume_ml=found.volume_ml, warnings=list(found.warnings))
        return
    _say(f"{options.mask}: {found.volume_ml / 1000:.2f} litres of lung")
    for warning in found.warnings:
        _say(f"Warning: {warning}")


INFO_LABELS = {"disk_gb": "disk gb in all", "seconds": "network seconds"}
"""What ``info`` prints where the fact's name alone would say too little."""


def info(options: Namespace) -> None:
    """``ctmicrosr info``."""
    from CTMicroSRLib.scan_facts import scan_facts

    facts = scan_facts(
        options.input,
        _region(options.region),
        options.mask,
        options.model,
        device=options.device,
        precision=options.precision,
        tile=options.tile,
        passes=options.passes,
    )
    if options.json:
        _say(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        shown = " x ".join(f"{n:g}" for n in value) if isinstance(value, list) else value
        if key != "metadata":
            _say(f"{INFO_LABELS.get(key, key.replace('_', ' ')):>20}: {shown}")
    for key, value in facts["metadata"].items():
        _say(f"{key:>20}: {value}")


def models_list(_options: Namespace) -> None:
    """``ctmicrosr models list``."""
    found, problems = models.list_models()
    for model in found:
        origin = "shipped" if model.shipped else "imported"
        _say(f"{model.card.name:24} {model.card.scale}x  {origin:9} {model.card.title}")
    for problem in problems:
        _say(f"Problem: {problem}")
    if not found:
        raise ModelError("No model is installed; import one with 'ctmicrosr models import FOLDER'.")


def models_show(options: Namespace) -> None:
    """``ctmicrosr models show``."""
    model = models.find_model(options.model)
    _say(model.card.to_json().rstrip())
    _say(f"folder: {model.folder}")


def models_verify(options: Namespace) -> None:
    """``ctmicrosr models verify``."""
    model = models.find_model(options.model)
    models.verify_model(model)
    _say(f"{model.card.name}: the weights are those of the card (SHA-256 {model.card.sha256})")


def models_import(options: Namespace) -> None:
    """``ctmicrosr models import``."""
    model = models.import_model(Path(options.model))
    _say(f"{model.card.name} is now in {model.folder}")


def models_remove(options: Namespace) -> None:
    """``ctmicrosr models remove``."""
    _say(f"removed {models.remove_model(options.model)}")


CASE_OPTIONS = (
    "pixel_mm",
    "psf_fwhm_mm",
    "kernel",
    "slice_mm",
    "slice_spacing_mm",
    "noise_hu",
    "size_voxels",
    "depth_mm",
    "disease",
    "without",
)
"""Options of ``ctmicrosr simulate`` that are settings of a case; None where they were not given."""


def simulate(options: Namespace) -> None:
    """``ctmicrosr simulate``."""
    from CTMicroSRLib.simulation.case_files import load_case, verify_cases, write_cases

    given = [name for name in ("set", "count", "seed", *CASE_OPTIONS) if getattr(options, name) is not None]
    if options.verify and (given or options.arrays or options.figure or options.overwrite):
        raise UsageError("The option --verify only looks at a folder; leave out those that say what to write.")
    if options.verify:
        with _progress(options) as progress:
            count = verify_cases(options.folder, progress)
        if isinstance(progress, JsonProgress):
            progress.event("done", verified=count)
            return
        _say(f"{options.folder}: all {count} files are those of the manifest")
        return
    cases = _cases(options, given)
    if options.figure is not None:
        _check_figure(options.figure, options.overwrite)
    with _progress(options) as progress:
        written = write_cases(
            options.folder, cases, arrays=options.arrays, overwrite=options.overwrite, progress=progress
        )
    if options.figure is not None:
        from CTMicroSRLib.simulation.case_figure import draw_case

        draw_case(load_case(options.folder, cases.seeds[0]), options.figure)
        written.append(options.figure)
    if isinstance(progress, JsonProgress):
        progress.event("done", files=[str(path) for path in written])
        return
    for path in written:
        _say(str(path))


def _cases(options: Namespace, given: list[str]) -> Any:  # noqa: ANN401 - CaseSet, which needs a heavier import
    """The cases that the options ask for: those of a set, or of one scanner with seeds that count up."""
    from CTMicroSRLib.simulation.cases import CaseSettings
    from CTMicroSRLib.simulation.sets import case_set, consecutive_cases

    if options.set is not None:
        cases = case_set(options.set)
        fixed = next((name for name in given if name not in ("set", "count")), None)
        if fixed is not None:
            option = f"--{fixed.replace('_', '-')}"
            raise UsageError(f"The set {options.set} fixes seeds, scanners and specimens; leave out {option}.")
        return cases if options.count is None else cases.first(options.count)
    if options.kernel is not None and options.psf_fwhm_mm is not None:
        raise UsageError("A named kernel has its own blur; leave out --psf-fwhm-mm or --kernel.")
    settings = {name: getattr(options, name) for name in CASE_OPTIONS if name in given}
    if "without" in settings:
        settings["without"] = tuple(name.replace("-", " ") for name in options.without)
    count, seed = (default if value is None else value for value, default in ((options.count, 1), (options.seed, 0)))
    return consecutive_cases(count, seed, CaseSettings(**settings))


def train(options: Namespace) -> None:
    """``ctmicrosr train``."""
    from CTMicroSRLib.training.command import train_method

    with _progress(options) as progress:
        outcome = train_method(options, progress)
    if outcome is None:
        return
    if isinstance(progress, JsonProgress):
        progress.event("done", files=[str(outcome.folder)])
        return
    _say(outcome.sentence)


def evaluate(options: Namespace) -> None:
    """``ctmicrosr evaluate``."""
    from CTMicroSRLib.evaluation.protocols import ProtocolOptions, prepare_protocol, run_protocol
    from CTMicroSRLib.evaluation.tables import markdown, table_paths, write_table
    from CTMicroSRLib.workers import worker_count

    paths = table_paths(options.output)
    folder = paths[0].parent
    if options.output.endswith(("/", os.sep)) and folder.parent.is_dir():
        folder.mkdir(exist_ok=True)
    for path in paths:
        _check_free(path, options.overwrite)
    if options.figure is not None:
        _check_figure(options.figure, options.overwrite)
    window = None if options.micro_window is None else tuple(options.micro_window)
    asked = ProtocolOptions(
        **{name: getattr(options, name) for name in ("protocol", "variants", "set", "cases", "quick", "processes")},
        **{name: getattr(options, name) for name in ("slices", "synthesizer", "device")},
        micro=tuple(options.micro),
        micro_window=window,
        clinical=tuple(options.clinical),
    )
    prepare_protocol(asked)
    with _progress(options) as progress:
        table, shown = run_protocol(options.models, asked, progress, processes=worker_count())
    for path in paths:
        write_table(table, path)
    if options.figure is not None:
        from CTMicroSRLib.evaluation.crops_figure import draw_crops

        draw_crops(shown, options.figure)
    if isinstance(progress, JsonProgress):
        progress.event("done", files=[str(path) for path in paths])
        return
    _say(markdown(table))


def _check_figure(path: Path, overwrite: bool) -> None:
    if path.suffix != ".png":
        raise UsageError(f"A figure can be .png, not {path.suffix!r}; change its name.")
    _check_free(path, overwrite)


def _check_free(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} to write {path.name} to; create it first.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already; choose another name or add --overwrite.")


def doctor(_options: Namespace) -> int:
    """``ctmicrosr doctor``: facts, then what is wrong; the exit status of the first problem."""
    import psutil

    from CTMicroSRLib.report import software_versions

    problems: list[tuple[int, str]] = []
    facts = {"ctmicrosr": __version__, **software_versions()}
    memory = psutil.virtual_memory()
    facts["memory free"] = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB"
    facts["disk free here"] = f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB"
    facts["models folder"] = str(models.user_models_folder())
    try:
        import torch

        from CTMicroSRLib.devices import choose_device, has_fast_bf16

        device = choose_device("auto")
        facts["device"] = torch.cuda.get_device_name() if device.type == "cuda" else str(device)
        facts["threads"] = str(torch.get_num_threads())
        facts["fast bf16"] = "yes" if has_fast_bf16(device) else "no"
    except (ImportError, AttributeError, OSError) as error:
        problems.append((4, f"torch can't be used ({error}); install it again."))
    found, broken = models.list_models()
    problems += [(5, text) for text in broken]
    for model in found:
        try:
            models.verify_model(model)
            facts[f"model {model.card.name}"] = "verified"
        except ModelError as error:
            problems.append((error.exit_status, str(error)))
    if not found:
        problems.append((5, "No model is installed; import one with 'ctmicrosr models import FOLDER'."))
    for name, value in facts.items():
        _say(f"{name:>24}: {value}")
    for _, text in problems:
        _say(f"Problem: {text}")
    if not problems:
        _say("Everything that super-resolving needs is here.")
    return problems[0][0] if problems else 0
