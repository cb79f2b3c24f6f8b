"""Results as nodes of the scene: created together, and removed together when something fails. MRML only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import slicer

from CTMicroSRLib.errors import CancelledError
from CTMicroSRSlicer.commands import RunFiles
from CTMicroSRSlicer.inputs import MODALITY_ATTRIBUTE, readVolume, subjectHierarchy
from CTMicroSRSlicer.overlay import addColorLegend, colorUncertainty, hideUncertainty
from CTMicroSRSlicer.scenechange import SceneChange, undoOnFailure

PREFIX = "CTMicroSR."
INPUT_REFERENCE = "CTMicroSR.input"
REPORT_REFERENCE = "CTMicroSR.report"
UNCERTAINTY_REFERENCE = "CTMicroSR.uncertainty"
SERIES_DESCRIPTION = "{name} CTMicroSR x{scale} (derived, not for diagnosis)"
LUNG_COLOR = (0.69, 0.87, 0.90)


@dataclass(frozen=True)
class SuperResolution:
    """What a run gave: nodes of the scene and the run's report.

    ``volume`` is the super-resolved CT in HU, ``uncertainty`` its standard deviation in HU (0: not estimated),
    ``lungs`` a segmentation, ``reportNode`` a text node with ``report`` as JSON; what was not asked for is None.
    ``inputChange`` says how the scan was moved or changed during the run, to which the result belongs no longer as it
    is now; it is one of the report's warnings, too, and empty where the scan is as it was.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    uncertainty: slicer.vtkMRMLScalarVolumeNode
    lungs: slicer.vtkMRMLSegmentationNode | None
    reportNode: slicer.vtkMRMLTextNode
    report: dict[str, Any]
    inputChange: str = ""


def addResults(
    inputNode: slicer.vtkMRMLScalarVolumeNode,
    files: RunFiles,
    report: dict[str, Any],
    *,
    lungSegmentation: bool = False,
    outputNode: slicer.vtkMRMLScalarVolumeNode | None = None,
    uncertaintyNode: slicer.vtkMRMLScalarVolumeNode | None = None,
    inputChange: str = "",
) -> SuperResolution:
    """Load the files of a run into the scene of its input.

    Args:
        inputNode: the scan, whose window, study and name the results take over.
        files: what the child process wrote; an uncertainty that is not there was not asked for.
        report: of the run.
        lungSegmentation: whether the lung mask becomes a segmentation.
        outputNode: a volume to replace, or None for a new one; one that is no longer in the scene is a new one.
        uncertaintyNode: likewise for the uncertainty.
        inputChange: how the scan has been changed since it was sent, or nothing.

    Raises:
        ResourceError: a file can't be loaded; the scene is as it was.
        CancelledError: the scene was closed.
    """
    scene = inputNode.GetScene()
    if scene is None:
        raise CancelledError("The input was removed from the scene while super-resolving; nothing was added.")
    name = inputNode.GetName()
    scale = _scale(report)
    # everything is read before anything in the scene changes
    output = readVolume(files.output, slicer.vtkMRMLScalarVolumeNode())
    deviation = readVolume(files.uncertainty, slicer.vtkMRMLScalarVolumeNode()) if files.uncertainty.exists() else None
    with undoOnFailure(scene) as change:
        volume = _place(change, output, outputNode, f"{name} SR x{scale}")
        _showAsInput(volume, inputNode)
        volume.SetAttribute(MODALITY_ATTRIBUTE, "CT")
        uncertainty = None
        if deviation is not None:
            uncertainty = _place(change, deviation, uncertaintyNode, f"{name} SR uncertainty (HU)")
            colorUncertainty(uncertainty)
            change.addExisting(addColorLegend(uncertainty))
        lungs = None
        if lungSegmentation:
            lungs = _addLungs(change, files, inputNode, isWhereItWas=not inputChange)
        reportNode = change.add("vtkMRMLTextNode", f"{name} SR report")
        reportNode.SetText(json.dumps(report, indent=2))
        for node in (volume, uncertainty, lungs, reportNode):
            if node is not None:
                _describe(node, inputNode, reportNode, report)
                _placeInStudy(node, inputNode, SERIES_DESCRIPTION.format(name=name, scale=scale))
        _referToUncertainty(volume, uncertainty)
    return SuperResolution(volume, uncertainty, lungs, reportNode, report, inputChange)


def _referToUncertainty(
    volume: slicer.vtkMRMLScalarVolumeNode, uncertainty: slicer.vtkMRMLScalarVolumeNode | None
) -> None:
    """The result's own uncertainty, and none of what the volume held before."""
    earlier = volume.GetNodeReference(UNCERTAINTY_REFERENCE)
    volume.SetNodeReferenceID(UNCERTAINTY_REFERENCE, None if uncertainty is None else uncertainty.GetID())
    if earlier is not None and earlier is not uncertainty:
        hideUncertainty(earlier)


def _scale(report: dict[str, Any]) -> int:
    return round(report["input"]["spacing_mm"][0] / report["output"]["spacing_mm"][0])


