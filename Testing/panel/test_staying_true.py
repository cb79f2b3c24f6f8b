"""What the panel says follows what it speaks of: a scene that is loaded, a scan that moves, an ROI that is turned."""

from __future__ import annotations

import pytest
import slicer
import vtk
from CTMicroSRSlicer import inputs
from CTMicroSRSlicer.parameters import Region


def estimate(panel, engine):
    """The line above the button, as soon as it is known."""
    panel.widget.estimateTimer.stop()
    panel.widget.onEstimate()
    if panel.widget.logic._estimating is not None and not panel.widget.logic._estimating.isFinished:
        engine.finish()
    return panel.ui.estimateLabel.text()


def isStale(panel):
    """Whether the line still says what was; a change empties it until it is found out again."""
    return panel.ui.estimateLabel.text() != "" or not panel.widget.estimateTimer.isActive()


@pytest.fixture
def roi(panel, specimen):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    panel.parameters.region, panel.parameters.roi = Region.ROI, node
    inputs.placeRoi(node, specimen)
    node.SetSize(10, 4, 4)
    return node


def transform(className="vtkMRMLLinearTransformNode", degrees=90):
    node = slicer.mrmlScene.AddNewNodeByClass(className)
    if className == "vtkMRMLLinearTransformNode":
        turn = vtk.vtkTransform()
        turn.RotateZ(degrees)
        node.SetMatrixTransformToParent(turn.GetMatrix())
    return node


def turnAroundCentre(node, degrees=60):
    turn = vtk.vtkTransform()
    turn.SetMatrix(node.GetObjectToNodeMatrix())
    turn.RotateZ(degrees)
    node.SetAndObserveObjectToNodeMatrix(turn.GetMatrix())


def test_an_roi_that_is_turned_by_its_handle_is_estimated_again(panel, roi, engine):
    before = estimate(panel, engine)
    turnAroundCentre(roi)
    assert not isStale(panel)
    assert estimate(panel, engine) != before


def test_an_roi_that_is_put_under_a_transform_is_estimated_again(panel, roi, engine):
    estimate(panel, engine)
    node = transform(degrees=0)
    roi.SetAndObserveTransformNodeID(node.GetID())
    turn = vtk.vtkTransform()
    turn.Translate(2, 0, 0)
    node.SetMatrixTransformToParent(turn.GetMatrix())
    assert not isStale(panel)
    assert f"{8 * 64}" not in estimate(panel, engine)


def test_a_refusal_goes_with_its_cause(panel, specimen, engine):
    panel.widget.onParametersChanged()
    first, second = transform(), transform("vtkMRMLBSplineTransformNode")
    first.SetName("first")
    second.SetName("second")
    specimen.SetAndObserveTransformNodeID(first.GetID())
    assert "under the transform first" in estimate(panel, engine)
    panel.ui.applyButton.click()
    assert "under the transform first" in panel.status
    specimen.SetAndObserveTransformNodeID(second.GetID())
    assert panel.status == ""
    assert "under the transform second" in estimate(panel, engine)
    specimen.SetAndObserveTransformNodeID(None)
    assert not isStale(panel)
    assert "512 x 512 x 8 voxels" in estimate(panel, engine)


def test_a_scan_whose_geometry_is_corrected_is_no_longer_refused(panel, specimen, engine):
    specimen.SetIJKToRASDirections(1, 0.5, 0, 0, 1, 0, 0, 0, 1)
    assert "no valid geometry" in estimate(panel, engine)
    specimen.SetIJKToRASDirections(1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert not isStale(panel)


def test_what_is_said_of_a_result_stays_when_the_next_one_is_prepared(panel, specimen, engine):
    panel.ui.applyButton.click()
    engine.finish()
    assert "is there after" in panel.status
    panel.parameters.passes = 9
    assert "is there after" in panel.status


def test_what_the_engine_refuses_is_told_of_the_volume_and_in_the_panels_words(panel, specimen, engine):
    panel.ui.applyButton.click()
    engine.refuse(3, f"{engine.commands[-1][1]}: No lung, choose --region, or give --mask.")
    assert panel.status == "specimen: No lung, or choose an ROI or Everything as Region."
    panel.parameters.passes = 9
    assert panel.status == "", "another run may do"


def test_a_deleted_scan_ends_its_run_and_is_told(panel, specimen, engine):
    panel.ui.applyButton.click()
    slicer.mrmlScene.RemoveNode(specimen)
    assert not engine.keepRunning.exists()
    engine.end(130)
    assert "removed from the scene" in panel.status
    assert not panel.widget.logic.isRunning


@pytest.fixture
def savedScene(panel, specimen, roi, engine, tmp_path):
    """A scene with a choice and a result, saved as a file."""
    panel.ui.applyButton.click()
    engine.finish()
    panel.ui.compareButton.setChecked(False)
    scene = slicer.mrmlScene
    for volume in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        storage = scene.AddNewNodeByClass("vtkMRMLNRRDStorageNode")
        storage.SetFileName(str(tmp_path / f"{volume.GetID()}.nrrd"))
        assert storage.WriteData(volume)
        volume.SetAndObserveStorageNodeID(storage.GetID())
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    return tmp_path / "scene.mrml"


@pytest.mark.parametrize("isCleared", [True, False])
def test_a_scene_loaded_into_the_open_panel_is_what_it_shows(panel, savedScene, isCleared):
    if isCleared:
        slicer.mrmlScene.Clear()
    panel.widget.showMessage("of the scene before")
    slicer.mrmlScene.SetURL(str(savedScene))
    slicer.mrmlScene.Connect()
    panel.events(0.05)
    assert panel.parameters.inputVolume.GetName() == "specimen"
    assert panel.ui.inputSelector.currentNode() is panel.parameters.inputVolume
    assert panel.ui.roiSelector.currentNode() is panel.parameters.roi
    assert panel.parameters.roi.GetName() == "R"
    assert panel.parameters.resultVolume.GetName() == "specimen SR x8"
    assert panel.ui.compareButton.isEnabled()
    assert panel.ui.applyButton.isEnabled()
    assert panel.status == ""


def test_a_scene_that_is_added_changes_no_choice(panel, savedScene):
    chosen = panel.parameters.inputVolume
    slicer.mrmlScene.SetURL(str(savedScene))
    slicer.mrmlScene.Import()
    panel.events(0.05)
    assert panel.ui.inputSelector.currentNode() is panel.parameters.inputVolume
    assert panel.parameters.inputVolume is not None
    assert chosen.GetScene() is not None
