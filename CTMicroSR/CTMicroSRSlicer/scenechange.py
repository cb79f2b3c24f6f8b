"""Changing the scene as a whole or not at all. MRML only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import slicer


@dataclass
class SceneChange:
    """Nodes added to a scene so far, and how to restore those that were changed."""

    scene: slicer.vtkMRMLScene
    restore: list[Callable[[], None]] = field(default_factory=list)
    nodes: list[slicer.vtkMRMLNode] = field(default_factory=list)

    def add(self, className: str, name: str) -> slicer.vtkMRMLNode:
        """A new node with a name of its own."""
        node = self.scene.AddNewNodeByClass(className, self.scene.GenerateUniqueName(name))
        self.nodes.append(node)
        return node

    def addExisting(self, node: slicer.vtkMRMLNode | None) -> slicer.vtkMRMLNode | None:
        """A node that something else has added; it is returned."""
        if node is not None:
            self.nodes.append(node)
        return node

    def willChange(self, volume: slicer.vtkMRMLScalarVolumeNode) -> None:
        """Remember voxels, geometry, transform, attributes and references of a volume."""
        image, before = volume.GetImageData(), slicer.vtkMRMLScalarVolumeNode()
        before.CopyOrientation(volume)
        transformId = volume.GetTransformNodeID()
        attributes = {name: volume.GetAttribute(name) for name in volume.GetAttributeNames()}
        roles = [volume.GetNthNodeReferenceRole(n) for n in range(volume.GetNumberOfNodeReferenceRoles())]
        references = {role: volume.GetNodeReferenceID(role) for role in roles if role.startswith("CTMicroSR.")}

        def restore() -> None:
            volume.CopyOrientation(before)
            volume.SetAndObserveTransformNodeID(transformId)
            volume.SetAndObserveImageData(image)
            for name in volume.GetAttributeNames():
                volume.RemoveAttribute(name)
            for name, value in attributes.items():
                volume.SetAttribute(name, value)
            for role in [volume.GetNthNodeReferenceRole(n) for n in range(volume.GetNumberOfNodeReferenceRoles())]:
                if role.startswith("CTMicroSR."):
                    volume.SetNodeReferenceID(role, references.get(role))

        self.restore.append(restore)

    def undo(self) -> None:
        """Take it all back."""
        for restore in reversed(self.restore):
            restore()
        for node in reversed(self.nodes):
            if self.scene.IsNodePresent(node):
                self.scene.RemoveNode(node)


@contextlib.contextmanager
def undoOnFailure(scene: slicer.vtkMRMLScene) -> Iterator[SceneChange]:
    """What is changed through the value is taken back when the block fails."""
    change = SceneChange(scene)
    try:
        yield change
    except BaseException:
        change.undo()
        raise
