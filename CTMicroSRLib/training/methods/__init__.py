"""The methods by name, one small file each: networks, losses and step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

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

    A preset may also hold ``trainer.KEY`` for the trainer's settings, ``patches.KEY`` for those of the patches and
    ``simulation.KEY`` for those of their simulation.
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
    kinds = get_type_hints(type(settings))
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"There is no setting {key!r} of {what}; choose from: {', '.join(sorted(known))}.")
        if not _is_of(kinds[key], value):
            raise UsageError(
                f"A setting of {what} is not possible ({key} is {value!r}, not {_spoken(kinds[key])}); correct it."
            )
    try:
        return replace(settings, **values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"A setting of {what} is not possible ({error}); correct it.") from None


def _is_of(kind: Any, value: object) -> bool:  # noqa: ANN401 - any type hint
    """Whether a value, as JSON has it, is of a type hint's kind."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Union, UnionType):
        return any(_is_of(choice, value) for choice in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(kinds) == len(value) and all(_is_of(*pair) for pair in zip(kinds, value, strict=True))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(float(value))  # type: ignore[arg-type]
    return type(value) is kind


def _spoken(kind: Any) -> str:  # noqa: ANN401 - any type hint
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(_spoken, arguments))
    if origin is tuple:
        return "a list of numbers" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} numbers"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}[kind]
