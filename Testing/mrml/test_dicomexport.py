"""A result that is exported to DICOM says that it is derived."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import slicer
from CTMicroSRSlicer import dicomexport
from smallvolumes import addVolume, lungSlab

pydicom = pytest.importorskip("pydicom")


class SlicersPlugin:
    """DICOMScalarVolumePluginClass: Slicer 5.12, Modules/Scripted/DICOMPlugins/DICOMScalarVolumePlugin.py."""

    def examineForExport(self, item):
        tags = {"SeriesDescription": "No series description", "Modality": "CT"}
        return [SimpleNamespace(subjectHierarchyItemID=item, tags=tags, setTag=tags.__setitem__, directory="")]

    def export(self, exportables):
        for exportable in exportables:
            folder = Path(exportable.directory) / f"ScalarVolume_{exportable.subjectHierarchyItemID}"
            folder.mkdir()
            dataset = pydicom.Dataset()
            dataset.SeriesDescription = exportable.tags["SeriesDescription"]
            dataset.SOPClassUID = pydicom.uid.CTImageStorage
            dataset.SOPInstanceUID = pydicom.uid.generate_uid()
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            dataset.save_as(folder / "IMG0001.dcm", enforce_file_format=True)
        return ""


@pytest.fixture
def items(scene):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    scan, result = addVolume(lungSlab(), "scan"), addVolume(lungSlab(), "scan SR x8")
    facts = {"derived": "true", "inputName": "a long name of a chest CT series in the hospital", "model": "compact-8x"}
    for key, value in {
        **facts,
        "modelSha256": "0" * 64,
        "version": "0",
        "scale": "4",
        "notice": "Research use.",
    }.items():
        result.SetAttribute(f"CTMicroSR.{key}", value)
    return [hierarchy.CreateItem(hierarchy.GetSceneItemID(), node) for node in (scan, result)]


def test_only_results_are_offered_and_before_slicers_own_plug_in(items):
    plugin = dicomexport.makePlugin(SlicersPlugin)()
    assert plugin.examineForExport(items[0]) == []
    (exportable,) = plugin.examineForExport(items[1])
    assert exportable.confidence == 1.0
    assert exportable.pluginClass == dicomexport.PLUGIN
    description = exportable.tags["SeriesDescription"]
    assert "CTMicroSR x4 (derived, not for diagnosis)" in description
    assert len(description) <= 64


def test_exported_files_are_derived_and_say_how(items, tmp_path):
    plugin = dicomexport.makePlugin(SlicersPlugin)()
    exportables = plugin.examineForExport(items[1])
    exportables[0].directory = str(tmp_path)
    assert plugin.export(exportables) == ""
    dataset = pydicom.dcmread(next(tmp_path.rglob("*.dcm")))
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert "compact-8x" in dataset.DerivationDescription
    assert "Research use." in dataset.ImageComments


def test_an_error_of_slicers_export_is_handed_on(items):
    plugin = dicomexport.makePlugin(SlicersPlugin)()
    base = SlicersPlugin.export
    SlicersPlugin.export = lambda self, exportables: "Empty modality"
    try:
        assert plugin.export([]) == "Empty modality"
    finally:
        SlicersPlugin.export = base


def test_without_slicers_dicom_modules_nothing_is_registered(scene):
    dicomexport.register()
    assert not hasattr(slicer.modules, "dicomPlugins")
