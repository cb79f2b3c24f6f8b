"""Comparing begins and ends with what is compared, however that comes about."""

from __future__ import annotations

import pytest
import slicer
import vtk
from CTMicroSRSlicer.comparison import INPUT_VIEW, LAYOUT, RESULT_VIEW, registerLayout
from CTMicroSRSlicer.overlay import colorLegend
from CTMicroSRSlicer.sliceviews import compositeNode, layoutNode, nodesOf


def superResolve(panel, engine, **parameters):
    for name, value in parameters.items():
        setattr(panel.parameters, name, value)
    panel.ui.applyButton.click()
    engine.finish()
    return panel.parameters.resultVolume


@pytest.fixture
def compared(panel, specimen, engine):
    """A result with its uncertainty over it, beside its scan."""
    result = superResolve(panel, engine, uncertainty=True)
    panel.ui.overlayCheckBox.click()
    assert layoutNode().GetViewArrangement() == LAYOUT
    assert panel.ui.compareButton.isChecked()
    return result


def isLayout(panel, arrangement):
    return (
        layoutNode().GetViewArrangement() == arrangement
        and not panel.ui.compareButton.isChecked()
        and not panel.widget.look.comparison.isShown
    )


@pytest.mark.parametrize("which", ["resultVolume", "comparedVolume"])
def test_what_is_compared_is_deleted(panel, specimen, compared, which):
    uncertainty = panel.parameters.resultUncertainty
    composites = nodesOf(slicer.mrmlScene, "vtkMRMLSliceCompositeNode")
    composites[0].SetBackgroundVolumeID(compared.GetID())  # an ordinary view
    slicer.mrmlScene.RemoveNode(getattr(panel.parameters, which))
    panel.events(0.05)
    compare = [compositeNode(view) for view in (INPUT_VIEW, RESULT_VIEW)]
    assert not any(composite.GetLinkedControl() for composite in compare), "they would tell the others"
    assert isLayout(panel, slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    assert not panel.ui.compareButton.isEnabled()
    if which == "resultVolume":
        assert all(composite.GetForegroundVolumeID() is None for composite in composites)
        assert {c.GetBackgroundVolumeID() for c in (composites[0], *compare)} == {specimen.GetID()}
        assert not colorLegend(uncertainty).GetVisibility()
        assert panel.status == "", "it is not there any more"


def test_what_is_compared_is_deleted_while_the_panel_is_closed(panel, compared):
    panel.widget.exit()
    slicer.mrmlScene.RemoveNode(compared)
    assert isLayout(panel, slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)


def test_another_layout_that_is_chosen_in_slicer_ends_it(panel, compared):
    layoutNode().SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)
    assert isLayout(panel, slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)
    panel.ui.compareButton.click()
    assert layoutNode().GetViewArrangement() == LAYOUT
    panel.ui.compareButton.click()
    assert isLayout(panel, slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView)


def test_a_scene_saved_meanwhile_holds_no_layout_that_only_this_module_knows(panel, compared, tmp_path):
    def saved():
        slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
        assert slicer.mrmlScene.Commit()
        return (tmp_path / "scene.mrml").read_text(encoding="utf-8")

    assert str(LAYOUT) not in saved()
    assert layoutNode().GetViewArrangement() == LAYOUT, "it goes on"
    panel.ui.compareButton.click()
    assert 'currentViewArrangement="3"' in saved()


def test_a_layout_that_came_with_a_scene_can_be_left(panel):
    registerLayout()
    layoutNode().SetViewArrangement(LAYOUT)
    assert panel.ui.compareButton.isChecked()
    panel.widget.onParametersChanged()
    assert panel.ui.compareButton.isEnabled()
    panel.ui.compareButton.click()
    assert isLayout(panel, slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)


def test_a_scan_moved_during_the_run_is_told_first_and_not_compared(panel, specimen, engine):
    panel.ui.applyButton.click()
    specimen.SetOrigin(100, 100, 100)
    engine.finish()
    assert panel.status.startswith("specimen has been moved since the run began")
    assert "specimen SR x8 is there" in panel.status
    assert isLayout(panel, slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)


def test_volumes_that_lie_apart_are_not_compared(panel, compared, specimen):
    panel.ui.compareButton.click()
    before = specimen.GetOrigin()
    specimen.SetOrigin(0.3, 0, 0)
    panel.ui.compareButton.click()
    assert isLayout(panel, slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    assert "no longer lie at the same place" in panel.status
    specimen.SetOrigin(before)
    assert panel.status == "", "it can be compared again"
    panel.ui.compareButton.click()
    assert panel.widget.look.comparison.isShown


def test_a_result_without_uncertainty_hides_that_of_the_one_before(panel, compared, engine):
    earlier = panel.parameters.resultUncertainty
    assert colorLegend(earlier).GetVisibility()
    superResolve(panel, engine, uncertainty=False)
    assert not colorLegend(earlier).GetVisibility()
    assert compositeNode(RESULT_VIEW).GetForegroundVolumeID() is None
    assert compositeNode(INPUT_VIEW).GetForegroundVolumeID() is None
    assert not panel.ui.overlayCheckBox.isEnabled()


def test_the_views_are_linked_with_each_other_only(compared):
    groups = {node.GetLayoutName(): node.GetViewGroup() for node in nodesOf(slicer.mrmlScene, "vtkMRMLSliceNode")}
    assert groups.pop(INPUT_VIEW) == groups.pop(RESULT_VIEW) == LAYOUT
    assert set(groups.values()) == {0}


def test_views_are_left_alone_where_nothing_of_the_uncertainty_changes(panel, compared):
    changed = []
    for composite in nodesOf(slicer.mrmlScene, "vtkMRMLSliceCompositeNode"):
        composite.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: changed.append(1))
    panel.ui.passesSpinBox.setValue(7)
    panel.ui.thresholdSlider.setValue(20)
    assert changed == []
    panel.ui.overlayCheckBox.click()
    assert changed != []
