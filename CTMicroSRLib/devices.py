"""Which device and precision a model runs on, chosen or asked for."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from CTMicroSRLib.errors import ResourceError, UsageError

logger = logging.getLogger(__name__)

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "fp32", "bf16"]
DEVICES: tuple[DeviceName, ...] = ("auto", "cpu", "cuda", "mps")
PRECISIONS: tuple[PrecisionName, ...] = ("auto", "fp32", "bf16")


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: an unknown name.
        ResourceError: the device is not on this machine.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, there in available.items() if there))
    if name not in available:
        raise UsageError(f"The device {name!r} is unknown; choose one of {', '.join(DEVICES)}.")
    if not available[name]:
        raise ResourceError(f"This machine has no usable {name} device; choose --device cpu or auto.")
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """True where the device multiplies bfloat16 in hardware (elsewhere it is slower than float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def settle_vector_math() -> None:
    """Have torch's vector maths choose its kernels now, on one thread; call it before any other work with torch.

    Intel's vector maths finds out the processor at its first call and keeps it in a variable that it writes
    in two steps. Where the first call is a square root on several threads, one of them may read the value
    between the two and take a kernel of low accuracy (3e-4 relative) for its share of the image.
    """
    torch.ones(1).sqrt()


def free_memory_bytes() -> int:
    """Memory that a new allocation can have without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)
