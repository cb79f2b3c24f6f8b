"""The test for inside Slicer: the shipped specimen through the real child process, and the scene afterwards."""

from __future__ import annotations

import unittest

import numpy as np
import slicer

from CTMicroSRLib.errors import CTMicroSRError
from CTMicroSRSlicer.inputs import readVolume
from CTMicroSRSlicer.logic import SuperResolutionLogic
from CTMicroSRSlicer.sampledata import specimenFile


def run(logic: SuperResolutionLogic) -> None:
    """Raises AssertionError where something is wrong, SkipTest where torch is missing."""
    volume = slicer.mrmlScene.AddNode(readVolume(specimenFile(), slicer.vtkMRMLScalarVolumeNode()))
    volume.SetName("specimen")
    volume.CreateDefaultDisplayNodes()
    stages: list[str] = []
    before = slicer.mrmlScene.GetNumberOfNodes()
    label = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "a label map")
    _isRefused(logic, label)
    slicer.mrmlScene.RemoveNode(label)
    _check(slicer.mrmlScene.GetNumberOfNodes() == before, "a refused run left nodes behind")
    missing = logic.missingPackages()
    if missing:
        raise unittest.SkipTest(f"this Slicer has no {', '.join(missing)}: nothing is super-resolved")
    result = logic.superResolve(volume, region="whole", onProgress=lambda progress: stages.append(progress.stage))
    _check("super-resolving" in stages, "no progress was reported")
    inputs, outputs = np.zeros(6), np.zeros(6)
    volume.GetRASBounds(inputs)
    result.volume.GetRASBounds(outputs)
    _check(np.allclose(inputs, outputs, atol=1e-3), "the result does not lie where the input lies")
    _check(result.report["consistency"]["residual_rms_hu"] < 100, "the result contradicts the scan")


def _isRefused(logic: SuperResolutionLogic, node: slicer.vtkMRMLNode) -> None:
    try:
        logic.superResolve(node)
    except CTMicroSRError:
        return
    raise AssertionError("a label map was not refused")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
