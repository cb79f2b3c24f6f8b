"""Reading scans and masks, and writing volumes whole or not at all."""

from CTMicroSRLib.files.hu_check import check_is_ct
from CTMicroSRLib.files.reading import read_any_volume, read_mask, read_volume
from CTMicroSRLib.files.writers import KeptAsideError, VolumeWriter, check_room, check_writable, write_volume

__all__ = [
    "KeptAsideError",
    "VolumeWriter",
    "check_is_ct",
    "check_room",
    "check_writable",
    "read_any_volume",
    "read_mask",
    "read_volume",
    "write_volume",
]
