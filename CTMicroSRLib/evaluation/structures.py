"""A description as the slices of an image see it: where tubes cross them, and what lies beside.

In-plane positions are millimetres ``(j, i)`` from the centre of a slice's voxel (0, 0); the description's own points
are turned into them with the image's geometry, which may be rotated and moved as long as it moves with the description.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.evaluation.slice_tissue import Mask, checked_thickness_mm, distance_to_dense_tissue, in_frame
from CTMicroSRLib.simulation.description import Description, Float, Int, Tubes
from CTMicroSRLib.volume import Geometry, Volume

NODULE_REACH = 1.3
"""A nodule's lobes reach this many times its radius: so far other structures keep away from it."""


NO_BRANCH = -1


class TubeKind(IntEnum):
    """Which tree a tube belongs to."""

    AIRWAY = 0
    ARTERY = 1
    VEIN = 2


@dataclass(frozen=True)
class Footprints:
    """What structures cover of one slice: in-plane lines ``(m, 2)`` with a radius, and the branch they belong to."""

    start_ji_mm: Float
    end_ji_mm: Float
    radius_mm: Float
    branch: Int

    def near(self, point_ji_mm: Float, reach_mm: float) -> Footprints:
        """Only what comes within reach of a point."""
        along = self.end_ji_mm - self.start_ji_mm
        squared = np.maximum(np.sum(along**2, axis=1), 1e-12)
        offset = np.asarray(point_ji_mm) - self.start_ji_mm
        share = np.clip(np.sum(offset * along, axis=1) / squared, 0.0, 1.0)
        chosen = np.linalg.norm(offset - share[:, None] * along, axis=1) - self.radius_mm <= reach_mm
        return Footprints(self.start_ji_mm[chosen], self.end_ji_mm[chosen], self.radius_mm[chosen], self.branch[chosen])

    def gap_mm(self, points_ji_mm: Float, own_branch: Int | int = NO_BRANCH - 1, thicker_than_mm: float = 0.0) -> Float:
        """Distance from points ``(n, 2)`` to the nearest surface (negative inside, inf where there is none).

        Args:
            points_ji_mm: in-plane points, shape ``(n, 2)``.
            own_branch: the branch that does not count, for all points or point by point.
            thicker_than_mm: structures of a smaller radius do not count.
        """
        points = np.asarray(points_ji_mm, dtype=np.float64).reshape(-1, 2)
        own = np.broadcast_to(np.asarray(own_branch), len(points))
        gap = np.full(len(points), np.inf)
        chosen = np.flatnonzero(self.radius_mm >= thicker_than_mm)
        if not len(chosen):
            return gap
        start, along = self.start_ji_mm[chosen], (self.end_ji_mm - self.start_ji_mm)[chosen]
        squared = np.maximum(np.sum(along**2, axis=1), 1e-12)
        rows = max(1, 1_000_000 // len(chosen))
        for n in range(0, len(points), rows):
            offset = points[n : n + rows, None] - start
            share = np.clip(np.einsum("nmc,mc->nm", offset, along) / squared, 0.0, 1.0)
            distance = np.linalg.norm(offset - share[..., None] * along, axis=2) - self.radius_mm[chosen]
            distance[own[n : n + rows, None] == self.branch[chosen]] = np.inf
            gap[n : n + rows] = distance.min(axis=1)
        return gap


@dataclass(frozen=True)
class Structures:
    """A description as the slices of one grid see it.

    ``tubes`` are all trees in the image's frame, (i, j, k) in mm, with ``kind`` per piece (:class:`TubeKind`);
    ``dense_mm`` (k, j, i) is the distance to tissue that is neither lung nor tube, where labels are known.
    """

    geometry: Geometry
    thickness_mm: float
    tubes: Tubes
    kind: Int
    nodule_centre_mm: Float
    nodule_radius_mm: Float
    dense_mm: NDArray[np.float32] | None

    @property
    def spacing_ji_mm(self) -> tuple[float, float]:
        """In-plane voxel, along j and i."""
        return (self.geometry.spacing_mm[1], self.geometry.spacing_mm[0])

    def height_mm(self, k: int) -> float:
        """Where slice ``k`` lies along the slices' normal, in the image's frame."""
        return k * self.geometry.spacing_mm[2]

    def footprints(self, k: int) -> Footprints:
        """What tubes (with their walls) and nodules cover of slice ``k`` over its thickness."""
        outer = np.concatenate([self.tubes.radius_mm + self.tubes.wall_mm, NODULE_REACH * self.nodule_radius_mm])
        start = np.concatenate([self.tubes.start_mm, self.nodule_centre_mm])
        end = np.concatenate([self.tubes.end_mm, self.nodule_centre_mm])
        branch = np.concatenate([self.tubes.branch, np.full(len(self.nodule_radius_mm), NO_BRANCH)])
        along = end - start
        length = np.linalg.norm(along, axis=1)
        # A tube's surface rises by its radius times the sine of its angle above its axis; a ball's by its radius.
        sine = np.hypot(along[:, 0], along[:, 1]) / np.maximum(length, 1e-9)
        reach = self.thickness_mm / 2.0 + outer * np.where(length > 0.0, sine, 1.0)
        low, high = (self._share_at(start, end, self.height_mm(k) + sign * reach) for sign in (-1.0, 1.0))
        first, last = np.minimum(low, high).clip(0.0, 1.0), np.maximum(low, high).clip(0.0, 1.0)
        level = np.abs(end[:, 2] - start[:, 2]) < 1e-9
        first[level], last[level] = 0.0, 1.0
        near = np.abs(start[:, 2] - self.height_mm(k)) <= reach
        touched = np.where(level, near, (np.minimum(low, high) <= 1.0) & (np.maximum(low, high) >= 0.0))
        from_mm, to_mm = (start + share[:, None] * (end - start) for share in (first, last))
        return Footprints(from_mm[touched, 1::-1], to_mm[touched, 1::-1], outer[touched], branch[touched])

    def dense_gap_mm(self, k: int, points_ji_mm: Float) -> Float:
        """Distance from points ``(n, 2)`` of slice ``k`` to dense tissue (inf without labels)."""
        if self.dense_mm is None:
            return np.full(len(points_ji_mm), np.inf)
        index = np.rint(points_ji_mm / self.spacing_ji_mm).astype(int)
        index = index.clip(0, np.asarray(self.dense_mm.shape[1:]) - 1)
        return np.asarray(self.dense_mm[k, index[:, 0], index[:, 1]], dtype=np.float64)

    def gap_mm(
        self, k: int, points_ji_mm: Float, own_branch: Int | int = NO_BRANCH - 1, thicker_than_mm: float = 0.0
    ) -> Float:
        """As :meth:`Footprints.gap_mm` for slice ``k``, dense tissue included."""
        other = self.footprints(k).gap_mm(points_ji_mm, own_branch, thicker_than_mm)
        return np.asarray(np.minimum(other, self.dense_gap_mm(k, points_ji_mm)))

    def check_image(self, image_kji: NDArray[np.generic]) -> None:
        """Raise UsageError unless an image has the shape of the grid."""
        if image_kji.shape != self.geometry.shape_kji:
            raise UsageError(
                f"The image has shape {image_kji.shape} but its places were found on {self.geometry.shape_kji}; "
                "give the image on the grid of the description's truth."
            )

    def border_gap_mm(self, points_ji_mm: Float) -> Float:
        """Distance from points ``(n, 2)`` to the nearest edge of the slice (negative outside)."""
        size_mm = (np.asarray(self.geometry.shape_kji[1:]) - 1) * self.spacing_ji_mm
        return np.asarray(np.minimum(points_ji_mm, size_mm - points_ji_mm).min(axis=1))

    @staticmethod
    def _share_at(start: Float, end: Float, height: Float) -> Float:
        rise = end[:, 2] - start[:, 2]
        return np.asarray((height - start[:, 2]) / np.where(np.abs(rise) < 1e-9, 1e-9, rise))


def structures_of(
    description: Description, geometry: Geometry, thickness_mm: float | None = None, labels: Volume | None = None
) -> Structures:
    """See a description in the frame of an image.

    Args:
        description: the structures; their points are physical points of ``geometry``.
        geometry: the image's grid.
        thickness_mm: over which each slice is averaged; the slice distance where not given.
        labels: the specimen's label volume, which also tells of pleura, chest wall and fissures. Its rows and
            columns must run as the image's do.

    Raises:
        UsageError: a thickness that is not positive, or labels whose axes are not the image's.
    """
    thickness = checked_thickness_mm(geometry, thickness_mm)
    parts = (description.airways, description.arteries, description.veins)
    every = Tubes.join(parts)
    start, end = (in_frame(points, geometry) for points in (every.start_mm, every.end_mm))
    kind = np.repeat(np.asarray(list(TubeKind), dtype=int), [len(part) for part in parts])
    centres = np.asarray([nodule.centre_mm for nodule in description.nodules], dtype=np.float64).reshape(-1, 3)
    return Structures(
        geometry=geometry,
        thickness_mm=thickness,
        tubes=Tubes(start, end, every.radius_mm, every.wall_mm, every.branch, every.parent),
        kind=kind,
        nodule_centre_mm=in_frame(centres, geometry),
        nodule_radius_mm=np.asarray([nodule.radius_mm for nodule in description.nodules], dtype=np.float64),
        dense_mm=None if labels is None else distance_to_dense_tissue(labels, geometry, thickness),
    )


@dataclass(frozen=True)
class Crossings:
    """Where tubes pass the middle planes of slices; one row each.

    ``smear_ji_mm`` is how far the axis moves in-plane over the slice's thickness (inf where the branch does not
    pass the whole slice once), ``tilt_ji`` its in-plane mm per mm along the normal, ``gap_mm`` the distance from
    its own surface to that of the nearest other structure or dense tissue, ``border_mm`` from the axis to the
    slice's edge, ``piece`` the row of ``Structures.tubes``.
    """

    slice_k: Int
    centre_ji_mm: Float
    smear_ji_mm: Float
    tilt_ji: Float
    radius_mm: Float
    wall_mm: Float
    kind: Int
    piece: Int
    branch: Int
    gap_mm: Float
    border_mm: Float

    def __len__(self) -> int:
        return len(self.radius_mm)

    @property
    def smear_mm(self) -> Float:
        """Length of the smear."""
        return np.hypot(self.smear_ji_mm[:, 0], self.smear_ji_mm[:, 1])

    @property
    def cosine(self) -> Float:
        """Cosine of the angle between axis and slice normal."""
        return np.asarray(1.0 / np.sqrt(1.0 + np.sum(self.tilt_ji**2, axis=1)))

    def select(self, chosen: Mask | Int) -> Crossings:
        """The chosen rows (a mask or indices)."""
        return Crossings(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})

    def select_vessels(self) -> Crossings:
        """Arteries and veins."""
        return self.select(self.kind != TubeKind.AIRWAY)


