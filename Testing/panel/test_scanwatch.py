"""A scan that is loaded while the panel is open is chosen where none is; a choice already made stays."""

from __future__ import annotations

import slicer
from smallvolumes import addVolume, lungSlab


def test_a_scan_loaded_into_the_open_panel_becomes_the_input(panel):
    assert panel.parameters.inputVolume is None
    scan = addVolume(lungSlab(), "chest")
    panel.events(0.05)
    assert panel.parameters.inputVolume is scan
    assert panel.ui.inputSelector.currentNode() is scan
    assert panel.ui.applyButton.isEnabled()


def test_of_two_scans_the_first_is_chosen_and_later_ones_change_nothing(panel):
    first = addVolume(lungSlab(), "first")
    addVolume(lungSlab(), "second")
    panel.events(0.05)
    addVolume(lungSlab(), "third")
    panel.events(0.05)
    assert panel.parameters.inputVolume is first


def test_where_the_user_chose_none_only_a_new_scan_is_taken(panel):
    addVolume(lungSlab(), "first")
    panel.events(0.05)
    panel.ui.inputSelector.setCurrentNode(None)
    panel.events(0.05)
    assert panel.parameters.inputVolume is None
    second = addVolume(lungSlab(), "second")
    panel.events(0.05)
    assert panel.parameters.inputVolume is second


def test_what_is_no_scan_is_not_chosen(panel):
    addVolume((lungSlab() < -500).astype("uint8"), "a label map", className="vtkMRMLLabelMapVolumeNode")
    addVolume(lungSlab(), "a result").SetAttribute("CTMicroSR.derived", "true")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "without voxels")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colours")
    gone = addVolume(lungSlab(), "removed at once")
    slicer.mrmlScene.RemoveNode(gone)
    panel.events(0.05)
    assert panel.parameters.inputVolume is None


def test_a_panel_that_is_not_open_chooses_when_it_is_entered(panel):
    panel.widget.exit()
    scan = addVolume(lungSlab(), "chest")
    panel.events(0.05)
    assert panel.parameters is None
    panel.widget.enter()
    assert panel.parameters.inputVolume is scan


def test_a_panel_that_is_gone_hears_of_nothing(panel):
    addVolume(lungSlab(), "on its way")
    panel.widget.cleanup()
    addVolume(lungSlab(), "too late")
    panel.events(0.05)
    assert panel.widget._parameterNode is None
    panel.widget.setup()


def test_the_choice_of_a_scene_that_is_loaded_stays(panel, tmp_path):
    addVolume(lungSlab(), "first")
    second = addVolume(lungSlab(), "second")
    panel.events(0.05)
    panel.parameters.inputVolume = second
    for volume in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLNRRDStorageNode")
        storage.SetFileName(str(tmp_path / f"{volume.GetName()}.nrrd"))
        assert storage.WriteData(volume)
        volume.SetAndObserveStorageNodeID(storage.GetID())
    scene = slicer.mrmlScene
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    panel.widget.onSceneStartClose()
    scene.Clear()
    panel.widget.onSceneEndClose()
    scene.SetURL(str(tmp_path / "scene.mrml"))
    scene.Connect()
    panel.events(0.05)
    assert panel.parameters.inputVolume.GetName() == "second"
