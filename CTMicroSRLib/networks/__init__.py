"""The networks, one file each, built by name from a model's card."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from CTMicroSRLib.errors import ModelError

if TYPE_CHECKING:
    from CTMicroSRLib.networks.generator import Generator

_CLASSES = {
    "compact": ("compact", "CompactGenerator"),
    "sr-cyclegan": ("sr_cyclegan", "ClinicalToMicroGenerator"),
    "down-blocks": ("down_blocks", "DownBlocksGenerator"),
    "resnet": ("resnet", "ResnetGenerator"),
    "unit": ("unit", "UnitGenerator"),
    "srresnet": ("srresnet", "SrResnetGenerator"),
    "rrdb": ("rrdb", "RrdbGenerator"),
    "unet": ("unet", "UnetGenerator"),
    "cincgan": ("cincgan", "CinCGenerator"),
    "pseudo-sr": ("pseudo_sr", "PseudoSrGenerator"),
}
"""File and class of every architecture; the file is imported when a network of it is built."""

ARCHITECTURES = tuple(_CLASSES)
"""Architectures a card can name."""

LARGEST_PARAMETER = 4096
"""No architecture has more channels, blocks or planes; a card that says so is damaged."""


def build_network(architecture: str, parameters: Mapping[str, Any]) -> Generator:
    """Build a generator with random weights.

    Raises:
        ModelError: an unknown architecture, or parameters that it does not have.
    """
    if architecture not in _CLASSES:
        raise ModelError(
            f"The architecture {architecture!r} is unknown (known: {', '.join(ARCHITECTURES)}); update CTMicroSR."
        )
    file, name = _CLASSES[architecture]
    generator: type[Generator] = getattr(import_module(f"{__name__}.{file}"), name)
    try:
        if any(isinstance(value, int) and value > LARGEST_PARAMETER for value in parameters.values()):
            raise ValueError(f"a number is above {LARGEST_PARAMETER}")
        network = generator(**parameters)
        if not 0.0 <= network.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate is {network.dropout_rate}")
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise ModelError(
            f"The parameters of {architecture} on the card do not fit ({error}); export the model again."
        ) from None
    return network
