"""The lungs that were found last, so that an ROI beside them is refused before a run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import slicer
from numpy.typing import NDArray


class FoundLungs:
    """The mask of one scan, packed; it is forgotten when the scan's voxels change."""

    def __init__(self) -> None:
        self._scan: tuple[object, ...] = ()
        self._packed: NDArray[np.uint8] | None = None

    def keeperFor(self, scan: slicer.vtkMRMLScalarVolumeNode) -> Callable[[NDArray[np.bool_]], None]:
        """Takes the mask of the scan as it is now, whatever becomes of that until the mask is there."""
        identity = _identity(scan)

        def keep(mask_kji: NDArray[np.bool_]) -> None:
            self._scan, self._packed = identity, np.packbits(mask_kji)

        return keep

    def of(self, scan: slicer.vtkMRMLScalarVolumeNode) -> NDArray[np.bool_] | None:
        """The mask, ``(k, j, i)``, or None where it was not found or is out of date."""
        if self._packed is None or self._scan != _identity(scan):
            return None
        shape = scan.GetImageData().GetDimensions()[::-1]
        return np.unpackbits(self._packed, count=int(np.prod(shape))).reshape(shape).astype(bool)


def _identity(scan: slicer.vtkMRMLScalarVolumeNode) -> tuple[object, ...]:
    image = scan.GetImageData()
    return (scan.GetID(), image.GetMTime(), image.GetDimensions())
