"""Micro-CT slices in HU for the protocols that start from micro-CT: of simulated specimens, or of a user's files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.evaluation.paper_metrics import PAPERS_WINDOW
from CTMicroSRLib.evaluation.shrinking import whole_blocks
from CTMicroSRLib.files import read_any_volume
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.simulation.cases import Case, simulate_case
from CTMicroSRLib.simulation.micro_scanner import micro_to_hu
from CTMicroSRLib.simulation.sets import CaseSet

Float32 = NDArray[np.float32]

LEAST_COARSE_VOXELS = 12
"""Rows and columns that are left after shrinking, at least: the networks and the SSIM need them."""

_AXIS_VOXELS = 6
"""The holder's axis may lie 2 voxels beside the middle and its wall ends 4 voxels inside the block."""


@dataclass(frozen=True)
class MicroSource:
    """Where micro-CT comes from: simulated cases, or files with the window of grey values that is mapped to HU.

    Attributes:
        cases: simulated, calibrated to HU by their own gain; used where there are no files.
        files: a user's volumes.
        window: grey values that lie at -1000 and 2500 HU, for files.
        slices: of each volume, evenly spaced.
    """

    cases: CaseSet
    files: tuple[Path, ...] = ()
    window: tuple[float, float] | None = None
    slices: int = 3

    def __post_init__(self) -> None:
        check_given_once(self.files)
        if self.files and self.window is None:
            raise UsageError("Micro-CT has no HU; give the grey values of air and bone with --micro-window LOW HIGH.")
        if self.window is not None:
            low, high = self.window
            if not self.files:
                raise UsageError("The option --micro-window belongs to --micro FILES; leave it out or give both.")
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(f"The window {low:g} to {high:g} is empty; give --micro-window LOW HIGH, LOW first.")
        if self.slices < 1:
            raise UsageError(f"{self.slices} slices are none; give --slices 1 or more.")

    def __len__(self) -> int:
        return len(self.files) or len(self.cases)

    @property
    def text(self) -> str:
        """What the table says of it."""
        if self.files:
            return f"{len(self.files)} micro-CT volumes, {self.slices} slices each"
        return (
            f"the simulated micro-CT of {len(self.cases)} specimens of {self.cases.name or 'own cases'} (seeds "
            f"{self.cases.seeds[0]} to {self.cases.seeds[-1]}), {self.slices} slices each"
        )

    @property
    def advice(self) -> str:
        """What to do where its slices turn out to be no CT."""
        return "give the right --micro-window" if self.files else "choose other cases"

    def facts(self) -> dict[str, Any]:
        """What the table keeps of it for programs."""
        if self.files:
            return {"files": [path.name for path in self.files], "window": list(self.window or ())}
        return {"set": self.cases.name or "own cases", "cases": len(self.cases), "seeds": list(self.cases.seeds)}

    def volumes(self, scale: int) -> Iterator[Float32]:
        """Slices of each volume in HU, ``(k, rows, columns)``, rows and columns whole multiples of ``scale``.

        Raises:
            RefusedInputError: a volume that is too small, or no image.
        """
        if self.files:
            assert self.window is not None
            for path in self.files:
                yield _whole(_of_file(path, self.window, self.slices), scale, path.name)
            return
        for seed, settings in self.cases.cases:
            hu = _of_case(simulate_case(settings, seed), self.slices)
            yield _whole(hu, scale, f"specimen {seed}")


def check_given_once(files: Sequence[Path]) -> None:
    """Refuse a scan that is given twice, by whatever path, and would count twice.

    Raises:
        UsageError: two of them are one file or folder.
    """
    seen: set[object] = set()
    for path in files:
        there = path.stat() if path.exists() else None
        # Some file systems number no files.
        identity = (there.st_dev, there.st_ino) if there is not None and there.st_ino else path.resolve()
        if identity in seen or path.resolve() in seen:
            raise UsageError(f"The scan {path} is given twice; leave one out.")
        seen |= {identity, path.resolve()}


def spread_slices(count: int, wanted: int) -> list[int]:
    """Up to ``wanted`` slices of ``count``, evenly spaced, none of them at the ends where there are more."""
    number = min(count, wanted)
    return [int((2 * n + 1) * count / (2 * number)) for n in range(number)]


def _of_file(path: Path, window: tuple[float, float], slices: int) -> Float32:
    volume = read_any_volume(path)
    chosen = np.asarray(volume.array_kji[spread_slices(len(volume.array_kji), slices)], dtype=np.float64)
    if not np.isfinite(chosen).all():
        raise RefusedInputError(f"{path} has NaN or infinite voxels; replace them and give it again.")
    normalised = IntensityWindow(*window).normalise(chosen)
    if np.ptp(normalised) == 0:
        raise RefusedInputError(
            f"{path} has no grey values between {window[0]:g} and {window[1]:g}; give the right --micro-window."
        )
    return np.asarray(PAPERS_WINDOW.to_hu(normalised), dtype=np.float32)


def _of_case(case: Case, slices: int) -> Float32:
    """The middle square of the slices, inside the sample holder."""
    holder = case.settings.micro_scanner
    voxel_mm = case.micro.geometry.spacing_mm[0]
    rows, columns = case.micro.array_kji.shape[1:]
    radius = min(rows, columns) / 2.0 - _AXIS_VOXELS - holder.wall_mm / voxel_mm
    half = int(radius / math.sqrt(2.0)) if holder.wall_mm else min(rows, columns) // 2
    chosen = spread_slices(len(case.micro.array_kji), slices)
    hu = micro_to_hu(case.micro)[chosen]
    return np.asarray(hu[:, rows // 2 - half : rows // 2 + half, columns // 2 - half : columns // 2 + half])


def _whole(hu_kji: Float32, scale: int, name: str) -> Float32:
    whole = whole_blocks(hu_kji, scale)
    if min(whole.shape[1:]) < LEAST_COARSE_VOXELS * scale:
        raise RefusedInputError(
            f"The micro-CT of {name} is smaller than {LEAST_COARSE_VOXELS * scale} voxels, which {scale}x needs; give "
            "larger slices."
        )
    return np.ascontiguousarray(whole, dtype=np.float32)
