"""What the panel remembers, in the scene; each is bound to a widget of the .ui by its SlicerParameterName."""

from __future__ import annotations

import enum
from typing import Annotated

import slicer
from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper

from CTMicroSRLib.errors import CTMicroSRError
from CTMicroSRSlicer.commands import RunSettings
from CTMicroSRSlicer.inputs import geometryOf
from CTMicroSRSlicer.request import Request
from CTMicroSRSlicer.results import INPUT_REFERENCE, SuperResolution


class Region(enum.Enum):
    """Where to super-resolve."""

    LUNGS = "lungs"
    ROI = "roi"
    WHOLE = "whole"

    def label(self) -> str:
        """What the panel shows."""
        return {
            Region.LUNGS: _("Lungs, found automatically"),
            Region.ROI: _("ROI (a box)"),
            Region.WHOLE: _("Everything"),
        }[self]


@parameterNodeWrapper
class CTMicroSRParameterNode:
    """The panel's choices.

    ``tile`` 0 lets the software choose, ``psfFwhmMm`` and ``noiseHu`` 0 measure the scan. ``comparedVolume``,
    ``resultVolume`` and ``resultUncertainty`` are what the last run had and gave, for comparing; ``outputVolume`` and
    ``uncertaintyVolume`` are where the next one goes (None: new volumes).
    """

    inputVolume: vtkMRMLScalarVolumeNode
    region: Region = Region.LUNGS
    roi: vtkMRMLMarkupsROINode
    uncertainty: bool = False
    passes: Annotated[int, WithinRange(2, 1000)] = 20
    lungSegmentation: bool = False
    outputVolume: vtkMRMLScalarVolumeNode
    uncertaintyVolume: vtkMRMLScalarVolumeNode
    model: str = "compact-8x"
    device: Annotated[str, Choice(["auto", "cpu", "cuda", "mps"])] = "auto"
    precision: Annotated[str, Choice(["auto", "fp32", "bf16"])] = "auto"
    consistency: Annotated[str, Choice(["scan", "block", "off"])] = "scan"
    tile: Annotated[int, WithinRange(0, 1024)] = 0
    psfFwhmMm: Annotated[float, WithinRange(0.0, 10.0)] = 0.0
    noiseHu: Annotated[float, WithinRange(0.0, 1000.0)] = 0.0
    seed: Annotated[int, WithinRange(0, 1000000)] = 0
    showUncertainty: bool = False
    overlayOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.5
    overlayThreshold: Annotated[float, WithinRange(1.0, 300.0)] = 1.0
    comparedVolume: vtkMRMLScalarVolumeNode
    resultVolume: vtkMRMLScalarVolumeNode
    resultUncertainty: vtkMRMLScalarVolumeNode


def requestOf(parameters: CTMicroSRParameterNode) -> Request:
    """What a click on Super-resolve asks for."""
    settings = RunSettings(
        region=parameters.region.value,
        model=parameters.model,
        uncertainty=parameters.uncertainty,
        passes=parameters.passes,
        seed=parameters.seed,
        consistency=parameters.consistency,
        psfFwhmMm=parameters.psfFwhmMm or None,
        noiseHu=parameters.noiseHu or None,
        device=parameters.device,
        precision=parameters.precision,
        tile=parameters.tile or None,
        lungSegmentation=parameters.lungSegmentation,
    )
    roi = parameters.roi if parameters.region == Region.ROI else None
    return Request(parameters.inputVolume, settings, roi, parameters.outputVolume, parameters.uncertaintyVolume)


def requestKey(parameters: CTMicroSRParameterNode) -> tuple[object, ...]:
    """Changes whenever what ``requestOf`` would need, or why it is refused, may change."""
    request = requestOf(parameters)
    inputNode = request.inputNode
    image = None if inputNode is None else inputNode.GetImageData()
    outputs = tuple(node and node.GetID() for node in (request.outputNode, request.uncertaintyNode))
    scan = (inputNode and inputNode.GetID(), image and image.GetMTime(), outputs)
    try:
        return (*scan, request.checked().settings, geometryOf(inputNode))
    except CTMicroSRError as error:
        return (*scan, request.settings, str(error))


def overlayOf(parameters: CTMicroSRParameterNode) -> dict[str, float]:
    """How the uncertainty lies over the result, as ``overlayUncertainty`` takes it."""
    return {
        "show": parameters.showUncertainty,
        "opacity": parameters.overlayOpacity,
        "thresholdHu": parameters.overlayThreshold,
    }


def rememberResult(parameters: CTMicroSRParameterNode, result: SuperResolution) -> None:
    """Keep what a run gave, for comparing, also when the scene is loaded again."""
    with slicer.util.NodeModify(parameters):  # never a result with the uncertainty of another one
        parameters.comparedVolume = result.volume.GetNodeReference(INPUT_REFERENCE)
        parameters.resultVolume = result.volume
        parameters.resultUncertainty = result.uncertainty
