"""What the panel and scripts ask for, as arguments of the ``ctmicrosr`` command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunSettings:
    """How to super-resolve: the command's options, with Slicer's spelling.

    ``region`` is ``lungs``, ``whole`` or ``I0:I1,J0:J1,K0:K1`` (half-open voxel ranges of the input); ``tile``,
    ``psfFwhmMm`` and ``noiseHu`` are None where the software decides. ``lungSegmentation`` also wants the lung mask.
    """

    region: str = "lungs"
    model: str = "compact-8x"
    uncertainty: bool = False
    passes: int = 20
    seed: int = 0
    consistency: str = "scan"
    psfFwhmMm: float | None = None
    noiseHu: float | None = None
    device: str = "auto"
    precision: str = "auto"
    tile: int | None = None
    lungSegmentation: bool = False

    @property
    def isBox(self) -> bool:
        """Whether the region is a box of voxels."""
        return self.region not in ("lungs", "whole")

    @property
    def needsLungs(self) -> bool:
        """Whether the lungs are segmented: to run in them, to show them, or to check that a box meets them."""
        return self.lungSegmentation or self.region != "whole"


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, all in its own temporary folder."""

    folder: Path

    @property
    def input(self) -> Path:
        """The scan as Slicer wrote it."""
        return self.folder / "input.nrrd"

    @property
    def lungs(self) -> Path:
        """The lung mask."""
        return self.folder / "lungs.nrrd"

    @property
    def output(self) -> Path:
        """The super-resolved volume."""
        return self.folder / "output.nrrd"

    @property
    def uncertainty(self) -> Path:
        """The standard deviation."""
        return self.folder / "uncertainty.nrrd"


def segmentArguments(files: RunFiles) -> list[str]:
    """Arguments that segment the lungs."""
    return ["segment", str(files.input), str(files.lungs), "--progress", "json"]


def infoArguments(settings: RunSettings, files: RunFiles) -> list[str]:
    """Arguments that say what a run would cost."""
    passes = ["--passes", str(settings.passes)] if settings.uncertainty else []
    return ["info", str(files.input), *_regionArguments(settings, files), *passes, "--json"]


def superresArguments(settings: RunSettings, files: RunFiles) -> list[str]:
    """Arguments that super-resolve."""
    arguments = ["superres", str(files.input), str(files.output), *_regionArguments(settings, files)]
    arguments += ["--seed", str(settings.seed), "--consistency", settings.consistency, "--progress", "json"]
    if settings.uncertainty:
        arguments += ["--uncertainty", str(files.uncertainty), "--passes", str(settings.passes)]
    if settings.psfFwhmMm is not None:
        arguments += ["--psf-fwhm-mm", repr(settings.psfFwhmMm)]
    if settings.noiseHu is not None:
        arguments += ["--noise-hu", repr(settings.noiseHu)]
    return arguments


def _regionArguments(settings: RunSettings, files: RunFiles) -> list[str]:
    arguments = ["--region", settings.region, "--model", settings.model]
    arguments += ["--device", settings.device, "--precision", settings.precision]
    if settings.region == "lungs":
        # the mask that the segment step has written: the same voxels as without it, found once instead of twice
        arguments += ["--mask", str(files.lungs)]
    if settings.tile is not None:
        arguments += ["--tile", str(settings.tile)]
    return arguments
