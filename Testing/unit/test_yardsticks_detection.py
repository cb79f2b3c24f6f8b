"""Detection by diameter and nodule volume against answers worked out here: noise alone, discs, rings and balls."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.evaluation.detection import DetectionRules, find_targets, measure_targets, summarise_detections
from CTMicroSRLib.evaluation.nodules import find_nodules, measure_nodules, summarise_nodules
from CTMicroSRLib.evaluation.structures import structures_of
from CTMicroSRLib.simulation.description import Description, Label, Nodule, Tubes
from CTMicroSRLib.volume import Geometry, Volume

VOXEL_MM = 0.078125
LUNG_HU, BLOOD_HU, WALL_HU, AIR_HU = -880.0, 40.0, 0.0, -1000.0
NONE = Tubes.join([])
SLICES = 3
GEOMETRY = Geometry((384, 384, SLICES), (VOXEL_MM, VOXEL_MM, 1.0), (VOXEL_MM / 2, VOXEL_MM / 2, 0.5))


def upright_tubes(radii, places_xy, walls=0.0):
    """Tubes through all slices."""
    n = len(radii)
    start, end = (np.column_stack([places_xy, np.full(n, z)]) for z in (-1.0, 4.0))
    number = np.arange(n)
    return Tubes(start, end, np.asarray(radii, float), np.broadcast_to(walls, n).astype(float), number, number * 0 - 1)


def grid_places(count, *, step_mm=6.0, first_mm=3.0):
    at = first_mm + step_mm * np.arange(5)
    return np.asarray([(x, y) for y in at for x in at])[:count]


def drawn(description, geometry=GEOMETRY, contrast=1.0):
    """Upright tubes as discs with analytic coverage of a voxel's width, all slices alike."""
    j, i = np.mgrid[: geometry.size_ijk[1], : geometry.size_ijk[0]] * VOXEL_MM + VOXEL_MM / 2
    plane = np.full(j.shape, LUNG_HU)
    blood = LUNG_HU + contrast * (BLOOD_HU - LUNG_HU)
    layers = [(t, 0.0, blood) for t in (description.arteries, description.veins)]
    layers += [(description.airways, 1.0, WALL_HU), (description.airways, 0.0, AIR_HU)]
    for tubes, walls, level in layers:
        for n in range(len(tubes)):
            radius = tubes.radius_mm[n] + walls * tubes.wall_mm[n]
            distance = np.hypot(i - tubes.start_mm[n, 0], j - tubes.start_mm[n, 1]) - radius
            plane += np.clip(0.5 - distance / VOXEL_MM, 0.0, 1.0) * (level - plane)
    return np.repeat(plane[None], geometry.size_ijk[2], axis=0)


def noise(sd_hu, seed, blur_mm=0.15, shape=GEOMETRY.shape_kji):
    rng = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(rng.standard_normal(shape[1:]), blur_mm / VOXEL_MM) for _ in range(shape[0])])
    return sd_hu * field / field.std()


def lung(**structures):
    return Description((30.0, 30.0, 3.0), **{"airways": NONE, "arteries": NONE, "veins": NONE, **structures})


def blurred(image_kji, sigma_mm):
    return np.stack([gaussian_filter(plane, sigma_mm / VOXEL_MM) for plane in image_kji])


VESSELS = lung(veins=upright_tubes([0.15, 0.35, 0.7, 1.3] * 5, grid_places(20)))
AIRWAYS = lung(airways=upright_tubes([0.3, 0.6, 1.2] * 5, grid_places(15), [0.15, 0.2, 0.3] * 5))
MANY = DetectionRules(background_places=210, candidates=800)


def classes(description, images, rules=None):
    places = find_targets(structures_of(description, GEOMETRY), rules)
    return summarise_detections([measure_targets(image, places) for image in images])


def test_on_pure_noise_as_many_structures_are_found_as_the_false_positive_rate_says():
    images = [LUNG_HU + noise(30.0, seed) for seed in range(6)]
    found = [c for c in classes(VESSELS, images, MANY) if c.count]
    assert len(found) == 4
    count = sum(c.count for c in found)
    hits = sum(c.count * c.sensitivity for c in found)
    # 360 judgements (20 places, 3 slices, 6 images): binomial, three standard deviations about 5 %.
    assert count == 360
    assert abs(hits / count - 0.05) < 3.0 * math.sqrt(0.05 * 0.95 / count)
    for c in found:
        assert c.background >= 1200
        assert c.false_positive_rate == pytest.approx(0.05, abs=0.015)
        assert c.area_under_curve == pytest.approx(0.5, abs=0.12)


