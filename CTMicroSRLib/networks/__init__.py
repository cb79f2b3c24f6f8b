"""The networks, one file each, built by name from a model's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from CTMicroSRLib.errors import ModelError

if TYPE_CHECKING:
    from CTMicroSRLib.networks.generator import Generator

ARCHITECTURES = ("compact", "sr-cyclegan")
"""Architectures a card can name."""


LARGEST_PARAMETER = 4096
"""No architecture has more channels, blocks or planes; a card that says so is damaged."""


def build_network(architecture: str, parameters: Mapping[str, Any]) -> Generator:
    """Build a generator with random weights.

    Raises:
        ModelError: an unknown architecture, or parameters that it does not have.
    """
    from CTMicroSRLib.networks.compact import CompactGenerator
    from CTMicroSRLib.networks.sr_cyclegan import ClinicalToMicroGenerator

    classes: dict[str, type[Generator]] = {
        "compact": CompactGenerator,
        "sr-cyclegan": ClinicalToMicroGenerator,
    }
    if architecture not in classes:
        raise ModelError(
            f"The architecture {architecture!r} is unknown (known: {', '.join(ARCHITECTURES)}); update CTMicroSR."
        )
    try:
        if any(isinstance(value, int) and value > LARGEST_PARAMETER for value in parameters.values()):
            raise ValueError(f"a number is above {LARGEST_PARAMETER}")
        network = classes[architecture](**parameters)
        if not 0.0 <= network.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate is {network.dropout_rate}")
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise ModelError(
            f"The parameters of {architecture} on the card do not fit ({error}); export the model again."
        ) from None
    return network
