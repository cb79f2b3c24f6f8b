"""What a user does to the scene while a run goes on: the result lies where its scan was, and nothing is lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import slicer
import vtk
from CTMicroSRSlicer import inputs
from CTMicroSRSlicer.commands import RunSettings
from CTMicroSRSlicer.logic import SuperResolutionLogic
from CTMicroSRSlicer.overlay import colorLegend
from CTMicroSRSlicer.placement import liesOn
from CTMicroSRSlicer.request import Request
from fakeengine import FakeEngine

REGION = "8:40,16:48,2:4"


@dataclass
class Run:
    """One that goes on until ``end``."""

    engine: FakeEngine
    ended: list

    def end(self):
        self.engine.finish()
        (result, error) = self.ended[0]
        assert error is None, error
        return result


@pytest.fixture
def start(temporaryFolder):
    engine = FakeEngine()
    logic = SuperResolutionLogic(launcher=engine, findPython=lambda: "python")

    def begin(scan, outputNode=None, uncertaintyNode=None, **settings):
        ended = []
        request = Request(scan, RunSettings(**{"region": REGION, **settings}), None, outputNode, uncertaintyNode)
        logic.start(request, lambda _progress: None, lambda *end: ended.append(end))
        return Run(engine, ended)

    return begin


def moved(name, shift=50.0):
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, shift)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    transform.SetMatrixTransformToParent(matrix)
    return transform


def bounds(node):
    found = [0.0] * 6
    node.GetRASBounds(found)
    return found


def test_a_scan_that_stays_has_its_result_on_it_and_no_sentence(start, slab):
    result = start(slab).end()
    assert liesOn(result.volume, slab)
    assert result.inputChange == ""
    assert result.report["warnings"] == []


def test_outputs_under_a_transform_are_taken_out_of_it(start, slab):
    nodes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name) for name in ("result", "deviation")]
    for node in nodes:
        node.SetAndObserveTransformNodeID(moved("elsewhere").GetID())
    result = start(slab, *nodes, region="whole", uncertainty=True).end()
    assert (result.volume, result.uncertainty) == tuple(nodes)
    for node in nodes:
        assert node.GetParentTransformNode() is None
        np.testing.assert_allclose(bounds(node), bounds(slab), atol=1e-6)


@pytest.mark.parametrize("how", ["origin", "transform", "directions"])
def test_a_scan_that_is_moved_is_told_and_its_result_lies_where_it_was(start, slab, how):
    before = inputs.geometryOf(slab)
    run = start(slab)
    if how == "origin":
        slab.SetOrigin(100, 100, 100)
    elif how == "transform":
        slab.SetAndObserveTransformNodeID(moved("registration").GetID())
    else:
        slab.SetIJKToRASDirections(1, 0, 0, 0, 1, 0, 0, 0, 1)
    result = run.end()
    assert result.inputChange.startswith("chest has been moved since the run began")
    assert result.report["warnings"][0] == result.inputChange
    fine = before.crop(inputs.Region.parse(REGION)).refine((8, 8, 1))
    np.testing.assert_allclose(inputs.geometryOf(result.volume).origin_mm, fine.origin_mm, atol=1e-6)
    assert result.volume.GetParentTransformNode() is None
    assert not liesOn(result.volume, slab)


def test_a_scan_that_is_moved_and_put_back_is_where_it_was(start, slab):
    transform, run = moved("there and back"), start(slab)
    slab.SetAndObserveTransformNodeID(transform.GetID())
    slab.SetAndObserveTransformNodeID(None)
    assert run.end().inputChange == ""


def test_voxels_that_are_changed_are_told(start, slab):
    run = start(slab)
    slicer.util.arrayFromVolume(slab)[3] += 10
    slicer.util.arrayFromVolumeModified(slab)
    assert run.end().inputChange.startswith("The voxels of chest have been changed")


def test_voxels_that_are_only_touched_are_the_same(start, slab):
    run = start(slab)
    slicer.util.arrayFromVolumeModified(slab)
    assert run.end().inputChange == ""


def test_a_lung_mask_lies_where_the_scan_was_too(start, slab):
    run = start(slab, lungSegmentation=True)
    before = bounds(slab)
    slab.SetOrigin(500, 500, 500)
    segmentation = run.end().lungs
    found = bounds(segmentation)
    assert all(found[n] >= before[n] - 1e-3 and found[n + 1] <= before[n + 1] + 1e-3 for n in (0, 2, 4))
    assert not segmentation.GetDisplayNode().GetVisibility2DFill(), "a fill tints what is compared"


@pytest.mark.parametrize("which", ["outputNode", "uncertaintyNode"])
def test_an_output_that_is_deleted_becomes_a_new_volume(start, slab, which):
    target = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "mine")
    run = start(slab, uncertainty=True, **{which: target})
    slicer.mrmlScene.RemoveNode(target)
    result = run.end()
    for node in (result.volume, result.uncertainty):
        assert slicer.mrmlScene.IsNodePresent(node)
        assert node.GetImageData() is not None
        assert node.GetDisplayNode() is not None
    assert target not in (result.volume, result.uncertainty)


def test_an_output_used_again_keeps_no_uncertainty_of_before(start, slab):
    target = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "mine")
    first = start(slab, target, uncertainty=True).end()
    assert target.GetNodeReference("CTMicroSR.uncertainty") is first.uncertainty
    colorLegend(first.uncertainty).SetVisibility(True)
    second = start(slab, target, region="0:32,0:32,0:2").end()
    assert second.volume is target
    assert target.GetNodeReference("CTMicroSR.uncertainty") is None
    assert not colorLegend(first.uncertainty).GetVisibility()


def test_an_output_that_was_an_uncertainty_hides_no_voxel(start, slab):
    uncertainty = start(slab, uncertainty=True).end().uncertainty
    assert uncertainty.GetDisplayNode().GetApplyThreshold()
    assert start(slab, uncertainty).end().volume is uncertainty
    assert not uncertainty.GetDisplayNode().GetApplyThreshold()


def test_a_scan_that_is_deleted_ends_its_run_at_once(start, slab, sceneContent):
    run = start(slab)
    slicer.mrmlScene.RemoveNode(slab)
    assert not run.engine.keepRunning.exists()
    before = sceneContent()
    run.engine.end(130)
    (_result, error) = run.ended[0]
    assert "input was removed from the scene" in str(error)
    assert sceneContent() == before


def test_an_roi_beside_lungs_that_are_known_is_refused_before_a_run(start, slab, temporaryFolder):
    start(slab, region="lungs").end()
    engine = FakeEngine()
    logic = SuperResolutionLogic(launcher=engine, findPython=lambda: "python")
    corner = Request(slab, RunSettings(region="0:4,0:4,0:2"))
    logic.estimate(corner, lambda *_: None)
    assert engine.commands[-1][0] == "info", "the lungs are not known yet"
    logic.estimate(Request(slab, RunSettings()), lambda *_: None)
    engine.finish()
    with pytest.raises(inputs.RefusedInputError, match="outside the lungs"):
        logic.estimate(corner, lambda *_: None)
    slicer.util.arrayFromVolumeModified(slab)
    logic.estimate(corner, lambda *_: None)
    logic.close()
    assert list(temporaryFolder.iterdir()) == []


def test_lungs_of_voxels_that_were_changed_meanwhile_are_not_kept(slab, temporaryFolder):
    engine = FakeEngine()
    logic = SuperResolutionLogic(launcher=engine, findPython=lambda: "python")
    logic.estimate(Request(slab, RunSettings()), lambda *_: None)
    slicer.util.arrayFromVolumeModified(slab)
    engine.finish()
    assert logic._foundLungs.of(slab) is None
