"""The scan and the region in the scene: what is refused, and how they reach the child process. MRML only."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, ResourceError, UsageError
from CTMicroSRLib.volume import Geometry, Region

MODALITY_ATTRIBUTE = "DICOM.Modality"
"""Of subject hierarchy items: vtkMRMLSubjectHierarchyConstants::GetDICOMSeriesModalityAttributeName()."""

BOUNDARY_VOXELS = 1e-6
"""A box that ends on a voxel's border, up to rounding, does not reach into the next voxel."""


def checkInputVolume(volumeNode: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Refuse what can't be super-resolved, as far as the node itself tells; the engine looks at the voxels.

    Raises:
        UsageError: no volume, or one that has to be changed first.
        RefusedInputError: it is not a CT.
    """
    if volumeNode is None:
        raise UsageError("No volume is chosen; load a chest CT and choose it as input.")
    checkIsNode(volumeNode, "input")
    name = volumeNode.GetName()
    if volumeNode.GetScene() is None:
        raise UsageError(f"{name} is not in the scene; add it to the scene first.")
    if volumeNode.IsA("vtkMRMLLabelMapVolumeNode"):
        raise RefusedInputError(f"{name} is a label map, not a CT; choose the scan itself.")
    if not volumeNode.IsA("vtkMRMLScalarVolumeNode") or volumeNode.IsA("vtkMRMLTensorVolumeNode"):
        raise RefusedInputError(f"{name} is not a scalar volume; choose a CT in HU.")
    image = volumeNode.GetImageData()
    if image is None or min(image.GetDimensions()) < 1:
        raise UsageError(f"{name} has no voxels; load the scan again.")
    if image.GetNumberOfScalarComponents() != 1:
        raise RefusedInputError(f"{name} has several values in each voxel (colours, say); choose a CT in HU.")
    _checkGeometry(volumeNode)
    if volumeNode.GetParentTransformNode() is not None:
        raise UsageError(
            f"{name} is under the transform {volumeNode.GetParentTransformNode().GetName()}; harden the transform in "
            f"the "
            "Data module, or take the volume out of it."
        )
    modality = _modality(volumeNode)
    if modality not in ("", "CT"):
        raise RefusedInputError(f"{name} is {modality}, not CT; choose a CT in HU.")


def checkIsNode(node: object, role: str) -> None:
    """Refuse what is no node at all, a name for example.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(node, slicer.vtkMRMLNode):
        raise UsageError(
            f"The {role} {node!r} is not a node of the scene; give the node itself, from slicer.util.getNode(name) for "
            "example."
        )


def _checkGeometry(volumeNode: slicer.vtkMRMLScalarVolumeNode) -> None:
    spacing = volumeNode.GetSpacing()
    directions = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASDirectionMatrix(directions)
    matrix = np.array([[directions.GetElement(row, column) for column in range(3)] for row in range(3)])
    regular = all(math.isfinite(value) and value > 0 for value in spacing) and np.isfinite(matrix).all()
    if not regular or not np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-3):
        raise UsageError(
            f"{volumeNode.GetName()} has no valid geometry (voxel spacing and perpendicular axes); load it from a "
            f"format "
            "that has one, or correct it in the Volumes module."
        )


def _modality(volumeNode: slicer.vtkMRMLScalarVolumeNode) -> str:
    hierarchy = subjectHierarchy(volumeNode.GetScene())
    if hierarchy is None:
        return ""
    item = hierarchy.GetItemByDataNode(volumeNode)
    found = hierarchy.GetItemAttribute(item, MODALITY_ATTRIBUTE) if item else ""
    return str(found or volumeNode.GetAttribute(MODALITY_ATTRIBUTE) or "").strip().upper()


def subjectHierarchy(scene: slicer.vtkMRMLScene | None) -> slicer.vtkMRMLSubjectHierarchyNode | None:
    """The scene's subject hierarchy, or None."""
    return None if scene is None else slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)


def regionOfRoi(volumeNode: slicer.vtkMRMLScalarVolumeNode, roiNode: slicer.vtkMRMLMarkupsROINode) -> str:
    """The voxels of a volume that a markups ROI touches, as the command takes them.

    An ROI that is turned against the volume's axes is taken as the smallest box along them around it.

    Raises:
        UsageError: no ROI, one without a size, or one beside the volume.
    """
    if roiNode is None:
        raise UsageError("No ROI is chosen; choose or draw one, or take the lungs as region.")
    checkIsNode(roiNode, "region")
    if not roiNode.IsA("vtkMRMLMarkupsROINode"):
        raise UsageError(
            f"{roiNode.GetName()} is not an ROI and can't be the region; give lungs, whole, a markups ROI or voxels as "
            "I0:I1,J0:J1,K0:K1."
        )
    size = [float(value) for value in roiNode.GetSize()]
    if roiNode.GetNumberOfControlPoints() < 1 or min(size) <= 0:
        raise UsageError(f"The ROI {roiNode.GetName()} has no size; draw it around what you want to see.")
    transform = roiNode.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        raise UsageError(f"The ROI {roiNode.GetName()} is under a warping transform; take it out of it.")
    rasToIjk = vtk.vtkMatrix4x4()
    volumeNode.GetRASToIJKMatrix(rasToIjk)
    objectToIjk = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Multiply4x4(rasToIjk, roiNode.GetObjectToWorldMatrix(), objectToIjk)
    corners = [
        objectToIjk.MultiplyPoint((x * size[0] / 2, y * size[1] / 2, z * size[2] / 2, 1.0))[:3]
        for x in (-1, 1)
        for y in (-1, 1)
        for z in (-1, 1)
    ]
    ranges = []
    for axis, count in enumerate(volumeNode.GetImageData().GetDimensions()):
        values = [corner[axis] for corner in corners]
        start = max(0, math.floor(min(values) + 0.5 + BOUNDARY_VOXELS))
        stop = min(count, math.ceil(max(values) + 0.5 - BOUNDARY_VOXELS))
        if start >= stop:
            raise UsageError(f"The ROI {roiNode.GetName()} lies beside {volumeNode.GetName()}; move it onto the lungs.")
        ranges.append(f"{start}:{stop}")
    return ",".join(ranges)


