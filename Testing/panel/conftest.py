"""The panel in a real Qt window on an offscreen display, over Slicer's real MRML."""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("slicer") is None or importlib.util.find_spec("PySide6") is None:
    collect_ignore_glob = ["test_*.py"]
    warnings.warn(
        "slicer-core and PySide6 are not installed (pip install '.[slicer]'): no test of Slicer", stacklevel=1
    )
else:
    for folder in (REPOSITORY / "CTMicroSR", REPOSITORY / "Testing" / "panel" / "standins"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    import scriptedmodule
    import slicer
    import slicerapplication

    scriptedmodule.install()


class Panel:
    """The module's widget in a window, with what a user does to it."""

    def __init__(self, widget, window) -> None:
        self.widget, self.window, self.ui = widget, window, widget.ui
        self.messages: list[str] = []
        show = widget.showMessage
        widget.showMessage = lambda text: (self.messages.append(text), show(text))

    @property
    def parameters(self):
        return self.widget._parameterNode

    @property
    def status(self) -> str:
        return self.ui.statusLabel.text()

    def events(self, seconds: float = 0.0) -> None:
        end = time.monotonic() + seconds
        slicer.app.processEvents()
        while time.monotonic() < end:
            time.sleep(0.01)
            slicer.app.processEvents()

    def until(self, condition, seconds: float = 180.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it took longer than {seconds} s; the panel says: {self.status}"
            self.events(0.02)

    def screenshot(self, name: str) -> None:
        """Saved where CTMICROSR_SCREENSHOTS says, if it does."""
        import os

        folder = os.environ.get("CTMICROSR_SCREENSHOTS")
        self.events(0.05)
        if folder:
            self.window.grab().save(str(Path(folder) / f"panel-{name}.png"))


@pytest.fixture(scope="session", autouse=True)
def _application():
    if not hasattr(slicer, "app"):
        slicerapplication.startApplication()


@pytest.fixture
def scene(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CTMICROSR_MODELS", str(tmp_path_factory.mktemp("models")))
    slicerapplication.newScene()
    slicerapplication.addViews()
    monkeypatch.setattr(slicer.app, "temporaryPath", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield slicer.mrmlScene
    slicerapplication.removeViews()


@pytest.fixture
def panel(scene):
    """The open panel over an empty scene."""
    import scriptedmodule

    scriptedmodule.install()
    import CTMicroSR

    window = scriptedmodule.ModulePanel()
    widget = CTMicroSR.CTMicroSRWidget(window)
    widget.setup()
    widget.enter()
    window.resize(480, 900)
    window.show()
    yield Panel(widget, window)
    widget.cleanup()
    window.close()


@pytest.fixture
def specimen(panel):
    """The shipped sample in the scene, chosen as input, with everything as region."""
    from CTMicroSRSlicer.inputs import readVolume
    from CTMicroSRSlicer.parameters import Region
    from CTMicroSRSlicer.sampledata import specimenFile

    node = slicer.mrmlScene.AddNode(readVolume(specimenFile(), slicer.vtkMRMLScalarVolumeNode()))
    node.SetName("specimen")
    node.CreateDefaultDisplayNodes()
    panel.parameters.inputVolume = node
    panel.parameters.region = Region.WHOLE
    return node


@pytest.fixture
def engine(panel):
    """Does what the child process does when a test says so."""
    from fakeengine import FakeEngine

    made = FakeEngine()
    panel.widget.logic._launcher, panel.widget.logic._findPython = made, lambda: "python"
    return made
