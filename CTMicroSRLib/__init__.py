"""CTMicroSR: super-resolution of chest CT to micro-CT scale.

>>> from CTMicroSRLib import read_volume, super_resolve
>>> result = super_resolve(read_volume("scan.nrrd"), region="lungs", uncertainty=True)  # doctest: +SKIP
>>> result.volume, result.uncertainty, result.report  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from CTMicroSRLib.errors import (
    CancelledError,
    CTMicroSRError,
    ModelError,
    RefusedInputError,
    ResourceError,
    UsageError,
)
from CTMicroSRLib.volume import Geometry, Region, Volume

if TYPE_CHECKING:
    from CTMicroSRLib.files import read_mask, read_volume, write_volume
    from CTMicroSRLib.lungs import LungMask, LungSettings, segment_lungs
    from CTMicroSRLib.options import Options
    from CTMicroSRLib.session import Model, load_model
    from CTMicroSRLib.superresolve import Result, super_resolve

__version__ = "0.1.0"

# Imported on first use, so that importing the package stays fast and needs no torch.
_LAZY = {
    "LungMask": "lungs",
    "LungSettings": "lungs",
    "Model": "session",
    "Options": "options",
    "Result": "superresolve",
    "load_model": "session",
    "read_mask": "files",
    "read_volume": "files",
    "segment_lungs": "lungs",
    "super_resolve": "superresolve",
    "write_volume": "files",
}

__all__ = [
    "CTMicroSRError",
    "CancelledError",
    "Geometry",
    "LungMask",
    "LungSettings",
    "Model",
    "ModelError",
    "Options",
    "RefusedInputError",
    "Region",
    "ResourceError",
    "Result",
    "UsageError",
    "Volume",
    "load_model",
    "read_mask",
    "read_volume",
    "segment_lungs",
    "super_resolve",
    "write_volume",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module holds
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
