"""Bad input and failed runs: one sentence, and scene and disk as they were."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import slicer
from CTMicroSRSlicer import inputs, results
from CTMicroSRSlicer.commands import RunSettings
from CTMicroSRSlicer.logic import SuperResolutionLogic
from CTMicroSRSlicer.request import Request
from smallvolumes import addVolume, lungSlab

from CTMicroSRLib.errors import (
    CancelledError,
    CTMicroSRError,
    ModelError,
    RefusedInputError,
    ResourceError,
    UsageError,
)

SMALL = "8:40,16:48,2:4"


def makeInput(how):
    """An input that must be refused, and its region."""
    if how == "nothing":
        return None, "whole"
    if how == "label map":
        return addVolume((lungSlab() < -500).astype(np.uint8), "mask", className="vtkMRMLLabelMapVolumeNode"), "whole"
    if how == "empty":
        return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"), "whole"
    node = addVolume(lungSlab(), "chest")
    if how == "transform":
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
        node.SetAndObserveTransformNodeID(transform.GetID())
    elif how == "sheared":
        node.SetIJKToRASDirections(1, 0.5, 0, 0, 1, 0, 0, 0, 1)
    elif how == "MR attribute":
        node.SetAttribute("DICOM.Modality", "MR")
    elif how == "region beside the scan":
        return node, "0:32,0:65,0:2"
    elif how == "region of nonsense":
        return node, "lung"
    return node, "whole"


@pytest.mark.parametrize(
    ("how", "kind", "sentence"),
    [
        ("nothing", UsageError, "No volume is chosen"),
        ("label map", RefusedInputError, "is a label map"),
        ("empty", UsageError, "has no voxels"),
        ("transform", UsageError, "harden the transform"),
        ("sheared", UsageError, "no valid geometry"),
        ("MR attribute", RefusedInputError, "is MR, not CT"),
        ("region beside the scan", UsageError, "does not lie inside"),
        ("region of nonsense", UsageError, "is not lungs, whole or"),
    ],
)
def test_is_refused_before_anything_starts(logic, scene, sceneContent, temporaryFolder, how, kind, sentence):
    node, region = makeInput(how)
    before = sceneContent()
    with pytest.raises(kind, match=sentence) as refused:
        logic.superResolve(node, region)
    assert "\n" not in str(refused.value)
    assert sceneContent() == before
    assert list(temporaryFolder.iterdir()) == []


def test_values_that_are_no_ct_are_refused_by_the_engine(logic, scene, sceneContent, temporaryFolder):
    node = addVolume((lungSlab() + 1500).astype(np.int16), "mr")
    before = sceneContent()
    with pytest.raises(RefusedInputError, match="do not look like CT"):
        logic.superResolve(node, SMALL)
    assert sceneContent() == before
    assert list(temporaryFolder.iterdir()) == []


def test_an_roi_outside_the_lungs_is_refused(logic, slab, sceneContent, temporaryFolder):
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "corner")
    corner = _centre(slab, (4, 4, 3))
    roi.SetCenter(*corner)
    roi.SetSize(8, 8, 6)
    before = sceneContent()
    with pytest.raises(RefusedInputError, match="outside the lungs"):
        logic.superResolve(slab, roi)
    assert sceneContent() == before
    assert list(temporaryFolder.iterdir()) == []


def test_an_roi_in_a_scan_without_lungs_is_super_resolved_with_a_warning(logic):
    specimen = Path(inputs.__file__).parents[1] / "Resources" / "SampleData" / "CTMicroSR-specimen.nrrd"
    volume = slicer.mrmlScene.AddNode(inputs.readVolume(specimen, slicer.vtkMRMLScalarVolumeNode()))
    result = logic.superResolve(volume, "8:16,8:16,2:3")
    assert result.volume.GetImageData().GetDimensions() == (64, 64, 1)
    assert any("No lung was found" in warning for warning in result.report["warnings"])
    with pytest.raises(RefusedInputError, match="No lung found"):
        logic.superResolve(volume, "8:16,8:16,2:3", lungSegmentation=True)


def _centre(node, ijk):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix.MultiplyPoint((*ijk, 1.0))[:3]


def test_a_new_roi_covers_no_voxel_with_its_fill_or_name(slab):
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "new")
    inputs.placeRoi(roi, slab)
    assert inputs.regionOfRoi(slab, roi)
    assert not roi.GetDisplayNode().GetFillVisibility()
    assert not roi.GetDisplayNode().GetPropertiesLabelVisibility()


def test_an_roi_becomes_the_voxels_it_touches(slab):
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    # from the left border of voxel 10 to the right border of voxel 19, likewise 20..23 and 1..2
    roi.SetCenter(*_centre(slab, (14.5, 21.5, 1.5)))
    roi.SetSize(10 * 2.0, 4 * 2.0, 2 * 3.0)
    assert inputs.regionOfRoi(slab, roi) == "10:20,20:24,1:3"
    roi.SetSize(10 * 2.0 + 0.1, 4 * 2.0, 2 * 3.0)
    assert inputs.regionOfRoi(slab, roi) == "9:21,20:24,1:3"


def test_an_roi_follows_its_transform(slab):
    import vtk

    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    roi.SetCenter(*_centre(slab, (14.5, 21.5, 1.5)))
    roi.SetSize(20.0, 8.0, 6.0)
    shift = vtk.vtkMatrix4x4()
    shift.SetElement(0, 3, -6.0)  # to the patient's left is towards smaller i here: 3 voxels of 2 mm the other way
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    transform.SetMatrixTransformToParent(shift)
    roi.SetAndObserveTransformNodeID(transform.GetID())
    assert inputs.regionOfRoi(slab, roi) == "13:23,20:24,1:3"


@pytest.mark.parametrize("place", ["nothing", "no size", "beside"])
def test_an_roi_that_holds_no_voxel_is_refused(slab, place):
    roi = None if place == "nothing" else slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "roi")
    if place == "beside":
        roi.SetCenter(1000, 1000, 1000)
        roi.SetSize(10, 10, 10)
    with pytest.raises(UsageError):
        inputs.regionOfRoi(slab, roi)


def test_a_result_too_large_for_memory_is_refused(slab, monkeypatch, logic, temporaryFolder):
    from CTMicroSRSlicer import estimate

    monkeypatch.setattr(estimate, "_freeBytes", lambda: 10_000_000)
    with pytest.raises(ResourceError, match="GB are free; choose a smaller ROI"):
        logic.superResolve(slab, "whole")
    assert list(temporaryFolder.iterdir()) == []


def test_an_unknown_model_is_refused(slab, logic, temporaryFolder):
    with pytest.raises(ModelError, match="There is no model 'nothing'"):
        logic.superResolve(slab, "whole", model="nothing")
    assert list(temporaryFolder.iterdir()) == []


def test_a_second_run_is_refused_while_the_first_goes_on(slab, logic, temporaryFolder):
    ended = []
    logic.start(Request(slab, RunSettings(region=SMALL)), lambda _p: None, lambda *end: ended.append(end))
    with pytest.raises(UsageError, match="already running"):
        logic.superResolve(slab, SMALL)
    logic.cancel()
    _wait(lambda: ended)
    assert isinstance(ended[0][1], CancelledError)
    assert len(ended) == 1
    assert list(temporaryFolder.iterdir()) == []


def _wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        slicer.app.processEvents()
        time.sleep(0.01)


def test_a_scene_closed_while_running_ends_the_child(slab, logic, temporaryFolder):
    ended, stages = [], []
    logic.start(Request(slab, RunSettings(region=SMALL)), stages.append, lambda *end: ended.append(end))
    _wait(lambda: stages)
    slicer.mrmlScene.Clear()
    _wait(lambda: ended)
    assert "scene was closed" in str(ended[0][1])
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode") is None
    assert list(temporaryFolder.iterdir()) == []


def test_closing_ends_the_child_without_events(slab, logic, temporaryFolder):
    ended = []
    logic.start(Request(slab, RunSettings(region=SMALL)), lambda _p: None, lambda *end: ended.append(end))
    process = logic._run._child._process
    logic.close()
    assert process.poll() is not None
    assert "closed" in str(ended[0][1])
    assert list(temporaryFolder.iterdir()) == []


def test_closing_ends_an_estimate_that_was_forgotten_a_moment_ago(slab, logic, temporaryFolder):
    logic.estimate(Request(slab, RunSettings(region="whole")), lambda *_: None)
    process = logic._estimating._child._process
    logic.stopEstimate()
    logic.close()
    assert process.poll() is not None
    assert list(temporaryFolder.iterdir()) == []


def _child(parent, keepRunning, output):
    """A started child that has minutes of work to do."""
    from CTMicroSRSlicer.childrun import WORKER, libraryFolder

    command = [WORKER, libraryFolder(), keepRunning, parent.pid, "simulate", output, "--set", "training-1"]
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def parent():
    """A process that waits for its standard input to end."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    process.stdin.close()


