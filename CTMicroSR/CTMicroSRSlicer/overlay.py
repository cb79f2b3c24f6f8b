"""The uncertainty over the result: its colours, its legend in HU, and where it is shown. MRML only."""

from __future__ import annotations

import numpy as np
import slicer

from CTMicroSRSlicer.sliceviews import nodesOf

COLORS = "Inferno"
LEGEND_SIZE, LEGEND_FONT = (0.08, 0.4), 14
LEGEND_TITLE = "Uncertainty (HU)"
LARGEST_PERCENTILE = 99.0


def colorUncertainty(uncertainty: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Colours from 0 HU to almost the largest value; where nothing was estimated (0) it is transparent."""
    display = uncertainty.GetDisplayNode()
    colors = uncertainty.GetScene().GetFirstNodeByName(COLORS)
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
    return max(1.0, float(np.percentile(estimated, LARGEST_PERCENTILE))) if estimated.size else 1.0


def addColorLegend(uncertainty: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLColorLegendDisplayNode | None:
    """A colour legend that says what the colours mean, or None where Slicer's Colors module is missing."""
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(uncertainty)
    if legend is not None:
        legend.SetTitleText(LEGEND_TITLE)
        legend.SetLabelFormat("%.0f")
        legend.SetSize(*LEGEND_SIZE)
        legend.GetTitleTextProperty().SetFontSize(LEGEND_FONT)
        legend.GetLabelTextProperty().SetFontSize(LEGEND_FONT)
        legend.SetVisibility(False)
    return legend


def colorLegend(uncertainty: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLColorLegendDisplayNode | None:
    """The uncertainty's colour legend, or None."""
    return slicer.modules.colors.logic().GetColorLegendDisplayNode(uncertainty)


def overlayUncertainty(
    resultNode: slicer.vtkMRMLScalarVolumeNode,
    uncertaintyNode: slicer.vtkMRMLScalarVolumeNode,
    *,
    show: bool,
    opacity: float,
    thresholdHu: float,
) -> None:
    """Show or hide the uncertainty in all views that show the result, and only there, with its legend."""
    scene = resultNode.GetScene()
    display = uncertaintyNode.GetDisplayNode()
    if display is not None:
        display.SetLowerThreshold(max(1.0, thresholdHu))
    changed = False
    for composite in nodesOf(scene, "vtkMRMLSliceCompositeNode"):
        wanted = show and composite.GetBackgroundVolumeID() == resultNode.GetID()
        changed |= _setForeground(composite, uncertaintyNode.GetID(), wanted)
        if wanted:
            composite.SetForegroundOpacity(opacity)
    changed |= _setLegendVisible(uncertaintyNode, show)
    if changed:
        _lookAtLayersAgain(scene)


def hideUncertainty(uncertaintyNode: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Take the uncertainty and its legend out of all views: its result is gone, or is another one now."""
    scene = uncertaintyNode.GetScene()
    if scene is None:
        return
    for composite in nodesOf(scene, "vtkMRMLSliceCompositeNode"):
        _setForeground(composite, uncertaintyNode.GetID(), False)
    _setLegendVisible(uncertaintyNode, False)


def _setForeground(composite: slicer.vtkMRMLSliceCompositeNode, volumeId: str, shown: bool) -> bool:
    """Show a volume in the foreground, or take it out of there; whether that changed anything."""
    if (composite.GetForegroundVolumeID() == volumeId) == shown:
        return False
    composite.SetForegroundVolumeID(volumeId if shown else None)
    return True


def _setLegendVisible(uncertaintyNode: slicer.vtkMRMLScalarVolumeNode, visible: bool) -> bool:
    legend = colorLegend(uncertaintyNode)
    if legend is None or bool(legend.GetVisibility()) == visible:
        return False
    legend.SetVisibility(visible)
    return True


def _lookAtLayersAgain(scene: slicer.vtkMRMLScene) -> None:
    """Let the colour legends follow the views' layers: they do so at once only where a user has changed those."""
    scene.StartState(scene.BatchProcessState)  # its end lets legends find the layers of views that are new
    scene.EndState(scene.BatchProcessState)
    for composite in nodesOf(scene, "vtkMRMLSliceCompositeNode"):
        flags = composite.GetInteractionFlags()
        composite.SetInteractionFlags(composite.ForegroundVolumeFlag)
        composite.Modified()
        composite.SetInteractionFlags(flags)
