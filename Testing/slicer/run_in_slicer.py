"""Everything that only a real Slicer can show. Run it with a Slicer whose Python has torch:

Slicer --no-splash --testing --additional-module-paths CTMicroSR CTMicroSR/CTMicroSRBatch \
       --python-script Testing/slicer/run_in_slicer.py [FOLDER FOR SCREENSHOTS]

The module paths must come before --python-script. Slicer ends with status 0 when all of it holds.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
import unittest
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import slicer

SCREENSHOTS = Path(sys.argv[-1]) if len(sys.argv) > 1 and Path(sys.argv[-1]).is_dir() else None
SECONDS = 300
WINDOW = (1920, 1080)
"""Width and height of the screenshots, at which the panel needs no scrolling."""


def until(condition, seconds: float = SECONDS) -> None:
    """Let Slicer live until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"it took longer than {seconds} s")
        slicer.app.processEvents()
        time.sleep(0.01)


def screenshot(name: str) -> None:
    """The whole window, if it is there and a folder was given."""
    window = slicer.util.mainWindow()
    if SCREENSHOTS is not None and window is not None:
        window.resize(*WINDOW)
        for _ in range(20):
            slicer.app.processEvents()
            time.sleep(0.01)
        window.grab().save(str(SCREENSHOTS / f"slicer-{name}.png"))


def loadSpecimen():
    """The shipped sample, through Slicer's own reader."""
    from CTMicroSRSlicer.sampledata import specimenFile

    return slicer.util.loadVolume(str(specimenFile()), {"name": "specimen"})


@contextmanager
def renamedModel(folder: Path):
    """The shipped model under another name, in a folder; models are imported into the folder, too, meanwhile."""
    from CTMicroSRLib.models import FOLDER_VARIABLE, find_model

    source = Path(shutil.copytree(find_model("compact-8x").folder, folder / "source"))
    card = source / "card.json"
    content = {**json.loads(card.read_text(encoding="utf-8")), "name": "compact-again"}
    card.write_text(json.dumps(content), encoding="utf-8")
    before = os.environ.get(FOLDER_VARIABLE)
    os.environ[FOLDER_VARIABLE] = str(folder / "installed")
    try:
        yield source
    finally:
        del os.environ[FOLDER_VARIABLE]
        if before is not None:
            os.environ[FOLDER_VARIABLE] = before


