"""The examples for Slicer's Python console that the README shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import slicer

README = Path(__file__).parents[2] / "README.md"
BLOCKS = [
    block
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    if "CTMicroSRLogic" in block
]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_console_examples_run_as_they_stand(block, scene, temporaryFolder, monkeypatch):
    import scriptedmodule

    scriptedmodule.install()
    from CTMicroSRSlicer.inputs import readVolume
    from CTMicroSRSlicer.sampledata import specimenFile

    sys.modules.pop("CTMicroSR", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    node = scene.AddNode(readVolume(specimenFile(), slicer.vtkMRMLScalarVolumeNode()))
    node.SetName("Simulated specimen")
    exec(compile(block, "README.md", "exec"), {"slicer": slicer, "__name__": "console"})
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") > 1
    assert list(temporaryFolder.iterdir()) == []
