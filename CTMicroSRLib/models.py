"""Models on this machine: find, list, verify, import and remove them. Reads no weights into a network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from CTMicroSRLib.card import CARD_FILE, WEIGHTS_FILE, ModelCard, read_card
from CTMicroSRLib.errors import ModelError, ResourceError, UsageError

DEFAULT_MODEL = "compact-8x"
FOLDER_VARIABLE = "CTMICROSR_MODELS"
MAXIMUM_HEADER_BYTES = 1 << 24


@dataclass(frozen=True)
class InstalledModel:
    """A model folder and its card; ``shipped`` models came with the software and can't be removed."""

    folder: Path
    card: ModelCard
    shipped: bool


def user_models_folder() -> Path:
    """Where imported models go: ``CTMICROSR_MODELS``, else ``.ctmicrosr/models`` in the home folder."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".ctmicrosr" / "models"


def shipped_models_folders() -> list[Path]:
    """Where shipped models may lie: inside an installed package, or in the checkout beside it."""
    package = Path(__file__).resolve().parent
    return [package / "Models", package.parent / "Resources" / "Models"]


def list_models() -> tuple[list[InstalledModel], list[str]]:
    """All models found, shipped ones first, and one sentence for every folder that is not a good model."""
    found: dict[str, InstalledModel] = {}
    problems = []
    for root, shipped in [
        *((root, True) for root in shipped_models_folders()),
        (user_models_folder(), False),
    ]:
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            if not folder.is_dir() or folder.name.startswith("."):
                continue
            try:
                card = read_card(folder)
            except ModelError as error:
                problems.append(str(error))
                continue
            found.setdefault(card.name, InstalledModel(folder, card, shipped))
    return list(found.values()), problems


def find_model(name_or_folder: str | os.PathLike[str]) -> InstalledModel:
    """A model by its name, or by the path of its folder.

    Raises:
        UsageError: neither a name nor a path.
        ModelError: neither an installed model nor a model folder.
    """
    models, _ = list_models()
    for model in models:
        if model.card.name == str(name_or_folder):
            return model
    try:
        folder = Path(name_or_folder)
    except TypeError:
        raise UsageError(f"{name_or_folder!r} is no model; give a model's name or the path of its folder.") from None
    if folder.is_dir():
        return InstalledModel(folder, read_card(folder), shipped=False)
    names = ", ".join(model.card.name for model in models) or "none"
    raise ModelError(
        f"There is no model {str(name_or_folder)!r} (installed: {names}); choose one of these or give the "
        "path of a model folder."
    )


def verify_model(model: InstalledModel) -> Path:
    """Check a model's card against its own checksum and the weights against the card; returns the weights file.

    Only the file's bytes are read: its format is checked to be safetensors, its SHA-256 to be the card's. A card from
    before cards had a checksum is taken as it is.

    Raises:
        ModelError: an altered card, or weights missing, of another format, or not those of the card.
    """
    if not model.card.as_written:
        raise ModelError(
            f"The card {model.folder / CARD_FILE} was altered since it was written (its own SHA-256 differs); get the "
            "model again from its source."
        )
    path = model.folder / WEIGHTS_FILE
    if not path.is_file():
        raise ModelError(f"The weights {path} are missing; get the model again from its source.")
    check_safetensors(path)
    if sha256_of(path) != model.card.sha256:
        raise ModelError(
            f"The weights {path} are not those the card describes (SHA-256 differs); get the model again from "
            "its source."
        )
    return path


def check_safetensors(path: Path) -> None:
    """Check that a file has the shape of a safetensors file, without loading it.

    Raises:
        ModelError: it is something else, such as a pickled checkpoint, which could run code.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(MAXIMUM_HEADER_BYTES, size - 8):
                raise ValueError("no header")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        if not ends or max(ends) != size - 8 - length:
            raise ValueError("truncated")
    except (ValueError, KeyError, TypeError, IndexError, struct.error, AttributeError, RecursionError):
        raise ModelError(
            f"The weights {path} are not a complete safetensors file; other formats can run code and are not "
            "read, so get the model as safetensors."
        ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def import_model(source: Path) -> InstalledModel:
    """Copy a model folder into the user's models, after verifying it.

    Raises:
        ModelError: the folder is not a good model, or its name is taken by another.
        ResourceError: it can't be copied.
    """
    model = InstalledModel(source, read_card(source), shipped=False)
    verify_model(model)
    models, _ = list_models()
    other = next((other for other in models if other.card.name == model.card.name), None)
    if other is not None:
        rest = "; remove it first, or rename the new one on its card."
        if other.shipped:
            rest = (
                " and came with CTMicroSR; give the new one another name: train with --name NAME, or change the name "
                f"in its {CARD_FILE}."
            )
        raise ModelError(f"A model named {model.card.name} is already installed{rest}")
    target = user_models_folder() / model.card.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".import-") as temporary:
            part = Path(temporary) / "model"
            part.mkdir()
            for name in (CARD_FILE, WEIGHTS_FILE):
                shutil.copyfile(source / name, part / name)
            part.rename(target)
    except OSError as error:
        raise ResourceError(
            f"The model could not be copied to {target} ({error.strerror}); check the folder's permissions and space."
        ) from None
    return InstalledModel(target, model.card, shipped=False)


def remove_model(name: str) -> Path:
    """Delete an imported model's folder; returns where it was.

    Raises:
        UsageError: the model came with the software.
        ModelError: there is no such model.
        ResourceError: the system doesn't let it go; it stays whole.
    """
    models, _ = list_models()
    for model in models:
        if model.card.name == name:
            if model.shipped:
                raise UsageError(f"{name} came with CTMicroSR and can't be removed; only imported models can.")
            _delete_whole(model.folder)
            return model.folder
    raise ModelError(f"There is no model named {name!r}; see 'ctmicrosr models list'.")


def _delete_whole(folder: Path) -> None:
    """Delete a folder that is either there with all its files or not at all."""
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".remove-", ignore_cleanup_errors=True) as going:
            folder.rename(Path(going) / "model")
    except OSError as error:
        raise ResourceError(
            f"The model {folder} could not be removed ({error.strerror}); close what uses it and check its permissions."
        ) from None