def test_a_parent_that_crashes_takes_the_child_along(parent, tmp_path):
    keep = tmp_path / "keep-running"
    keep.touch()
    child = _child(parent, keep, tmp_path / "x")
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=3)
    parent.kill()
    parent.wait()
    child.communicate(timeout=60)
    assert child.returncode != 0


@pytest.mark.parametrize("gone", ["parent", "file"])
def test_a_child_that_nobody_wants_does_not_start(gone, parent, tmp_path):
    keep = tmp_path / "keep-running"
    if gone == "parent":
        keep.touch()
        parent.kill()
        parent.wait()
    child = _child(parent, keep, tmp_path / "x")
    child.communicate(timeout=60)
    assert child.returncode == 130
    assert not (tmp_path / "x").exists()


def test_a_result_that_cannot_be_added_leaves_the_scene_as_it_was(slab, sceneContent, tmp_path, monkeypatch):
    from CTMicroSRSlicer.commands import RunFiles

    files = RunFiles(tmp_path)
    for path in (files.output, files.uncertainty, files.lungs):
        inputs.writeVolume(slab, path)
    before = sceneContent()
    monkeypatch.setattr(
        results, "_addLungs", lambda *_args, **_named: (_ for _ in ()).throw(ResourceError("No memory."))
    )
    with pytest.raises(ResourceError):
        results.addResults(slab, files, _report(), lungSegmentation=True)
    assert sceneContent() == before


