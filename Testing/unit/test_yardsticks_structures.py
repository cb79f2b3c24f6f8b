"""Edge rise and airway walls against answers worked out here: analytic edges, discs and rings, known blur."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.optimize import brentq
from scipy.special import erf, ndtr, ndtri

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.evaluation.airway_walls import find_airways, measure_airways, summarise_airways
from CTMicroSRLib.evaluation.edges import edge_rise_mm, find_vessel_edges, measure_vessel_edges
from CTMicroSRLib.evaluation.structures import find_crossings, structures_of
from CTMicroSRLib.simulation.description import Description, Label, Nodule, Tubes
from CTMicroSRLib.volume import Geometry, Volume

VOXEL_MM = 0.078125
LUNG_HU, BLOOD_HU, WALL_HU, AIR_HU = -880.0, 40.0, 0.0, -1000.0
GEOMETRY = Geometry((160, 160, 1), (VOXEL_MM, VOXEL_MM, 1.0), (VOXEL_MM / 2, VOXEL_MM / 2, 3.0))
MIDDLE = (6.25, 6.25)
NONE = Tubes.join([])


def tube(at_xy, radius, wall=0.0, *, lean=(0.0, 0.0), z=(0.0, 6.0)):
    """One tube through the slice at z = 3 mm; ``lean`` is its way along x and y per mm of z."""
    start, end = ([at_xy[0] + lean[0] * (h - 3.0), at_xy[1] + lean[1] * (h - 3.0), h] for h in z)
    numbers = (np.asarray([radius]), np.asarray([wall]), np.asarray([0]), np.asarray([-1]))
    return Tubes(np.asarray([start]), np.asarray([end]), *numbers)


def lung(*, airways=NONE, arteries=NONE, veins=NONE, nodules=()):
    return Description((12.5, 12.5, 6.0), airways, arteries, veins, nodules)


def drawn(description, geometry=GEOMETRY, *, thickness=1.0, fine=4, planes=17):
    """The slice of a description by supersampling: ``fine`` x ``fine`` points a voxel on ``planes`` planes."""
    x, y = (
        geometry.origin_mm[a] + VOXEL_MM * ((np.arange(geometry.size_ijk[a] * fine) + 0.5) / fine - 0.5) for a in (0, 1)
    )
    total = np.zeros((len(y), len(x)))
    for z in 3.0 + thickness * ((np.arange(planes) + 0.5) / planes - 0.5):
        plane = np.full_like(total, LUNG_HU)
        trees = [(t, BLOOD_HU) for t in (description.arteries, description.veins)]
        trees += [(description.airways, WALL_HU), (description.airways, AIR_HU)]
        for tubes, level in trees:
            for n in range(len(tubes)):
                axis = tubes.end_mm[n] - tubes.start_mm[n]
                axis = axis / np.linalg.norm(axis)
                dx, dy, dz = (
                    x[None, :] - tubes.start_mm[n, 0],
                    y[:, None] - tubes.start_mm[n, 1],
                    z - tubes.start_mm[n, 2],
                )
                along = dx * axis[0] + dy * axis[1] + dz * axis[2]
                radius = tubes.radius_mm[n] + (tubes.wall_mm[n] if level == WALL_HU else 0.0)
                plane[dx**2 + dy**2 + dz**2 - along**2 <= radius**2] = level
        total += plane / planes
    rows, columns = geometry.size_ijk[1], geometry.size_ijk[0]
    return total.reshape(rows, fine, columns, fine).mean(axis=(1, 3))[None]


def blurred(image_kji, sigma_mm):
    return np.stack([gaussian_filter(plane, sigma_mm / VOXEL_MM) for plane in image_kji])


def rise_of(description, image, **options):
    return measure_vessel_edges(image, find_vessel_edges(structures_of(description, GEOMETRY, **options)))


def walls_of(description, image, geometry=GEOMETRY, **options):
    return measure_airways(image, find_airways(structures_of(description, geometry, **options)))


def straight_edge(angle, offset_mm, sigma_mm, low, high):
    j, i = np.mgrid[:96, :96] * VOXEL_MM
    normal = np.asarray([math.sin(angle), math.cos(angle)])
    point = np.asarray([3.7, 3.7]) + offset_mm * normal
    distance = (j - point[0]) * normal[0] + (i - point[1]) * normal[1]
    return low + (high - low) * 0.5 * (1.0 + erf(distance / (math.sqrt(2.0) * sigma_mm))), point, normal


@given(
    angle=st.floats(0.0, 6.28),
    offset_mm=st.floats(-0.1, 0.1),
    sigma_mm=st.sampled_from([0.1, 0.2, 0.3]),
    reach_mm=st.sampled_from([1.25, 1.6]),
    levels=st.sampled_from([(LUNG_HU, BLOOD_HU), (BLOOD_HU, LUNG_HU)]),
)
@settings(max_examples=25)
def test_a_blurred_step_rises_over_2_563_sigma_wherever_and_however_it_lies(
    angle, offset_mm, sigma_mm, reach_mm, levels
):
    image, point, normal = straight_edge(angle, offset_mm, sigma_mm, *levels)
    rise = edge_rise_mm(image, (VOXEL_MM, VOXEL_MM), point[None], normal[None], reach_mm=reach_mm)
    assert rise == pytest.approx(2.5631 * sigma_mm, rel=0.01)


@pytest.mark.parametrize("sigma_mm", [0.5, 0.65])
def test_a_blur_wider_than_the_profile_reads_short_as_predicted(sigma_mm):
    image, point, normal = straight_edge(0.3, 0.0, sigma_mm, LUNG_HU, BLOOD_HU)
    foot = ndtr(-1.25 * 0.875 / sigma_mm)
    predicted = -2.0 * sigma_mm * ndtri(foot + 0.1 * (1.0 - 2.0 * foot))
    rise = edge_rise_mm(image, (VOXEL_MM, VOXEL_MM), point[None], normal[None], reach_mm=1.25)
    assert rise == pytest.approx(predicted, rel=0.01)
    assert rise < 0.97 * 2.5631 * sigma_mm


def test_the_place_need_not_lie_on_the_edge_exactly():
    image, point, normal = straight_edge(0.4, 0.0, 0.2, LUNG_HU, BLOOD_HU)
    beside = point + np.asarray([[-0.2], [0.2]]) * normal
    rise = edge_rise_mm(image, (VOXEL_MM, VOXEL_MM), beside, np.stack([normal, normal]))
    assert rise == pytest.approx(2.5631 * 0.2, rel=0.01)


def test_without_an_edge_inside_the_image_there_is_no_rise():
    image, point, normal = straight_edge(0.0, 0.0, 0.2, LUNG_HU, BLOOD_HU)
    places = np.asarray([point, [3.7, 0.5], [-3.0, 3.7]])
    rise = edge_rise_mm(image, (VOXEL_MM, VOXEL_MM), places, np.stack([normal] * 3))
    assert np.isfinite(rise).tolist() == [True, False, False]
    assert np.isnan(edge_rise_mm(np.full((96, 96), LUNG_HU), (VOXEL_MM, VOXEL_MM), point[None], normal[None])).all()
    image[47, 47] = np.nan
    assert np.isnan(edge_rise_mm(image, (VOXEL_MM, VOXEL_MM), point[None], normal[None])).all()


@pytest.mark.parametrize("sigma_mm", [0.15, 0.25, 0.35])
def test_a_vessels_edge_rise_is_its_blur(sigma_mm):
    description = lung(veins=tube(MIDDLE, 2.5))
    rise = rise_of(description, blurred(drawn(description), sigma_mm))
    assert rise.median_mm == pytest.approx(2.5631 * sigma_mm, rel=0.03)
    assert rise.profiles.tolist() == [36]


def test_a_sharp_vessel_rises_within_a_voxel():
    description = lung(arteries=tube(MIDDLE, 2.5))
    assert 0.5 * VOXEL_MM < rise_of(description, drawn(description)).median_mm < 1.2 * VOXEL_MM


def test_an_oblique_vessel_is_read_where_the_slice_does_not_smear_it():
    upright, leaning = lung(veins=tube(MIDDLE, 2.0)), lung(veins=tube(MIDDLE, 2.0, lean=(0.5, 0.3)))
    straight, oblique = (rise_of(d, blurred(drawn(d, planes=33), 0.2)) for d in (upright, leaning))
    assert straight.profiles.tolist() == oblique.profiles.tolist() == [36]
    assert oblique.median_mm == pytest.approx(straight.median_mm, rel=0.03)


@pytest.mark.parametrize(
    "description",
    [
        lung(),
        lung(airways=tube(MIDDLE, 2.0, 0.3)),
        lung(veins=tube(MIDDLE, 0.8)),
        lung(veins=tube(MIDDLE, 2.0, lean=(1.5, 0.0))),
        lung(veins=tube(MIDDLE, 2.0, z=(0.0, 3.2))),
        lung(veins=tube((40.0, 6.0), 2.0)),
        lung(veins=tube(MIDDLE, 2.0), nodules=(Nodule("solid", (6.25, 6.25, 3.0), 3.0, 100.0, 30.0),)),
    ],
    ids=["empty", "airway", "thin", "oblique", "ends in the slice", "outside", "in a nodule"],
)
def test_vessels_without_a_sharp_free_edge_are_left_out(description):
    places = find_vessel_edges(structures_of(description, GEOMETRY))
    assert places.crossings == 0
    assert math.isnan(measure_vessel_edges(drawn(description), places).median_mm)


def test_no_profile_runs_into_another_structure():
    artery, neighbour = tube((5.0, 6.25), 1.5), tube((8.0, 6.25), 0.8)
    alone, beside = (
        find_vessel_edges(structures_of(lung(arteries=artery, veins=v), GEOMETRY)) for v in (NONE, neighbour)
    )
    assert beside.crossings == 1
    assert beside.found == 2
    assert 0 < len(beside.points_ji_mm) < len(alone.points_ji_mm)
    ends = beside.points_ji_mm + beside.reach_mm[:, None] * beside.normals_ji
    from_neighbour = np.hypot(ends[:, 0] - (6.25 - VOXEL_MM / 2), ends[:, 1] - (8.0 - VOXEL_MM / 2))
    assert from_neighbour.min() > 0.8 + 0.29


def test_labels_keep_edges_away_from_the_chest_wall():
    description = lung(veins=tube(MIDDLE, 2.0))
    array = np.full((60, 160, 160), Label.PARENCHYMA, dtype=np.uint8)
    fine = Geometry((160, 160, 60), (VOXEL_MM, VOXEL_MM, 0.1), (VOXEL_MM / 2, VOXEL_MM / 2, 0.05))
    free = find_vessel_edges(structures_of(description, GEOMETRY, labels=Volume(array, fine)))
    array[28, :, 110:] = Label.SOFT_TISSUE
    walled = find_vessel_edges(structures_of(description, GEOMETRY, labels=Volume(array, fine)))
    elsewhere = np.roll(array, -10, axis=0)
    other_slice = find_vessel_edges(structures_of(description, GEOMETRY, labels=Volume(elsewhere, fine)))
    assert len(free.points_ji_mm) == len(other_slice.points_ji_mm) == 36
    ends = walled.points_ji_mm + walled.reach_mm[:, None] * walled.normals_ji
    assert ends[:, 1].max() < 110 * VOXEL_MM
    assert 0 < len(walled.points_ji_mm) < 36


@pytest.mark.parametrize("turned", [(0, 1, 0, -1, 0, 0, 0, 0, 1), (1, 0, 0, 0, 0, -1, 0, 1, 0)])
def test_moving_and_turning_image_and_description_together_changes_nothing(turned):
    description = lung(veins=tube((3.5, 5.0), 1.8, lean=(0.2, 0.1)), airways=tube((8.5, 8.0), 1.2, 0.3, lean=(0.12, 0)))
    image = blurred(drawn(description), 0.15)
    matrix, shift = np.asarray(turned, dtype=float).reshape(3, 3), np.asarray([31.0, -17.0, 5.0])

    def moved(tubes):
        ends = (points @ matrix.T + shift for points in (tubes.start_mm, tubes.end_mm))
        return Tubes(*ends, tubes.radius_mm, tubes.wall_mm, tubes.branch, tubes.parent)

    elsewhere = lung(veins=moved(description.veins), airways=moved(description.airways))
    origin = tuple((matrix @ GEOMETRY.origin_mm + shift).tolist())
    geometry = Geometry(GEOMETRY.size_ijk, GEOMETRY.spacing_mm, origin, tuple(float(c) for c in turned))
    here, there = (structures_of(d, g) for d, g in ((description, GEOMETRY), (elsewhere, geometry)))
    rises = [measure_vessel_edges(image, find_vessel_edges(s)).rise_mm for s in (here, there)]
    walls = [measure_airways(image, find_airways(s)) for s in (here, there)]
    assert len(rises[0]) == 1
    assert walls[0].measurable.all()
    assert len(walls[0].rays) == 1
    np.testing.assert_allclose(rises[1], rises[0], rtol=1e-6)
    np.testing.assert_allclose(walls[1].lumen_mm2, walls[0].lumen_mm2, rtol=1e-6)
    np.testing.assert_allclose(walls[1].true_wall_mm, walls[0].true_wall_mm, rtol=1e-6)


@pytest.mark.parametrize(("radius", "wall"), [(0.5, 0.2), (1.0, 0.3), (2.5, 0.5)])
def test_a_sharp_airway_measures_as_described(radius, wall):
    description = lung(airways=tube((6.27, 6.21), radius, wall))
    found = walls_of(description, drawn(description))
    assert found.lumen_mm2 == pytest.approx(math.pi * radius**2, rel=0.02)
    assert found.measured_wall_mm == pytest.approx(wall, abs=0.01)
    assert found.rays.tolist() == [48]


@pytest.mark.parametrize("angle", [15.0, 28.0])
def test_an_oblique_airway_is_compared_with_its_ellipse(angle):
    slope = math.tan(math.radians(angle))
    description = lung(airways=tube(MIDDLE, 2.0, 0.5, lean=(0.8 * slope, 0.6 * slope)))
    found = walls_of(description, drawn(description, thickness=0.2), thickness_mm=0.2)
    assert found.true_lumen_mm2 == pytest.approx(math.pi * 4.0 / math.cos(math.radians(angle)), rel=1e-6)
    assert found.lumen_mm2 == pytest.approx(found.true_lumen_mm2, rel=0.02)
    assert found.measured_wall_mm == pytest.approx(found.true_wall_mm, abs=0.015)


def half_maximum_width(wall, sigma):
    """Width of a blurred flat layer between air and lung, each side at half between its plateau and the peak."""
    x = np.arange(-6.0, 6.0, 0.002)
    layer = np.where(x < 0, AIR_HU, np.where(x < wall, WALL_HU, LUNG_HU))
    profile = gaussian_filter1d(layer, sigma / 0.002, mode="nearest")
    top = profile.argmax()
    left, right = (
        brentq(lambda at, low=low: np.interp(at, x, profile) - (low + profile[top]) / 2.0, *ends)
        for low, ends in ((AIR_HU, (x[top] - 3.0, x[top])), (LUNG_HU, (x[top], x[top] + 3.0)))
    )
    return right - left, left


@pytest.mark.parametrize("wall", [0.15, 0.3, 0.6, 1.0])
def test_blur_thickens_thin_walls_as_theory_has_it(wall):
    sigma, radius = 0.2, 3.0
    description = lung(airways=tube(MIDDLE, radius, wall))
    found = walls_of(description, blurred(drawn(description), sigma))
    width, shift = half_maximum_width(wall, sigma)
    assert found.measured_wall_mm == pytest.approx(width, rel=0.03)
    assert found.lumen_mm2 == pytest.approx(math.pi * (radius + shift) ** 2, rel=0.02)
    # The limits that the theory itself must meet: a thin wall measures the blur, a thick one itself.
    assert width == pytest.approx(2.355 * sigma if wall == 0.15 else max(wall, 2.355 * sigma), rel=0.15)


@pytest.mark.parametrize("smear_radii", [0.5, 0.95])
def test_an_airway_smeared_by_its_slice_measures_as_the_truth_should(smear_radii):
    description = lung(airways=tube(MIDDLE, 1.5, 0.4, lean=(0.4 * smear_radii * 1.5, -0.3 * smear_radii * 1.5)))
    found = walls_of(description, drawn(description, thickness=2.0, planes=81), thickness_mm=2.0)
    assert found.lumen_mm2 == pytest.approx(found.true_lumen_mm2, rel=0.03)
    assert found.measured_wall_mm == pytest.approx(found.true_wall_mm, abs=0.02)
    assert found.true_wall_mm == pytest.approx(0.4, rel=0.05)


def test_rays_that_meet_the_artery_are_not_read():
    airway, artery = tube((4.5, 6.25), 1.2, 0.3), tube((7.2, 6.25), 1.2)
    alone, pair = lung(airways=airway), lung(airways=airway, arteries=artery)
    found = walls_of(pair, blurred(drawn(pair), 0.15))
    assert 16 <= found.clear_rays[0] < 48
    reference = walls_of(alone, blurred(drawn(alone), 0.15))
    assert found.measured_wall_mm == pytest.approx(reference.measured_wall_mm, rel=0.03)
    assert found.lumen_mm2 == pytest.approx(reference.lumen_mm2, rel=0.03)


def test_airways_smeared_by_the_slice_are_left_out_and_counted():
    thick = Geometry((160, 160, 1), (VOXEL_MM, VOXEL_MM, 5.0), GEOMETRY.origin_mm)
    description = lung(airways=tube(MIDDLE, 1.0, 0.3, lean=(0.25, 0.0)))
    assert len(find_airways(structures_of(description, GEOMETRY)).crossings) == 1
    places = find_airways(structures_of(description, thick))
    assert (places.found, len(places.crossings)) == (1, 0)


def test_an_airway_that_the_image_does_not_show_is_not_measurable():
    description = lung(airways=tube((4.0, 4.0), 1.0, 0.3))
    flat = walls_of(description, np.full(GEOMETRY.shape_kji, LUNG_HU))
    missing = walls_of(description, np.full(GEOMETRY.shape_kji, np.nan))
    for found in (flat, missing):
        assert not found.measurable.any()
        assert len(found.rays) == 1
    total = summarise_airways([flat, missing])[-1]
    assert (total.count, total.measurable_share) == (2, 0.0)
    assert math.isnan(total.lumen_error)


def test_the_summary_sorts_airways_by_lumen_diameter():
    airways = Tubes.join([tube((3.0, 3.0), 0.4, 0.2), tube((9.0, 4.0), 0.75, 0.25), tube((6.0, 9.0), 1.5, 0.3)])
    description = lung(airways=airways)
    found = walls_of(description, blurred(drawn(description), 0.3))
    summary = summarise_airways([found])
    assert [c.count for c in summary] == [1, 1, 0, 1, 0, 3]
    assert summary[0].lumen_error < summary[1].lumen_error < summary[3].lumen_error < 0.0
    assert summary[3].absolute_lumen_error == -summary[3].lumen_error
    assert summarise_airways([])[-1].count == 0


def test_pieces_of_a_branch_cross_a_slice_once():
    points = np.asarray([[5.0, 5, 0], [5.1, 5, 2], [5.2, 5, 3], [5.1, 5.1, 4], [5, 5, 6]])
    ones, branch = np.ones(4), np.zeros(4, dtype=int)
    vessel = Tubes(points[:-1], points[1:], ones, 0 * ones, branch, branch - 1)
    crossings = find_crossings(structures_of(lung(veins=vessel), GEOMETRY))
    assert len(crossings) == 1
    assert crossings.smear_mm == pytest.approx(math.hypot(0.0, 0.05), abs=1e-9)
    assert math.isinf(crossings.gap_mm[0])


def test_an_image_of_another_size_or_a_wrong_thickness_is_refused():
    structures = structures_of(lung(veins=tube(MIDDLE, 2.0)), GEOMETRY)
    with pytest.raises(UsageError, match="shape"):
        measure_vessel_edges(np.zeros((1, 20, 20)), find_vessel_edges(structures))
    with pytest.raises(UsageError, match="shape"):
        measure_airways(np.zeros((1, 20, 20)), find_airways(structures))
    with pytest.raises(UsageError, match="thickness"):
        structures_of(lung(), GEOMETRY, thickness_mm=math.nan)
