"""Everything that a training run is told, from a preset and from single values that differ from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.training.methods import MethodKind, changed, method_kind
from CTMicroSRLib.training.patches import PatchSettings
from CTMicroSRLib.training.settings import TrainerSettings
from CTMicroSRLib.training.simulated_patches import SimulatedPatchSettings

ROOMS = ("trainer", "patches", "simulation")
"""A key such as ``trainer.steps`` belongs to the room before the point, one without to the method itself."""


@dataclass(frozen=True)
class RunSettings:
    """A run: the method and its settings, the trainer's, and those of the patches and of their simulation."""

    kind: MethodKind
    method: Any
    trainer: TrainerSettings
    patches: PatchSettings
    simulation: SimulatedPatchSettings


def run_settings(method: str, preset: str | None, values: Mapping[str, Any]) -> RunSettings:
    """Settings of a run: defaults, then the preset, then the single values.

    Args:
        method: a name of :data:`~CTMicroSRLib.training.methods.METHODS`.
        preset: one of the method's presets, or a ``.json`` file that holds one: an object of keys and values.
        values: by key, see :data:`ROOMS`.

    Raises:
        UsageError: an unknown method, preset or key, a value of the wrong kind or out of range.
    """
    kind = method_kind(method)
    chosen = dict(_preset(kind, preset)) | dict(values)
    scale = chosen.get("scale")
    if scale is not None:
        chosen.setdefault("patches.scale", scale)
    _check_rooms(kind, chosen)
    rooms = {room: {k.partition(".")[2]: v for k, v in chosen.items() if k.startswith(f"{room}.")} for room in ROOMS}
    own = {key: value for key, value in chosen.items() if not key.startswith(tuple(f"{room}." for room in ROOMS))}
    settings = changed(kind.settings(), _as_tuples(own), f"the method {method}")
    patches = changed(PatchSettings(), _as_tuples(rooms["patches"]), "the patches")
    if patches.scale != settings.scale:
        raise UsageError(
            f"The method's scale is {settings.scale}, that of its patches {patches.scale}; set only 'scale'."
        )
    return RunSettings(
        kind,
        settings,
        changed(TrainerSettings(), _as_tuples(rooms["trainer"]), "the trainer"),
        patches,
        changed(SimulatedPatchSettings(), _as_tuples(rooms["simulation"]), "the simulation"),
    )


def _check_rooms(kind: MethodKind, values: Mapping[str, Any]) -> None:
    """Refuse a key that is nowhere where it stands but is a setting elsewhere, and say where."""
    known = {"": kind.settings, "trainer": TrainerSettings, "patches": PatchSettings}
    known |= {"simulation": SimulatedPatchSettings}
    for key in values:
        room, _, name = key.rpartition(".")
        elsewhere = [r for r, settings in known.items() if name in {field.name for field in fields(settings)}]
        if elsewhere and room in known and room not in elsewhere:
            written = " or ".join(f"{other}.{name}" if other else name for other in elsewhere)
            raise UsageError(f"There is no setting {key!r} of the method {kind.name}; write {written}.")


def parse_values(texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as keys and values; a value is read as JSON where it is, else as text.

    Raises:
        UsageError: a text without ``=``, or a key given twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UsageError(f"The setting {text!r} is not KEY=VALUE; write for instance cycle_weight=5.")
        if key in values:
            raise UsageError(f"The setting {key} is given twice; leave one out.")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return values


def _preset(kind: MethodKind, preset: str | None) -> Mapping[str, Any]:
    if preset is None:
        return {}
    if preset in kind.presets:
        return kind.presets[preset]
    if not preset.endswith(".json"):
        raise UsageError(
            f"The method {kind.name} has no preset {preset!r}; choose {', '.join(kind.presets)}, or give a .json file."
        )
    try:
        content = json.loads(Path(preset).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The preset {preset} can't be read ({error}); give a JSON object of settings.") from None
    if not isinstance(content, dict):
        raise UsageError(f'The preset {preset} is not a JSON object; write {{"KEY": VALUE, ...}}.')
    return content


def _as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; settings hold tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def differing(settings: Any, defaults: Any) -> dict[str, Any]:  # noqa: ANN401 - any settings' class
    """The values that differ from the defaults, for a command that makes the run again."""
    pairs = ((f.name, getattr(settings, f.name), getattr(defaults, f.name)) for f in fields(settings))
    return {name: value for name, value, default in pairs if value != default}
