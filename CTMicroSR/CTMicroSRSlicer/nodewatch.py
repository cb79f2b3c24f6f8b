"""Hearing of a scan or an ROI that is moved, drawn or changed."""

from __future__ import annotations

from collections.abc import Callable

import slicer
import vtk
from slicer.util import VTKObservationMixin


class NodeWatch(VTKObservationMixin):
    """Calls ``onChanged`` whenever one of the watched nodes, or a transform above it, changes."""

    def __init__(self, onChanged: Callable[..., None]) -> None:
        super().__init__()
        self._onChanged = onChanged
        self._nodes: list[slicer.vtkMRMLTransformableNode] = []

    def watch(self, *nodes: slicer.vtkMRMLTransformableNode | None) -> None:
        """These instead of those before; None is left out."""
        wanted = [node for node in nodes if node is not None]
        if wanted == self._nodes:
            return
        self.removeObservers()
        self._nodes = wanted
        for node in wanted:
            for event in _eventsOf(node):
                self.addObserver(node, event, self._onChanged)


def _eventsOf(node: slicer.vtkMRMLTransformableNode) -> list[int]:
    events = [vtk.vtkCommand.ModifiedEvent, node.TransformModifiedEvent]
    return [*events, node.ImageDataModifiedEvent] if node.IsA("vtkMRMLVolumeNode") else events
