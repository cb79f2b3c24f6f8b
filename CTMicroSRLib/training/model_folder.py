"""From a run of a method to a model folder that ``superres``, the panel and the batch can use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from CTMicroSRLib.card import CARD_FILE, WEIGHTS_FILE, ModelCard, read_card
from CTMicroSRLib.errors import ModelError
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.models import sha256_of
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.whole_files import replace_folder, restore_folder, write_file, writing

if TYPE_CHECKING:
    from torch import Tensor

    from CTMicroSRLib.training.patches import Patches

CALIBRATION_PATCHES = 256
"""Patches over which the statistics of instance norms are averaged."""


@dataclass(frozen=True)
class Export:
    """What a card tells beside the network.

    Attributes:
        name: the model's name.
        method: the method's name and preset.
        training_data: for people.
        command: that trains it again.
        card_fields: more of the card, from the method.
        licence: of the weights; empty where nobody said.
    """

    name: str
    method: str
    training_data: str
    command: str
    card_fields: dict[str, Any]
    licence: str = ""


def export_generator(
    folder: Path,
    weights: dict[str, Tensor],
    architecture: tuple[str, dict[str, Any]],
    patches: Patches,
    export: Export,
    calibration: Iterable[Tensor] | None = None,
) -> Path:
    """Write a model folder, complete or not at all.

    Instance norms are frozen to the mean of their statistics over patches, so that tiles are exact.

    Args:
        folder: where; replaced where it exists, but for the calibration and numbers on the card of the same weights.
        weights: the generator's state.
        architecture: what it is rebuilt from.
        patches: those it was trained on.
        export: for the card.
        calibration: what the network typically sees; None for clinical patches.

    Raises:
        ModelError: the weights are not those of the architecture.
        ResourceError: the disk is full; what was there before is still there.
        UsageError: the folder can't be written to.
    """
    from CTMicroSRLib.networks.freezing import freeze_norms
    from CTMicroSRLib.training.checkpoints import save_tensors, space_advice

    name, parameters = architecture
    network = build_network(name, parameters)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:200]
        raise ModelError(f"The run's weights are not those of its network ({cause}); train it again.") from None
    network.eval()
    if parameters.get("norm") == "instance":
        network = freeze_norms(network, parameters, name, calibration or evenly(patches, "clinical"))
        parameters = parameters | {"norm": "frozen"}
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    advice = space_advice(folder.parent)
    with writing(folder, advice=advice):
        part.mkdir(parents=True)
        restore_folder(folder)
    try:
        write_file(part / WEIGHTS_FILE, save_tensors(network.state_dict(), {}), advice=advice)
        card = _card(part / WEIGHTS_FILE, network, name, parameters, patches, export)
        card = replace(card, **_judged_before(folder, card.sha256))
        write_file(part / CARD_FILE, card.to_json().encode(), advice=advice)
        with writing(folder, advice=advice):
            replace_folder(folder, part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def _judged_before(folder: Path, sha256: str) -> dict[str, Any]:
    """What an earlier card of the same weights tells of their quality."""
    try:
        earlier = read_card(folder)
    except ModelError:
        return {}
    if earlier.sha256 != sha256 or not earlier.as_written:
        return {}
    return {"calibration": earlier.calibration, "metrics": earlier.metrics}


def _card(
    weights: Path, network: Generator, architecture: str, parameters: dict[str, Any], patches: Patches, export: Export
) -> ModelCard:
    return ModelCard(
        name=export.name,
        title=f"{export.method}, {network.scale}x in-plane",
        architecture=architecture,
        parameters=json.loads(json.dumps(parameters)),
        scale=network.scale,
        halo=network.halo,
        window=IntensityWindow(*patches.settings.clinical_window),
        sha256=sha256_of(weights),
        method=export.method,
        training_data=export.training_data,
        licence=export.licence,
        command=export.command,
        **export.card_fields,
    )


def evenly(patches: Patches, domain: Literal["clinical", "micro"]) -> Iterator[Tensor]:
    """Patches ``(1, 1, rows, columns)`` evenly spread over all cases, :data:`CALIBRATION_PATCHES` at most."""
    import torch

    from CTMicroSRLib.training.patches import from_stored

    stored = patches.clinical if domain == "clinical" else patches.micro
    for n in np.unique(np.linspace(0, len(stored) - 1, min(len(stored), CALIBRATION_PATCHES)).astype(np.intp)):
        yield torch.from_numpy(from_stored(stored[n]))[None, None]
