"""Input and result side by side, and the uncertainty over the result. MRML only."""

from __future__ import annotations

import slicer

from CTMicroSRSlicer.results import colorLegend

LAYOUT = 18650
INPUT_VIEW = "CTMicroSRInput"
RESULT_VIEW = "CTMicroSRResult"
_VIEW = """
  <item><view class="vtkMRMLSliceNode" singletontag="{tag}">
    <property name="orientation" action="default">Axial</property>
    <property name="viewlabel" action="default">{label}</property>
    <property name="viewcolor" action="default">{color}</property>
  </view></item>"""
LAYOUT_DESCRIPTION = (
    '<layout type="horizontal">'
    + _VIEW.format(tag=INPUT_VIEW, label="in", color="#6E8CB0")
    + _VIEW.format(tag=RESULT_VIEW, label="SR", color="#D08C45")
    + "</layout>"
)


class Comparison:
    """A layout of its own, so that the views and the layout that the user had stay as they were."""

    def __init__(self) -> None:
        self._before: int | None = None

    @property
    def isShown(self) -> bool:
        """Whether the layout is there."""
        layout = layoutNode()
        return layout is not None and layout.GetViewArrangement() == LAYOUT

    def show(self, inputNode: slicer.vtkMRMLScalarVolumeNode, resultNode: slicer.vtkMRMLScalarVolumeNode) -> None:
        """Input on the left, result on the right, linked, both fitted to the result."""
        layout = layoutNode()
        if layout is None:
            return
        if layout.GetViewArrangement() != LAYOUT:
            self._before = layout.GetViewArrangement()
        if not layout.IsLayoutDescription(LAYOUT):
            layout.AddLayoutDescription(LAYOUT, LAYOUT_DESCRIPTION)
        layout.SetViewArrangement(LAYOUT)
        for view, volume in ((INPUT_VIEW, inputNode), (RESULT_VIEW, resultNode)):
            composite = compositeNode(view)
            if composite is not None:
                composite.SetBackgroundVolumeID(volume.GetID())
                composite.SetForegroundVolumeID(None)
                composite.SetLabelVolumeID(None)
                composite.SetLinkedControl(True)
                composite.SetHotLinkedControl(True)
        self.fit(resultNode)

    def leave(self) -> None:
        """The layout that was there before."""
        layout = layoutNode()
        if layout is not None and layout.GetViewArrangement() == LAYOUT and self._before is not None:
            layout.SetViewArrangement(self._before)
        self._before = None

    def fit(self, resultNode: slicer.vtkMRMLScalarVolumeNode) -> None:
        """Fit both views to the result: again once new views have their size, since Slicer then keeps the scale."""
        result, other = sliceNode(RESULT_VIEW), sliceNode(INPUT_VIEW)
        if result is None or other is None or resultNode.GetScene() is None or not self.isShown:
            return
        result.RotateToVolumePlane(resultNode)
        sliceLogic = slicer.app.applicationLogic().GetSliceLogic(result)
        if sliceLogic is not None:
            sliceLogic.FitSliceToBackground()
        other.GetSliceToRAS().DeepCopy(result.GetSliceToRAS())
        other.SetFieldOfView(*result.GetFieldOfView())
        other.SetXYZOrigin(*result.GetXYZOrigin())
        other.UpdateMatrices()


def overlayUncertainty(
    resultNode: slicer.vtkMRMLScalarVolumeNode,
    uncertaintyNode: slicer.vtkMRMLScalarVolumeNode,
    *,
    show: bool,
    opacity: float,
    thresholdHu: float,
) -> None:
    """Show or hide the uncertainty in all views that show the result, with its legend."""
    scene = resultNode.GetScene()
    display = uncertaintyNode.GetDisplayNode()
    if display is not None:
        display.SetLowerThreshold(max(1.0, thresholdHu))
    for composite in _nodes(scene, "vtkMRMLSliceCompositeNode"):
        if composite.GetBackgroundVolumeID() != resultNode.GetID():
            continue
        if show:
            composite.SetForegroundVolumeID(uncertaintyNode.GetID())
            composite.SetForegroundOpacity(opacity)
        elif composite.GetForegroundVolumeID() == uncertaintyNode.GetID():
            composite.SetForegroundVolumeID(None)
    legend = colorLegend(uncertaintyNode)
    if legend is not None:
        legend.SetVisibility(show)
        _lookAtLayersAgain(scene)


def _lookAtLayersAgain(scene: slicer.vtkMRMLScene) -> None:
    """Let the colour legends follow the views' layers: they do so at once only where a user has changed those."""
    scene.StartState(scene.BatchProcessState)  # its end lets legends find the layers of views that are new
    scene.EndState(scene.BatchProcessState)
    for composite in _nodes(scene, "vtkMRMLSliceCompositeNode"):
        flags = composite.GetInteractionFlags()
        composite.SetInteractionFlags(composite.ForegroundVolumeFlag)
        composite.Modified()
        composite.SetInteractionFlags(flags)


def layoutNode() -> slicer.vtkMRMLLayoutNode | None:
    """The scene's layout node; None without views, as in a script without windows."""
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def compositeNode(view: str) -> slicer.vtkMRMLSliceCompositeNode | None:
    """What a slice view shows, by the view's name."""
    return _byLayoutName("vtkMRMLSliceCompositeNode", view)


def sliceNode(view: str) -> slicer.vtkMRMLSliceNode | None:
    """Where a slice view looks, by the view's name."""
    return _byLayoutName("vtkMRMLSliceNode", view)


def _byLayoutName(className: str, view: str) -> slicer.vtkMRMLNode | None:
    return next((node for node in _nodes(slicer.mrmlScene, className) if node.GetLayoutName() == view), None)


def _nodes(scene: slicer.vtkMRMLScene, className: str) -> list[slicer.vtkMRMLNode]:
    return [scene.GetNthNodeByClass(index, className) for index in range(scene.GetNumberOfNodesByClass(className))]
