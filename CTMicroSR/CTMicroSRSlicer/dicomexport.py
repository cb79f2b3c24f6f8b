"""Exporting a result to DICOM as what it is: a derived image, not an original one.

Slicer's own export of volumes writes no image type and no derivation; this plug-in lets it write the files and
completes them. It offers itself only for results of CTMicroSR, and imports nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import slicer

from CTMicroSRSlicer.results import SERIES_DESCRIPTION

if TYPE_CHECKING:
    import pydicom

PLUGIN = "CTMicroSRDICOMPlugin"
LARGEST_DESCRIPTION = 64
"""Characters of a DICOM LO value."""

DERIVATION = "Super-resolved by CTMicroSR {version} with the model {model} (SHA-256 {sha256}). {notice}"


def register() -> None:
    """Add the plug-in to Slicer's DICOM export; without Slicer's DICOM modules there is nothing to do."""
    try:
        import DICOMScalarVolumePlugin
    except ImportError:
        return
    if not hasattr(slicer.modules, "dicomPlugins"):
        slicer.modules.dicomPlugins = {}
    slicer.modules.dicomPlugins[PLUGIN] = makePlugin(DICOMScalarVolumePlugin.DICOMScalarVolumePluginClass)


def makePlugin(base: type) -> type:
    """The plug-in, on top of Slicer's export of scalar volumes."""

    class CTMicroSRDICOMPluginClass(base):  # type: ignore[misc]
        """Exports results as derived images."""

        def __init__(self) -> None:
            super().__init__()
            self.loadType = "CTMicroSR result (derived image)"

        def examineForImport(self, fileLists: list[list[str]]) -> list[object]:
            """Importing is Slicer's own plug-in's."""
            return []

        def examineForExport(self, subjectHierarchyItemID: int) -> list[object]:
            """Offer results only, above Slicer's own plug-in."""
            node = _nodeOf(subjectHierarchyItemID)
            if node is None or not node.GetAttribute("CTMicroSR.derived"):
                return []
            exportables = super().examineForExport(subjectHierarchyItemID)
            for exportable in exportables:
                exportable.name = self.loadType
                exportable.pluginClass = PLUGIN
                exportable.confidence = 1.0
                exportable.setTag("SeriesDescription", seriesDescription(node))
                exportable.setTag("Manufacturer", "CTMicroSR")
                exportable.setTag("Model", node.GetAttribute("CTMicroSR.model"))
            return exportables

        def export(self, exportables: list[object]) -> str:
            """Let Slicer write the files, then say in each that it is derived; returns an error text, or nothing."""
            error = super().export(exportables)
            if error:
                return str(error)
            for exportable in exportables:
                node = _nodeOf(exportable.subjectHierarchyItemID)
                folder = Path(exportable.directory) / f"ScalarVolume_{exportable.subjectHierarchyItemID}"
                for path in folder.iterdir():
                    _complete(path, node)
            return ""

    return CTMicroSRDICOMPluginClass


def seriesDescription(node: slicer.vtkMRMLNode) -> str:
    """Says that it is derived, in as much as fits."""
    ending = SERIES_DESCRIPTION.format(name="", scale=node.GetAttribute("CTMicroSR.scale") or "?").strip()
    name = str(node.GetAttribute("CTMicroSR.inputName") or "")[: LARGEST_DESCRIPTION - len(ending) - 1]
    return f"{name} {ending}".strip()


def markDerived(dataset: pydicom.Dataset, node: slicer.vtkMRMLNode) -> None:
    """Image type and derivation of a file that holds a slice of a result."""
    kind = "UNCERTAINTY" if "uncertainty" in node.GetName().lower() else "AXIAL"
    dataset.ImageType = ["DERIVED", "SECONDARY", kind]
    dataset.DerivationDescription = DERIVATION.format(
        version=node.GetAttribute("CTMicroSR.version"),
        model=node.GetAttribute("CTMicroSR.model"),
        sha256=node.GetAttribute("CTMicroSR.modelSha256"),
        notice=node.GetAttribute("CTMicroSR.notice"),
    )
    dataset.ImageComments = node.GetAttribute("CTMicroSR.notice")


def _complete(path: Path, node: slicer.vtkMRMLNode) -> None:
    import pydicom

    dataset = pydicom.dcmread(path)
    markDerived(dataset, node)
    dataset.save_as(path)


def _nodeOf(item: int) -> slicer.vtkMRMLNode | None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    return hierarchy.GetItemDataNode(item)
