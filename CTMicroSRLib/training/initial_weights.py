"""Weights that a training starts from, instead of random ones."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from CTMicroSRLib.errors import ModelError
from CTMicroSRLib.networks.generator import Generator


def load_initial_weights(generator: Generator, path: Path) -> None:
    """Give a generator the weights of a safetensors file: a run's ``weights.safetensors`` or a model folder's.

    Raises:
        ModelError: the file is missing or damaged, no safetensors file, of another network, or its weights are not
            finite; the generator may have taken some of them.
    """
    try:
        weights = load_file(path)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise ValueError("some are not finite")
        generator.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ModelError(
            f"The weights {path} can't start this training ({cause}); give a .safetensors file of the same network."
        ) from None
