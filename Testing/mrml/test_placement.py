"""Whether a result lies on its scan, whatever has been moved or turned since."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
from CTMicroSRSlicer.placement import liesOn
from smallvolumes import addVolume, lungSlab

TURNED = np.array([[-0.8, 0.0, 0.6], [0.0, -1.0, 0.0], [-0.6, 0.0, -0.8]])


@pytest.fixture
def pair(scene):
    """A turned scan and a box of it, eight times finer in-plane."""
    scan = addVolume(lungSlab(), "chest", directions=TURNED)
    matrix = np.array(scan_matrix(scan))
    fine = matrix.copy()
    fine[:3, :2] /= 8
    fine[:3, 3] = (matrix @ (8 - 7 / 16, 16 - 7 / 16, 2, 1))[:3]
    result = addVolume(np.zeros((2, 64, 80), dtype=np.int16), "fine")
    result.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(fine))
    return scan, result


def scan_matrix(node):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def transform(className="vtkMRMLLinearTransformNode", shift=0.0):
    import vtk

    node = slicer.mrmlScene.AddNewNodeByClass(className)
    if className == "vtkMRMLLinearTransformNode":
        matrix = vtk.vtkMatrix4x4()
        matrix.SetElement(0, 3, shift)
        node.SetMatrixTransformToParent(matrix)
    return node.GetID()


def test_a_result_lies_on_its_scan(pair):
    scan, result = pair
    assert liesOn(result, scan)
    assert not liesOn(scan, result)


@pytest.mark.parametrize("which", [0, 1])
def test_moving_one_of_them_parts_them(pair, which):
    scan, result = pair
    pair[which].SetAndObserveTransformNodeID(transform(shift=0.5))
    assert not liesOn(result, scan)
    pair[which].SetAndObserveTransformNodeID(transform(shift=0.0))
    assert liesOn(result, scan)


@pytest.mark.parametrize("className", ["vtkMRMLLinearTransformNode", "vtkMRMLBSplineTransformNode"])
def test_moving_both_keeps_them_together(pair, className):
    scan, result = pair
    both = transform(className, shift=7.0)
    for node in pair:
        node.SetAndObserveTransformNodeID(both)
    assert liesOn(result, scan)


def test_one_of_them_warped_parts_them(pair):
    scan, result = pair
    scan.SetAndObserveTransformNodeID(transform("vtkMRMLBSplineTransformNode"))
    assert not liesOn(result, scan)


def test_a_grid_that_slicer_has_turned_around_still_lies_there(pair):
    scan, result = pair
    matrix = np.array(scan_matrix(result))
    matrix[:3, 3] += matrix[:3, 2] * (result.GetImageData().GetDimensions()[2] - 1)
    matrix[:3, 2] *= -1
    result.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    assert liesOn(result, scan)


def test_without_voxels_nothing_lies_anywhere(pair):
    scan, result = pair
    scan.SetAndObserveImageData(None)
    assert not liesOn(result, scan)
