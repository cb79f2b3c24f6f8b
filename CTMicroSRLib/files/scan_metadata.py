"""What of a scan's header is kept: how the scan was made, nothing of whom, by whom, when or where."""

from __future__ import annotations

from collections.abc import Mapping

from CTMicroSRLib.files.itk_io import METAIMAGE_MODALITY_PREFIX, plain_text

KEPT_TAGS = {
    "0008|0008": "ImageType",
    "0008|0060": "Modality",
    "0008|0070": "Manufacturer",
    "0008|1090": "ManufacturerModelName",
    "0018|0015": "BodyPartExamined",
    "0018|0050": "SliceThickness",
    "0018|0060": "KVP",
    "0018|1100": "ReconstructionDiameter",
    "0018|1120": "GantryDetectorTilt",
    "0018|1151": "XRayTubeCurrent",
    "0018|1152": "Exposure",
    "0018|1160": "FilterType",
    "0018|1210": "ConvolutionKernel",
    "0018|5100": "PatientPosition",
}
"""The DICOM tags that are kept, and their names."""

OWN_NAMES = ("GreyPerHU", "GreyOfAir")
OWN_PREFIX = "CTMicroSR."
"""What this software writes into headers."""


def scan_metadata(found: Mapping[str, str]) -> dict[str, str]:
    """Of a header's keys, DICOM tags or names, those that are known to say nothing about the patient."""
    kept = {}
    for key, value in found.items():
        name = KEPT_TAGS.get(key, key)
        if value and (name in KEPT_TAGS.values() or name in OWN_NAMES or name.startswith(OWN_PREFIX)):
            kept[plain_text(name)] = value.removeprefix(METAIMAGE_MODALITY_PREFIX)
    if kept.get("Modality") in ("UNKNOWN", "OTHER"):
        del kept["Modality"]
    return kept
