"""The specimen: repeatable, of the right densities, as its description says, with and without any structure."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from CTMicroSRLib import ResourceError, UsageError
from CTMicroSRLib.simulation.description import Label
from CTMicroSRLib.simulation.parenchyma import alveolar_contrast_hu, alveoli
from CTMicroSRLib.simulation.raster import Grid
from CTMicroSRLib.simulation.specimen import STRUCTURES, SpecimenSettings, make_specimen

HEALTHY = {
    "wall_share": 0.0,
    "fissure_share": 0.0,
    "nodule_share": 0.0,
    "emphysema_share": 0.0,
    "ground_glass_share": 0.0,
    "thick_wall_share": 0.0,
}
EVERYTHING = dict.fromkeys(HEALTHY, 1.0)
SMALL = SpecimenSettings(size_mm=(12.0, 12.0, 4.0), voxel_mm=0.1)

PRINT_SUM = """
import hashlib, sys
from CTMicroSRLib.simulation.specimen import SpecimenSettings, make_specimen
shares = dict.fromkeys(("wall_share", "fissure_share", "nodule_share", "emphysema_share", "ground_glass_share"), 1.0)
specimen = make_specimen(SpecimenSettings(size_mm=(12.0, 12.0, 4.0), voxel_mm=0.1, **shares), 5)
print(hashlib.sha256(specimen.volume.array_kji.tobytes() + specimen.labels.array_kji.tobytes()).hexdigest())
"""


def sums(specimen):
    return hashlib.sha256(specimen.volume.array_kji.tobytes() + specimen.labels.array_kji.tobytes()).hexdigest()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    one, again, other = (make_specimen(SMALL, seed) for seed in (3, 3, 4))
    assert sums(one) == sums(again) != sums(other)


def test_one_and_two_threads_give_the_same_bytes():
    found = set()
    for threads in "12":
        environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)}
        found.add(
            subprocess.run([sys.executable, "-c", PRINT_SUM], env=environment, capture_output=True, check=True).stdout
        )
    assert len(found) == 1


def test_making_a_specimen_leaves_the_global_random_state_alone():
    np.random.seed(0)  # noqa: NPY002 - the state that must not be touched
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    make_specimen(SMALL, 1)
    assert np.random.rand() == expected  # noqa: NPY002


def test_voxels_lie_where_the_description_says():
    specimen = make_specimen(replace(SMALL, slice_mm=0.3), 1)
    assert specimen.volume.geometry == specimen.labels.geometry
    assert specimen.volume.geometry.origin_mm == pytest.approx((0.05, 0.05, 0.15))
    assert specimen.description.extent_mm == pytest.approx((12.0, 12.0, 3.9))
    assert specimen.labels.array_kji.dtype == np.uint8
    assert specimen.volume.array_kji.dtype == np.float32


@pytest.mark.parametrize("seed", range(3))
def test_a_specimen_is_lung_in_hounsfield_units(seed):
    specimen = make_specimen(replace(SMALL, **EVERYTHING), seed)
    array, labels = specimen.volume.array_kji, specimen.labels.array_kji
    assert np.isfinite(array).all()
    assert -1100.0 < array.min() < -900.0
    assert array.max() < 2000.0
    for label, low, high in (
        (Label.PARENCHYMA, -960, -820),
        (Label.AIRWAY_LUMEN, -1010, -900),
        (Label.AIRWAY_WALL, -200, 60),
        (Label.ARTERY, -150, 360),
        (Label.BONE, 40, 1500),
        (Label.FAT, -140, -60),
    ):
        if np.sum(labels == label) > 200:
            assert low < array[labels == label].mean() < high, label.name


def test_lung_density_falls_against_gravity_by_the_gradient_of_the_description():
    settings = SpecimenSettings(size_mm=(12.0, 40.0, 4.0), voxel_mm=0.16, **HEALTHY)
    specimen = make_specimen(settings, 11)
    plain = np.where(specimen.labels.array_kji == Label.PARENCHYMA, specimen.volume.array_kji, np.nan)
    rows = np.nanmedian(plain, axis=(0, 2))
    slope = np.polyfit(np.arange(len(rows)) * 0.16, rows, 1)[0]
    assert slope == pytest.approx(specimen.description.conditions["gradient_hu_per_mm"], abs=0.35)


@pytest.fixture(scope="module")
def whole():
    """A specimen with every structure."""
    return make_specimen(replace(SMALL, **EVERYTHING), 2)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_leaving_a_structure_out_changes_only_where_it_was(structure, whole):
    from scipy import ndimage

    less = make_specimen(replace(SMALL, **EVERYTHING, without=frozenset({structure})), 2)
    changed = whole.volume.array_kji != less.volume.array_kji
    if structure == "texture":
        assert changed.mean() > 0.2
        return
    own = {
        "airways": (Label.AIRWAY_LUMEN, Label.AIRWAY_WALL),
        "arteries": (Label.ARTERY,),
        "veins": (Label.VEIN,),
        "nodules": (Label.NODULE,),
        "fissure": (Label.PLEURA,),
        "emphysema": (Label.EMPHYSEMA,),
        "wall": (Label.SOFT_TISSUE, Label.FAT, Label.BONE, Label.PLEURA, Label.OUTSIDE_AIR),
    }.get(structure)
    assert changed.any()
    if own is not None:  # septa and ground glass fill parts of voxels, or fade out
        place = ndimage.binary_dilation(np.isin(whole.labels.array_kji, own), iterations=4)
        # What fills less than half of every voxel it meets (thin ends, soft edges) has no label.
        assert np.mean(changed & ~place) < 0.02


def test_what_is_left_out_is_not_described():
    none = make_specimen(replace(SMALL, **EVERYTHING, without=frozenset(STRUCTURES)), 2)
    assert len(none.description.airways) == len(none.description.arteries) == len(none.description.veins) == 0
    assert none.description.nodules == ()
    assert np.unique(none.labels.array_kji).tolist() == [Label.PARENCHYMA]


def test_drawn_lumina_have_the_areas_of_the_description():
    """Where an airway crosses a plane, the voxels labelled lumen cover pi r^2 / cos."""
    from scipy import ndimage

    settings = SpecimenSettings(size_mm=(30.0, 30.0, 6.0), voxel_mm=0.078125, **HEALTHY)
    without = frozenset({"texture", "septa", "arteries", "veins"})
    specimen = make_specimen(replace(settings, without=without), 6)
    tubes, labels = specimen.description.airways, specimen.labels.array_kji
    ratios = []
    for n in range(len(tubes)):
        axis = tubes.end_mm[n] - tubes.start_mm[n]
        cosine = abs(axis[2]) / np.linalg.norm(axis)
        middle = 0.5 * (tubes.start_mm[n] + tubes.end_mm[n])
        i, j, k = np.floor(middle / settings.voxel_mm).astype(int)
        if cosine < 0.6 or min(i, j) < 25 or i >= labels.shape[2] - 25 or j >= labels.shape[1] - 25:
            continue
        if not 0 <= k < labels.shape[0] or labels[k, j, i] != Label.AIRWAY_LUMEN:
            continue
        pieces, _ = ndimage.label(labels[k] == Label.AIRWAY_LUMEN)
        area = np.sum(pieces == pieces[j, i]) * settings.voxel_mm**2
        ratios.append(area * cosine / (math.pi * tubes.radius_mm[n] ** 2))
    assert len(ratios) >= 5
    assert np.median(ratios) == pytest.approx(1.0, abs=0.06)


def test_arteries_run_beside_airways_and_are_drawn_in_blood():
    specimen = make_specimen(
        SpecimenSettings(size_mm=(24.0, 24.0, 6.0), voxel_mm=0.1, contrast_share=0.0, **HEALTHY), 3
    )
    arteries, airways = specimen.description.arteries, specimen.description.airways
    big = arteries.select(arteries.radius_mm > 0.35)
    middles = 0.5 * (big.start_mm + big.end_mm)
    own = 0.5 * (airways.start_mm + airways.end_mm)
    nearest = np.min(np.linalg.norm(middles[:, None] - own[None], axis=2), axis=1)
    assert np.median(nearest) < 6 * np.median(big.radius_mm) + 1.0
    blood = specimen.volume.array_kji[specimen.labels.array_kji == Label.ARTERY]
    assert np.percentile(blood, 95) == pytest.approx(specimen.description.conditions["blood_hu"], abs=1.0)


def test_nodules_are_described_by_what_was_drawn():
    settings = replace(SpecimenSettings(size_mm=(14.0, 14.0, 10.0), voxel_mm=0.16, **HEALTHY), nodule_share=1.0)
    for seed in range(2):
        specimen = make_specimen(settings, seed)
        with_none = make_specimen(replace(settings, without=frozenset({"nodules"})), seed)
        assert 1 <= len(specimen.description.nodules) <= 3
        changed = specimen.volume.array_kji != with_none.volume.array_kji
        drawn = sum(nodule.volume_mm3 for nodule in specimen.description.nodules)
        assert changed.sum() * 0.16**3 >= 0.6 * min(drawn, 14 * 14 * 10)
        for nodule in specimen.description.nodules:
            whole_ball = 4 / 3 * math.pi * nodule.radius_mm**3
            assert nodule.volume_mm3 < 2.2 * whole_ball
            assert all(0 < c < e for c, e in zip(nodule.centre_mm, specimen.description.extent_mm, strict=True))


@pytest.mark.parametrize("cell_mm", [0.2, 0.25, 0.3])
def test_alveolar_texture_has_the_contrast_of_a_foam_in_voxels_and_in_slices(cell_mm):
    """Independent physics: a Voronoi foam of tissue walls (11 % of its volume), averaged over voxels and slices."""
    step_mm, voxels = 0.013, 6
    foam = foam_hu(cell_mm, step_mm)
    n = [size // voxels * voxels for size in foam.shape]
    cubes = foam[: n[0], : n[1], : n[2]]
    cubes = cubes.reshape(n[0] // voxels, voxels, n[1] // voxels, voxels, n[2] // voxels, voxels).mean(axis=(1, 3, 5))
    assert alveolar_contrast_hu(voxels * step_mm, cell_mm) == pytest.approx(cubes.std(), rel=0.07)
    ours = alveoli(np.random.default_rng(0), Grid((48, 96, 96), (voxels * step_mm,) * 3), cell_mm)
    for planes in (2, 4, 6, 12):
        expected = _of_slices(cubes, planes) / cubes.std()
        assert _of_slices(ours, planes) / ours.std() == pytest.approx(expected, abs=0.08)


def _of_slices(array, planes):
    kept = array.shape[0] // planes * planes
    return array[:kept].reshape(-1, planes, *array.shape[1:]).mean(axis=1).std()


def foam_hu(cell_mm, step_mm):
    """Air cells about random centres that keep their distance; tissue where two are nearly equally near."""
    from scipy.spatial import cKDTree

    rng, edge_mm, depth_mm = np.random.default_rng(0), 1.56, 1.014
    count = int((edge_mm + 2 * cell_mm) ** 2 * (depth_mm + 2 * cell_mm) / (math.pi / 6 * cell_mm**3))
    extent = np.array([edge_mm, edge_mm, depth_mm]) + 2 * cell_mm
    centres = rng.uniform(0, 1, (3 * count, 3)) * extent - cell_mm
    kept = np.ones(len(centres), dtype=bool)
    for a, b in sorted(cKDTree(centres).query_pairs(0.6 * cell_mm)):
        kept[b] &= not kept[a]
    centres = centres[kept][:count]
    tree, x = cKDTree(centres), np.arange(step_mm / 2, edge_mm, step_mm)
    grid_x, grid_y = np.meshgrid(x, x)
    gaps = []
    for z in np.arange(step_mm / 2, depth_mm, step_mm):
        points = np.stack([grid_x.ravel(), grid_y.ravel(), np.full(grid_x.size, z)], axis=1)
        distance, index = tree.query(points, 2)
        between = np.linalg.norm(centres[index[:, 1]] - centres[index[:, 0]], axis=1)
        gaps.append(((distance[:, 1] ** 2 - distance[:, 0] ** 2) / (2 * between)).reshape(grid_x.shape))
    gaps = np.stack(gaps)
    half_mm = float(np.quantile(gaps, 0.11))
    return -1000 + 1050 * np.clip((half_mm - gaps) / step_mm + 0.5, 0, 1)


def test_finer_slices_average_to_coarser_ones_in_what_is_drawn():
    """A block of thick planes shows the same trees as one of cubes, averaged."""
    without = frozenset({"texture", "septa"})
    fine = make_specimen(replace(SMALL, size_mm=(12.0, 12.0, 4.2), without=without, **HEALTHY), 8)
    thick = make_specimen(replace(SMALL, size_mm=(12.0, 12.0, 4.2), slice_mm=0.3, without=without, **HEALTHY), 8)
    mean = fine.volume.array_kji.reshape(14, 3, 120, 120).mean(axis=1)
    difference = thick.volume.array_kji - mean
    assert abs(difference.mean()) < 1.5
    assert np.sqrt(np.mean(difference**2)) < 0.25 * np.sqrt(np.mean((mean - mean.mean()) ** 2))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size_mm": (-1.0, 10.0, 10.0)}, "positive"),
        ({"voxel_mm": 0.0}, "positive"),
        ({"voxel_mm": math.nan}, "positive"),
        ({"slice_mm": 0.05}, "multiple"),
        ({"slice_mm": 0.2}, "multiple"),
        ({"size_mm": (0.3, 10.0, 10.0)}, "8 voxels"),
        ({"nodule_share": 1.2}, "between 0 and 1"),
        ({"without": frozenset({"heart"})}, "heart"),
    ],
)
def test_an_impossible_specimen_is_refused(changes, told):
    with pytest.raises(UsageError, match=told):
        replace(SpecimenSettings(), **changes)


def test_a_specimen_larger_than_memory_is_refused_before_anything_is_made():
    with pytest.raises(ResourceError, match="GB"):
        make_specimen(SpecimenSettings(size_mm=(4000.0, 4000.0, 1000.0)), 0)
