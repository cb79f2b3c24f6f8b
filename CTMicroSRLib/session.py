"""A loaded model, ready to be called many times on any tile."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from CTMicroSRLib.card import ModelCard
from CTMicroSRLib.devices import choose_device, exact_float32, has_fast_bf16, settle_vector_math
from CTMicroSRLib.errors import ModelError, ResourceError, UsageError
from CTMicroSRLib.models import DEFAULT_MODEL, find_model, verify_model
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.generator import WHOLE, Border, Generator
from CTMicroSRLib.uncertainty import PassStatistics, channel_masks, pass_statistics

logger = logging.getLogger(__name__)

BF16_ERROR_LIMIT_HU = 2.0
"""``auto`` takes bf16 only where its root-mean-square error on a probe stays below this."""

DEVICE_ERROR_LIMIT_HU = 0.5
"""A device whose float32 differs from the processor's by more (root mean square, on a probe) is not to be trusted."""

PROBE_VOXELS = 48


@dataclass(frozen=True)
class ScanConditions:
    """What the model is told of the scan: point spread's width in coarse voxels, noise in HU."""

    psf_fwhm_voxels: float
    noise_hu: float


class Model:
    """A verified model on a device. Built by :func:`load_model`; safe to call again and again.

    Attributes:
        card: the model's card.
        device: where it runs.
        precision: ``fp32`` or ``bf16``.
        precision_error_hu: root-mean-square difference of bf16 from fp32 on a probe; 0 for fp32.
    """

    def __init__(self, card: ModelCard, network: Generator, device: torch.device, precision: str) -> None:
        settle_vector_math()
        self.card = card
        self.device = torch.device("cpu")
        self.network = _prepared(network)
        if device != self.device:
            self._move_to(device)
        self.precision_error_hu = 0.0
        self.precision = "fp32"
        if precision not in ("auto", "fp32", "bf16"):
            raise UsageError(f"The precision {precision!r} is unknown; choose auto, fp32 or bf16.")
        if precision == "bf16" or (precision == "auto" and has_fast_bf16(device)):
            self._try_bf16(demanded=precision == "bf16")

    def _move_to(self, device: torch.device) -> None:
        """Move to a device that computes what the processor does.

        Raises:
            ResourceError: it does not.
        """
        on_processor = self._run_probe()
        self.device, self.network = device, self.network.to(device)
        error_hu = _root_mean_square(self._run_probe().cpu() - on_processor)
        if not error_hu <= DEVICE_ERROR_LIMIT_HU:
            raise ResourceError(
                f"The device {device} computes another result than the processor ({error_hu:.1f} HU apart on a probe); "
                "choose --device cpu, or another release of torch or of the device's driver."
            )

    def _run_probe(self) -> Tensor:
        return self.run(_probe(self.card), WHOLE, ScanConditions(psf_fwhm_voxels=1.8, noise_hu=15.0))

    def _try_bf16(self, *, demanded: bool) -> None:
        exact, reference = self.network, self._run_probe()
        self.network = copy.deepcopy(exact)
        # Layers only: the compact generator's interpolation is its own buffer and stays exact.
        for layer in self.network.children():
            layer.to(torch.bfloat16)
        error_hu = _root_mean_square(self._run_probe() - reference)
        logger.info("bf16 differs from fp32 by %.2f HU (root mean square)", error_hu)
        if demanded or error_hu <= BF16_ERROR_LIMIT_HU:
            self.precision, self.precision_error_hu = "bf16", error_hu
        else:
            self.network = exact

    def input(self, coarse_hu: Tensor, conditions: ScanConditions) -> Tensor:
        """Network input ``(1, 1 + planes, rows, columns)`` of a tile in HU, float32."""
        image = self.card.window.normalise(coarse_hu.to(self.device, torch.float32))
        values = [plane.value(conditions.psf_fwhm_voxels, conditions.noise_hu) for plane in self.card.planes]
        planes = [torch.full_like(image, value) for value in values]
        return torch.stack([image, *planes])[None].to(memory_format=torch.channels_last)

    def run(self, coarse_hu: Tensor, border: Border, conditions: ScanConditions) -> Tensor:
        """One pass without dropout.

        Args:
            coarse_hu: tile with its halo, ``(rows, columns)``, HU.
            border: which sides are the image's own border (the others carry ``card.halo`` voxels).
            conditions: the scan's blur and noise.

        Returns:
            Fine tile without halo, ``(rows', columns')``, HU, float32.
        """
        with torch.inference_mode(), exact_float32():
            output: Tensor = self.network(self.input(coarse_hu, conditions), border)
            # In place: another image of the fine tile would cost as much as it holds.
            window = self.card.window
            hu = output[0, 0].float().mul_(window.hu_per_unit).add_(window.hu_per_unit + window.low_hu)
        return hu

    def run_passes(
        self, coarse_hu: Tensor, border: Border, conditions: ScanConditions, *, passes: int, seed: int
    ) -> PassStatistics:
        """T passes under dropout and one without, the part before the first dropout layer computed once.

        The masks depend on the seed, the pass and the layer alone, so every tile sees the same T networks.
        """
        masks = [channel_masks(self.network, seed, t, self.device) for t in range(passes)]
        with torch.inference_mode(), exact_float32():
            return pass_statistics(self.network, self.input(coarse_hu, conditions), border, masks, self.card.window)


