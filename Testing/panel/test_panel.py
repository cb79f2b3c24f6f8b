"""What a user does with the panel and sees of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re

import pytest
import slicer

ANSWER_SECONDS = 15.0
"""About a second is promised; a machine that others load takes longer."""


def test_the_whole_panel_needs_no_scrolling_at_1080p(panel):
    panel.events()
    assert panel.window.minimumSizeHint().height() < 900
    for section in ("scanSection", "viewSection", "outputsSection", "advancedSection"):
        getattr(panel.ui, section).setCollapsed(False)
    panel.events()
    assert panel.window.minimumSizeHint().height() < 1080 - 150
    panel.screenshot("all")


def test_every_parameter_of_the_panel_is_bound_to_a_widget(panel):
    bound = {widget.property("SlicerParameterName") for widget in vars(panel.ui).values()} - {None}
    unbound = set(panel.parameters.allParameters) - bound
    assert unbound == {"model", "comparedVolume", "resultVolume", "resultUncertainty"}
    assert bound <= set(panel.parameters.allParameters)


def test_without_a_scan_there_is_nothing_to_click(panel):
    assert not panel.ui.applyButton.isEnabled()
    panel.screenshot("empty")


def test_the_line_says_what_will_happen_and_a_click_does_it_and_shows_it(panel, specimen, tmp_path):
    panel.parameters.uncertainty = True
    panel.parameters.passes = 2
    panel.until(lambda: "voxels" in panel.ui.estimateLabel.text())
    line = panel.ui.estimateLabel.text()
    assert "512 x 512 x 8" in line
    assert "about" in line
    assert "free memory" in line
    panel.screenshot("ready")
    before = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode").GetViewArrangement()
    bar = []
    panel.ui.progressBar.valueChanged.connect(bar.append)
    panel.ui.applyButton.click()
    assert panel.ui.applyButton.text() == "Cancel"
    panel.until(lambda: "Super-resolving" in panel.status)
    panel.screenshot("running")
    panel.until(lambda: not panel.widget.logic.isRunning)
    assert len(bar) > 3
    assert bar == sorted(bar), "the bar went back"
    assert any(re.fullmatch(r"Reading the scan, \d+ (s|min) left", message) for message in panel.messages)
    assert "is there after" in panel.status
    assert panel.ui.applyButton.text() == "Super-resolve"
    assert list(tmp_path.iterdir()) == []
    result = panel.parameters.resultVolume
    assert slicer.util.arrayFromVolume(result).shape == (8, 512, 512)
    _checkComparison(panel, specimen, result)
    panel.screenshot("done")
    _checkOverlay(panel, result)
    panel.ui.compareButton.click()
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode").GetViewArrangement() == before


def _checkComparison(panel, specimen, result):
    from CTMicroSRSlicer import comparison, sliceviews

    assert panel.ui.compareButton.isChecked()
    assert panel.widget.look.comparison.isShown
    left, right = (sliceviews.compositeNode(view) for view in (comparison.INPUT_VIEW, comparison.RESULT_VIEW))
    assert left.GetBackgroundVolumeID() == specimen.GetID()
    assert right.GetBackgroundVolumeID() == result.GetID()
    assert left.GetLinkedControl()
    assert right.GetLinkedControl()


def _checkOverlay(panel, result):
    from CTMicroSRSlicer import overlay, sliceviews
    from CTMicroSRSlicer.comparison import RESULT_VIEW

    uncertainty = panel.parameters.resultUncertainty
    panel.ui.overlayCheckBox.click()
    composite = sliceviews.compositeNode(RESULT_VIEW)
    assert composite.GetForegroundVolumeID() == uncertainty.GetID()
    assert overlay.colorLegend(uncertainty).GetVisibility()
    panel.ui.opacitySlider.setValue(0.25)
    assert composite.GetForegroundOpacity() == pytest.approx(0.25)
    panel.ui.thresholdSlider.setValue(30)
    assert uncertainty.GetDisplayNode().GetLowerThreshold() == pytest.approx(30)
    panel.ui.overlayCheckBox.click()
    assert composite.GetForegroundVolumeID() is None
    assert not overlay.colorLegend(uncertainty).GetVisibility()


def test_cancelling_takes_about_a_second_and_leaves_nothing(panel, specimen, tmp_path):
    import time

    panel.widget.estimateTimer.stop()
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    panel.ui.applyButton.click()
    child = panel.widget.logic._run._child._process
    panel.until(lambda: panel.messages[-1] not in ("Starting...",))
    started = time.monotonic()
    panel.ui.applyButton.click()
    assert panel.status == "Cancelling..."
    assert not panel.ui.applyButton.isEnabled()
    panel.until(lambda: not panel.widget.logic.isRunning, seconds=20)
    assert time.monotonic() - started < ANSWER_SECONDS
    assert child.poll() is not None
    assert "Cancelled" in panel.status
    assert panel.ui.applyButton.isEnabled()
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    assert list(tmp_path.iterdir()) == []


def test_a_scene_closed_while_running_ends_the_run(panel, specimen, tmp_path):
    panel.widget.estimateTimer.stop()
    panel.ui.applyButton.click()
    panel.until(lambda: panel.messages[-1] != "Starting...")
    slicer.mrmlScene.Clear()
    panel.until(lambda: not panel.widget.logic.isRunning, seconds=20)
    assert "scene was closed" in panel.status
    assert list(tmp_path.iterdir()) == []


def test_a_module_closed_while_running_ends_the_child(panel, specimen, tmp_path):
    panel.widget.estimateTimer.stop()
    panel.ui.applyButton.click()
    child = panel.widget.logic._run._child._process
    panel.widget.cleanup()
    assert child.poll() is not None
    assert list(tmp_path.iterdir()) == []
    panel.widget.setup()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("roi", "No ROI is chosen"),
        ("transform", "harden the transform"),
        ("geometry", "no valid geometry"),
        ("modality", "is MR, not CT"),
        ("voxels", "has no voxels"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(panel, specimen, tmp_path, spoil, sentence):
    _spoil(panel, specimen, spoil)
    panel.widget.estimateTimer.stop()
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    panel.ui.applyButton.click()
    assert sentence in panel.status
    assert "\n" not in panel.status
    assert panel.ui.applyButton.text() == "Super-resolve"
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    assert list(tmp_path.iterdir()) == []
    panel.screenshot(f"refused-{spoil}")


def _spoil(panel, specimen, how):
    from CTMicroSRSlicer.parameters import Region

    if how == "roi":
        panel.parameters.region = Region.ROI
    elif how == "transform":
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
        specimen.SetAndObserveTransformNodeID(transform.GetID())
    elif how == "geometry":
        specimen.SetIJKToRASDirections(1, 0.5, 0, 0, 1, 0, 0, 0, 1)
    elif how == "modality":
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), specimen)
        hierarchy.SetItemAttribute(item, "DICOM.Modality", "MR")
    elif how == "voxels":
        specimen.SetAndObserveImageData(None)


def test_a_missing_model_is_named(panel, specimen, tmp_path):
    panel.parameters.model = "not-there"
    panel.widget.estimateTimer.stop()
    assert "not installed" in panel.ui.cardLabel.text()
    panel.ui.applyButton.click()
    panel.until(lambda: not panel.widget.logic.isRunning)
    assert "There is no model 'not-there'" in panel.status
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_panel_says_what_to_do(panel, specimen, monkeypatch, tmp_path):
    version, find = importlib.metadata.version, importlib.util.find_spec

    def without(name):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == "torch" else find(name))
    panel.widget.estimateTimer.stop()
    panel.ui.applyButton.click()
    assert "torch" in panel.status
    assert "missing" in panel.status
    assert list(tmp_path.iterdir()) == []


def test_a_new_roi_starts_inside_the_scan(panel, specimen):
    from CTMicroSRSlicer import inputs
    from CTMicroSRSlicer.parameters import Region

    panel.parameters.region = Region.ROI
    assert panel.ui.roiSelector.isVisibleTo(panel.window)
    roi = panel.ui.roiSelector.addNode()
    panel.widget.estimateTimer.stop()
    assert panel.parameters.roi is roi
    i, j, k = ([int(n) for n in part.split(":")] for part in inputs.regionOfRoi(specimen, roi).split(","))
    assert 0 <= i[0] < i[1] <= 64
    assert 0 <= j[0] < j[1] <= 64
    assert k == [0, 8]


def test_choices_survive_saving_and_loading_the_scene(panel, specimen, tmp_path):
    panel.parameters.passes = 7
    panel.parameters.device = "cpu"
    panel.parameters.uncertainty = True
    scene = slicer.mrmlScene
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    panel.widget.onSceneStartClose()
    scene.Clear()
    scene.SetURL(str(tmp_path / "scene.mrml"))
    scene.Connect()
    panel.widget.initializeParameterNode()
    assert (panel.parameters.passes, panel.parameters.device, panel.parameters.uncertainty) == (7, "cpu", True)
    assert panel.ui.passesSpinBox.value() == 7
    assert panel.ui.uncertaintyCheckBox.isChecked()


def test_diagnostics_name_versions_and_the_last_message_but_no_patient(panel, specimen):
    specimen.SetName("Jane Doe 1950")
    panel.widget.showMessage("The last thing that happened.")
    panel.ui.diagnosticsButton.click()
    text = slicer.app.clipboard().text()
    for part in (
        "CTMicroSR: ",
        "Slicer: 5.12.3",
        "torch: ",
        "memory: ",
        "model compact-8x",
        "The last thing that happened.",
    ):
        assert part in text
    assert "Jane" not in text


def test_opening_the_panel_starts_nothing_and_writes_nothing(panel, tmp_path):
    assert not panel.widget.logic.isRunning
    panel.events(1.0)
    assert list(tmp_path.iterdir()) == []
