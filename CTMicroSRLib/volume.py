"""Voxels together with where they are: the volume and the grid of its super-resolution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, UsageError

AIR_HU = -1024
"""Voxels below this value are scanner padding (-2048 and -3024 in real scans) and are read as air."""

FINEST_SPACING_MM = 0.2
"""In-plane spacing below which a scan is no clinical CT and there is nothing to add at 8x."""

Vector = tuple[float, float, float]


GRID_TOLERANCE_VOXELS = 0.01
"""How far, in voxels, a mask's voxels may lie from the scan's: more than float32 rounds."""


@dataclass(frozen=True)
class Geometry:
    """Where a grid of voxels lies in the patient (LPS, millimetres, as in ITK and DICOM).

    ``size_ijk``, ``spacing_mm`` and the columns of ``directions`` go in the order i (columns),
    j (rows), k (slices); arrays on the grid have shape ``size_ijk[::-1]``, that is ``(k, j, i)``.
    ``origin_mm`` is the centre of voxel (0, 0, 0); ``directions`` is the 3x3 matrix of direction
    cosines, row by row, whose columns are the directions of i, j and k.

    Raises:
        RefusedInputError: a spacing that is not positive and finite, an origin that is not finite,
            or directions that are not orthonormal.
    """

    size_ijk: tuple[int, int, int]
    spacing_mm: Vector
    origin_mm: Vector = (0.0, 0.0, 0.0)
    directions: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.size_ijk):
            raise RefusedInputError(f"The volume is empty (size {self.size_ijk}); choose another file.")
        if not all(math.isfinite(s) and s > 0 for s in self.spacing_mm):
            raise RefusedInputError(f"The voxel spacing {self.spacing_mm} is not positive; correct the file's header.")
        if not all(math.isfinite(o) for o in self.origin_mm):
            raise RefusedInputError("The origin is not finite; correct the file's header.")
        matrix = self.direction_matrix if len(self.directions) == 9 else np.zeros((3, 3))
        if not np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-3):
            raise RefusedInputError(
                "The direction cosines are not perpendicular unit vectors (a sheared or tilted grid); "
                "resample the scan to a regular grid first."
            )

    @property
    def direction_matrix(self) -> NDArray[np.float64]:
        """Direction cosines as a 3x3 matrix; column a is the direction of index axis a (i, j, k)."""
        return np.asarray(self.directions, dtype=np.float64).reshape(3, 3)

    @property
    def shape_kji(self) -> tuple[int, int, int]:
        """Shape of an array on this grid."""
        i, j, k = self.size_ijk
        return (k, j, i)

    def physical_point_mm(self, index_ijk: Vector) -> Vector:
        """Position of a (fractional) voxel index in patient space (LPS)."""
        offset = self.direction_matrix @ (np.asarray(index_ijk) * np.asarray(self.spacing_mm))
        x, y, z = (np.asarray(self.origin_mm) + offset).tolist()
        return (x, y, z)

    def crop(self, region: Region) -> Geometry:
        """Geometry of a region of this grid."""
        region.check_inside(self.size_ijk)
        start = (float(region.i[0]), float(region.j[0]), float(region.k[0]))
        return replace(self, size_ijk=region.size_ijk, origin_mm=self.physical_point_mm(start))

    def refine(self, scale_ijk: tuple[int, int, int]) -> Geometry:
        """Geometry of the grid with each voxel cut into ``scale_ijk`` voxels: the same extent.

        Spacing becomes spacing / scale, and the first voxel's centre moves by (1/scale - 1)/2 of an
        input voxel along each axis.
        """
        first = tuple((1.0 / s - 1.0) / 2.0 for s in scale_ijk)
        return Geometry(
            size_ijk=_triple(n * s for n, s in zip(self.size_ijk, scale_ijk, strict=True)),
            spacing_mm=_vector(d / s for d, s in zip(self.spacing_mm, scale_ijk, strict=True)),
            origin_mm=self.physical_point_mm(_vector(first)),
            directions=self.directions,
        )


@dataclass(frozen=True)
class Region:
    """Half-open voxel ranges of a grid: ``i`` columns, ``j`` rows, ``k`` slices."""

    i: tuple[int, int]
    j: tuple[int, int]
    k: tuple[int, int]

    @property
    def size_ijk(self) -> tuple[int, int, int]:
        """Number of voxels along i, j and k."""
        return (self.i[1] - self.i[0], self.j[1] - self.j[0], self.k[1] - self.k[0])

    @property
    def slices_kji(self) -> tuple[slice, slice, slice]:
        """The region as an index of a ``(k, j, i)`` array."""
        return (slice(*self.k), slice(*self.j), slice(*self.i))

    def check_inside(self, size_ijk: tuple[int, int, int]) -> None:
        """Raise UsageError unless the region is non-empty and inside a grid of that size."""
        for name, (start, stop), size in zip("IJK", (self.i, self.j, self.k), size_ijk, strict=True):
            if not 0 <= start < stop <= size:
                raise UsageError(
                    f"The region {name} {start}:{stop} does not lie inside 0:{size}; give a start "
                    "below its end, both within the scan."
                )

    def grow(self, margin_ij: int, size_ijk: tuple[int, int, int]) -> Region:
        """The region with ``margin_ij`` voxels more on each in-plane side, clipped to the grid."""
        return replace(
            self,
            i=(max(0, self.i[0] - margin_ij), min(size_ijk[0], self.i[1] + margin_ij)),
            j=(max(0, self.j[0] - margin_ij), min(size_ijk[1], self.j[1] + margin_ij)),
        )

    @staticmethod
    def whole(size_ijk: tuple[int, int, int]) -> Region:
        """The region that covers a grid of that size."""
        return Region((0, size_ijk[0]), (0, size_ijk[1]), (0, size_ijk[2]))

    @staticmethod
    def parse(text: str) -> Region:
        """Read ``I0:I1,J0:J1,K0:K1``.

        Raises:
            UsageError: the text has another form.
        """
        try:
            ranges = [tuple(int(number) for number in part.split(":")) for part in text.split(",")]
            (i0, i1), (j0, j1), (k0, k1) = ranges
        except ValueError:
            raise UsageError(
                f"The region {text!r} is not lungs, whole or I0:I1,J0:J1,K0:K1 (half-open voxel "
                "ranges); for example 100:200,80:180,10:20."
            ) from None
        return Region((i0, i1), (j0, j1), (k0, k1))

    def __str__(self) -> str:
        return ",".join(f"{start}:{stop}" for start, stop in (self.i, self.j, self.k))


@dataclass(frozen=True)
class Volume:
    """Voxels in HU (or any scalar) on a geometry.

    ``array_kji`` has shape ``geometry.shape_kji``; for a CT it is int16 or float32 in HU.
    ``metadata`` holds text about the scan (modality, kernel, …) as the reader found it.

    Raises:
        RefusedInputError: the array's shape is not the geometry's.
    """

    array_kji: NDArray[Any]
    geometry: Geometry
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.array_kji.shape != self.geometry.shape_kji:
            raise RefusedInputError(
                f"The voxel array has shape {self.array_kji.shape} but the geometry says "
                f"{self.geometry.shape_kji}; give both in (k, j, i) order."
            )

    def crop(self, region: Region) -> Volume:
        """The part of the volume in a region (a view of the voxels)."""
        geometry = self.geometry.crop(region)
        return replace(self, array_kji=self.array_kji[region.slices_kji], geometry=geometry)


def _triple(values: Iterable[int]) -> tuple[int, int, int]:
    a, b, c = values
    return (a, b, c)


def _vector(values: Iterable[float]) -> Vector:
    a, b, c = values
    return (a, b, c)


def check_pixels_are_clinical(geometry: Geometry) -> None:
    """Raise RefusedInputError where the pixels are those of a micro-CT or of a result already."""
    finest_mm = min(geometry.spacing_mm[:2])
    # float32 headers store 0.2 as 0.200000003 or, after a product, just below
    if finest_mm < FINEST_SPACING_MM * (1 - 1e-6):
        raise RefusedInputError(
            f"The pixels are {finest_mm:.3g} mm, already finer than {FINEST_SPACING_MM} mm; "
            "give a clinical CT, not a micro-CT or a result."
        )


def grid_difference(mask: Geometry, like: Geometry) -> str:
    """Name and value of what differs between a mask's grid and another, or nothing where voxels lie on voxels."""
    if mask.size_ijk != like.size_ijk:
        return f"size {mask.size_ijk}"
    tolerance_mm = GRID_TOLERANCE_VOXELS * min(like.spacing_mm)
    # Two regular grids agree everywhere within a tolerance when they agree at these four corners.
    i, j, k = (float(max(size - 1, 1)) for size in like.size_ijk)
    corners = ((0.0, 0.0, 0.0), (i, 0.0, 0.0), (0.0, j, 0.0), (0.0, 0.0, k))
    distances_mm = [np.linalg.norm(np.subtract(mask.physical_point_mm(c), like.physical_point_mm(c))) for c in corners]
    if max(distances_mm) <= tolerance_mm:
        return ""
    if not np.allclose(mask.spacing_mm, like.spacing_mm, atol=tolerance_mm):
        return f"spacing {mask.spacing_mm}"
    if not np.allclose(mask.directions, like.directions, atol=1e-4):
        return "orientation (direction cosines)"
    return f"origin {mask.origin_mm}"
