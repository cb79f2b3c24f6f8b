"""A method's optimisers: built, given their learning rates, and taken apart for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from CTMicroSRLib.training.method import Method, OptimiserSettings
from CTMicroSRLib.training.schedules import schedule_factor
from CTMicroSRLib.training.settings import TrainerSettings


class MethodOptimiser:
    """Adam for some networks of a method, with its schedule."""

    def __init__(self, method: Method, settings: OptimiserSettings) -> None:
        self._settings = settings
        networks = [_network(method, name) for name in settings.networks]
        unique = {id(p): p for network in networks for p in network.parameters() if p.requires_grad}
        self.parameters = list(unique.values())
        self._adam = torch.optim.Adam(
            self.parameters,
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=self.parameters[0].device.type in ("cpu", "cuda"),  # one pass over memory instead of ten
        )

    def learning_rate(self, trainer: TrainerSettings, progress: float) -> float:
        """The rate where ``progress`` (0 to 1) of the training is done; 0 outside the optimiser's span."""
        return self._settings.learning_rate * schedule_factor(trainer, progress, self._settings.span)

    def active(self, progress: float) -> bool:
        """Whether the optimiser's span covers this point."""
        first, last = self._settings.span
        return first <= progress < last

    def clear(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """Those that there are."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def move(self, learning_rate: float) -> None:
        """Take one step."""
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """Adam's moments and step counts as ``INDEX.NAME``."""
        content = self._adam.state_dict()["state"]
        return {f"{index}.{name}": value for index, state in content.items() for name, value in state.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what :meth:`state` gave.

        Raises:
            ValueError: it is of other parameters.
        """
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            parameter = self.parameters[int(index)] if int(index) < len(self.parameters) else None
            if parameter is None or value.shape not in (parameter.shape, torch.Size([])):
                raise ValueError(f"{name} {index} is of other parameters")
            # In the memory layout of the parameter, which the fused step takes for granted.
            kept = torch.empty_like(parameter, requires_grad=False).copy_(value) if value.dim() else value
            state.setdefault(int(index), {})[name] = kept
        self._adam.load_state_dict({"state": state, "param_groups": self._adam.state_dict()["param_groups"]})


def build_optimisers(method: Method) -> dict[str, MethodOptimiser]:
    """The method's optimisers by name; the method is on its device already."""
    return {name: MethodOptimiser(method, settings) for name, settings in method.optimisers().items()}


def _network(method: Method, name: str) -> nn.Module:
    network = getattr(method, name)
    if not isinstance(network, nn.Module):
        raise TypeError(f"{type(method).__name__}.{name} is not a network")
    return network
