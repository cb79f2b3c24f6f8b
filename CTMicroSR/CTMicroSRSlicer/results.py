"""Results as nodes of the scene: created together, and removed together when something fails. MRML only."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer

from CTMicroSRLib.errors import CancelledError
from CTMicroSRSlicer.commands import RunFiles
from CTMicroSRSlicer.inputs import MODALITY_ATTRIBUTE, readVolume, subjectHierarchy

logger = logging.getLogger(__name__)

PREFIX = "CTMicroSR."
INPUT_REFERENCE = "CTMicroSR.input"
REPORT_REFERENCE = "CTMicroSR.report"
UNCERTAINTY_REFERENCE = "CTMicroSR.uncertainty"
SERIES_DESCRIPTION = "{name} CTMicroSR x{scale} (derived, not for diagnosis)"
UNCERTAINTY_COLORS = "Inferno"
LEGEND_SIZE, LEGEND_FONT = (0.08, 0.4), 14
UNCERTAINTY_TITLE = "Uncertainty (HU)"
UNCERTAINTY_PERCENTILE = 99.0
LUNG_COLOR = (0.69, 0.87, 0.90)


@dataclass(frozen=True)
class SuperResolution:
    """What a run gave: nodes of the scene and the run's report.

    ``volume`` is the super-resolved CT in HU, ``uncertainty`` its standard deviation in HU (0: not estimated),
    ``lungs`` a segmentation, ``reportNode`` a text node with ``report`` as JSON; what was not asked for is None.
    """

    volume: slicer.vtkMRMLScalarVolumeNode
    uncertainty: slicer.vtkMRMLScalarVolumeNode
    lungs: slicer.vtkMRMLSegmentationNode | None
    reportNode: slicer.vtkMRMLTextNode
    report: dict[str, Any]


@dataclass
class _Created:
    """Nodes added to a scene so far, and how to restore those that were changed."""

    scene: slicer.vtkMRMLScene
    restore: list[Callable[[], None]] = field(default_factory=list)
    nodes: list[slicer.vtkMRMLNode] = field(default_factory=list)

    def add(self, className: str, name: str) -> slicer.vtkMRMLNode:
        node = self.scene.AddNewNodeByClass(className, self.scene.GenerateUniqueName(name))
        self.nodes.append(node)
        return node

    def addExisting(self, node: slicer.vtkMRMLNode | None) -> slicer.vtkMRMLNode | None:
        if node is not None:
            self.nodes.append(node)
        return node

    def willChange(self, volume: slicer.vtkMRMLScalarVolumeNode) -> None:
        """Remember voxels, geometry and attributes of a volume."""
        image, before = volume.GetImageData(), slicer.vtkMRMLScalarVolumeNode()
        before.CopyOrientation(volume)
        attributes = {name: volume.GetAttribute(name) for name in volume.GetAttributeNames()}

        def restore() -> None:
            volume.CopyOrientation(before)
            volume.SetAndObserveImageData(image)
            for name in volume.GetAttributeNames():
                volume.RemoveAttribute(name)
            for name, value in attributes.items():
                volume.SetAttribute(name, value)

        self.restore.append(restore)

    def undo(self) -> None:
        for restore in reversed(self.restore):
            restore()
        for node in reversed(self.nodes):
            if self.scene.IsNodePresent(node):
                self.scene.RemoveNode(node)


@contextlib.contextmanager
def undoOnFailure(scene: slicer.vtkMRMLScene) -> Iterator[_Created]:
    """Nodes added through the value are removed when the block fails."""
    created = _Created(scene)
    try:
        yield created
    except BaseException:
        created.undo()
        raise


def addResults(
    inputNode: slicer.vtkMRMLScalarVolumeNode,
    files: RunFiles,
    report: dict[str, Any],
    *,
    lungSegmentation: bool = False,
    outputNode: slicer.vtkMRMLScalarVolumeNode | None = None,
    uncertaintyNode: slicer.vtkMRMLScalarVolumeNode | None = None,
) -> SuperResolution:
    """Load the files of a run into the scene of its input.

    Args:
        inputNode: the scan, whose window, study and name the results take over.
        files: what the child process wrote; an uncertainty that is not there was not asked for.
        report: of the run.
        lungSegmentation: whether the lung mask becomes a segmentation.
        outputNode: a volume to replace, or None for a new one.
        uncertaintyNode: likewise for the uncertainty.

    Raises:
        ResourceError: a file can't be loaded; the scene is as it was.
        CancelledError: the scene was closed.
    """
    scene = inputNode.GetScene()
    if scene is None:
        raise CancelledError("The input is no longer in the scene; nothing was added.")
    name = inputNode.GetName()
    scale = _scale(report)
    # everything is read before anything in the scene changes
    output = readVolume(files.output, slicer.vtkMRMLScalarVolumeNode())
    deviation = readVolume(files.uncertainty, slicer.vtkMRMLScalarVolumeNode()) if files.uncertainty.exists() else None
    with undoOnFailure(scene) as created:
        volume = _place(created, output, outputNode, f"{name} SR x{scale}")
        _showAsInput(volume, inputNode)
        volume.SetAttribute(MODALITY_ATTRIBUTE, "CT")
        uncertainty = None
        if deviation is not None:
            uncertainty = _place(created, deviation, uncertaintyNode, f"{name} SR uncertainty (HU)")
            showUncertainty(uncertainty)
            legend = _legend(uncertainty)
            created.addExisting(legend)
            volume.SetNodeReferenceID(UNCERTAINTY_REFERENCE, uncertainty.GetID())
        lungs = _addLungs(created, files, inputNode) if lungSegmentation else None
        reportNode = created.add("vtkMRMLTextNode", f"{name} SR report")
        reportNode.SetText(json.dumps(report, indent=2))
        for node in (volume, uncertainty, lungs, reportNode):
            if node is not None:
                _describe(node, inputNode, reportNode, report)
                _placeInStudy(node, inputNode, SERIES_DESCRIPTION.format(name=name, scale=scale))
    return SuperResolution(volume, uncertainty, lungs, reportNode, report)


def _scale(report: dict[str, Any]) -> int:
    return round(report["input"]["spacing_mm"][0] / report["output"]["spacing_mm"][0])


def _place(
    created: _Created,
    loaded: slicer.vtkMRMLScalarVolumeNode,
    existing: slicer.vtkMRMLScalarVolumeNode | None,
    name: str,
) -> slicer.vtkMRMLScalarVolumeNode:
    """The loaded volume as a node of the scene: the existing one with new voxels, or a new one."""
    if existing is None:
        loaded.SetName(created.scene.GenerateUniqueName(name))
        node = created.scene.AddNode(loaded)
        created.nodes.append(node)
        node.CreateDefaultDisplayNodes()
        created.addExisting(node.GetDisplayNode())
        return node
    created.willChange(existing)
    wasModifying = existing.StartModify()
    existing.CopyOrientation(loaded)
    existing.SetAndObserveImageData(loaded.GetImageData())
    for attribute in loaded.GetAttributeNames():
        existing.SetAttribute(attribute, loaded.GetAttribute(attribute))
    existing.EndModify(wasModifying)
    if existing.GetDisplayNode() is None:
        existing.CreateDefaultDisplayNodes()
        created.addExisting(existing.GetDisplayNode())
    return existing


def _showAsInput(volume: slicer.vtkMRMLScalarVolumeNode, inputNode: slicer.vtkMRMLScalarVolumeNode) -> None:
    """The input's window, level and colours."""
    display, source = volume.GetDisplayNode(), inputNode.GetDisplayNode()
    if display is None or source is None:
        return
    wasModifying = display.StartModify()
    display.SetAndObserveColorNodeID(source.GetColorNodeID())
    display.SetInterpolate(source.GetInterpolate())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(source.GetWindow(), source.GetLevel())
    display.EndModify(wasModifying)


