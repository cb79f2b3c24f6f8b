"""Checkpoints of a run: tensors and text in safetensors files, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from CTMicroSRLib.errors import ModelError, UsageError
from CTMicroSRLib.whole_files import write_file

CHECKPOINT_FILE = "checkpoint.safetensors"
WEIGHTS_FILE = "weights.safetensors"
SETTINGS_FILE = "settings.json"

CHANGEABLE = frozenset(f"trainer.{key}" for key in ("checkpoint_steps", "log_steps", "image_steps", "gradient_clip"))
"""Settings that a resumed run may have changed: how often it writes, and the cure for a gradient that explodes."""

ADDED = {"trainer.warm_up_share": 0.0}
"""Settings that earlier checkpoints don't have, and the value that means what was done before them."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``step`` steps: its settings, and its tensors by ``PART.NAME``."""

    step: int
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of a part, without the prefix."""
        start = prefix + "."
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Put a checkpoint in place of the run's last one.

    Raises:
        ResourceError: the disk is full; the last checkpoint is still there.
        UsageError: the folder can't be written to.
    """
    text = canonical(checkpoint.settings)
    tensors = separate(checkpoint.tensors)
    metadata = {
        "step": str(checkpoint.step),
        "method": str(checkpoint.settings["method"]),
        "settings": text,
        "settings_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "crc32": str(_checksum(tensors)),
    }
    write_file(run / CHECKPOINT_FILE, save(tensors, metadata), advice=space_advice(run))


def read_checkpoint(run: Path) -> Checkpoint:
    """Read a run's checkpoint.

    Raises:
        UsageError: there is none.
        ModelError: it is damaged.
    """
    path = run / CHECKPOINT_FILE
    if not path.is_file():
        raise no_checkpoint(run)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
        text = metadata["settings"]
        whole = hashlib.sha256(text.encode()).hexdigest() == metadata["settings_sha256"]
        if not whole or str(_checksum(tensors)) != metadata["crc32"]:
            raise ValueError("its checksum is wrong")
        return Checkpoint(int(metadata["step"]), json.loads(text), tensors)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise damaged(path, error) from None


def check_same_settings(run: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on with another method or other settings (but for those of :data:`CHANGEABLE`).

    Raises:
        ModelError: another method.
        UsageError: other settings; it names the first that differs.
    """
    if stored.get("method") != asked["method"]:
        raise ModelError(
            f"The checkpoint in {run} is of the method {stored.get('method')}, not {asked['method']}; resume with that "
            "method or choose another folder."
        )
    before, now = ADDED | _flat(stored), ADDED | _flat(json.loads(canonical(asked)))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "nothing"), now.get(key, "nothing")
        if old != new and key not in CHANGEABLE:
            raise UsageError(
                f"The checkpoint in {run} was trained with {key} = {old}, not {new}; resume with the same settings or "
                "choose another folder."
            )


def canonical(settings: Mapping[str, Any]) -> str:
    """Settings as JSON text that is the same for the same settings."""
    return json.dumps(settings, sort_keys=True)


def save_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Tensors, which may be anywhere and share memory, as the content of a safetensors file."""
    return save(separate(tensors), dict(metadata))


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, none of which shares memory with another (weights that networks share do)."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[key] = plain
    return result


def space_advice(run: Path) -> str:
    """What to do, after freeing space, in a run that the disk was too small for."""
    if (run / CHECKPOINT_FILE).exists():
        return "go on from the last checkpoint with --resume"
    return "train again (there was no checkpoint yet)"


def no_checkpoint(run: Path) -> UsageError:
    """The error of a run that can't be resumed."""
    return UsageError(f"There is no checkpoint in {run} to resume from; start the run without --resume.")


def damaged(path: Path, error: Exception) -> ModelError:
    """The error of a checkpoint that can't be used."""
    cause = " ".join(str(error).split())[:200]
    return ModelError(f"The checkpoint {path} is damaged ({cause}); restore it from a copy or train in a new folder.")


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401 - any JSON
    if not isinstance(settings, Mapping):
        return {prefix: settings}
    result = {}
    for key, value in settings.items():
        result.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return result


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for key in sorted(tensors):
        content = tensors[key].reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(content.data, zlib.crc32(key.encode(), total))
    return total
