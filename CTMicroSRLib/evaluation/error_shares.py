"""Which tissues the squared error of an image lies in, and what PSNR would be left if one of them were perfect."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.masked import checked_pair
from CTMicroSRLib.evaluation.metrics import PEAK_HU
from CTMicroSRLib.evaluation.slice_tissue import tissue_in_slices
from CTMicroSRLib.simulation.cases import Case
from CTMicroSRLib.simulation.description import OUTSIDE_LUNG, Label
from CTMicroSRLib.simulation.slices import SOFTNESS

Float = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]


class Place(IntEnum):
    """Where in a slice a voxel lies; every voxel has one place."""

    PARENCHYMA = 0
    BORDER = 1
    VESSEL = 2
    AIRWAY_LUMEN = 3
    AIRWAY_WALL = 4
    SEPTUM = 5
    DISEASE = 6
    NODULE = 7
    SOFT_TISSUE = 8

    @property
    def title(self) -> str:
        """In words."""
        return _TITLES[self]


_TITLES = {
    Place.PARENCHYMA: "parenchyma away from structures",
    Place.BORDER: "parenchyma within a coarse voxel of a structure",
    Place.VESSEL: "vessels",
    Place.AIRWAY_LUMEN: "airway lumen",
    Place.AIRWAY_WALL: "airway walls",
    Place.SEPTUM: "septa",
    Place.DISEASE: "emphysema, ground glass",
    Place.NODULE: "nodules",
    Place.SOFT_TISSUE: "pleura and soft tissue",
}

TISSUES: tuple[tuple[Place, tuple[Label, ...]], ...] = (
    (Place.DISEASE, (Label.EMPHYSEMA, Label.GROUND_GLASS)),
    (Place.SEPTUM, (Label.SEPTUM,)),
    (Place.VESSEL, (Label.ARTERY, Label.VEIN)),
    (Place.AIRWAY_LUMEN, (Label.AIRWAY_LUMEN,)),
    (Place.AIRWAY_WALL, (Label.AIRWAY_WALL,)),
    (Place.NODULE, (Label.NODULE,)),
    (Place.SOFT_TISSUE, (Label.PLEURA, *OUTSIDE_LUNG)),
)
"""Of several tissues in the thickness of a slice the last one here gives a voxel its place."""


@dataclass(frozen=True)
class ErrorShares:
    """Squared errors (HU^2, summed) and numbers of voxels, both of shape (slices, places)."""

    squared_error_hu2: Float
    voxels: Float

    @property
    def shares(self) -> dict[Place, float]:
        """Each place's share of the squared error; NaN where there is no error at all."""
        total = float(self.squared_error_hu2.sum())
        return {p: float(self.squared_error_hu2[:, p].sum()) / total if total else math.nan for p in Place}

    @property
    def voxel_shares(self) -> dict[Place, float]:
        """Each place's share of the voxels."""
        return {place: float(self.voxels[:, place].sum() / self.voxels.sum()) for place in Place}

    @property
    def rms_hu(self) -> dict[Place, float]:
        """Root mean square of each place's errors; NaN where a place has no voxel."""
        count, squares = self.voxels.sum(axis=0), self.squared_error_hu2.sum(axis=0)
        return {place: math.sqrt(squares[place] / count[place]) if count[place] else math.nan for place in Place}

    def psnr_db(self, perfect: Collection[Place] = ()) -> float:
        """PSNR (peak 3500 HU), mean over slices as in the tables, if those places had no error."""
        kept = [place for place in Place if place not in perfect]
        mean = self.squared_error_hu2[:, kept].sum(axis=1) / self.voxels.sum(axis=1)
        return float(np.mean([10.0 * math.log10(PEAK_HU**2 / value) if value else math.inf for value in mean]))

    @staticmethod
    def pool(cases: Sequence[ErrorShares]) -> ErrorShares:
        """The slices of several cases together.

        Raises:
            ValueError: no case.
        """
        if not cases:
            raise ValueError("There is no case to pool.")
        return ErrorShares(
            np.concatenate([case.squared_error_hu2 for case in cases]), np.concatenate([case.voxels for case in cases])
        )


def error_shares(image_hu: NDArray[Any], truth_hu: NDArray[Any], places: Bytes) -> ErrorShares:
    """Split an image's squared error by place.

    Args:
        image_hu: HU, shape (k, j, i) or (j, i).
        truth_hu: HU, the same shape.
        places: :class:`Place` of each voxel, the same shape; see :func:`places_of`.

    Raises:
        ValueError: shapes differ, a value that is not finite, or a place that there is not.
    """
    image, truth = checked_pair(image_hu, truth_hu)
    where = np.asarray(places).reshape((-1, *np.shape(places)[-2:]))
    if where.shape != image.shape:
        raise ValueError(f"The places have shape {np.shape(places)} but the image {np.shape(image_hu)}.")
    if where.max() >= len(Place):
        raise ValueError(f"The places hold {where.max()}; the last one is {len(Place) - 1}.")
    squares = (image - truth) ** 2
    count = [np.bincount(plane.ravel(), minlength=len(Place)) for plane in where]
    total = [np.bincount(w.ravel(), s.ravel(), minlength=len(Place)) for w, s in zip(where, squares, strict=True)]
    return ErrorShares(np.asarray(total, dtype=np.float64), np.asarray(count, dtype=np.float64))


def places_of(case: Case) -> Bytes:
    """The :class:`Place` of each voxel of a case's truth, shape (k, j, i), uint8.

    A voxel belongs to a structure if any of the planes that its slice sees, soft edges of the profile included, shows
    it: most structures run obliquely through a slice and fill only part of it. Parenchyma within one coarse voxel of a
    structure in its slice is border.
    """
    geometry, settings = case.scan.truth.geometry, case.settings
    seen_mm = settings.slice_mm * (1.0 + SOFTNESS)
    places = np.full(geometry.shape_kji, Place.PARENCHYMA, dtype=np.uint8)
    for place, labels in TISSUES:
        places[tissue_in_slices(case.tissue, geometry, seen_mm, labels)] = place
    structure = (places != Place.PARENCHYMA) & (places != Place.DISEASE)
    places[_near(structure, settings.scale) & (places == Place.PARENCHYMA)] = Place.BORDER
    return places


def _near(structure_kji: Bools, reach_voxels: int) -> Bools:
    """Voxels within reach of a structure of the same slice."""
    from scipy.ndimage import distance_transform_edt

    planes = [
        distance_transform_edt(~plane) <= reach_voxels if plane.any() else np.zeros_like(plane)
        for plane in structure_kji
    ]
    return np.stack(planes)
