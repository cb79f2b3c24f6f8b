"""Does a volume look like a clinical CT in HU? For scans that are read and for arrays that come from elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.volume import AIR_HU, Volume, check_pixels_are_clinical

COARSEST_SPACING_MM = 100.0
"""No CT has voxels or slice distances above this; a header that says so is wrong."""

HIGHEST_AIR_HU = -500
"""A volume with nothing above this is only air."""

LOWEST_TISSUE_HU = -200
"""A volume with nothing below this has neither air nor lung; MR and label maps are like that."""

METAL_HU = 4000
METAL_FRACTION = 0.01
"""Real CT exceeds METAL_HU only in metal; more than this share of voxels above it means another scale."""

LABEL_COUNT = 64
"""A volume of whole numbers from 0 with no more distinct values than this is taken for a label map."""

DENSE_HU = 500
DENSE_FRACTION = 0.1
AIR_OR_LUNG_FRACTION = 0.01
"""Padding looks like air but proves nothing. Beside it, a scan with more than DENSE_FRACTION of its voxels above
DENSE_HU (in real chests 0.01, all of it bone) and less than AIR_OR_LUNG_FRACTION below LOWEST_TISSUE_HU (0.5) has lost
its intercept: HU + 1024 makes tissue bone and lung fat."""


class NotHUError(RefusedInputError):
    """The values are on another scale than HU."""


def check_is_ct(volume: Volume) -> None:
    """Refuse a volume that does not look like clinical CT in HU; for arrays that come from elsewhere too.

    Args:
        volume: any volume; its voxels are not changed.

    Raises:
        RefusedInputError: the modality is another, voxels are not real numbers or not finite, pixels are
            finer than 0.2 mm, or the values, padding left aside, are those of air alone, of a label map or of another
            scale.
    """
    modality = volume.metadata.get("Modality", "CT").strip().upper()
    if modality != "CT":
        raise RefusedInputError(f"The scan is {modality}, not CT; give a CT in HU.")
    if volume.array_kji.dtype.kind not in "iuf":
        raise RefusedInputError(f"The voxels are {volume.array_kji.dtype}, not HU; give a CT in HU.")
    check_pixels_are_clinical(volume.geometry)
    if max(volume.geometry.spacing_mm) > COARSEST_SPACING_MM:
        raise RefusedInputError(
            f"The voxel spacing {volume.geometry.spacing_mm} mm is no scanner's; correct the file's header."
        )
    _check_values(volume.array_kji)


def _check_values(array_kji: NDArray[Any]) -> None:
    lowest, highest, metal = np.inf, -np.inf, 0
    light, dense, kept = 0, 0, 0
    for array_ji in array_kji:
        if array_ji.dtype.kind == "f" and not np.isfinite(array_ji).all():
            raise RefusedInputError(
                "The scan has NaN or infinite voxels; replace them (air is -1000 HU) and give it again."
            )
        lowest, highest = min(lowest, float(array_ji.min())), max(highest, float(array_ji.max()))
        metal += int(np.count_nonzero(array_ji > METAL_HU))
        padding = int(np.count_nonzero(array_ji <= AIR_HU))
        light += int(np.count_nonzero(array_ji < LOWEST_TISSUE_HU)) - padding
        dense += int(np.count_nonzero(array_ji > DENSE_HU))
        kept += array_ji.size - padding
    if highest < HIGHEST_AIR_HU:
        raise RefusedInputError(f"The scan holds only air (nothing above {highest:g} HU); give a chest CT in HU.")
    if lowest >= LOWEST_TISSUE_HU and _is_label_map(array_kji, lowest):
        raise RefusedInputError("The volume looks like a label map, not CT in HU; give the scan itself.")
    is_offset = light < AIR_OR_LUNG_FRACTION * kept and dense > DENSE_FRACTION * kept
    if lowest >= LOWEST_TISSUE_HU or metal > METAL_FRACTION * array_kji.size or is_offset:
        raise NotHUError(
            f"The values ({lowest:g} to {highest:g}) do not look like CT in HU, where air is about -1000 and "
            "tissue about 0; give a CT with its rescale slope and intercept applied."
        )


def _is_label_map(array_kji: NDArray[Any], lowest: float) -> bool:
    if lowest < 0:
        return False
    labels: set[float] = set()
    for array_ji in array_kji:
        labels.update(np.unique(array_ji).tolist())
        if len(labels) > LABEL_COUNT:
            return False
    return all(float(label).is_integer() for label in labels)
