"""What a model's card tells of its quality: a calibrated uncertainty, and the numbers of the test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from CTMicroSRLib.card import CARD_FILE, read_card
from CTMicroSRLib.errors import CancelledError, UsageError
from CTMicroSRLib.evaluation.simulated import evaluate_models
from CTMicroSRLib.evaluation.tables import as_plain
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.progress import Progress
from CTMicroSRLib.simulation.sets import case_set
from CTMicroSRLib.training.calibration import VALIDATION_SET, calibrate
from CTMicroSRLib.training.checkpoints import space_advice
from CTMicroSRLib.whole_files import write_file
from CTMicroSRLib.workers import worker_count

TEST_SET = "test-1"


def check_judgeable(generator: Generator, *, calibrated: bool, measured: bool) -> None:
    """Refuse, before it is trained, a network that can't be calibrated or measured.

    Raises:
        UsageError: the cases are of another scale, or there is no dropout to calibrate.
    """
    for option, name, asked in (("--calibrate", VALIDATION_SET, calibrated), ("--measure", TEST_SET, measured)):
        scale = case_set(name).cases[0][1].scale
        if asked and generator.scale != scale:
            raise UsageError(
                f"The cases of {option} are {scale}x, the method is set to {generator.scale}x; leave {option} out or "
                f"train with --scale {scale}."
            )
    if calibrated and not (generator.dropout_channels and generator.dropout_rate > 0):
        raise UsageError(
            "The method's network has no dropout, and so no uncertainty to calibrate; leave --calibrate out or set a "
            "dropout_rate where it knows one."
        )


def judge(folder: Path, progress: Progress, *, calibrated: bool, measured: bool) -> None:
    """Calibrate a model folder's uncertainty on validation cases, measure it on test cases, and write it on its card.

    Raises:
        CancelledError: ``progress`` said so; the model is there without what was not finished.
        ResourceError: the disk is full.
    """
    try:
        if calibrated:
            _write(folder, calibration=calibrate(folder, progress))
        if measured:
            cases, workers = case_set(TEST_SET), worker_count()
            table, _ = evaluate_models([str(folder)], cases, progress, workers=workers, by_card=True)
            _write(folder, metrics=as_plain(table))
    except (KeyboardInterrupt, CancelledError):
        raise CancelledError(
            f"Cancelled; the model {folder} is there, and the same command with --resume judges it."
        ) from None


def _write(folder: Path, **fields: object) -> None:
    card = replace(read_card(folder), **fields)  # type: ignore[arg-type]
    write_file(folder / CARD_FILE, card.to_json().encode(), advice=space_advice(folder.parent))
