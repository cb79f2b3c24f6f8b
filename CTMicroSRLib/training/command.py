"""``ctmicrosr train METHOD``: patches, training, and the model folder at its end."""

from __future__ import annotations

import json
import os
import shlex
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from CTMicroSRLib.card import RUN_MODEL, check_name
from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.progress import Progress
from CTMicroSRLib.simulation.sets import HELD_OUT_SEEDS

if TYPE_CHECKING:
    from CTMicroSRLib.training.method import Companion, Domain, Method
    from CTMicroSRLib.training.model_folder import Export
    from CTMicroSRLib.training.patches import Patches
    from CTMicroSRLib.training.presets import RunSettings

PATCHES_FOLDER = "patches"

SIMULATED = (
    "Simulated lung specimens (CTMicroSRLib.simulation): clinical CT of some, micro-CT of others; no human micro-CT, "
    "no patient data."
)
RANGES = (
    ("psf_fwhm_mm", "point spread", "mm"),
    ("slice_mm", "slices", "mm"),
    ("pixel_mm", "pixels", "mm"),
    ("noise_hu", "noise", "HU"),
)
OWN = "Clinical scans: {clinical}. Micro-CT: {micro}."


@dataclass(frozen=True)
class Outcome:
    """What a training left: the folder of the model, of the patches or of a run that goes on; and that in words."""

    folder: Path
    sentence: str


def train_method(options: Namespace, progress: Progress) -> Outcome | None:
    """Train a method as the command's options say.

    Returns:
        What came of it; None on all processes but the first.

    Raises:
        UsageError: options or settings that do not go together, or another training in the run's folder.
        RefusedInputError: scans or patches that can't be trained on.
        ModelError: losses that are no longer finite, or a checkpoint or initial weights of something else.
        ResourceError: no room on the disk, or no such device.
    """
    from CTMicroSRLib.training.launching import only_training

    if options.name is not None:
        check_name(options.name)
    if options.stop_at is not None and options.stop_at < 0:
        raise UsageError(f"A training can't stop at step {options.stop_at}; give 0 (only make the patches) or more.")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"A training can't run on {options.threads} threads; give 1 or more, or leave --threads out.")
    if options.seed in HELD_OUT_SEEDS:
        raise UsageError(
            f"The seed {options.seed} makes specimens of the sets that models are judged on; take another."
        )
    with only_training(options.output):
        return _trained(options, progress)


def _trained(options: Namespace, progress: Progress) -> Outcome | None:
    """See :func:`train_method`; the run's folder is held."""
    from CTMicroSRLib.training.batches import Batches
    from CTMicroSRLib.training.launching import is_first_process
    from CTMicroSRLib.training.patches import verify_patches
    from CTMicroSRLib.training.trainer import train

    settings, needs = _checked(options)
    patches = _patches(options, settings, progress)
    if is_first_process():
        verify_patches(patches, progress)
    if options.stop_at == 0:
        return Outcome(patches.folder, f"{patches.folder}: the patches are made; train on them without --stop-at 0")
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    batches = Batches(patches, settings.trainer.batch, settings.trainer.seed, needs, settings.trainer.mix_ratio)
    train(
        settings.kind,
        settings.method,
        settings.trainer,
        batches.at,
        options.output,
        device=options.device,
        devices=options.devices,
        resume=options.resume,
        initial=options.initial,
        stop_at=options.stop_at,
        progress=progress,
        extra={"patches": asdict(patches.settings), "sources": list(patches.sources)},
    )
    if not is_first_process():
        return None
    if options.stop_at is not None and options.stop_at < settings.trainer.steps:
        return Outcome(options.output, f"{options.output}: stopped at step {options.stop_at}; go on with --resume")
    folder = _export(options, settings, patches)
    if options.calibrate or options.measure:
        from CTMicroSRLib.training.judgement import judge

        judge(folder, progress, calibrated=options.calibrate, measured=options.measure)
    return Outcome(folder, f"{folder}: a model folder for --model")


def _checked(options: Namespace) -> tuple[RunSettings, frozenset[Domain]]:
    """The settings of the run and the domains it needs.

    What could not end well is refused here, before patches are cut and processes started.
    """
    from CTMicroSRLib.training.initial_weights import load_initial_weights
    from CTMicroSRLib.training.launching import planned
    from CTMicroSRLib.training.presets import parse_values, run_settings
    from CTMicroSRLib.training.trainer import check_run

    values = parse_values(options.set or [])
    settings = run_settings(options.method, options.preset, _named(options) | values)
    method = _built(settings)
    if options.calibrate or options.measure:
        from CTMicroSRLib.training.judgement import check_judgeable

        check_judgeable(method.generator(), calibrated=options.calibrate, measured=options.measure)
    _check_has_effect(options, values)
    if "truth" in method.needs and options.clinical:
        raise UsageError(
            f"The method {options.method} learns from pairs, which scans of patients don't have; leave out "
            "--clinical and --micro to simulate them, or set pairing=unpaired where it knows that."
        )
    own_batch = settings.trainer.batch
    if options.stop_at != 0:
        check_run(options.output, resume=options.resume)
        own_batch //= planned(options.device, options.devices, own_batch).count
    method.check_patch(_patch_voxels(options, settings), own_batch)
    if options.initial is not None and not options.resume:
        # Only to see whether they fit; the trainer reads them into its own networks.
        load_initial_weights(method.generator(), options.initial)
    return settings, method.needs