def test_sensitivity_grows_with_diameter_and_contrast():
    def sensitivities(contrast):
        clean = blurred(drawn(VESSELS, contrast=contrast), 0.45)
        found = classes(VESSELS, [clean + noise(25.0, seed, 0.45) for seed in range(3)])
        return np.asarray([c.sensitivity for c in found if c.target == "vessel" and c.count])

    faint, strong = sensitivities(0.15), sensitivities(1.0)
    assert (np.diff(faint) >= 0).all()
    assert (strong >= faint).all()
    assert faint[0] < 0.5 < 0.95 < faint[-1]
    assert strong.tolist()[1:] == [1.0, 1.0, 1.0]


def test_airways_are_found_by_their_dark_lumen_until_blur_fills_it():
    clean = drawn(AIRWAYS)

    def sensitivities(sigma_mm):
        found = classes(AIRWAYS, [blurred(clean, sigma_mm) + noise(25.0, seed, 0.3) for seed in range(2)])
        return [c.sensitivity for c in found if c.target == "airway" and c.count]

    assert sensitivities(0.1) == [1.0, 1.0, 1.0]
    wide = sensitivities(0.7)
    # A blurred small airway is a bright dot: its wall is not above its lumen.
    assert wide[0] == 0.0
    assert wide[-1] == 1.0


def test_false_structures_in_plain_parenchyma_cost_sensitivity():
    clean = blurred(drawn(VESSELS, contrast=0.3), 0.3)
    honest = clean + noise(20.0, 1)
    rng, invented = np.random.default_rng(5), honest.copy()
    for k in range(SLICES):
        spots = np.zeros(honest.shape[1:])
        spots[tuple(rng.integers(0, 384, (2, 1500)))] = 1.0
        invented[k] += 40_000.0 * gaussian_filter(spots, 3.0) / gaussian_filter(spots, 3.0).max() * 0.005
    first, second = (classes(VESSELS, [image])[0] for image in (honest, invented))
    assert second.sensitivity < first.sensitivity - 0.2


def test_vessels_beside_thicker_structures_are_not_judged_but_counted():
    beside = [(10.0, 10.0), (12.0, 10.0), (20.0, 20.0)]
    description = lung(veins=upright_tubes([1.5, 0.3, 0.3], beside))
    by_class = classes(description, [LUNG_HU + noise(20.0, 0)])
    small, large = by_class[1], by_class[3]
    assert (small.found, small.count) == (6, 3)
    assert (large.found, large.count) == (3, 3)


def test_background_places_lie_off_every_structure_and_the_chest_wall():
    labels = np.full((12, 384, 384), Label.PARENCHYMA, dtype=np.uint8)
    labels[:, :, 300:] = Label.SOFT_TISSUE
    fine = Geometry((384, 384, 12), (VOXEL_MM, VOXEL_MM, 0.25), (VOXEL_MM / 2, VOXEL_MM / 2, 0.125))
    structures = structures_of(VESSELS, GEOMETRY, labels=Volume(labels, fine))
    places = find_targets(structures)
    plain = ~places.real
    assert np.count_nonzero(plain) >= 4 * 50
    for radius, number in ((0.15, 0), (0.35, 1), (0.7, 2), (1.3, 3)):
        # Vessels thinner than 0.3 of what is looked for are texture.
        thick = VESSELS.veins.select(VESSELS.veins.radius_mm >= 0.3 * radius)
        marked = drawn(lung(veins=thick))
        marked[:, :, 300:] = BLOOD_HU
        row = plain & (places.diameter_class == number)
        index = np.rint(places.target_ji_mm[row] / VOXEL_MM).astype(int)
        assert (marked[places.slice_k[row][:, None], index[..., 0], index[..., 1]] == LUNG_HU).all()
    assert places.target_ji_mm[places.real][..., 1].max() < 300 * VOXEL_MM


