"""Input and result side by side, in a layout of its own. MRML only."""

from __future__ import annotations

from collections.abc import Callable

import slicer
import vtk
from slicer.util import VTKObservationMixin

from CTMicroSRSlicer.overlay import hideUncertainty
from CTMicroSRSlicer.results import INPUT_REFERENCE, UNCERTAINTY_REFERENCE
from CTMicroSRSlicer.sliceviews import compositeNode, layoutNode, nodesOf, sliceNode

LAYOUT = 18650
VIEW_GROUP = LAYOUT
"""Of both views: linked views hand what is done in one of them to all of their group, shown or not."""
INPUT_VIEW = "CTMicroSRInput"
RESULT_VIEW = "CTMicroSRResult"
_VIEW = """
  <item><view class="vtkMRMLSliceNode" singletontag="{tag}">
    <property name="orientation" action="default">Axial</property>
    <property name="viewlabel" action="default">{label}</property>
    <property name="viewcolor" action="default">{color}</property>
    <property name="viewgroup" action="default">{group}</property>
  </view></item>"""
LAYOUT_DESCRIPTION = (
    '<layout type="horizontal">'
    + _VIEW.format(tag=INPUT_VIEW, label="in", color="#6E8CB0", group=VIEW_GROUP)
    + _VIEW.format(tag=RESULT_VIEW, label="SR", color="#D08C45", group=VIEW_GROUP)
    + "</layout>"
)


def registerLayout() -> None:
    """Let Slicer know the layout, before any scene that has it is loaded."""
    layout = layoutNode()
    if layout is not None and not layout.IsLayoutDescription(LAYOUT):
        layout.AddLayoutDescription(LAYOUT, LAYOUT_DESCRIPTION)


class Comparison(VTKObservationMixin):
    """A layout of its own, so that the views and the layout that the user had stay as they were.

    It ends with the volumes that it shows, and where another layout is chosen. A scene that is saved meanwhile has no
    layout in it: a Slicer without the extension, which does not know this one, then keeps its own.
    """

    def __init__(self, scene: slicer.vtkMRMLScene, onShown: Callable[[bool], None]) -> None:
        """``onShown`` hears of every begin and end, however it came."""
        super().__init__()
        self._onShown = onShown
        self._before: int | None = None
        self._shownIds: tuple[str, ...] = ()
        self._wasShown = self.isShown
        registerLayout()
        if layoutNode() is not None:
            self.addObserver(layoutNode(), vtk.vtkCommand.ModifiedEvent, self._onLayoutModified)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeAboutToBeRemoved)
        self.addObserver(scene, scene.NodeRemovedEvent, self._onNodeRemoved)

    def close(self) -> None:
        """Leave, and hear of nothing more."""
        self.leave()
        self.removeObservers()

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
        if not self.isShown:
            self._before = layout.GetViewArrangement()
        self._shownIds = (inputNode.GetID(), resultNode.GetID())
        registerLayout()
        layout.SetViewArrangement(LAYOUT)
        for view, volume in ((INPUT_VIEW, inputNode), (RESULT_VIEW, resultNode)):
            composite, slices = compositeNode(view), sliceNode(view)
            if composite is not None and slices is not None:
                slices.SetViewGroup(VIEW_GROUP)  # also where they come from a scene that was saved without
                composite.SetBackgroundVolumeID(volume.GetID())
                composite.SetForegroundVolumeID(None)
                composite.SetLabelVolumeID(None)
                composite.SetLinkedControl(True)
                composite.SetHotLinkedControl(True)
        self.fit(resultNode)

    def leave(self) -> None:
        """The layout that was there before; a common one where that is not known, as in a scene that was loaded."""
        layout = layoutNode()
        if self.isShown:
            isKnown = self._before not in (None, LAYOUT) and layout.IsLayoutDescription(self._before)
            layout.SetViewArrangement(self._before if isKnown else layout.SlicerLayoutFourUpView)
        self._before, self._shownIds = None, ()

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

    def _onLayoutModified(self, layout: slicer.vtkMRMLLayoutNode, _event: str) -> None:
        if self.isShown != self._wasShown:
            self._wasShown = self.isShown
            layout.SetSaveWithScene(not self._wasShown)
            self._onShown(self._wasShown)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAboutToBeRemoved(self, scene: slicer.vtkMRMLScene, _event: str, node: slicer.vtkMRMLNode) -> None:
        if scene.IsClosing() or node is None or not node.IsA("vtkMRMLScalarVolumeNode"):
            return
        # without its result the map would be drawn opaque, over whatever the view shows then
        uncertainty = node.GetNodeReference(UNCERTAINTY_REFERENCE)
        if uncertainty is not None:
            hideUncertainty(uncertainty)
        if node.GetID() in self._shownIds:
            _takeOutOfViews(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeRemoved(self, scene: slicer.vtkMRMLScene, _event: str, node: slicer.vtkMRMLNode) -> None:
        if not scene.IsClosing() and node is not None and node.GetID() in self._shownIds:
            self.leave()


def _takeOutOfViews(node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Show the scan instead of a result that goes, and nothing instead of a scan.

    A view's own selector would show the next volume of its list, and linked as they are, in the other view, too.
    """
    scan = node.GetNodeReference(INPUT_REFERENCE)
    for composite in nodesOf(node.GetScene(), "vtkMRMLSliceCompositeNode"):
        if composite.GetLayoutName() in (INPUT_VIEW, RESULT_VIEW):
            composite.SetLinkedControl(False)
            composite.SetHotLinkedControl(False)
        if composite.GetBackgroundVolumeID() == node.GetID():
            composite.SetBackgroundVolumeID(None if scan is None else scan.GetID())
