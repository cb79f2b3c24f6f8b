"""The models that an evaluation compares: found by name, model folder or training run, each with a label of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from CTMicroSRLib.card import CARD_FILE, RUN_MODEL, ModelCard
from CTMicroSRLib.errors import ModelError, UsageError
from CTMicroSRLib.models import find_model, list_models
from CTMicroSRLib.session import Model, load_model


@dataclass(frozen=True)
class Candidate:
    """A model to compare.

    Attributes:
        label: what the table calls it; no two candidates have the same.
        folder: its model folder.
        card: its card.
    """

    label: str
    folder: Path
    card: ModelCard


def find_candidates(names: Sequence[str], *, by_card: bool = False) -> list[Candidate]:
    """Find models by installed name, model folder or run folder.

    A run is called by its folder, any other model by its card's name; where several share that, by the name of the run
    or folder that each was given as, and where they share that too, by the path as given.

    Args:
        names: as ``ctmicrosr evaluate`` takes them.
        by_card: call runs by their card's name too.

    Raises:
        ModelError: neither, a damaged model, or a run that no model was exported from.
        UsageError: the same model given twice.
    """
    found = [find_model(_model_folder(name)) for name in names]
    folders = Counter(model.folder.resolve() for model in found)
    for model in found:
        if folders[model.folder.resolve()] > 1:
            raise UsageError(f"The model {model.card.name} is given twice; name each model once.")
    of_runs = [] if by_card else [model for model in found if _is_of_run(model.folder)]
    labels = _distinct(
        [
            [_own_name(model.folder) if model in of_runs else model.card.name for model in found],
            [_own_name(model.folder) for model in found],
            [str(name).rstrip("/\\") for name in names],
        ]
    )
    return [Candidate(label, model.folder, model.card) for label, model in zip(labels, found, strict=True)]


def check_scale(candidates: Sequence[Candidate], scale: int, what: str) -> None:
    """Refuse models of another scale than the data's.

    Raises:
        UsageError: one of them has another.
    """
    for candidate in candidates:
        if candidate.card.scale != scale:
            raise UsageError(
                f"The model {candidate.label} is {candidate.card.scale}x and {what} {scale}x; leave it out or evaluate "
                "it in a table of its own."
            )


@lru_cache(maxsize=32)
def loaded(folder: Path, device: str = "auto") -> Model:
    """The model of a folder, loaded once in this process, in full precision."""
    return load_model(folder, device=device, precision="fp32")


def tells_uncertainty(model: Model) -> bool:
    """Whether the network has dropout to tell an uncertainty from."""
    return bool(model.network.dropout_channels) and model.network.dropout_rate > 0


def _model_folder(name: str) -> str | Path:
    """The model folder inside a training run; anything else stays as it is."""
    folder = Path(name)
    installed = any(model.card.name == str(name) for model in list_models()[0])
    if installed or not folder.is_dir() or (folder / CARD_FILE).is_file():
        return name
    if (folder / RUN_MODEL / CARD_FILE).is_file():
        return folder / RUN_MODEL
    exported = sorted(child for child in folder.iterdir() if (child / CARD_FILE).is_file())
    if len(exported) == 1:
        return exported[0]
    raise ModelError(
        f"The folder {folder} holds no exported model; let the training finish (ctmicrosr train ... --resume), which "
        f"writes {folder / RUN_MODEL}, or give a model folder."
    )


def _own_name(folder: Path) -> str:
    """A model folder's name; that of the run around it, where the folder is only called ``model``."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == RUN_MODEL else whole.name


def _is_of_run(folder: Path) -> bool:
    """Whether a model folder is a training run's own."""
    return folder.resolve().name == RUN_MODEL


def _distinct(choices: list[list[str]]) -> list[str]:
    """For every model the first of its choices that no other model has at the same level; else its last."""
    labels: list[str] = []
    for n in range(len(choices[0])):
        label = next((level[n] for level in choices if level.count(level[n]) == 1), choices[-1][n])
        labels.append(label if label not in labels else choices[-1][n])
    return labels
