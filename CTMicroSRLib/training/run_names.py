"""What a run's model is called where nobody says, and what its card says of its method and settings."""

from __future__ import annotations

import re
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from CTMicroSRLib.models import list_models
from CTMicroSRLib.training.presets import RunSettings, differing, run_settings

if TYPE_CHECKING:
    from CTMicroSRLib.training.patches import PatchSettings

LONGEST = 48
"""Characters of a default name; a card allows 64, and a companion's folder follows it."""

SAME_MODEL = frozenset({"seed", "precision", "checkpoint_steps", "log_steps", "image_steps"})
"""The trainer's settings that make no other method of it."""


def default_name(run: Path, method: str, scale: int) -> str:
    """``METHOD-8x-RUN``, with a number behind it where an installed model has that name.

    Args:
        run: the run's folder.
        method: the method's name.
        scale: fine voxels per coarse voxel.
    """
    start = f"{method}-{scale}x"
    own = re.sub(r"[^a-z0-9]+", "-", run.resolve().name.lower()).strip("-") or "run"
    name = f"{start}-{own}"[:LONGEST].rstrip("-")
    taken = {model.card.name for model in list_models()[0]}
    numbered = (f"{name}-{n}" for n in count(2))
    return next(choice for choice in chain([name], numbered) if choice not in taken)


def described_method(settings: RunSettings, preset: str | None, patches: PatchSettings) -> str:
    """The method, its preset, and the settings that are not the preset's: ``srgan (preset paper, changed: blocks)``.

    Args:
        settings: of the run.
        preset: what it was told with ``--preset``.
        patches: those that it was trained on.
    """
    start = run_settings(settings.kind.name, preset, {})
    changed = [*differing(settings.method, start.method)]
    changed += [key for key in differing(settings.trainer, start.trainer) if key not in SAME_MODEL]
    changed += ["patch_voxels"] if patches.patch_voxels != start.patches.patch_voxels else []
    words = [f"preset {Path(preset).name}"] if preset is not None else []
    words += [f"changed: {', '.join(changed)}"] if changed else []
    return f"{settings.kind.name} ({', '.join(words)})" if words else settings.kind.name
