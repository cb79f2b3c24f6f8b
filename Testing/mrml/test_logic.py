"""Super-resolving volumes of the scene through the real child process, without a panel."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import slicer
from CTMicroSRSlicer import inputs, overlay
from CTMicroSRSlicer.commands import RunFiles

REGION = "8:40,16:48,2:4"
# a turned patient: columns run to the left and up, rows to the back, slices to the feet
TURNED = np.array([[-0.8, 0.0, 0.6], [0.0, -1.0, 0.0], [-0.6, 0.0, -0.8]])


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """One real run on a turned volume under a patient's study, with everything asked for."""
    import slicerapplication
    from CTMicroSRSlicer.logic import SuperResolutionLogic
    from smallvolumes import addVolume, lungSlab

    slicerapplication.newScene()
    before = slicer.app.temporaryPath
    folder = tmp_path_factory.mktemp("temporary")
    slicer.app.temporaryPath = str(folder)
    volume = addVolume(lungSlab(), "chest", spacing=(2.0, 2.0, 3.0), directions=TURNED)
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(1234, -567)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    hierarchy.CreateItem(study, volume)
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    heard = []
    logic = SuperResolutionLogic()
    found = logic.superResolve(
        volume,
        REGION,
        uncertainty=True,
        passes=2,
        seed=5,
        lungSegmentation=True,
        onProgress=heard.append,
    )
    slicer.app.temporaryPath = before
    return {
        "input": volume,
        "result": found,
        "study": study,
        "heard": heard,
        "folder": folder,
        "scene": slicer.mrmlScene,
    }


def test_the_result_is_where_the_engine_puts_it(outcome):
    expected = inputs.geometryOf(outcome["input"]).crop(inputs.Region.parse(REGION)).refine((8, 8, 1))
    for node in (outcome["result"].volume, outcome["result"].uncertainty):
        found = inputs.geometryOf(node)
        assert found.size_ijk == expected.size_ijk
        np.testing.assert_allclose(found.spacing_mm, expected.spacing_mm, rtol=1e-9)
        np.testing.assert_allclose(found.origin_mm, expected.origin_mm, atol=1e-6)
        np.testing.assert_allclose(found.directions, expected.directions, atol=1e-9)


def test_a_region_covers_the_same_box_of_the_patient(outcome):
    # by MRML's own matrices, not the library's: the corners of the cropped input's voxels
    matrix = slicer.util.arrayFromVTKMatrix(_ijkToRas(outcome["input"]))
    fine = slicer.util.arrayFromVTKMatrix(_ijkToRas(outcome["result"].volume))
    np.testing.assert_allclose((matrix @ (7.5, 15.5, 1.5, 1))[:3], (fine @ (-0.5, -0.5, -0.5, 1))[:3], atol=1e-6)
    np.testing.assert_allclose((matrix @ (39.5, 47.5, 3.5, 1))[:3], (fine @ (255.5, 255.5, 1.5, 1))[:3], atol=1e-6)


def _ijkToRas(node):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def test_voxels_are_those_of_the_command_byte_for_byte(outcome, tmp_path):
    files = RunFiles(tmp_path)
    inputs.writeVolume(outcome["input"], files.input)
    command = [sys.executable, "-m", "CTMicroSRLib", "superres", files.input, files.output, "--region", REGION]
    command += ["--uncertainty", files.uncertainty, "--passes", "2", "--seed", "5"]
    subprocess.run([str(part) for part in command], check=True, cwd=Path(__file__).parents[2], capture_output=True)
    for path, node in ((files.output, outcome["result"].volume), (files.uncertainty, outcome["result"].uncertainty)):
        again = slicer.util.arrayFromVolume(inputs.readVolume(path, slicer.vtkMRMLScalarVolumeNode()))
        assert again.dtype == np.int16
        assert _digest(again) == _digest(slicer.util.arrayFromVolume(node))


def _digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_the_result_has_the_inputs_window(outcome):
    display = outcome["result"].volume.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (1234, -567)
    assert display.GetColorNodeID() == outcome["input"].GetDisplayNode().GetColorNodeID()
    assert not display.GetAutoWindowLevel()


def test_uncertainty_has_colours_from_zero_and_a_legend_in_hu(outcome):
    uncertainty = outcome["result"].uncertainty
    display = uncertainty.GetDisplayNode()
    assert display.GetWindowLevelMin() == 0
    assert display.GetApplyThreshold()
    assert display.GetLowerThreshold() == 1
    legend = overlay.colorLegend(uncertainty)
    assert legend.GetTitleText() == "Uncertainty (HU)"
    assert legend.GetPrimaryDisplayNode() is display
    assert slicer.util.arrayFromVolume(uncertainty).max() > 0


def test_everything_is_under_the_patients_study(outcome):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(outcome["scene"])
    found = outcome["result"]
    for node in (found.volume, found.uncertainty, found.lungs, found.reportNode):
        item = hierarchy.GetItemByDataNode(node)
        assert item
        assert hierarchy.GetItemParent(item) == outcome["study"]
    item = hierarchy.GetItemByDataNode(found.volume)
    assert "derived, not for diagnosis" in hierarchy.GetItemAttribute(item, "DICOM.SeriesDescription")