def test_an_output_that_was_there_is_restored_when_a_later_step_fails(slab, tmp_path, monkeypatch):
    from CTMicroSRSlicer.commands import RunFiles

    files = RunFiles(tmp_path)
    inputs.writeVolume(slab, files.output)
    mine = np.full((2, 3, 4), 7, dtype=np.int16)
    target = addVolume(mine, "mine", spacing=(1.0, 1.0, 5.0), origin=(1.0, 2.0, 3.0))
    target.SetAttribute("my", "own")
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "mine, too")
    target.SetAndObserveTransformNodeID(transform.GetID())
    target.SetNodeReferenceID("CTMicroSR.input", transform.GetID())
    before = inputs.geometryOf(target)
    monkeypatch.setattr(
        results, "_addLungs", lambda *_args, **_named: (_ for _ in ()).throw(ResourceError("No memory."))
    )
    with pytest.raises(ResourceError):
        results.addResults(slab, files, _report(), lungSegmentation=True, outputNode=target)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(target), mine)
    assert inputs.geometryOf(target) == before
    assert list(target.GetAttributeNames()) == ["my"]
    assert target.GetParentTransformNode() is transform
    assert target.GetNodeReference("CTMicroSR.input") is transform
    assert target.GetNodeReference("CTMicroSR.report") is None


def test_outputs_that_exist_are_replaced_and_keep_their_name(slab, tmp_path):
    from CTMicroSRSlicer.commands import RunFiles

    files = RunFiles(tmp_path)
    inputs.writeVolume(slab, files.output)
    target = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "mine")
    found = results.addResults(slab, files, _report(), outputNode=target)
    assert found.volume is target
    assert target.GetName() == "mine"
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(target), slicer.util.arrayFromVolume(slab))
    np.testing.assert_allclose(inputs.geometryOf(target).origin_mm, inputs.geometryOf(slab).origin_mm, atol=1e-6)


def test_a_file_that_cannot_be_loaded_is_a_resource_error(slab, sceneContent, tmp_path):
    from CTMicroSRSlicer.commands import RunFiles

    before = sceneContent()
    with pytest.raises(ResourceError, match="could not be loaded"):
        results.addResults(slab, RunFiles(tmp_path), _report())
    assert sceneContent() == before


def _fail(*_arguments, **_named):
    raise ResourceError("No memory.")


def _report():
    return {
        "input": {"spacing_mm": [2.0, 2.0, 3.0]},
        "output": {"spacing_mm": [0.25, 0.25, 3.0]},
        "model": {"name": "m", "sha256": "0" * 64},
        "region": SMALL,
        "seed": 0,
        "consistency": {"mode": "scan", "residual_rms_hu": 1.0},
        "software": {"ctmicrosr": "0"},
        "notice": "Research use, not for diagnosis.",
        "warnings": [],
    }


def test_the_result_must_not_replace_its_input(slab, logic):
    with pytest.raises(UsageError, match="replace its own input"):
        logic.superResolve(slab, "whole", outputVolume=slab)


def test_missing_packages_are_named_without_a_dialog(slab, logic, monkeypatch):
    from CTMicroSRSlicer.install import Missing

    asked = []
    monkeypatch.setattr(type(logic._dependencies), "missing", lambda self: [Missing("torch>=2.4")])
    host = replace(logic._dependencies, host=_Host(asked))
    quiet = SuperResolutionLogic(launcher=logic._launcher, dependencies=host, findPython=logic._findPython)
    with pytest.raises(ResourceError, match=r"torch.*offline|torch.*no-index"):
        quiet.superResolve(slab, "whole")
    assert asked == []


class _Host:
    def __init__(self, asked):
        self.asked = asked

    def mayInstall(self):
        return True

    def confirm(self, text):
        self.asked.append(text)
        return False


def test_any_error_is_one_of_the_librarys(slab, logic):
    with pytest.raises(CTMicroSRError):
        logic.superResolve(slab, "whole", passes=1, uncertainty=True)