def test_places_and_ratios_do_not_depend_on_position_or_brightness():
    places = find_targets(structures_of(VESSELS, GEOMETRY))
    image = blurred(drawn(VESSELS), 0.3) + noise(20.0, 2)
    first, brighter = measure_targets(image, places), measure_targets(0.5 * image + 300.0, places)
    np.testing.assert_allclose(brighter.cnr, first.cnr, rtol=1e-6)
    shift = np.asarray([100.0, -50.0, 7.0])
    moved = replace(VESSELS.veins, start_mm=VESSELS.veins.start_mm + shift, end_mm=VESSELS.veins.end_mm + shift)
    geometry = replace(GEOMETRY, origin_mm=tuple((np.asarray(GEOMETRY.origin_mm) + shift).tolist()))
    there = find_targets(structures_of(lung(veins=moved), geometry))
    np.testing.assert_allclose(there.target_ji_mm, places.target_ji_mm, atol=1e-9)


def test_nothing_to_detect_and_nothing_to_see_give_no_numbers():
    empty = classes(lung(), [drawn(lung())])
    assert all(c.found == c.count == 0 and math.isnan(c.sensitivity) for c in empty)
    outside = lung(veins=upright_tubes([1.0], [(200.0, 5.0)]))
    assert all(c.found == 0 for c in classes(outside, [drawn(lung())]))
    flat, missing = (classes(VESSELS, [np.full(GEOMETRY.shape_kji, level)]) for level in (LUNG_HU, np.nan))
    assert all(c.sensitivity == 0.0 for c in flat if c.found)
    assert all(c.count == 0 and c.found > 0 for c in missing if c.found)
    places = find_targets(structures_of(VESSELS, GEOMETRY))
    with pytest.raises(UsageError, match="shape"):
        measure_targets(np.zeros((1, 5, 5)), places)


BALL_GRID = Geometry((256, 256, 12), (VOXEL_MM, VOXEL_MM, 1.0), (VOXEL_MM / 2, VOXEL_MM / 2, 0.5))


def ball(radius, density=30.0, centre=(9.83, 10.21, 6.13), kind="solid"):
    return Nodule(kind, centre, radius, 4.0 / 3.0 * math.pi * radius**3, density)


def slices_of(nodules, geometry=BALL_GRID, thickness=1.0, planes=25):
    """Balls in slices of a thickness, analytic coverage of a voxel's width in-plane."""
    image = np.full(geometry.shape_kji, LUNG_HU)
    for nodule in nodules:
        (x, y, z), radius = nodule.centre_mm, nodule.radius_mm
        box = tuple(slice(int((c - radius) / VOXEL_MM) - 2, int((c + radius) / VOXEL_MM) + 3) for c in (y, x))
        j, i = np.mgrid[box] * VOXEL_MM + VOXEL_MM / 2
        for k in range(geometry.size_ijk[2]):
            middle = geometry.origin_mm[2] + k * geometry.spacing_mm[2]
            coverage = np.zeros(j.shape)
            for at in middle + thickness * ((np.arange(planes) + 0.5) / planes - 0.5):
                if abs(at - z) < radius:
                    distance = np.hypot(i - x, j - y) - math.sqrt(radius**2 - (at - z) ** 2)
                    coverage += np.clip(0.5 - distance / VOXEL_MM, 0.0, 1.0) / planes
            image[k, box[0], box[1]] += coverage * (nodule.density_hu - LUNG_HU)
    return image


def volumes(nodules, image, truth=None, geometry=BALL_GRID, **options):
    description = Description((20.0, 20.0, 12.0), NONE, NONE, NONE, tuple(nodules))
    places = find_nodules(description, geometry, **options)
    return measure_nodules(image, image if truth is None else truth, places)


@pytest.mark.parametrize(("radius", "density", "within"), [(1.5, 30.0, 0.06), (3.0, 30.0, 0.02), (4.0, -600.0, 0.015)])
def test_a_sharp_balls_volume_is_its_own(radius, density, within):
    nodule = ball(radius, density)
    found = volumes([nodule], slices_of([nodule]))
    assert found.described_mm3 == pytest.approx(nodule.volume_mm3)
    assert found.measured_mm3 == pytest.approx(found.described_mm3, rel=within)


def test_the_volume_hardly_depends_on_where_the_ball_lies_between_voxels_and_slices():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(5):
        nodule = ball(3.0, centre=tuple((np.asarray([10.0, 10.0, 6.0]) + rng.uniform(-0.5, 0.5, 3)).tolist()))
        found.append(volumes([nodule], slices_of([nodule])).measured_mm3[0])
    assert np.std(found) / np.mean(found) < 0.01


