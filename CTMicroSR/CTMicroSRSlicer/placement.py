"""Whether a result lies on its scan, as both are in the scene now. MRML only."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

VOXELS = 0.01
"""Of the scan: what a corner of the result may lie beside the voxels' borders."""


def liesOn(resultNode: slicer.vtkMRMLScalarVolumeNode, scanNode: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether a result covers whole voxels of the scan, by the places of its corners."""
    images = (resultNode.GetImageData(), scanNode.GetImageData())
    if None in images:
        return False
    matrices = _ijkToCommon(resultNode, scanNode)
    if matrices is None:
        return False
    resultToCommon, scanToCommon = matrices
    resultToScan = np.linalg.inv(scanToCommon) @ resultToCommon
    size, scanSize = (np.array(image.GetDimensions()) for image in images)
    corners = np.array([(x, y, z, 1.0) for x in (0, size[0]) for y in (0, size[1]) for z in (0, size[2])])
    corners[:, :3] -= 0.5
    borders = (corners @ resultToScan.T)[:, :3] + 0.5
    isWhole = np.abs(borders - np.round(borders)).max() <= VOXELS
    isInside = borders.min() >= -VOXELS and (borders <= scanSize + VOXELS).all()
    return bool(isWhole and isInside)


def _ijkToCommon(
    one: slicer.vtkMRMLScalarVolumeNode, other: slicer.vtkMRMLScalarVolumeNode
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Voxels of both to one space: that of the transform both are under, or the world; None where one is warped."""
    matrices = []
    isSameSpace = one.GetParentTransformNode() is other.GetParentTransformNode()
    for node in (one, other):
        ijkToNode, nodeToWorld = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(ijkToNode)
        transform = node.GetParentTransformNode()
        if transform is not None and not isSameSpace and not transform.GetMatrixTransformToWorld(nodeToWorld):
            return None
        matrices.append(slicer.util.arrayFromVTKMatrix(nodeToWorld) @ slicer.util.arrayFromVTKMatrix(ijkToNode))
    return matrices[0], matrices[1]
