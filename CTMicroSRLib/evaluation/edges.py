"""Where tubes cross slices, and how sharp vessel edges are: the 10-90 % edge rise distance.

Places come from a specimen's description, so every method is measured at the same ones. In-plane positions are
millimetres ``(j, i)`` from the centre of a slice's voxel (0, 0); the description's own points are turned into them
with the image's geometry, which may be rotated and moved as long as it moves with the description.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.evaluation.nodules import checked_thickness_mm, distance_to_dense_tissue, in_frame
from CTMicroSRLib.simulation.description import Description, Float, Int, Tubes
from CTMicroSRLib.volume import Geometry, Volume

Mask = NDArray[np.bool_]

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


def edge_rise_mm(
    image_ji: NDArray[np.generic],
    spacing_ji_mm: tuple[float, float],
    points_ji_mm: Float,
    normals_ji: Float,
    *,
    reach_mm: Float | float = 1.25,
    least_step_hu: float = 100.0,
) -> Float:
    """10-90 % edge rise distance in mm along the normals through points on an edge between two plateaus.

    The plateaus are the medians of the outer eighths of the profile, ``reach_mm`` to either side; the distance is
    from the last point below 10 % before the half-way crossing nearest to the place, to the first above 90 % after
    it. A Gaussian-blurred straight step gives 2.563 sigma (within 2 % up to sigma = reach / 3); of a wider blur the
    profile does not reach the plateaus and the distance reads short (by 13 % at sigma = reach / 2).

    Args:
        image_ji: one slice, HU.
        spacing_ji_mm: voxel along j and i.
        points_ji_mm: places on the edge, shape ``(n, 2)``.
        normals_ji: unit vectors ``(n, 2)`` across the edge, either way.
        reach_mm: half the profile's length, for all or place by place.
        least_step_hu: plateaus that differ by less are no edge.

    Returns:
        shape ``(n,)``; NaN where a profile leaves the image, meets a missing voxel, has no such step or never
        crosses a level.
    """
    points, normals = (np.asarray(a, dtype=np.float64).reshape(-1, 2) for a in (points_ji_mm, normals_ji))
    if not len(points):
        return np.zeros(0)
    reach = np.broadcast_to(np.asarray(reach_mm, dtype=np.float64), len(points))
    eighth = math.ceil(float(reach.max()) / min(spacing_ji_mm))
    offsets = reach[:, None] * np.linspace(-1.0, 1.0, 8 * eighth + 1)
    profiles = sample_ji(image_ji, spacing_ji_mm, points[:, None] + offsets[..., None] * normals[:, None])
    before, after = (np.median(part, axis=1) for part in (profiles[:, :eighth], profiles[:, -eighth:]))
    with np.errstate(invalid="ignore", divide="ignore"):
        valid = np.isfinite(profiles).all(axis=1) & (np.abs(after - before) >= least_step_hu)
        rising = (profiles - before[:, None]) / np.where(valid, after - before, np.nan)[:, None]
    steps = np.arange(offsets.shape[1])
    half = (rising[:, :-1] < 0.5) & (rising[:, 1:] >= 0.5)
    middle = np.argmin(np.where(half, np.abs(offsets[:, :-1]), np.inf), axis=1)[:, None]
    low = np.where((rising <= 0.1) & (steps <= middle), steps, -1).max(axis=1)
    high = np.where((rising >= 0.9) & (steps > middle), steps, len(steps)).min(axis=1)
    valid &= half.any(axis=1) & (low >= 0) & (high < len(steps))
    rise = np.full(len(points), np.nan)
    row = np.flatnonzero(valid)
    starts = _crossing_at(offsets[row], rising[row], low[row], 0.1)
    rise[row] = _crossing_at(offsets[row], rising[row], high[row] - 1, 0.9) - starts
    return rise


@dataclass(frozen=True)
class EdgeRules:
    """Which vessel edges count; see :func:`find_vessel_edges`."""

    least_radius_mm: float = 1.0
    largest_angle_degrees: float = 45.0
    largest_smear_radii: float = 1.0
    largest_smear_across_mm: float = 0.08
    largest_reach_mm: float = 2.0
    least_gap_mm: float = 0.3
    least_thickness: float = 0.3
    directions: int = 36
    least_profiles: int = 6


@dataclass(frozen=True)
class EdgePlaces:
    """Places on vessel edges with their outward normals, ``(n, 2)``, and the vessel crossing each belongs to.

    ``found`` counts all artery and vein crossings of the slices, ``crossings`` those that gave places.
    """

    structures: Structures
    slice_k: Int
    points_ji_mm: Float
    normals_ji: Float
    crossing: Int
    found: int
    crossings: int
    reach_mm: Float


@dataclass(frozen=True)
class EdgeRise:
    """Edge rise distance of each vessel crossing in mm, the median of its profiles (NaN: none measurable)."""

    rise_mm: Float
    profiles: Int
    found: int

    @property
    def median_mm(self) -> float:
        """Median over crossings (NaN without any)."""
        measured = self.rise_mm[np.isfinite(self.rise_mm)]
        return float(np.median(measured)) if len(measured) else math.nan


def find_vessel_edges(structures: Structures, rules: EdgeRules | None = None) -> EdgePlaces:
    """Places on the edges of arteries and veins in parenchyma where the truth's own edge is sharp.

    A crossing counts if its radius holds a plateau (``least_radius_mm``), its axis lies within
    ``largest_angle_degrees`` of the slice normal and moves by at most ``largest_smear_radii`` radii over the
    slice's thickness. Of its edge only directions count in which it moves by at most ``largest_smear_across_mm``
    (a voxel: the slice's thickness widens the edge by no more than the voxel does), and whose profile, a radius but
    at most ``largest_reach_mm`` to either side, keeps ``least_gap_mm`` away from other structures and
    inside the image; structures under ``least_thickness`` of its radius are the parenchyma's own texture. At least
    ``least_profiles`` directions must be left.
    """
    rules = rules or EdgeRules()
    crossings = find_crossings(structures).select_vessels()
    good = (crossings.radius_mm >= rules.least_radius_mm) & (
        crossings.smear_mm <= rules.largest_smear_radii * crossings.radius_mm
    )
    good &= crossings.cosine >= math.cos(math.radians(rules.largest_angle_degrees))
    points, used, slices, owner = [np.zeros((0, 2))], [np.zeros((0, 2))], [np.zeros(0, int)], [np.zeros(0, int)]
    reaches: list[Float] = [np.zeros(0)]
    for n in np.flatnonzero(good):
        thinnest = rules.least_thickness * float(crossings.radius_mm[n])
        normals = directions_across(crossings.smear_ji_mm[n], rules.largest_smear_across_mm, rules.directions)
        reach = min(float(crossings.radius_mm[n]), rules.largest_reach_mm)
        edge = crossings.centre_ji_mm[n] + ellipse_points(crossings.radius_mm[n], crossings.tilt_ji[n], normals)
        clear = np.ones(len(normals), dtype=bool)
        k, branch = int(crossings.slice_k[n]), int(crossings.branch[n])
        for share in (0.0, 1 / 3, 2 / 3, 1.0):
            along = edge + share * reach * normals
            clear &= structures.gap_mm(k, along, branch, thinnest) >= rules.least_gap_mm
            clear &= structures.border_gap_mm(along) >= 0.0
        if np.count_nonzero(clear) >= rules.least_profiles:
            points.append(edge[clear])
            used.append(normals[clear])
            reaches.append(np.full(np.count_nonzero(clear), reach))
            slices.append(np.full(np.count_nonzero(clear), k))
            owner.append(np.full(np.count_nonzero(clear), len(owner) - 1))
    return EdgePlaces(
        structures=structures,
        slice_k=np.concatenate(slices),
        points_ji_mm=np.concatenate(points),
        normals_ji=np.concatenate(used),
        crossing=np.concatenate(owner),
        found=len(crossings),
        crossings=len(owner) - 1,
        reach_mm=np.concatenate(reaches),
    )


def measure_vessel_edges(image_kji: NDArray[np.generic], places: EdgePlaces) -> EdgeRise:
    """Edge rise distance at the places, in one method's image (HU, (k, j, i), on the places' grid).

    Raises:
        UsageError: an image of another size than the grid that the places were found on.
    """
    places.structures.check_image(image_kji)
    rises = np.full(len(places.slice_k), np.nan)
    for k in np.unique(places.slice_k):
        row = places.slice_k == k
        at, across = places.points_ji_mm[row], places.normals_ji[row]
        spacing = places.structures.spacing_ji_mm
        rises[row] = edge_rise_mm(image_kji[k], spacing, at, across, reach_mm=places.reach_mm[row])
    measured = [rises[(places.crossing == n) & np.isfinite(rises)] for n in range(places.crossings)]
    medians = [float(np.median(values)) if len(values) else math.nan for values in measured]
    return EdgeRise(np.asarray(medians, float), np.asarray([len(v) for v in measured], int), places.found)


def ellipse_points(radius_mm: float, tilt_ji: Float, normals_ji: Float) -> Float:
    """Points of a tilted tube's outline in the slice that have the given outward normals, from its centre."""
    slope = float(np.hypot(*tilt_ji))
    toward = tilt_ji / slope if slope > 0 else np.asarray((1.0, 0.0))
    stretch = np.eye(2) + (math.sqrt(1.0 + slope**2) - 1.0) * np.outer(toward, toward)
    stretched = normals_ji @ stretch
    return np.asarray(radius_mm * (stretched @ stretch) / np.linalg.norm(stretched, axis=1, keepdims=True))


def directions_across(smear_ji_mm: Float, largest_mm: float, count: int) -> Float:
    """Unit vectors (j, i) along which a smear is at most the largest allowed, evenly over both arcs of these."""
    smear = float(np.hypot(*smear_ji_mm))
    width = math.asin(min(1.0, largest_mm / smear)) if smear > 0 else math.pi / 2.0
    side = max(1, count // 2)
    angle = math.atan2(*smear_ji_mm) + math.pi / 2.0 + width * ((2.0 * np.arange(side) + 1.0) / side - 1.0)
    angle = np.concatenate([angle, angle + math.pi])
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _crossing_at(offsets: Float, values: Float, index: Int, level: float) -> Float:
    row = np.arange(len(values))
    left, right = values[row, index], values[row, index + 1]
    share = (level - left) / (right - left)
    return np.asarray(offsets[row, index] + share * (offsets[row, index + 1] - offsets[row, index]))


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