def _patch_voxels(options: Namespace, settings: RunSettings) -> int:
    """The edge of the patches that there are, or will be."""
    from CTMicroSRLib.training.patches import MANIFEST, open_patches

    folder = options.patches or options.output / PATCHES_FOLDER
    there = (folder / MANIFEST).is_file()
    return open_patches(folder).settings.patch_voxels if there else settings.patches.patch_voxels


def _built(settings: RunSettings) -> Method:
    """The method, with random weights.

    Raises:
        UsageError: its networks can't be of such sizes.
    """
    try:
        method = settings.kind.build(settings.method)
        if not all(parameter.numel() for parameter in method.parameters()):
            raise ValueError("a layer without channels")
        return method
    except (RuntimeError, TypeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UsageError(
            f"The networks of {settings.kind.name} can't be built of these settings ({cause}); change them."
        ) from None


def _named(options: Namespace) -> dict[str, Any]:
    """Settings that have an option of their own."""
    per_case = "patches.patches_per_case" if options.clinical or options.micro else "simulation.patches_per_specimen"
    own = {
        "scale": options.scale,
        "trainer.steps": options.steps,
        "trainer.batch": options.batch,
        "trainer.seed": options.seed,
        "trainer.precision": options.precision,
        "patches.patch_voxels": options.patch,
        per_case: options.patches_per_case,
        "patches.clinical_window": options.clinical_window and tuple(options.clinical_window),
        "patches.micro_window": options.micro_window and tuple(options.micro_window),
        "patches.seed": options.seed,
        "simulation.specimens": options.specimens,
        "simulation.seed": options.seed,
    }
    return {key: value for key, value in own.items() if value is not None}


def _patches(options: Namespace, settings: RunSettings, progress: Progress) -> Patches:
    """The patches: those of ``--patches``, or made from the scans or by simulation, once for all processes."""
    from CTMicroSRLib.training.launching import is_first_process
    from CTMicroSRLib.training.patches import MANIFEST, open_patches

    scans = [name for name in ("clinical", "micro", "clinical_mask", "micro_mask") if getattr(options, name)]
    if options.patches is not None:
        if scans:
            raise UsageError("The option --patches stands for patches that exist; leave out --clinical and --micro.")
        patches = open_patches(options.patches)
        _check_as_asked(options, patches)
        _check_fit(patches, settings)
        return patches
    if scans and not (options.clinical and options.micro):
        missing = "clinical" if not options.clinical else "micro"
        raise UsageError(f"Training needs scans of both domains; add --{missing} FILES, or leave both out to simulate.")
    folder = options.output / PATCHES_FOLDER
    if (folder / MANIFEST).exists():
        patches = open_patches(folder)
        if not scans and not patches.simulated:
            _check_fit(patches, settings)
            return patches
    elif options.resume:
        raise UsageError(f"There are no patches in {folder} to go on with; give --patches FOLDER as at the start.")
    elif not is_first_process() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("Several processes can't cut patches at once; make them with one process first (--stop-at 0).")
    if scans:
        return _from_scans(options, settings, folder, progress)
    from CTMicroSRLib.training.simulated_patches import simulate_patches
    from CTMicroSRLib.workers import worker_count

    return simulate_patches(folder, settings.simulation, settings.patches, progress, workers=worker_count())


def _from_scans(options: Namespace, settings: RunSettings, folder: Path, progress: Progress) -> Patches:
    from CTMicroSRLib.training.patch_sources import patches_from_volumes

    return patches_from_volumes(
        folder,
        options.clinical,
        options.micro,
        settings.patches,
        progress,
        clinical_masks=options.clinical_mask,
        micro_masks=options.micro_mask,
    )


def _check_has_effect(options: Namespace, values: Mapping[str, Any]) -> None:
    """Refuse what would change patches that are not made.

    Raises:
        UsageError: an option or setting beside patches that exist, or of simulation beside scans; it names it.
    """
    if options.patches is None and not options.clinical:
        return
    there = "--patches" if options.patches is not None else "--clinical"
    without = ("simulation.",) if options.patches is None else ("simulation.", "patches.")
    unused = ["--specimens"] if options.specimens is not None else []
    unused += [f"--set {key}" for key in values if key.startswith(without)]
    if unused:
        raise UsageError(f"Beside {there} no such patches are made, and {unused[0]} has no effect; leave it out.")


def _check_as_asked(options: Namespace, patches: Patches) -> None:
    """Refuse patches that are not as other options say."""
    for option, key in (
        ("patch", "patch_voxels"),
        ("patches_per_case", "patches_per_case"),
        ("clinical_window", "clinical_window"),
        ("micro_window", "micro_window"),
    ):
        asked, found = getattr(options, option), getattr(patches.settings, key)
        if asked is not None and (tuple(asked) if isinstance(asked, list) else asked) != found:
            flag = f"--{option.replace('_', '-')}"
            raise UsageError(f"The patches in {options.patches} were cut with {flag} {found}; leave {flag} out.")


def _check_fit(patches: Patches, settings: RunSettings) -> None:
    if patches.settings.scale != settings.patches.scale:
        raise UsageError(
            f"The patches are {patches.settings.scale}x, the method is set to {settings.patches.scale}x; "
            "give other patches or another --scale."
        )


def _export(options: Namespace, settings: RunSettings, patches: Patches) -> Path:
    from safetensors.torch import load_file

    from CTMicroSRLib.training.model_folder import Export, export_generator
    from CTMicroSRLib.training.run_names import default_name, described_method

    method = _built(settings)
    export = Export(
        name=options.name or default_name(options.output, options.method, settings.method.scale),
        method=described_method(settings, options.preset, patches.settings),
        training_data=_training_data(options, patches),
        licence=options.licence,
        command=_command(options, settings, patches),
        card_fields=method.card_fields(),
    )
    weights = load_file(options.output / "weights.safetensors")
    folder = export_generator(options.output / RUN_MODEL, weights, method.architecture(), patches, export)
    for companion_folder, companion in method.companions().items():
        _export_companion(options.output / companion_folder, companion, patches, export)
    return folder


def _export_companion(folder: Path, companion: Companion, patches: Patches, export: Export) -> None:
    from CTMicroSRLib.training.checkpoints import read_checkpoint
    from CTMicroSRLib.training.model_folder import evenly, export_generator

    weights = read_checkpoint(folder.parent).part(f"method.{companion.network}")
    seen = (companion.inputs(micro) for micro in evenly(patches, "micro"))
    card = replace(
        export, name=f"{export.name}.{folder.name}", method=f"{export.method}, {companion.purpose}", card_fields={}
    )
    export_generator(folder, weights, companion.architecture, patches, card, seen)


def _training_data(options: Namespace, patches: Patches) -> str:
    if patches.simulated:
        return SIMULATED + _scanners(patches)
    names = {key: ", ".join(path.name for path in getattr(options, key) or []) for key in ("clinical", "micro")}
    return OWN.format(**names) if all(names.values()) else "Patches of the user's own scans."


def _scanners(patches: Patches) -> str:
    """The ranges of simulated scanners that the patches come from, as far as they are known."""
    known = patches.simulation or {}
    ranges = [f"{what} {known[key][0]:g} to {known[key][1]:g} {unit}" for key, what, unit in RANGES if key in known]
    return f" Clinical scans: {', '.join(ranges)}." if ranges else ""


def _command(options: Namespace, settings: RunSettings, patches: Patches) -> str:
    """The command that trains such a model again; scans are named without their folders."""
    from CTMicroSRLib.training.presets import differing, run_settings

    words = ["ctmicrosr", "train", options.method, "--output", "RUN"]
    preset = options.preset if options.preset in settings.kind.presets else None
    start = run_settings(options.method, preset, {})
    rooms: tuple[str, ...] = ("method", "trainer")
    if preset is not None:
        words += ["--preset", preset]
    if options.initial is not None:
        words += ["--initial", options.initial.name]
    words += [f"--{option}" for option in ("calibrate", "measure") if getattr(options, option)]
    if options.clinical:
        for key in ("clinical", "micro", "clinical_mask", "micro_mask"):
            paths = getattr(options, key)
            words += [f"--{key.replace('_', '-')}", *(path.name for path in paths)] if paths else []
        rooms += ("patches",)
    elif options.patches is None and patches.simulated:
        rooms += ("patches", "simulation")
    else:
        words += ["--patches", "PATCHES"]
    for room in rooms:
        for key, value in differing(getattr(settings, room), getattr(start, room)).items():
            if (room, key) != ("patches", "scale"):  # it follows the method's
                words += ["--set", f"{'' if room == 'method' else room + '.'}{key}={json.dumps(value)}"]
    return " ".join(shlex.quote(word) for word in words)