def test_noise_and_texture_do_not_bias_the_volume():
    nodule = ball(3.0)
    clean = slices_of([nodule])
    noisy = clean + noise(60.0, 3, 0.1, clean.shape)
    assert volumes([nodule], noisy, clean).measured_mm3 == pytest.approx(nodule.volume_mm3, rel=0.03)


def test_blur_shrinks_small_nodules_and_is_seen_against_the_truth_image():
    small, large = ball(1.2, centre=(5.0, 5.0, 6.0)), ball(3.5, centre=(13.0, 13.0, 6.0))
    truth = slices_of([small, large])
    found = volumes([small, large], blurred(truth, 0.6), truth)
    errors = found.measured_mm3 / found.truth_mm3 - 1.0
    # The large one counted voxel by voxel in its part of the image, at half-way.
    counted = np.count_nonzero(blurred(truth, 0.6)[:, 115:, 115:] > (30.0 + LUNG_HU) / 2.0) * VOXEL_MM**2
    assert found.measured_mm3[1] == pytest.approx(counted, rel=0.015)
    assert errors[0] < -0.3 < -0.1 < errors[1] < 0.0
    summary = summarise_nodules([found])
    assert summary.count == summary.measured == summary.whole == 2
    assert summary.error_to_truth == pytest.approx(np.median(errors))
    assert summary.absolute_error_to_truth == pytest.approx(np.median(np.abs(errors)))


def test_cut_and_thin_nodules_are_left_out_by_rule():
    cut, deep, thin = ball(3.0, centre=(1.0, 10.0, 6.0)), ball(3.0, centre=(10.0, 10.0, 2.0)), ball(0.8)
    found = volumes([cut, deep, thin], slices_of([deep]))
    assert (found.found, len(found.kind)) == (3, 1)
    assert math.isnan(found.described_mm3[0])
    assert found.truth_mm3[0] > 0
    thick = replace(BALL_GRID, size_ijk=(256, 256, 2), spacing_mm=(VOXEL_MM, VOXEL_MM, 5.0))
    assert len(volumes([ball(3.0)], np.zeros(thick.shape_kji), geometry=thick).kind) == 0
    assert summarise_nodules([volumes([], np.zeros(BALL_GRID.shape_kji))]).count == 0


def test_a_vessel_that_runs_into_the_nodule_does_not_count_where_labels_tell():
    nodule = ball(2.5, centre=(10.0, 10.0, 6.0))
    alone = slices_of([nodule])
    image, labels = alone.copy(), np.full(BALL_GRID.shape_kji, Label.PARENCHYMA, dtype=np.uint8)
    image[6, 115:141, 150:] = BLOOD_HU
    labels[6, 115:141, 160:] = Label.VEIN
    plain = volumes([nodule], alone).measured_mm3[0]
    attached = volumes([nodule], image).measured_mm3[0]
    told = volumes([nodule], image, labels=Volume(labels, BALL_GRID)).measured_mm3[0]
    assert attached > 1.03 * plain
    assert told == pytest.approx(plain, rel=0.01)


def test_an_unseen_nodule_has_no_volume_and_a_missing_voxel_no_number():
    nodule = ball(3.0)
    truth = slices_of([nodule])
    assert volumes([nodule], np.full(truth.shape, LUNG_HU), truth).measured_mm3.tolist() == [0.0]
    holed = truth.copy()
    holed[6, 130, 130] = np.nan
    assert np.isnan(volumes([nodule], holed, truth).measured_mm3).all()
    assert np.isnan(volumes([nodule], np.full(truth.shape, 30.0), truth).measured_mm3).all()
    with pytest.raises(UsageError, match="shape"):
        volumes([nodule], truth[:3], truth)


def test_turning_image_and_description_together_keeps_the_volume():
    nodule = ball(2.0)
    image = slices_of([nodule])
    turned = np.asarray([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    shift = np.asarray([5.0, 60.0, -9.0])
    there = replace(nodule, centre_mm=tuple((turned @ nodule.centre_mm + shift).tolist()))
    origin = tuple((turned @ BALL_GRID.origin_mm + shift).tolist())
    geometry = replace(BALL_GRID, origin_mm=origin, directions=tuple(turned.ravel().tolist()))
    moved = volumes([there], image, geometry=geometry)
    assert moved.measured_mm3 == pytest.approx(volumes([nodule], image).measured_mm3, rel=1e-9)
    assert np.isfinite(moved.described_mm3).all()
