"""From instance norms to frozen ones, which make tiles exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.networks.norms import FrozenNorm


def freeze_norms(
    network: Generator, parameters: Mapping[str, Any], architecture: str, calibration: Iterable[Tensor]
) -> Generator:
    """Replace instance norms by the mean of their statistics over calibration images.

    Args:
        network: a generator with instance norms; it is not changed.
        parameters: its constructor's arguments.
        architecture: its name in the registry.
        calibration: normalised images ``(1, 1 + planes, rows, columns)``, typical of what the network will see.

    Returns:
        The same weights with frozen norms, for exact tiles.

    Raises:
        ValueError: no calibration image, or the network is not of that architecture and these parameters.
    """
    frozen = build_network(architecture, {**parameters, "norm": "frozen"})
    missing, unexpected = frozen.load_state_dict(network.state_dict(), strict=False)
    norms = {path: module for path, module in frozen.named_modules() if isinstance(module, FrozenNorm)}
    statistics = {f"{path}.{name}" for path in norms for name in ("mean", "variance")}
    if unexpected or not statistics.issuperset(missing):
        raise ValueError(f"the network is no {architecture} of these parameters")
    means, variances = _mean_statistics(network, norms, calibration)
    for path, norm in norms.items():
        norm.mean.copy_(means[path])
        norm.variance.copy_(variances[path])
    return frozen.eval()


def _mean_statistics(
    network: Generator, norms: Mapping[str, FrozenNorm], calibration: Iterable[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What comes into each of the network's norms: mean and variance, averaged over the images."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in norms}

    def record(path: str, features: Tensor) -> None:
        seen[path].append(norms[path].statistics(features))

    def hook(path: str) -> Any:  # noqa: ANN401 - torch's hooks take whatever the module takes
        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            record(path, inputs[0])

        return before

    handles = [network.get_submodule(path).register_forward_pre_hook(hook(path)) for path in norms]
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            for image in calibration:
                network(image)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    if any(not values for values in seen.values()):
        raise ValueError("there is no calibration image")
    means, variances = (
        {path: torch.stack([pair[n] for pair in pairs]).mean(dim=0) for path, pairs in seen.items()} for n in (0, 1)
    )
    return means, variances
