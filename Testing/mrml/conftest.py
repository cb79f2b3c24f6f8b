"""Slicer's real MRML, VTK and module logics (slicer-core) with a few stand-ins for the application around them."""

from __future__ import annotations

import importlib.util
import sys
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
    from smallvolumes import addVolume, lungSlab

    scriptedmodule.install()  # slicer.i18n


@pytest.fixture(scope="session", autouse=True)
def _application():
    if not hasattr(slicer, "app"):
        slicerapplication.startApplication()


@pytest.fixture
def scene():
    """An empty scene with its default nodes."""
    slicerapplication.newScene()
    return slicer.mrmlScene


@pytest.fixture
def temporaryFolder(tmp_path):
    """Where the logic makes its temporary folders; a test can see whether anything is left."""
    before = slicer.app.temporaryPath
    slicer.app.temporaryPath = str(tmp_path)
    yield tmp_path
    slicer.app.temporaryPath = before


@pytest.fixture
def sceneContent():
    """The scene as far as a user sees it: every node's class, name and ID."""

    def content() -> list[str]:
        nodes = (slicer.mrmlScene.GetNthNode(index) for index in range(slicer.mrmlScene.GetNumberOfNodes()))
        return sorted(f"{node.GetClassName()} {node.GetName()} {node.GetID()}" for node in nodes)

    return content


@pytest.fixture
def slab(scene):
    """A small chest CT in the scene."""
    return addVolume(lungSlab(), "chest")


@pytest.fixture
def logic(temporaryFolder, monkeypatch):
    """The logic with the real child process, one thread."""
    from CTMicroSRSlicer.logic import SuperResolutionLogic

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = SuperResolutionLogic()
    yield made
    made.close()
