"""The lungs of a chest CT by region growing."""

from CTMicroSRLib.lungs.segmentation import LungMask, LungSettings, segment_lungs

__all__ = ["LungMask", "LungSettings", "segment_lungs"]
