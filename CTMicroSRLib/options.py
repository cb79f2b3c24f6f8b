"""The options of a run: their names, types and ranges, the same for Python, the command and the panel."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from CTMicroSRLib.errors import UsageError, shown
from CTMicroSRLib.models import DEFAULT_MODEL
from CTMicroSRLib.plan import RegionChoice, check_tile
from CTMicroSRLib.volume import Region

if TYPE_CHECKING:
    from CTMicroSRLib.session import Model


@dataclass(frozen=True)
class Options:
    """How to super-resolve; the same names as the command's options.

    Attributes:
        region: ``lungs``, ``whole`` or a Region in input voxels.
        model: name, folder, or a loaded Model.
        uncertainty: also make the standard deviation.
        passes: passes under dropout for the uncertainty.
        seed: of the dropout masks.
        consistency: ``scan``, ``block`` or ``off``.
        psf_fwhm_mm: the scanner's point spread; None estimates it from the scan.
        noise_hu: the scan's noise; None estimates it from the scan.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        tile: edge of the largest tile in voxels, a multiple of 32; None lets the software choose.

    Raises:
        UsageError: a value, or its type, is not allowed, or a loaded model has another device or precision.
    """

    region: RegionChoice = "lungs"
    model: str | Path | Model = DEFAULT_MODEL
    uncertainty: bool = False
    passes: int = 20
    seed: int = 0
    consistency: str = "scan"
    psf_fwhm_mm: float | None = None
    noise_hu: float | None = None
    device: str = "auto"
    precision: str = "auto"
    tile: int | None = None

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if value is None and option.default is None:
                continue
            read, allowed = _OPTIONS[option.name]
            try:
                object.__setattr__(self, option.name, read(value))
            except (TypeError, ValueError, OverflowError):
                raise UsageError(f"The option {option.name} is {shown(value)}; give {allowed}.") from None
        if isinstance(self.region, str) and self.region not in ("lungs", "whole"):
            raise UsageError(f"The region {self.region!r} is unknown; give lungs, whole or a voxel region.")
        if self.consistency not in ("scan", "block", "off"):
            raise UsageError(f"The consistency {self.consistency!r} is unknown; choose scan, block or off.")
        if not 2 <= self.passes <= 1000:
            raise UsageError(f"{self.passes} passes are not possible; choose 2 to 1000.")
        check_tile(self.tile)
        if self.seed < 0:
            raise UsageError("The seed must not be negative; give 0 or more.")
        for name, value, limit in (
            ("point spread", self.psf_fwhm_mm, 10.0),
            ("noise", self.noise_hu, 1000.0),
        ):
            if value is not None and not 0 < value <= limit:
                raise UsageError(f"The {name} {value} is not possible; give a value above 0, at most {limit:g}.")
        if not isinstance(self.model, str | Path):
            for name, asked, has in (
                ("device", self.device, self.model.device.type),
                ("precision", self.precision, self.model.precision),
            ):
                if asked not in ("auto", has):
                    raise UsageError(
                        f"The loaded model's {name} is {has}, not {asked!r}; leave the {name} out, or load the model "
                        "with it."
                    )


def _text(value: Any) -> str:  # noqa: ANN401 - whatever a user gives; so are those below
    if not isinstance(value, str):
        raise TypeError
    return value


def _yes_or_no(value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


def _whole_number(value: Any) -> int:  # noqa: ANN401
    if isinstance(value, bool | np.bool_):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    return float(value)


def _ends(value: Any) -> tuple[int, int]:  # noqa: ANN401
    start, stop = value
    return (_whole_number(start), _whole_number(stop))


def _region(value: Any) -> RegionChoice | str:  # noqa: ANN401
    return Region(_ends(value.i), _ends(value.j), _ends(value.k)) if isinstance(value, Region) else _text(value)


def _model(value: Any) -> str | Path | Model:  # noqa: ANN401
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return Path(value)
    from CTMicroSRLib.session import Model

    if not isinstance(value, Model):
        raise TypeError
    return value


_OPTIONS: dict[str, tuple[Callable[[Any], object], str]] = {
    "region": (_region, "lungs, whole or a Region of whole numbers, such as Region((100, 164), (200, 264), (0, 1))"),
    "model": (_model, "a model's name, its folder or a loaded Model"),
    "uncertainty": (_yes_or_no, "True or False"),
    "passes": (_whole_number, "a whole number from 2 to 1000"),
    "seed": (_whole_number, "a whole number, 0 or more"),
    "consistency": (_text, "scan, block or off"),
    "psf_fwhm_mm": (_number, "a number above 0, at most 10, or None"),
    "noise_hu": (_number, "a number above 0, at most 1000, or None"),
    "device": (_text, "auto, cpu, cuda or mps"),
    "precision": (_text, "auto, fp32 or bf16"),
    "tile": (_whole_number, "a positive multiple of 32, or None"),
}
"""What reads each option, raising where its type is wrong, and what is allowed."""

OPTION_NAMES = tuple(_OPTIONS)
