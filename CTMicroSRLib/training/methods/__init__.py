"""The methods by name, one small file each: networks, losses and step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from CTMicroSRLib.errors import UsageError

if TYPE_CHECKING:
    from CTMicroSRLib.training.method import Method

_FILES = {
    "sr-cyclegan": "sr_cyclegan",
    "cyclegan": "cyclegan",
    "sr-unit": "sr_unit",
    "unit": "unit",
    "two-stage": "two_stage",
    "bayesian-cyclegan": "bayesian_cyclegan",
    "srgan": "srgan",
    "esrgan": "esrgan",
    "unet": "unet",
    "cincgan": "cincgan",
    "pseudo-sr": "pseudo_sr",
    "compact": "compact",
}

METHODS = tuple(_FILES)
"""Names of the methods."""


@dataclass(frozen=True)
class MethodKind:
    """A method's class, its settings' class, and its presets: values that differ from the settings' defaults.

    A preset may also hold ``trainer.KEY`` for the trainer's settings and ``patches.KEY`` for those of the patches.
    """

    name: str
    method: type[Method]
    settings: type[Any]
    presets: Mapping[str, Mapping[str, Any]]

    def build(self, settings: Any) -> Method:  # noqa: ANN401 - each method has its own settings' class
        """The method with random weights (from torch's own generator)."""
        return self.method(settings)


def method_kind(name: str) -> MethodKind:
    """Look a method up.

    Raises:
        UsageError: there is no such method.
    """
    if name not in _FILES:
        raise UsageError(f"There is no method {name!r}; choose from: {', '.join(METHODS)}.")
    file = import_module(f"{__name__}.{_FILES[name]}")
    return MethodKind(name, file.METHOD, file.Settings, file.PRESETS)


def changed(settings: Any, values: Mapping[str, Any], what: str) -> Any:  # noqa: ANN401 - any settings' class
    """Settings with other values.

    Raises:
        UsageError: a key that they don't have, or a value that they refuse; ``what`` names them.
    """
    known = {field.name for field in fields(settings)}
    for key in values:
        if key not in known:
            raise UsageError(f"There is no setting {key!r} of {what}; choose from: {', '.join(sorted(known))}.")
    try:
        return replace(settings, **values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"A setting of {what} is not possible ({error}); correct it.") from None