def load_model(name_or_folder: str | Path = DEFAULT_MODEL, *, device: str = "auto", precision: str = "auto") -> Model:
    """Find, verify and load a model.

    Args:
        name_or_folder: an installed model's name, or a model folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``fp32``; ``bf16``; ``auto`` is bf16 where the device has it in hardware and its measured error is
            at most 2 HU, else fp32.

    Raises:
        ModelError: no such model, damaged or altered files, weights that don't fit the architecture.
        ResourceError: the device is not there, or does not compute what the processor does.
        UsageError: unknown device or precision.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = find_model(name_or_folder)
    path = verify_model(found)
    _check_shapes(found.card, path)
    network = build_network(found.card.architecture, found.card.parameters)
    of_network = (network.scale, network.halo, network.planes)
    if of_network != (found.card.scale, found.card.halo, len(found.card.planes)):
        raise ModelError(
            f"The card of {found.card.name} gives another scale, halo or number of planes than its network has; get "
            "the model again from its source."
        )
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError, OSError):
        raise ModelError(
            f"The weights of {found.card.name} do not fit its architecture; get the model again from its source."
        ) from None
    return Model(found.card, network, choose_device(device), precision)


class _WithoutInitialValues(TorchFunctionMode):
    """Networks built inside keep their weights as they come: without memory there is nothing to fill.

    On the meta device a normal distribution would bring torch's compiler with it, two seconds of imports.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        given = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def _check_shapes(card: ModelCard, path: Path) -> None:
    """Compare the weights' shapes with the card's architecture before any memory is taken for either.

    Raises:
        ModelError: they differ.
    """
    from safetensors import SafetensorError, safe_open

    with torch.device("meta"), _WithoutInitialValues():
        skeleton = build_network(card.architecture, card.parameters)
    wanted = {key: list(value.shape) for key, value in skeleton.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        found = {}
    if wanted != found:
        raise ModelError(
            f"The weights of {card.name} do not fit its architecture; get the model again from its source."
        )


def _prepared(network: Generator) -> Generator:
    network.fold()
    network = network.eval().requires_grad_(False).float()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _root_mean_square(difference: Tensor) -> float:
    """Root mean square of all elements."""
    return float(difference.square().mean().sqrt())


def _probe(card: ModelCard) -> Tensor:
    """A tile with edges, fine texture and the whole window, to measure what a precision costs."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:PROBE_VOXELS, :PROBE_VOXELS]
    image = np.where((rows // 12 + columns // 12) % 2, 40.0, -870.0)
    image += 80.0 * np.sin(columns / 2.0) * (rows > PROBE_VOXELS // 2) + rng.normal(0.0, 20.0, image.shape)
    return torch.from_numpy(np.clip(image, card.window.low_hu, card.window.high_hu).astype(np.float32))