def readMask(path: Path) -> NDArray[np.bool_]:
    """The voxels of the lung mask that the child process has written, ``(k, j, i)``.

    Raises:
        ResourceError: it can't be read.
    """
    return slicer.util.arrayFromVolume(readVolume(path, slicer.vtkMRMLLabelMapVolumeNode())).astype(bool)


def checkBoxMeetsLungs(mask_kji: NDArray[np.bool_], region: str) -> None:
    """Refuse a box in which there is no lung.

    Raises:
        RefusedInputError: the box lies outside the lungs.
    """
    if not mask_kji[Region.parse(region).slices_kji].any():
        raise RefusedInputError(
            "The ROI lies outside the lungs; move it onto the lungs, or choose everything as region to run without "
            "them."
        )


def geometryOf(volumeNode: slicer.vtkMRMLScalarVolumeNode) -> Geometry:
    """A volume node's grid as the library has it (LPS).

    Raises:
        RefusedInputError: it is not regular.
    """
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASDirectionMatrix(matrix)
    rasToLps = (-1.0, -1.0, 1.0)
    i, j, k = volumeNode.GetImageData().GetDimensions()
    x, y, z = (float(flip * value) for flip, value in zip(rasToLps, volumeNode.GetOrigin(), strict=True))
    a, b, c = (float(value) for value in volumeNode.GetSpacing())
    directions = tuple(rasToLps[row] * matrix.GetElement(row, column) for row in range(3) for column in range(3))
    return Geometry((i, j, k), (a, b, c), (x, y, z), directions)


def writeVolume(volumeNode: slicer.vtkMRMLScalarVolumeNode, path: Path) -> None:
    """Write a volume for the child process, uncompressed because that is fastest.

    Raises:
        ResourceError: it can't be written.
    """
    storage = slicer.vtkMRMLNRRDStorageNode()
    storage.SetFileName(str(path))
    storage.SetUseCompression(0)
    if not storage.WriteData(volumeNode):
        raise ResourceError(
            f"{volumeNode.GetName()} could not be written to the temporary folder {path.parent}; free some disk "
            f"space, or "
            "choose another folder in Slicer's application settings."
        )


def readVolume(path: Path, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLScalarVolumeNode:
    """Read a file into a volume node, which is returned.

    Raises:
        ResourceError: it can't be read, most likely because memory is short.
    """
    storage = slicer.vtkMRMLNRRDStorageNode()
    storage.SetFileName(str(path))
    if not path.is_file() or not storage.ReadData(volumeNode) or volumeNode.GetImageData() is None:
        raise ResourceError(
            "The result could not be loaded, most likely because memory ran out; choose a smaller region."
        )
    return volumeNode


def isScan(node: slicer.vtkMRMLNode | None) -> bool:
    """Whether it is a volume with voxels that could be a scan: no label map and no result."""
    if node is None or node.GetClassName() != "vtkMRMLScalarVolumeNode":
        return False
    return node.GetImageData() is not None and not node.GetAttribute("CTMicroSR.derived")


def firstScan(scene: slicer.vtkMRMLScene) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The first volume that could be a scan, or None."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode")
        if isScan(node):
            return node
    return None


def placeRoi(roiNode: slicer.vtkMRMLMarkupsROINode, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Put a new ROI of 64 x 64 voxels and 8 slices where one lung usually is, so that there is something to drag."""
    image = volumeNode.GetImageData()
    if image is None or roiNode.GetNumberOfControlPoints() > 0:
        return
    sizes = image.GetDimensions()
    ijkToRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(ijkToRas)
    edges = [min(wanted, size) for wanted, size in zip((64, 64, 8), sizes, strict=True)]
    centre = ijkToRas.MultiplyPoint((0.28 * sizes[0], 0.5 * sizes[1], 0.5 * sizes[2], 1.0))[:3]
    roiNode.CreateDefaultDisplayNodes()
    # A result's views show just this box: its fill would tint every voxel, its name stand in their middle.
    roiNode.GetDisplayNode().SetFillVisibility(False)
    roiNode.GetDisplayNode().SetPropertiesLabelVisibility(False)
    roiNode.SetCenter(*centre)
    roiNode.SetSize(*(sum(abs(ijkToRas.GetElement(row, axis)) * edges[axis] for axis in range(3)) for row in range(3)))