def find_crossings(structures: Structures) -> Crossings:
    """All places where a tube's axis passes the middle plane of a slice inside the image, slice by slice."""
    parts = [_crossings_of_slice(structures, k) for k in range(structures.geometry.size_ijk[2])]
    return Crossings(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in Crossings.__dataclass_fields__}
    )


def sample_ji(image_ji: NDArray[np.generic], spacing_ji_mm: tuple[float, float], points_ji_mm: Float) -> Float:
    """Image at in-plane points (..., 2), by cubic B-spline; NaN outside and within 4 voxels of a voxel that is."""
    from scipy import ndimage

    image = np.asarray(image_ji, dtype=np.float64)
    missing = ~np.isfinite(image)
    if missing.any():
        image = np.where(missing, 0.0, image)
        # The spline's coefficients carry a wrong value on, but within 4 voxels it has lost 99 %.
        missing = ndimage.binary_dilation(missing, np.ones((9, 9), dtype=bool))
    index = np.moveaxis(points_ji_mm / np.asarray(spacing_ji_mm), -1, 0)
    limits = np.asarray(image.shape).reshape((2,) + (1,) * (index.ndim - 1)) - 1
    # 1e-9 of a voxel lies within rounding: a point on the last row is inside.
    inside = np.all((index >= -1e-9) & (index <= limits + 1e-9), axis=0)
    values = np.asarray(ndimage.map_coordinates(image, np.where(inside, index, 0.0), order=3, mode="mirror"))
    nearest = np.rint(np.where(inside, index, 0.0)).astype(int)
    return np.where(inside & ~missing[nearest[0], nearest[1]], values, np.nan)


