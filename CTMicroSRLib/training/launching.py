"""The processes and devices of a training: one here, or those that ``torchrun`` or this starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from CTMicroSRLib.devices import choose_device
from CTMicroSRLib.errors import ResourceError, UsageError
from CTMicroSRLib.training.settings import Precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch(device: str, devices: int, precision: Precision) -> Fabric:
    """Join the processes that ``torchrun`` started, or start them.

    Raises:
        UsageError: an unknown device, or fewer than one.
        ResourceError: the devices are not there, or Lightning Fabric isn't.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise ResourceError("Training needs lightning-fabric; install it (pip install 'ctmicrosr[train]').") from None
    name, nodes = choose_device(device).type, 1
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if devices < 1:
        raise UsageError(f"{devices} devices are not enough to train on; choose at least 1.")
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(name, devices)
    if devices > there:
        raise ResourceError(f"This machine has {there} {name} device(s), not {devices}; choose fewer.")
    strategy = "ddp" if devices * nodes > 1 else "auto"
    fabric = Fabric(accelerator=name, devices=devices, num_nodes=nodes, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric
