"""Reading scans and masks, and writing volumes whole or not at all."""

from CTMicroSRLib.files.reading import check_is_ct, read_any_volume, read_mask, read_volume
from CTMicroSRLib.files.writers import VolumeWriter, check_writable, write_volume

__all__ = [
    "VolumeWriter",
    "check_is_ct",
    "check_writable",
    "read_any_volume",
    "read_mask",
    "read_volume",
    "write_volume",
]