def _crossings_of_slice(structures: Structures, k: int) -> Crossings:
    tubes, height, half = structures.tubes, structures.height_mm(k), structures.thickness_mm / 2.0
    piece, centre = _passing(tubes, height)
    inside = structures.border_gap_mm(centre) >= 0.0
    piece, centre = piece[inside], centre[inside]
    branch = tubes.branch[piece]
    smear = np.full((len(piece), 2), np.inf)
    if len(piece):
        (low_count, low), (count, _), (high_count, high) = (
            _by_branch(tubes, *_passing(tubes, level)) for level in (height - half, height, height + half)
        )
        once = (low_count == 1) & (count == 1) & (high_count == 1)
        smear[once[branch]] = (high - low)[branch[once[branch]]]
    along = tubes.end_mm[piece] - tubes.start_mm[piece]
    tilt = along[:, 1::-1] / along[:, 2:]
    radius, wall = tubes.radius_mm[piece], tubes.wall_mm[piece]
    cosine = 1.0 / np.sqrt(1.0 + np.sum(tilt**2, axis=1))
    other = structures.gap_mm(k, centre, branch)
    extent = (radius + wall) / cosine + np.linalg.norm(smear, axis=1) / 2.0
    return Crossings(
        slice_k=np.full(len(piece), k),
        centre_ji_mm=centre,
        smear_ji_mm=smear,
        tilt_ji=tilt,
        radius_mm=radius,
        wall_mm=wall,
        kind=structures.kind[piece],
        piece=piece,
        branch=branch,
        gap_mm=np.where(np.isfinite(extent), other - np.where(np.isfinite(extent), extent, 0.0), -np.inf),
        border_mm=structures.border_gap_mm(centre),
    )


def _passing(tubes: Tubes, height: float) -> tuple[Int, Float]:
    """Pieces whose axis passes a plane, and where (j, i); the plane belongs to the piece that begins in it."""
    low, high = (f(tubes.start_mm[:, 2], tubes.end_mm[:, 2]) for f in (np.minimum, np.maximum))
    piece = np.flatnonzero((low <= height) & (height < high))
    start, along = tubes.start_mm[piece], (tubes.end_mm - tubes.start_mm)[piece]
    share = (height - start[:, 2]) / along[:, 2]
    return piece, (start + share[:, None] * along)[:, 1::-1]


def _by_branch(tubes: Tubes, piece: Int, points: Float) -> tuple[Int, Float]:
    branches = 1 + int(tubes.branch.max(initial=-1))
    where = np.full((branches, 2), np.nan)
    where[tubes.branch[piece]] = points
    return np.bincount(tubes.branch[piece], minlength=branches), where
