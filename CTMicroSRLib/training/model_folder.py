"""From a run of a method to a model folder that ``superres``, the panel and the batch can use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from CTMicroSRLib.card import CARD_FILE, WEIGHTS_FILE, ModelCard
from CTMicroSRLib.errors import ModelError
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.models import sha256_of
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.generator import Generator

if TYPE_CHECKING:
    from torch import Tensor

    from CTMicroSRLib.training.patches import Patches

MODEL_FOLDER = "model"
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
    """

    name: str
    method: str
    training_data: str
    command: str
    card_fields: dict[str, Any]


def export_generator(
    folder: Path,
    weights: dict[str, Tensor],
    architecture: tuple[str, dict[str, Any]],
    patches: Patches,
    export: Export,
) -> Path:
    """Write a model folder, complete or not at all.

    Instance norms are frozen to the mean of their statistics over clinical patches, so that tiles are exact.

    Args:
        folder: where; replaced where it exists.
        weights: the generator's state.
        architecture: what it is rebuilt from.
        patches: those it was trained on.
        export: for the card.

    Raises:
        ModelError: the weights are not those of the architecture.
    """
    from safetensors.torch import save_file

    from CTMicroSRLib.networks.freezing import freeze_norms

    name, parameters = architecture
    network = build_network(name, parameters)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:200]
        raise ModelError(f"The run's weights are not those of its network ({cause}); train it again.") from None
    network.eval()
    if parameters.get("norm") == "instance":
        network = freeze_norms(network, parameters, name, _calibration(patches))
        parameters = parameters | {"norm": "frozen"}
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, part / WEIGHTS_FILE)
        card = _card(part / WEIGHTS_FILE, network, name, parameters, patches, export)
        (part / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


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
        command=export.command,
        **export.card_fields,
    )


def _calibration(patches: Patches) -> Iterator[Tensor]:
    """Clinical patches, evenly spread over all cases."""
    import torch

    count = len(patches.clinical)
    for n in np.unique(np.linspace(0, count - 1, min(count, CALIBRATION_PATCHES)).astype(np.intp)):
        patch = np.asarray(patches.clinical[n], dtype=np.float32) / 32767.0
        yield torch.from_numpy(patch)[None, None]
