"""Hearing of scans that are loaded while the panel is open."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer
import vtk
from slicer.util import VTKObservationMixin

from CTMicroSRSlicer import inputs


class ScanWatch(VTKObservationMixin):
    """Calls ``onScan`` with every volume that is added to the scene and could be a scan, until ``close``."""

    def __init__(self, scene: slicer.vtkMRMLScene, onScan: Callable[[slicer.vtkMRMLScalarVolumeNode], None]) -> None:
        super().__init__()
        self._scene, self._onScan, self._isClosed = scene, onScan, False
        self.addObserver(scene, scene.NodeAddedEvent, self._onNodeAdded)

    def close(self) -> None:
        """Hear of nothing more."""
        self._isClosed = True
        self.removeObservers()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAdded(self, _scene: slicer.vtkMRMLScene, _event: str, node: slicer.vtkMRMLNode) -> None:
        if node is not None and node.GetClassName() == "vtkMRMLScalarVolumeNode":
            # Only when all that adds it is done does it have its voxels, and a result its mark.
            nodeId = node.GetID()
            qt.QTimer.singleShot(0, lambda: self._look(nodeId))

    def _look(self, nodeId: str) -> None:
        node = None if self._isClosed else self._scene.GetNodeByID(nodeId)
        if inputs.isScan(node):
            self._onScan(node)
