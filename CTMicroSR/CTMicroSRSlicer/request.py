"""What is asked for, and the steps that do it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import slicer

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.run_progress import (
    LUNG_SHARE,
    RunProgress,
    guess_network_seconds,
    lung_seconds,
    superres_seconds,
)
from CTMicroSRLib.volume import Region
from CTMicroSRSlicer import inputs
from CTMicroSRSlicer.childrun import Step
from CTMicroSRSlicer.commands import RunFiles, RunSettings, infoArguments, segmentArguments, superresArguments
from CTMicroSRSlicer.estimate import checkFits
from CTMicroSRSlicer.foundlungs import FoundLungs

LOADING_SECONDS = 0.5
"""Keeps the end of the bar for the result's way into the scene, of which no event tells."""


@dataclass(frozen=True)
class Request:
    """A volume and what to do with it. ``roiNode`` gives the box that ``settings.region`` then holds."""

    inputNode: slicer.vtkMRMLScalarVolumeNode
    settings: RunSettings = field(default_factory=RunSettings)
    roiNode: slicer.vtkMRMLMarkupsROINode | None = None
    outputNode: slicer.vtkMRMLScalarVolumeNode | None = None
    uncertaintyNode: slicer.vtkMRMLScalarVolumeNode | None = None

    def checked(self) -> Request:
        """The request with the ROI's voxels as region.

        Raises:
            UsageError, RefusedInputError: it can't be done.
        """
        inputs.checkInputVolume(self.inputNode)
        for node in (self.outputNode, self.uncertaintyNode):
            if node is not None:
                _checkOutput(node)
            if node is not None and node is self.inputNode:
                raise UsageError("The result would replace its own input; choose another output, or a new volume.")
        if self.outputNode is not None and self.outputNode is self.uncertaintyNode:
            raise UsageError("Result and uncertainty would be the same volume; choose another one for one of them.")
        region = self.settings.region
        if self.roiNode is not None or region == "roi":
            region = inputs.regionOfRoi(self.inputNode, self.roiNode)
        elif self.settings.isBox:
            Region.parse(region).check_inside(self.inputNode.GetImageData().GetDimensions())
        return replace(self, settings=replace(self.settings, region=region))


def _checkOutput(node: slicer.vtkMRMLNode) -> None:
    inputs.checkIsNode(node, "output")
    if node.GetClassName() != "vtkMRMLScalarVolumeNode":
        raise UsageError(f"{node.GetName()} can't hold a result; choose a scalar volume as output, or a new one.")


NO_LUNGS = "No lung was found in this scan, so whether the ROI meets one was not checked."


def runSteps(request: Request, files: RunFiles, found: FoundLungs) -> list[Step]:
    """The steps of a run: find the lungs, see whether the result fits, super-resolve."""
    settings, geometry = request.settings, inputs.geometryOf(request.inputNode)
    keep = found.keeperFor(request.inputNode)

    def check(_event: dict[str, Any]) -> None:
        mask_kji = inputs.readMask(files.lungs)
        keep(mask_kji)
        if settings.isBox:
            inputs.checkBoxMeetsLungs(mask_kji, settings.region)
        checkFits(geometry, settings, mask_kji)

    if settings.region != "lungs":
        checkFits(geometry, settings)
    # A box is the user's own choice: a scan in which no lung is found, a specimen's say, only can't be checked with it.
    optional = settings.isBox and not settings.lungSegmentation
    lungs = [Step(segmentArguments(files), check, NO_LUNGS if optional else None)] if settings.needsLungs else []
    return [*lungs, Step(superresArguments(settings, files))]


def estimateSteps(request: Request, files: RunFiles, found: FoundLungs) -> list[Step]:
    """The steps that say what a run would need."""
    keep = found.keeperFor(request.inputNode)

    def check(_event: dict[str, Any]) -> None:
        keep(inputs.readMask(files.lungs))

    lungs = [Step(segmentArguments(files), check)] if request.settings.region == "lungs" else []
    return [*lungs, Step(infoArguments(request.settings, files))]


def runProgress(request: Request, networkSeconds: float | None) -> RunProgress:
    """One bar for all steps of a run. ``networkSeconds`` is what the network takes, None if that was not measured."""
    settings, sizeIjk = request.settings, request.inputNode.GetImageData().GetDimensions()
    voxels = math.prod(sizeIjk)
    expected = networkSeconds
    if expected is None:
        inside = math.prod(Region.parse(settings.region).size_ijk) if settings.isBox else voxels
        passes = settings.passes if settings.uncertainty else 0
        expected = guess_network_seconds(LUNG_SHARE * voxels if settings.region == "lungs" else inside, passes)
    lungs = lung_seconds(voxels) if settings.needsLungs else {}
    stages = {**lungs, **superres_seconds(voxels, expected), "loading": LOADING_SECONDS}
    return RunProgress(stages, is_timed=networkSeconds is not None)
