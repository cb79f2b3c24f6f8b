"""The processes and devices of a training: one here, or those that ``torchrun`` or this starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from CTMicroSRLib.devices import choose_device
from CTMicroSRLib.errors import ResourceError, UsageError
from CTMicroSRLib.folder_lock import only_one
from CTMicroSRLib.training.settings import Precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Attributes:
        device: kind of device: ``cpu``, ``cuda`` or ``mps``.
        devices: processes on a machine, one for each device.
        nodes: machines.
    """

    device: str
    devices: int
    nodes: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.devices * self.nodes


def planned(device: str, devices: int, batch: int) -> Processes:
    """The processes that :func:`launch` joins or starts; nothing is started yet.

    Args:
        device: as of the command.
        devices: of this machine, where ``torchrun`` hasn't started the processes.
        batch: the total batch, which is shared among them.

    Raises:
        UsageError: an unknown device, fewer than one, or a batch that can't be shared evenly.
        ResourceError: the devices are not there.
    """
    name, nodes = choose_device(device).type, 1
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if devices < 1:
        raise UsageError(f"{devices} devices are not enough to train on; choose at least 1.")
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(name, devices)
    if devices > there:
        raise ResourceError(f"This machine has {there} {name} device(s), not {devices}; choose fewer.")
    processes = Processes(name, devices, nodes)
    if batch % processes.count:
        raise UsageError(
            f"A batch of {batch} can't be divided among {processes.count} processes; choose a multiple of "
            f"{processes.count}."
        )
    return processes


def launch(processes: Processes, precision: Precision) -> Fabric:
    """Join the processes that ``torchrun`` started, or start them.

    Raises:
        ResourceError: Lightning Fabric isn't there.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise ResourceError("Training needs lightning-fabric; install it (pip install 'ctmicrosr[train]').") from None
    device, devices, nodes = processes.device, processes.devices, processes.nodes
    strategy = "ddp" if processes.count > 1 else "auto"
    fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def is_first_process() -> bool:
    """Whether this is the first of the processes that ``torchrun`` (RANK) or ``--devices`` (LOCAL_RANK) started."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


@contextmanager
def only_training(run: Path) -> Iterator[None]:
    """Hold a run's folder for this training, all of whose processes pass.

    Raises:
        UsageError: another training holds it, or the folder can't be made.
        ResourceError: the disk is full.
    """
    if not is_first_process():
        yield
        return
    with only_one(run, "training"):
        yield
