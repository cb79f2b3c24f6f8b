"""Data to try the module on, in Slicer's Sample Data: shipped with the extension, so that it works offline."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

CATEGORY = "CTMicroSR"
SPECIMEN = "SimulatedSpecimen"
SPECIMEN_FILE = "CTMicroSR-specimen.nrrd"
SPECIMEN_SHA256 = "ec4c6e996d22f094f509d7a7cc9cbc20459e2215b5b567369b7d41a923c33a3d"
CHEST = "CTMicroSRChest"
# Slicer's own sample CTChest: the address is that of Slicer's Sample Data module, the name of its content
CHEST_ADDRESS = "https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/"
CHEST_SHA256 = "4507b664690840abb6cb9af2d919377ffc4ef75b167cb6fd0f747befdb12e38e"
RESOURCES = Path(__file__).resolve().parents[1] / "Resources"


def specimenFile() -> Path:
    """The simulated clinical CT of a specimen."""
    return RESOURCES / "SampleData" / SPECIMEN_FILE


def register() -> None:
    """Add the samples to the Sample Data module."""
    import SampleData

    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):  # Slicer 5.12 and newer
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("CT Micro Super-Resolution"))
    icons = RESOURCES / "Icons"
    logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SPECIMEN,
        thumbnailFileName=str(icons / "CTMicroSR-specimen.png"),
        uris=specimenFile().as_uri(),
        fileNames=SPECIMEN_FILE,
        nodeNames=_("Simulated specimen"),
        checksums=f"SHA256:{SPECIMEN_SHA256}",
    )
    logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=CHEST,
        thumbnailFileName=str(icons / "CTMicroSR-chest.png"),
        uris=CHEST_ADDRESS + CHEST_SHA256,
        fileNames="CT-chest.nrrd",
        nodeNames="CTChest",
        checksums=f"SHA256:{CHEST_SHA256}",
    )