def _place(
    change: SceneChange,
    loaded: slicer.vtkMRMLScalarVolumeNode,
    existing: slicer.vtkMRMLScalarVolumeNode | None,
    name: str,
) -> slicer.vtkMRMLScalarVolumeNode:
    """The loaded volume as a node of the scene: the existing one with new voxels, or a new one.

    It lies where the scan was sent from, which was under no transform.
    """
    if existing is None or existing.GetScene() is not change.scene:
        loaded.SetName(change.scene.GenerateUniqueName(name))
        node = change.scene.AddNode(loaded)
        change.nodes.append(node)
        node.CreateDefaultDisplayNodes()
        change.addExisting(node.GetDisplayNode())
        return node
    change.willChange(existing)
    wasModifying = existing.StartModify()
    existing.CopyOrientation(loaded)
    existing.SetAndObserveTransformNodeID(None)
    existing.SetAndObserveImageData(loaded.GetImageData())
    for attribute in loaded.GetAttributeNames():
        existing.SetAttribute(attribute, loaded.GetAttribute(attribute))
    existing.EndModify(wasModifying)
    if existing.GetDisplayNode() is None:
        existing.CreateDefaultDisplayNodes()
        change.addExisting(existing.GetDisplayNode())
    return existing


def _showAsInput(volume: slicer.vtkMRMLScalarVolumeNode, inputNode: slicer.vtkMRMLScalarVolumeNode) -> None:
    """The input's window, level and colours."""
    display, source = volume.GetDisplayNode(), inputNode.GetDisplayNode()
    if display is None or source is None:
        return
    wasModifying = display.StartModify()
    display.SetAndObserveColorNodeID(source.GetColorNodeID())
    display.SetInterpolate(source.GetInterpolate())
    display.SetApplyThreshold(False)  # an output that was an uncertainty before hides what is below 1 HU
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(source.GetWindow(), source.GetLevel())
    display.EndModify(wasModifying)


def _addLungs(
    change: SceneChange, files: RunFiles, inputNode: slicer.vtkMRMLScalarVolumeNode, *, isWhereItWas: bool
) -> slicer.vtkMRMLSegmentationNode:
    scene = change.scene
    labelmap = readVolume(files.lungs, slicer.vtkMRMLLabelMapVolumeNode())
    labelmap.SetName(scene.GenerateUniqueName("CTMicroSR lungs"))
    labelmap = scene.AddNode(labelmap)
    labelmap.CreateDefaultDisplayNodes()
    display = labelmap.GetDisplayNode()
    try:
        segmentation = change.add("vtkMRMLSegmentationNode", f"{inputNode.GetName()} lungs")
        segmentation.CreateDefaultDisplayNodes()
        change.addExisting(segmentation.GetDisplayNode())
        segmentation.GetDisplayNode().SetVisibility2DFill(False)  # a fill would tint input and result
        if isWhereItWas:
            segmentation.SetReferenceImageGeometryParameterFromVolumeNode(inputNode)
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labelmap, segmentation)
    finally:
        scene.RemoveNode(labelmap)
        if display is not None and scene.IsNodePresent(display):
            scene.RemoveNode(display)
    segment = segmentation.GetSegmentation().GetNthSegment(0)
    if segment is not None:
        segment.SetName("lungs")
        segment.SetColor(*LUNG_COLOR)
    return segmentation


def _describe(
    node: slicer.vtkMRMLNode,
    inputNode: slicer.vtkMRMLScalarVolumeNode,
    reportNode: slicer.vtkMRMLTextNode,
    report: dict[str, Any],
) -> None:
    """Where the node came from, in attributes that are saved with the scene."""
    facts = {
        "derived": "true",
        "inputName": inputNode.GetName(),
        "model": report["model"]["name"],
        "modelSha256": report["model"]["sha256"],
        "scale": str(_scale(report)),
        "region": report["region"],
        "seed": str(report["seed"]),
        "consistency": report["consistency"]["mode"],
        "residualRmsHu": str(report["consistency"].get("residual_rms_hu", "")),
        "version": report["software"]["ctmicrosr"],
        "notice": report["notice"],
    }
    for key, value in facts.items():
        node.SetAttribute(PREFIX + key, value)
    node.SetNodeReferenceID(INPUT_REFERENCE, inputNode.GetID())
    if node is not reportNode:
        node.SetNodeReferenceID(REPORT_REFERENCE, reportNode.GetID())
    # identifiers of the original images must not travel on: exported again, this is another, derived series
    if node.GetAttribute("DICOM.instanceUIDs"):
        node.RemoveAttribute("DICOM.instanceUIDs")


def _placeInStudy(node: slicer.vtkMRMLNode, inputNode: slicer.vtkMRMLScalarVolumeNode, seriesDescription: str) -> None:
    """Under the input's study or folder in the subject hierarchy."""
    hierarchy = subjectHierarchy(node.GetScene())
    if hierarchy is None:
        return
    inputItem = hierarchy.GetItemByDataNode(inputNode)
    parent = hierarchy.GetItemParent(inputItem) if inputItem else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        item = hierarchy.CreateItem(parent, node)
    hierarchy.SetItemAttribute(item, "DICOM.SeriesDescription", seriesDescription)
    if node.GetAttribute(MODALITY_ATTRIBUTE):
        hierarchy.SetItemAttribute(item, MODALITY_ATTRIBUTE, node.GetAttribute(MODALITY_ATTRIBUTE))