def test_the_lungs_are_a_segmentation_of_the_input(outcome):
    segmentation = outcome["result"].lungs.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 1
    assert segmentation.GetNthSegment(0).GetName() == "lungs"
    labelmap = slicer.vtkOrientedImageData()
    outcome["result"].lungs.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(0), labelmap)
    assert labelmap.GetScalarRange()[1] == 1
    assert outcome["scene"].GetNumberOfNodesByClass("vtkMRMLLabelMapVolumeNode") == 0


def test_nodes_say_where_they_came_from(outcome):
    found, volume = outcome["result"], outcome["result"].volume
    assert volume.GetAttribute("CTMicroSR.derived") == "true"
    assert volume.GetAttribute("CTMicroSR.model") == "compact-8x"
    assert len(volume.GetAttribute("CTMicroSR.modelSha256")) == 64
    assert volume.GetAttribute("CTMicroSR.seed") == "5"
    assert volume.GetAttribute("CTMicroSR.scale") == "8"
    assert "not for diagnosis" in volume.GetAttribute("CTMicroSR.notice")
    assert volume.GetAttribute("DICOM.instanceUIDs") is None
    assert volume.GetNodeReference("CTMicroSR.input") is outcome["input"]
    assert volume.GetNodeReference("CTMicroSR.uncertainty") is found.uncertainty
    report = json.loads(found.reportNode.GetText())
    assert report["region"] == REGION
    assert report == found.report
    assert "CTMicroSR-" not in found.reportNode.GetText()


def test_progress_is_heard_and_no_file_is_left(outcome):
    stages = [progress.stage for progress in outcome["heard"]]
    assert any(stage.startswith("lungs") for stage in stages)
    assert "super-resolving" in stages
    assert list(outcome["folder"].iterdir()) == []


def test_progress_is_that_of_the_whole_run_and_never_goes_back(outcome):
    fractions = [progress.fraction for progress in outcome["heard"]]
    assert fractions == sorted(fractions)
    assert max(p.fraction for p in outcome["heard"] if p.stage.startswith("lungs")) < 0.6
    assert 0.9 < fractions[-1] < 1.0, "the result still has to be loaded"


def test_results_survive_saving_and_loading_the_scene(outcome, tmp_path):
    scene, found = outcome["scene"], outcome["result"]
    expected = _valuesByPlace(found.volume)
    name, text = found.volume.GetName(), found.reportNode.GetText()
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"), None)
    again = slicer.vtkMRMLScene()
    slicer.vtkSlicerMarkupsLogic().SetMRMLScene(again)
    colors = slicer.vtkSlicerColorLogic()
    colors.SetMRMLScene(again)
    # vtkMRMLScene.ReadFromMRB needs the application's cache folder, so the bundle is unpacked here
    zipfile.ZipFile(tmp_path / "scene.mrb").extractall(tmp_path / "bundle")
    again.SetURL(str(next((tmp_path / "bundle").rglob("*.mrml"))))
    assert again.Connect()
    node = again.GetFirstNodeByName(name)
    # by place, because Slicer turns left-handed grids around when it loads a scene
    assert _valuesByPlace(node) == expected
    assert node.GetAttribute("CTMicroSR.model") == "compact-8x"
    assert node.GetNodeReference("CTMicroSR.uncertainty").GetName() == found.uncertainty.GetName()
    assert node.GetNodeReference("CTMicroSR.report").GetText() == text


def _valuesByPlace(node):
    """HU at some of the voxels, by their place in the patient in micrometres."""
    array, matrix = slicer.util.arrayFromVolume(node), slicer.util.arrayFromVTKMatrix(_ijkToRas(node))
    places = {}
    for k in range(array.shape[0]):
        for j in range(0, array.shape[1], 15):
            for i in range(0, array.shape[2], 15):
                places[tuple(np.round(1000 * (matrix @ (i, j, k, 1))[:3]).astype(int).tolist())] = int(array[k, j, i])
    return places


def test_the_lungs_are_found_once_and_the_voxels_are_still_those_of_the_command(logic, slab, temporaryFolder, tmp_path):
    found = logic.superResolve(slab)
    (tmp_path / "command").mkdir()
    files = RunFiles(tmp_path / "command")
    inputs.writeVolume(slab, files.input)
    command = [sys.executable, "-m", "CTMicroSRLib", "superres", str(files.input), str(files.output)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True)
    again = inputs.readVolume(files.output, slicer.vtkMRMLScalarVolumeNode())
    assert inputs.geometryOf(again) == inputs.geometryOf(found.volume)
    assert _digest(slicer.util.arrayFromVolume(again)) == _digest(slicer.util.arrayFromVolume(found.volume))
    assert [path for path in temporaryFolder.iterdir() if path.name != "command"] == []
