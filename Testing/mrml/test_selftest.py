"""The test that runs inside Slicer, here on slicer-core."""

from __future__ import annotations

import unittest

import pytest


@pytest.fixture
def selftest():
    import scriptedmodule

    scriptedmodule.install()
    from CTMicroSRSlicer import selftest

    return selftest


def test_it_passes(selftest, scene, logic, temporaryFolder):
    selftest.run(logic)
    assert list(temporaryFolder.iterdir()) == []


def test_it_fails_where_the_result_lies_elsewhere(selftest, scene, logic, monkeypatch):
    def elsewhere(volume, *_arguments, onProgress=None, **_options):
        if volume.IsA("vtkMRMLLabelMapVolumeNode"):
            raise selftest.CTMicroSRError("It is a label map.")
        volume.SetOrigin(1000, 0, 0)
        from types import SimpleNamespace

        other = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "other")
        other.SetAndObserveImageData(volume.GetImageData())
        onProgress(SimpleNamespace(stage="super-resolving"))
        return SimpleNamespace(volume=other, report={"consistency": {"residual_rms_hu": 1.0}})

    monkeypatch.setattr(logic, "superResolve", elsewhere)
    with pytest.raises(AssertionError, match="does not lie where"):
        selftest.run(logic)


def test_it_is_skipped_without_torch(selftest, scene, logic, monkeypatch):
    monkeypatch.setattr(type(logic), "missingPackages", lambda self: ["torch"])
    with pytest.raises(unittest.SkipTest, match="torch"):
        selftest.run(logic)
