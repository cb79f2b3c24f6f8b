"""The scan as it was when it was sent to the child process, and whether the node is still that scan. MRML only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import slicer

from CTMicroSRLib.volume import Geometry
from CTMicroSRSlicer.inputs import geometryOf, readVolume

MILLIMETRES = 1e-4
"""A scan that is moved by less is where it was: rounding, when a transform is hardened and taken back."""


@dataclass(frozen=True)
class SentScan:
    """What a run works on. A scan that is under a transform is not sent, so one that is under one has been moved."""

    geometry: Geometry
    image: object
    modified: int

    @staticmethod
    def of(scan: slicer.vtkMRMLScalarVolumeNode) -> SentScan:
        """The scan as it is now."""
        return SentScan(geometryOf(scan), scan.GetImageData(), scan.GetImageData().GetMTime())

    def change(self, scan: slicer.vtkMRMLScalarVolumeNode, file: Path) -> str:
        """In one sentence how the scan differs from what was sent, which is still in a file; nothing if it does not."""
        name = scan.GetName()
        if not self._isVoxelForVoxel(scan, file):
            return (
                f"The voxels of {name} have been changed since the run began; the result belongs to those that it had "
                "then, and lies where they were."
            )
        if scan.GetParentTransformNode() is not None or not isSamePlace(geometryOf(scan), self.geometry):
            return (
                f"{name} has been moved since the run began; the result lies where the scan was then, not where it is "
                "now."
            )
        return ""

    def _isVoxelForVoxel(self, scan: slicer.vtkMRMLScalarVolumeNode, file: Path) -> bool:
        image = scan.GetImageData()
        if image is self.image and image.GetMTime() == self.modified:
            return True
        if image is None or image.GetDimensions() != self.geometry.size_ijk or image.GetNumberOfScalarComponents() != 1:
            return False
        sent = slicer.util.arrayFromVolume(readVolume(file, slicer.vtkMRMLScalarVolumeNode()))
        return np.array_equal(slicer.util.arrayFromVolume(scan), sent)


def isSamePlace(one: Geometry, other: Geometry) -> bool:
    """Whether two grids of the same size have all their voxels at the same places."""
    if one.size_ijk != other.size_ijk:
        return False
    return bool(np.allclose(_corners(one), _corners(other), rtol=0, atol=MILLIMETRES))


def _corners(geometry: Geometry) -> np.ndarray:
    """The first voxel and the last one along each axis: a grid is where these are."""
    axes = np.reshape(geometry.directions, (3, 3)) * np.array(geometry.spacing_mm)
    origin = np.array(geometry.origin_mm)
    return np.array([origin, *(origin + axes[:, axis] * geometry.size_ijk[axis] for axis in range(3))])