def showUncertainty(uncertainty: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Colours from 0 HU to almost the largest value; where nothing was estimated (0) it is transparent."""
    display = uncertainty.GetDisplayNode()
    colors = uncertainty.GetScene().GetFirstNodeByName(UNCERTAINTY_COLORS)
    largest = _largestTypical(uncertainty)
    wasModifying = display.StartModify()
    if colors is not None:
        display.SetAndObserveColorNodeID(colors.GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, largest)
    display.SetAutoThreshold(False)
    display.SetThreshold(1.0, float(np.iinfo(np.int16).max))
    display.SetApplyThreshold(True)
    display.EndModify(wasModifying)


def _largestTypical(uncertainty: slicer.vtkMRMLScalarVolumeNode) -> float:
    values = slicer.util.arrayFromVolume(uncertainty)
    estimated = values[:, ::4, ::4][values[:, ::4, ::4] > 0]
    return max(1.0, float(np.percentile(estimated, UNCERTAINTY_PERCENTILE))) if estimated.size else 1.0


def _legend(uncertainty: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLColorLegendDisplayNode | None:
    """A colour legend that says what the colours mean, or None where Slicer's Colors module is missing."""
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(uncertainty)
    if legend is not None:
        legend.SetTitleText(UNCERTAINTY_TITLE)
        legend.SetLabelFormat("%.0f")
        legend.SetSize(*LEGEND_SIZE)
        legend.GetTitleTextProperty().SetFontSize(LEGEND_FONT)
        legend.GetLabelTextProperty().SetFontSize(LEGEND_FONT)
        legend.SetVisibility(False)
    return legend


def colorLegend(uncertainty: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLColorLegendDisplayNode | None:
    """The uncertainty's colour legend, or None."""
    return slicer.modules.colors.logic().GetColorLegendDisplayNode(uncertainty)


def _addLungs(
    created: _Created, files: RunFiles, inputNode: slicer.vtkMRMLScalarVolumeNode
) -> slicer.vtkMRMLSegmentationNode:
    scene = created.scene
    labelmap = readVolume(files.lungs, slicer.vtkMRMLLabelMapVolumeNode())
    labelmap.SetName(scene.GenerateUniqueName("CTMicroSR lungs"))
    labelmap = scene.AddNode(labelmap)
    labelmap.CreateDefaultDisplayNodes()
    display = labelmap.GetDisplayNode()
    try:
        segmentation = created.add("vtkMRMLSegmentationNode", f"{inputNode.GetName()} lungs")
        segmentation.CreateDefaultDisplayNodes()
        created.addExisting(segmentation.GetDisplayNode())
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
