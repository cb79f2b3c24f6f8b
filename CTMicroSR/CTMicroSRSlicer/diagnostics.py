"""What a report of a problem needs, as text for the clipboard: no image, no patient data, no address."""

from __future__ import annotations

import platform

import slicer

from CTMicroSRLib import __version__
from CTMicroSRLib.models import list_models
from CTMicroSRSlicer.install import describeEnvironment


def diagnostics(lastMessage: str) -> str:
    """Versions, packages, models and the last message."""
    facts = {
        "CTMicroSR": __version__,
        "Slicer": f"{slicer.app.applicationVersion} (revision {slicer.app.repositoryRevision})",
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        **describeEnvironment(),
        **_memory(),
    }
    found, problems = list_models()
    for model in found:
        facts[f"model {model.card.name}"] = model.card.sha256[:16]
    lines = [f"{name}: {value}" for name, value in facts.items()]
    return "\n".join([*lines, *(f"problem: {text}" for text in problems), f"last message: {lastMessage}"])


def _memory() -> dict[str, str]:
    try:
        import psutil
    except ImportError:
        return {"memory": "unknown (psutil is missing)"}
    memory = psutil.virtual_memory()
    return {"memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"}