class InSlicer(unittest.TestCase):
    """The logic, the CLI module and the panel in the application."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def test_logic(self):
        from CTMicroSRSlicer import selftest

        import CTMicroSR

        selftest.run(CTMicroSR.CTMicroSRLogic())

    def test_result_is_in_the_subject_hierarchy_once(self):
        import CTMicroSR

        volume = loadSpecimen()
        result = CTMicroSR.CTMicroSRLogic().superResolve(volume, "8:40,8:40,2:4")
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        items = [hierarchy.GetItemByDataNode(node) for node in (volume, result.volume)]
        assert all(items)
        assert hierarchy.GetItemParent(items[0]) == hierarchy.GetItemParent(items[1])

    def test_cli_module_gives_the_same_voxels(self):
        import CTMicroSR

        volume = loadSpecimen()
        region = "8:40,8:40,2:4"
        expected = slicer.util.arrayFromVolume(CTMicroSR.CTMicroSRLogic().superResolve(volume, region).volume)
        output = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "by the CLI module")
        parameters = {"inputVolume": volume, "outputVolume": output, "region": region}
        node = slicer.cli.runSync(slicer.modules.ctmicrosrbatch, None, parameters)
        # The error text holds the command's warnings, too.
        assert not node.GetStatus() & node.ErrorsMask, node.GetErrorText()
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(output), expected)

    def test_panel(self):
        if slicer.util.mainWindow() is None:
            self.skipTest("there is no main window")
        from CTMicroSRSlicer.parameters import Region

        volume = loadSpecimen()
        slicer.util.selectModule("CTMicroSR")
        widget = slicer.modules.CTMicroSRWidget
        parameters = widget._parameterNode
        parameters.inputVolume = volume
        parameters.region = Region.WHOLE
        until(lambda: widget._hasEstimate)
        screenshot("ready")
        assert "512 x 512 x 8" in widget.ui.estimateLabel.text
        parameters.uncertainty = True
        parameters.passes = 2
        before = slicer.app.layoutManager().layout
        bar = []
        widget.ui.progressBar.connect("valueChanged(int)", bar.append)
        widget.ui.applyButton.click()
        until(lambda: "uper-resolving" in widget._message or not widget.logic.isRunning)
        screenshot("running")
        until(lambda: not widget.logic.isRunning)
        assert "is there after" in widget._message
        assert len(bar) > 3, bar
        assert bar == sorted(bar), bar
        assert widget.look.comparison.isShown
        screenshot("result")
        widget.ui.overlayCheckBox.click()
        screenshot("done")
        widget.ui.compareButton.click()
        assert slicer.app.layoutManager().layout == before

    def test_panel_takes_a_scan_that_is_loaded_while_it_is_open(self):
        if slicer.util.mainWindow() is None:
            self.skipTest("there is no main window")
        slicer.util.selectModule("CTMicroSR")
        widget = slicer.modules.CTMicroSRWidget
        assert widget._parameterNode.inputVolume is None
        first = loadSpecimen()
        until(lambda: widget._parameterNode.inputVolume is not None, seconds=10)
        loadSpecimen()
        until(lambda: widget._hasEstimate)
        assert widget._parameterNode.inputVolume is first
        assert widget.ui.inputSelector.currentNode() is first

    def test_panel_follows_layout_and_scene(self):
        if slicer.util.mainWindow() is None:
            self.skipTest("there is no main window")
        from CTMicroSRSlicer.parameters import Region

        layouts = slicer.app.layoutManager()
        fourUp = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        layouts.setLayout(fourUp)
        slicer.util.selectModule("CTMicroSR")
        widget = slicer.modules.CTMicroSRWidget
        widget._parameterNode.inputVolume = loadSpecimen()
        widget._parameterNode.region = Region.WHOLE
        red = slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
        offset = red.GetSliceOffset()
        widget.ui.applyButton.click()
        until(lambda: not widget.logic.isRunning)
        assert widget.look.comparison.isShown
        assert red.GetSliceOffset() == offset, "the other views stay as they were"
        layouts.setLayout(fourUp)
        assert not widget.ui.compareButton.checked
        widget.ui.compareButton.click()
        assert widget.look.comparison.isShown
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "scene.mrb")
            assert slicer.util.saveScene(file)
            assert widget.look.comparison.isShown
            slicer.mrmlScene.Clear()
            assert layouts.layout == fourUp
            slicer.util.loadScene(file)
        until(lambda: widget.ui.inputSelector.currentNode() is not None, seconds=10)
        assert layouts.layout == fourUp
        assert widget._message == ""
        widget.ui.compareButton.click()
        assert widget.look.comparison.isShown
        screenshot("loaded")
        slicer.mrmlScene.RemoveNode(widget._parameterNode.resultVolume)
        until(lambda: not widget.look.comparison.isShown, seconds=10)
        assert layouts.layout == fourUp
        assert not widget.ui.compareButton.checked
        assert not widget.ui.compareButton.enabled
        shown = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode().GetBackgroundVolumeID()
        assert slicer.mrmlScene.GetNodeByID(shown).GetName() == "specimen"

    def test_panel_imports_and_removes_a_model(self):
        if slicer.util.mainWindow() is None:
            self.skipTest("there is no main window")
        from CTMicroSRLib.models import find_model

        slicer.util.selectModule("CTMicroSR")
        widget = slicer.modules.CTMicroSRWidget
        widget.ui.advancedSection.collapsed = False
        with tempfile.TemporaryDirectory() as folder, renamedModel(Path(folder)) as source:
            widget.modelChooser.dialogs = SimpleNamespace(
                chooseFolder=lambda _title: str(source), confirm=lambda _text: True
            )
            assert not widget.ui.removeModelButton.enabled
            widget.ui.importModelButton.click()
            assert widget._parameterNode.model == "compact-again", widget._message
            assert widget.ui.modelSelector.currentText == "compact-again"
            screenshot("models")
            assert not find_model("compact-again").shipped
            widget.ui.removeModelButton.click()
            assert widget._message == "compact-again was removed."
            assert widget._parameterNode.model == "compact-8x"
            assert not widget.ui.removeModelButton.enabled
        widget.ui.advancedSection.collapsed = True

    def test_panel_cancel(self):
        if slicer.util.mainWindow() is None:
            self.skipTest("there is no main window")
        from CTMicroSRSlicer.parameters import Region

        volume = loadSpecimen()
        slicer.util.selectModule("CTMicroSR")
        widget = slicer.modules.CTMicroSRWidget
        widget._parameterNode.inputVolume = volume
        widget._parameterNode.region = Region.WHOLE
        widget.estimateTimer.stop()
        before = slicer.mrmlScene.GetNumberOfNodes()
        folders = set(Path(slicer.app.temporaryPath).glob("CTMicroSR-*"))
        widget.ui.applyButton.click()
        until(lambda: widget.logic.isRunning)
        started = time.monotonic()
        widget.ui.applyButton.click()
        until(lambda: not widget.logic.isRunning, seconds=10)
        assert time.monotonic() - started < 5
        assert slicer.mrmlScene.GetNumberOfNodes() == before
        widget.estimateTimer.stop()
        widget.logic.close()  # the estimate that follows a run
        assert set(Path(slicer.app.temporaryPath).glob("CTMicroSR-*")) <= folders

    def test_scene_closed_while_running(self):
        from CTMicroSRSlicer.commands import RunSettings
        from CTMicroSRSlicer.request import Request

        import CTMicroSR

        logic, ended = CTMicroSR.CTMicroSRLogic(), []
        logic.start(
            Request(loadSpecimen(), RunSettings(region="whole")), lambda _: None, lambda *end: ended.append(end)
        )
        slicer.mrmlScene.Clear()
        until(lambda: ended, seconds=10)
        assert "scene was closed" in str(ended[0][1])

    def test_results_survive_saving_and_loading(self):
        import CTMicroSR

        result = CTMicroSR.CTMicroSRLogic().superResolve(loadSpecimen(), "8:40,8:40,2:4", uncertainty=True, passes=2)
        expected, name = slicer.util.arrayFromVolume(result.volume).copy(), result.volume.GetName()
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "scene.mrb")
            assert slicer.util.saveScene(file)
            slicer.mrmlScene.Clear()
            slicer.util.loadScene(file)
        node = slicer.util.getNode(name)
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), expected)
        assert node.GetAttribute("CTMicroSR.model") == "compact-8x"

    def test_sample_data_is_registered(self):
        import SampleData

        names = [source.sampleName for source in SampleData.SampleDataLogic.sampleDataSourcesByCategory("CTMicroSR")]
        assert names == ["SimulatedSpecimen", "CTMicroSRChest"]


def main() -> None:
    """Run and end Slicer."""
    outcome = unittest.TextTestRunner(verbosity=2).run(unittest.defaultTestLoader.loadTestsFromTestCase(InSlicer))
    logging.info("CTMicroSR in Slicer: %s", outcome)
    slicer.util.exit(0 if outcome.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
