"""Which device and precision a model runs on, chosen or asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from CTMicroSRLib.errors import ResourceError, UsageError

logger = logging.getLogger(__name__)

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "fp32", "bf16"]
DEVICES: tuple[DeviceName, ...] = ("auto", "cpu", "cuda", "mps")
PRECISIONS: tuple[PrecisionName, ...] = ("auto", "fp32", "bf16")


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` takes CUDA, then the CPU. MPS has to be asked for: nobody has tried it yet.

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
        return torch.device("cuda" if available["cuda"] else "cpu")
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
        # not public, and not in every release
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, bool)() for check in checks)
    return False


@contextmanager
def exact_float32() -> Iterator[None]:
    """Products and convolutions inside are float32 in full, whatever the program around has chosen (TF32, bf16).

    Its choices are there again afterwards. torch has an older and a newer way to choose, and refuses to work where
    the two contradict each other, so both are set, the older one first since it changes what the newer one says.
    """
    products, convolutions, newer = _product_precision(), _convolution_tf32(), _newer_precisions()
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        for place, _ in newer:
            place.fp32_precision = "ieee"
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for place, precision in newer:
            place.fp32_precision = precision


def _product_precision() -> str | None:
    """The older way's choice; None where only the newer one was used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _convolution_tf32() -> bool | None:
    """The older way's choice; None where only the newer one was used."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None


def _newer_precisions() -> list[tuple[Any, str]]:
    """Where newer releases of torch keep precisions, and which."""
    backends: Any = torch.backends
    owners = [(backends.cudnn, "conv"), (backends.cudnn, "rnn"), (backends.cuda, "matmul")]
    owners += [(backends.mkldnn, "conv"), (backends.mkldnn, "matmul")]
    places: list[Any] = [getattr(owner, name, None) for owner, name in owners]
    return [(place, place.fp32_precision) for place in places if hasattr(place, "fp32_precision")]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told, so that a clock tells its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


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
