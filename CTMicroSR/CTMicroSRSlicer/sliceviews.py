"""Slice views and their layout, as nodes of the scene. MRML only."""

from __future__ import annotations

import slicer


def layoutNode() -> slicer.vtkMRMLLayoutNode | None:
    """The scene's layout node; None without views, as in a script without windows."""
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def compositeNode(view: str) -> slicer.vtkMRMLSliceCompositeNode | None:
    """What a slice view shows, by the view's name."""
    return _byLayoutName("vtkMRMLSliceCompositeNode", view)


def sliceNode(view: str) -> slicer.vtkMRMLSliceNode | None:
    """Where a slice view looks, by the view's name."""
    return _byLayoutName("vtkMRMLSliceNode", view)


def nodesOf(scene: slicer.vtkMRMLScene, className: str) -> list[slicer.vtkMRMLNode]:
    """All nodes of a class, also of those derived from it."""
    return [scene.GetNthNodeByClass(index, className) for index in range(scene.GetNumberOfNodesByClass(className))]


def _byLayoutName(className: str, view: str) -> slicer.vtkMRMLNode | None:
    return next((node for node in nodesOf(slicer.mrmlScene, className) if node.GetLayoutName() == view), None)
