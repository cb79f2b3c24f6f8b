"""From a training run to a model folder: calibrate the uncertainty, measure, write card and weights."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.card import CARD_FILE, WEIGHTS_FILE, Calibration, ModelCard
from CTMicroSRLib.evaluation.simulated import evaluate_models
from CTMicroSRLib.evaluation.tables import as_plain
from CTMicroSRLib.models import sha256_of
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.session import load_model
from CTMicroSRLib.simulation.cases import make_case
from CTMicroSRLib.simulation.sets import case_set
from CTMicroSRLib.superresolve import super_resolve
from CTMicroSRLib.training.supervised import CLINICAL_WINDOW, PLANES, TrainingSettings

VALIDATION_SET = "validation-1"
TEST_SET = "test-1"
CALIBRATED_LEVEL = 0.90
BINS = 24
HALF_WIDTH = 1.6449

TRAINING_DATA = (
    "Simulated lung specimens and their simulated clinical CT (CTMicroSRLib.simulation); no human micro-CT, no "
    "patient data. Point spread 0.6 to 2.0 mm, slices 0.5 to 5 mm, pixels 0.5 to 0.9 mm, noise 3 to 60 HU."
)

Float32 = NDArray[np.float32]


def export_run(run: Path, settings: TrainingSettings, name: str = "compact-8x", *, initial: Path | None = None) -> Path:
    """Write ``run/NAME`` with card and weights, calibrated on validation cases and measured on test cases.

    Args:
        run: a finished run.
        settings: what it was trained with.
        name: the model's name.
        initial: the weights that it started from, for the card.
    """
    folder = run / name
    folder.mkdir(exist_ok=True)
    shutil.copyfile(run / "weights.safetensors", folder / WEIGHTS_FILE)
    card = _card(folder, name, settings, initial)
    _write(folder, card)
    card = replace(card, calibration=calibrate(folder))
    _write(folder, card)
    table, _ = evaluate_models([str(folder)], case_set(TEST_SET), SilentProgress(), workers=os.cpu_count() or 1)
    card = replace(card, metrics=as_plain(table))
    _write(folder, card)
    return folder


def calibrate(folder: Path) -> Calibration:
    """Fit scale and floor so that the 90 % interval holds in every bin of the passes' deviation."""
    model = load_model(folder, precision="fp32")
    errors, deviations = [], []
    for seed, settings in case_set(VALIDATION_SET).cases:
        case = make_case(settings, seed)
        result = super_resolve(
            case.clinical,
            region="whole",
            model=model,
            uncertainty=True,
            psf_fwhm_mm=settings.psf_fwhm_mm,
            noise_hu=settings.image_noise_hu,
        )
        assert result.uncertainty is not None
        errors.append(np.abs(np.asarray(result.volume.array_kji, np.float32) - case.truth.array_kji).ravel())
        deviations.append(np.asarray(result.uncertainty.array_kji, np.float32).ravel())
    return fit_calibration(np.concatenate(errors), np.concatenate(deviations))


def fit_calibration(error: Float32, deviation: Float32) -> Calibration:
    """Least squares of squared 90 % error quantiles against squared deviations, over bins of equal count.

    Args:
        error: absolute errors, HU.
        deviation: uncalibrated standard deviations of the same voxels, HU.
    """
    order = np.argsort(deviation, kind="stable")
    parts = np.array_split(order, BINS)
    spread = np.array([float(np.mean(deviation[part] ** 2)) for part in parts])
    wanted = np.array([(float(np.quantile(error[part], CALIBRATED_LEVEL)) / HALF_WIDTH) ** 2 for part in parts])
    design = np.stack([spread, np.ones_like(spread)], axis=1) / wanted[:, None]
    scale, floor = np.linalg.lstsq(design, np.ones_like(wanted), rcond=None)[0]
    if floor < 0:
        floor = 0.0
        scale = float(np.sum(spread / wanted) / np.sum((spread / wanted) ** 2))
    return Calibration(scale=math.sqrt(max(float(scale), 0.0)), floor_hu=math.sqrt(max(float(floor), 0.0)))


def _card(folder: Path, name: str, settings: TrainingSettings, initial: Path | None) -> ModelCard:
    network = build_network(settings.architecture, settings.parameters)
    return ModelCard(
        name=name,
        title="Compact generator, 8x in-plane, for daily use",
        architecture=settings.architecture,
        parameters=settings.parameters,
        scale=network.scale,
        halo=network.halo,
        window=CLINICAL_WINDOW,
        planes=PLANES,
        sha256=sha256_of(folder / WEIGHTS_FILE),
        method=f"supervised on simulated pairs, {settings.loss.upper()}",
        training_data=TRAINING_DATA,
        licence="Apache-2.0",
        command=_command(settings, initial),
    )


def _command(settings: TrainingSettings, initial: Path | None) -> str:
    """The command that trains such a model again."""
    text = f"ctmicrosr train supervised --output RUN --steps {settings.steps} --seed {settings.seed}"
    text += f" --loss {settings.loss} --learning-rate {settings.learning_rate:g}"
    return text if initial is None else f"{text} --initial {initial.name}"


def _write(folder: Path, card: ModelCard) -> None:
    (folder / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
