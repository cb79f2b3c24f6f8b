"""The simulated specimen and scanner: repeatable, measured to be what was asked for, refused where impossible."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib import Geometry, ResourceError, UsageError, Volume, read_volume
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.simulation.cases import CaseSettings, make_case, write_cases
from CTMicroSRLib.simulation.raster import Grid, coverage_from_distance, draw_tubes, smooth_field
from CTMicroSRLib.simulation.scanner import (
    ScannerSettings,
    clean_slice,
    coloured_noise,
    scan_specimen,
    slab_means,
)
from CTMicroSRLib.simulation.specimen import ALVEOLAR_CONTRAST_HU, Specimen, SpecimenSettings, make_specimen
from CTMicroSRLib.simulation.trees import PIECES_PER_BRANCH, Segments, grow_tree

SMALL = CaseSettings(size_voxels=12, depth_mm=3.0)
FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
NO_SEGMENTS = Segments.join([])


def block(array_kji, voxel_mm=0.1, slice_mm=0.25):
    """A specimen of given voxels."""
    array = np.asarray(array_kji, np.float32)
    volume = Volume(array, Geometry(array.shape[::-1], (voxel_mm, voxel_mm, slice_mm)))
    return Specimen(volume, NO_SEGMENTS, np.zeros(0), NO_SEGMENTS, 0)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    one, again, other = (make_case(SMALL, seed) for seed in (3, 3, 4))
    for kind in ("clinical", "truth"):
        first, second, third = (getattr(case, kind).array_kji.tobytes() for case in (one, again, other))
        assert first == second
        assert first != third


@pytest.mark.parametrize("cell_mm", [0.2, 0.3])
def test_alveolar_texture_has_the_contrast_of_a_foam_with_the_lungs_density(cell_mm):
    """Independent physics: a Voronoi foam with 12 um walls of tissue, averaged over the specimen's voxels."""
    from scipy.spatial import cKDTree

    rng, step_mm, edge_mm, depth_mm = np.random.default_rng(0), 0.013, 1.56, 1.0
    count = int((edge_mm + 2 * cell_mm) ** 2 * (depth_mm + 2 * cell_mm) / (math.pi / 6 * cell_mm**3))
    extent = np.array([edge_mm, edge_mm, depth_mm]) + 2 * cell_mm
    centres = rng.uniform(0, 1, (3 * count, 3)) * extent - cell_mm
    kept = np.ones(len(centres), dtype=bool)
    for a, b in sorted(cKDTree(centres).query_pairs(0.6 * cell_mm)):
        kept[b] &= not kept[a]
    centres = centres[kept][:count]
    tree, x = cKDTree(centres), np.arange(step_mm / 2, edge_mm, step_mm)
    grid_x, grid_y = np.meshgrid(x, x)
    planes, gaps = [], []
    for z in np.arange(step_mm / 2, depth_mm, step_mm):
        points = np.stack([grid_x.ravel(), grid_y.ravel(), np.full(grid_x.size, z)], axis=1)
        distance, index = tree.query(points, 2)
        between = np.linalg.norm(centres[index[:, 1]] - centres[index[:, 0]], axis=1)
        gaps.append(((distance[:, 1] ** 2 - distance[:, 0] ** 2) / (2 * between)).reshape(grid_x.shape))
    half_mm = float(np.quantile(np.stack(gaps), 0.11))  # walls that fill 11 % of the lung: -1000 + 0.11 x 1050 HU
    for gap in gaps:
        tissue = np.clip((half_mm - gap) / step_mm + 0.5, 0, 1)
        planes.append(-1000 + 1050 * tissue[: 20 * 6, : 20 * 6].reshape(20, 6, 20, 6).mean(axis=(1, 3)))
    slabs = [np.mean(planes[n : n + 19], axis=0).std() for n in range(0, len(planes) - 18, 19)]
    low, high = ALVEOLAR_CONTRAST_HU
    assert low <= float(np.mean(slabs)) <= high


def test_making_a_specimen_leaves_the_global_random_state_alone():
    np.random.seed(0)  # noqa: NPY002 - the state that must not be touched
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    make_case(SMALL, 1)
    assert np.random.rand() == expected  # noqa: NPY002


def test_scan_and_truth_lie_on_grids_of_one_extent():
    case = make_case(CaseSettings(size_voxels=10, depth_mm=4.0, slice_mm=1.25, pixel_mm=0.7), 0)
    fine = case.clinical.geometry.refine((8, 8, 1))
    assert fine.size_ijk == case.truth.geometry.size_ijk
    np.testing.assert_allclose(fine.origin_mm, case.truth.geometry.origin_mm, rtol=0, atol=1e-9)
    np.testing.assert_allclose(fine.spacing_mm, case.truth.geometry.spacing_mm, rtol=1e-12)
    assert case.clinical.geometry.spacing_mm == pytest.approx((0.7, 0.7, 1.25))
    assert case.clinical.array_kji.dtype == np.int16
    assert case.truth.array_kji.dtype == np.float32


@pytest.mark.parametrize("seed", range(4))
def test_a_specimen_is_lung_in_hounsfield_units(seed):
    array = make_specimen(SMALL.specimen, seed).volume.array_kji
    assert np.isfinite(array).all()
    assert -1000.0 <= array.min() < -850.0
    assert array.max() < 2000.0


def test_a_specimen_without_wall_and_vessel_is_darker_than_one_with_a_wall():
    base = {"size_mm": (6.0, 6.0, 3.0), "fissure_share": 0.0, "nodule_share": 0.0, "disease_share": 0.0}
    bare, walled = (make_specimen(SpecimenSettings(**base, wall_share=share), 2).volume for share in (0.0, 1.0))
    assert walled.array_kji.mean() > bare.array_kji.mean() + 100.0


@pytest.mark.parametrize("psf_fwhm_mm", [0.5, 1.3])
@pytest.mark.parametrize("edge_enhancement", [0.0, 0.4])
def test_the_scanner_keeps_the_mean(psf_fwhm_mm, edge_enhancement):
    fine = np.full((160, 160), -900.0, np.float32)
    fine[70:95, 60:100] = 300.0
    scanned = clean_slice(fine, ScannerSettings(psf_fwhm_mm, edge_enhancement), 0.08)
    assert scanned.shape == (20, 20)
    assert scanned.mean(dtype=np.float64) == pytest.approx(fine.mean(dtype=np.float64), abs=0.02)
    flat = clean_slice(np.full((160, 160), -900.0, np.float32), ScannerSettings(psf_fwhm_mm, edge_enhancement), 0.08)
    np.testing.assert_allclose(flat, -900.0, rtol=0, atol=1e-2)


def test_a_moved_object_moves_in_the_scan():
    fine = np.full((160, 160), -900.0, np.float32)
    fine[70:83, 60:90] = 300.0
    settings = ScannerSettings(1.0, 0.2)
    still, moved = (clean_slice(image, settings, 0.08) for image in (fine, np.roll(fine, (8, 24), (0, 1))))
    np.testing.assert_allclose(np.roll(still, (1, 3), (0, 1))[3:-3, 3:-3], moved[3:-3, 3:-3], rtol=0, atol=1e-2)


@pytest.mark.parametrize("psf_fwhm_mm", [0.7, 1.2, 1.8])
def test_the_scanners_point_spread_is_as_wide_as_asked(psf_fwhm_mm):
    """An edge at all eight places within a pixel: the line spread's variance is the Gaussian's and the pixel's."""
    pixel_mm, scale, edge_at = 0.64, 8, 160
    positions, values = [], []
    for shift in range(scale):
        fine = np.zeros((8, 320), np.float32)
        fine[:, edge_at + shift :] = 1000.0
        scanned = clean_slice(fine, ScannerSettings(psf_fwhm_mm, scale=scale), pixel_mm / scale)
        positions.append((np.arange(40) + 0.5) * pixel_mm - (edge_at + shift) * pixel_mm / scale)
        values.append(scanned[0])
    order = np.argsort(np.concatenate(positions))
    at, edge = np.concatenate(positions)[order], np.concatenate(values)[order]
    spread = np.diff(edge) / 1000.0
    middle = (at[1:] + at[:-1]) / 2
    assert spread.sum() == pytest.approx(1.0, abs=1e-3)
    mean = np.sum(spread * middle)
    sigma = math.sqrt(np.sum(spread * (middle - mean) ** 2) - pixel_mm**2 / 12.0)
    assert mean == pytest.approx(0.0, abs=0.01)
    assert sigma * FWHM_PER_SIGMA == pytest.approx(psf_fwhm_mm, rel=0.02)


@pytest.mark.parametrize("noise_hu", [3.0, 25.0])
@pytest.mark.parametrize("psf_fwhm_mm", [0.7, 1.6])
def test_noise_has_the_deviation_that_was_asked_for(noise_hu, psf_fwhm_mm):
    rng = np.random.default_rng(0)
    settings = ScannerSettings(psf_fwhm_mm, noise_hu=noise_hu)
    noise = np.stack([coloured_noise(rng, settings, 0.7, (512, 384)) for _ in range(60)])
    assert noise.shape == (60, 64, 48)
    assert noise.std() == pytest.approx(noise_hu, rel=0.02)
    assert abs(noise.mean()) < 0.01 * noise_hu


@pytest.mark.parametrize("psf_fwhm_mm", [0.7, 1.4])
def test_noise_has_the_spectrum_of_filtered_back_projection(psf_fwhm_mm):
    """Power by radial frequency is the ramp times the squared MTF, scaled to the variance asked for."""
    pixel_mm, noise_hu, n = 0.7, 10.0, 64
    rng = np.random.default_rng(1)
    settings = ScannerSettings(psf_fwhm_mm, noise_hu=noise_hu)
    power = np.mean(
        [np.abs(np.fft.fft2(coloured_noise(rng, settings, pixel_mm, (n * 8, n * 8)))) ** 2 for _ in range(200)], axis=0
    )
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(n, pixel_mm), np.fft.fftfreq(n, pixel_mm)))
    sigma = psf_fwhm_mm / FWHM_PER_SIGMA
    expected = f * np.exp(-2.0 * (math.pi * sigma * f) ** 2) ** 2
    expected *= noise_hu**2 * n**2 / expected.mean()
    bins = np.digitize(f, np.linspace(0.02, 0.7, 9))
    for band in range(1, 9):
        assert power[bins == band].mean() == pytest.approx(expected[bins == band].mean(), rel=0.06, abs=1.0)
    assert power[0, 0] < 1e-6 * power.max()


def test_a_scanner_without_noise_shows_the_clean_slice():
    fine = np.random.default_rng(0).normal(-800.0, 100.0, (8, 80, 80))
    case = scan_specimen(block(fine), ScannerSettings(noise_hu=0.0), 0)
    clean = clean_slice(case.truth.array_kji[1], ScannerSettings(noise_hu=0.0), 0.1)
    np.testing.assert_allclose(case.clinical.array_kji[1], clean, rtol=0, atol=0.51)


def test_slices_are_the_mean_over_their_thickness_in_the_right_place():
    fine = np.arange(12.0)[:, None, None] * np.ones((1, 8, 8))
    slabs = slab_means(block(fine).volume, thickness_mm=1.0, spacing_mm=0.5)
    assert slabs.array_kji[:, 0, 0].tolist() == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert slabs.geometry.spacing_mm == pytest.approx((0.1, 0.1, 0.5))
    assert slabs.geometry.origin_mm == pytest.approx((0.0, 0.0, 1.5 * 0.25))


def test_a_slice_thicker_than_the_specimen_is_refused():
    with pytest.raises(UsageError, match="thicker"):
        slab_means(block(np.zeros((4, 8, 8))).volume, thickness_mm=2.0, spacing_mm=1.0)


def test_a_specimen_that_is_no_whole_number_of_pixels_is_refused():
    with pytest.raises(UsageError, match="multiple"):
        scan_specimen(block(np.zeros((8, 20, 24))), ScannerSettings(), 0)


def grown(seed, radius_mm=2.0, stop_mm=0.4):
    extent = np.array([30.0, 25.0, 20.0])
    root = np.array([0.0, 12.0, 10.0])
    rng = np.random.default_rng(seed)
    tree = grow_tree(rng, root, np.array([2.0, 0.1, 0.0]), radius_mm, stop_radius_mm=stop_mm, extent_mm=extent)
    return tree, root


def key(point):
    return tuple(np.round(point, 9).tolist())


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_a_tree_has_no_gaps_and_keeps_murrays_law(seed):
    tree, root = grown(seed)
    starts = {}
    for n in range(len(tree)):
        starts.setdefault(key(tree.start_mm[n]), []).append(n)
    ends = {key(point): n for n, point in enumerate(tree.end_mm)}
    assert len(ends) == len(tree), "no two pieces end in one point"
    for point, children in starts.items():
        if point == key(root):
            assert tree.start_radius_mm[children] == pytest.approx([2.0])
            continue
        parent = tree.end_radius_mm[ends[point]]
        radii = tree.start_radius_mm[children]
        if len(children) == 1:
            assert radii[0] <= parent + 1e-12  # the branch goes on, or its thin sibling was not drawn
        else:
            assert len(children) == 2
            assert np.sum(radii**3) == pytest.approx(parent**3, rel=1e-9)
    assert tree.start_radius_mm.min() >= 0.4
    assert np.array_equal(tree.start_radius_mm, tree.end_radius_mm)


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_a_trees_branches_are_about_three_diameters_long_and_stay_near_the_block(seed):
    tree, _ = grown(seed)
    lengths = np.linalg.norm(tree.end_mm - tree.start_mm, axis=1)
    ratio = 3 * lengths / (2 * tree.start_radius_mm)
    branches = len(tree) / PIECES_PER_BRANCH
    assert np.mean(np.log(ratio)) == pytest.approx(math.log(3.0), abs=4 * 0.3 / math.sqrt(branches))
    starts = tree.start_mm[::PIECES_PER_BRANCH]
    assert np.maximum(-starts, starts - np.array([30.0, 25.0, 20.0])).max() <= 3.0
    np.testing.assert_allclose(np.linalg.norm(tree.offset_direction, axis=1), 1.0, atol=1e-9)
    heading = (tree.end_mm - tree.start_mm) / lengths[:, None]
    np.testing.assert_allclose(np.sum(tree.offset_direction * heading, axis=1), 0.0, atol=1e-9)


def test_a_companion_runs_beside_its_airway_at_the_gap():
    tree, _ = grown(1)
    gap = np.full(len(tree), 1.5)
    beside = tree.beside(gap, np.full(len(tree), 0.5))
    np.testing.assert_allclose(np.linalg.norm(beside.start_mm - tree.start_mm, axis=1), 1.5, atol=1e-9)
    np.testing.assert_allclose(beside.start_radius_mm, 0.5 * tree.start_radius_mm)


def tube(start, end, radius):
    return Segments(np.array([start]), np.array([end]), np.array([radius]), np.array([radius]), np.array([[0, 0, 1.0]]))


@pytest.mark.parametrize("radius", [0.4, 1.0])
@pytest.mark.parametrize("end", [(8.0, 5.0, 5.0), (7.0, 7.0, 6.0)])
def test_a_drawn_tube_has_its_volume_and_its_place(radius, end):
    grid = Grid((100, 100, 100), (0.1, 0.1, 0.1))
    coverage = np.zeros(grid.shape_kji, np.float32)
    start = (3.0, 4.0, 5.0)
    draw_tubes(coverage, grid, tube(start, end, radius), np.zeros(1, np.float32))
    length = np.linalg.norm(np.subtract(end, start))
    expected = math.pi * radius**2 * length + 4 / 3 * math.pi * radius**3
    assert coverage.sum(dtype=np.float64) * 1e-3 == pytest.approx(expected, rel=0.02)
    z, y, x = (np.sum(coverage * at, dtype=np.float64) / coverage.sum() for at in np.indices(coverage.shape))
    np.testing.assert_allclose((np.array([x, y, z]) + 0.5) * 0.1, np.add(start, end) / 2, atol=0.01)
    assert coverage.min() >= 0.0
    assert coverage.max() == 1.0


def test_a_walls_thickness_is_added_to_the_radius_and_tubes_outside_draw_nothing():
    grid = Grid((40, 40, 40), (0.1, 0.1, 0.1))
    thin, thick = np.zeros(grid.shape_kji, np.float32), np.zeros(grid.shape_kji, np.float32)
    draw_tubes(thin, grid, tube((2, 2, -9.0), (2, 2, 9.0), 0.5), np.float32([0.3]))
    draw_tubes(thick, grid, tube((2, 2, -9.0), (2, 2, 9.0), 0.8), np.float32([0.0]))
    np.testing.assert_allclose(thin, thick, atol=1e-5)
    outside = np.zeros(grid.shape_kji, np.float32)
    draw_tubes(outside, grid, tube((9, 9, 9.0), (12, 12, 12.0), 0.5), np.float32([0.0]))
    assert not outside.any()


def test_coverage_is_the_share_of_a_voxel_behind_a_flat_surface():
    distance = np.float32([-0.2, -0.05, 0.0, 0.025, 0.05, 1.0])
    np.testing.assert_allclose(coverage_from_distance(distance, 0.1), [1, 1, 0.5, 0.25, 0, 0], atol=1e-6)


@pytest.mark.parametrize("scale_mm", [0.5, 2.0])
def test_a_smooth_field_is_standardised_and_varies_over_its_scale(scale_mm):
    grid = Grid((20, 200, 200), (0.1, 0.1, 0.1))
    field = smooth_field(np.random.default_rng(0), grid, scale_mm)
    assert field.shape == grid.shape_kji
    assert abs(field.mean()) < 1e-3
    assert field.std() == pytest.approx(1.0, abs=1e-3)
    lag = round(scale_mm / 0.1)

    def correlation(shift):
        return float(np.mean(field[:, :, shift:] * field[:, :, :-shift]))

    assert correlation(max(1, lag // 5)) > 0.8
    assert abs(correlation(3 * lag)) < 0.35


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["psf_fwhm_mm", "slice_thickness_mm", "slice_spacing_mm"])
def test_an_impossible_length_of_the_scanner_is_refused(name, bad):
    with pytest.raises(UsageError):
        ScannerSettings(**{name: bad})


@pytest.mark.parametrize(
    "bad", [{"noise_hu": -1.0}, {"noise_hu": math.nan}, {"noise_hu": math.inf}, {"edge_enhancement": 0.6}, {"scale": 0}]
)
def test_an_impossible_scanner_is_refused(bad):
    with pytest.raises(UsageError):
        ScannerSettings(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"size_mm": (0.0, 1.0, 1.0)},
        {"size_mm": (math.nan, 9.0, 9.0)},
        {"voxel_mm": -0.1},
        {"voxel_mm": math.inf},
        {"slice_mm": 0.0},
        {"size_mm": (40.0, 40.0, 1.0)},
    ],
)
def test_an_impossible_specimen_is_refused(bad):
    with pytest.raises(UsageError):
        SpecimenSettings(**bad)


@pytest.mark.parametrize(
    "bad", [{"size_voxels": 7}, {"size_voxels": 257}, {"pixel_mm": 0.1}, {"pixel_mm": math.nan}, {"pixel_mm": 2.1}]
)
def test_an_impossible_case_is_refused(bad):
    with pytest.raises(UsageError):
        CaseSettings(**bad)


def test_cases_are_written_with_their_sums_and_read_back(tmp_path):
    paths = write_cases(tmp_path / "cases", 2, 5, SMALL, overwrite=False, progress=SilentProgress())
    manifest = json.loads((tmp_path / "cases" / "manifest.json").read_text())
    assert [path.name for path in paths] == [
        "case-000005-clinical.nrrd",
        "case-000005-truth.nrrd",
        "case-000006-clinical.nrrd",
        "case-000006-truth.nrrd",
        "manifest.json",
    ]
    for path in paths[:-1]:
        assert manifest["sha256"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["seeds"] == [5, 7]
    assert manifest["settings"]["size_voxels"] == 12
    with pytest.raises(UsageError, match="overwrite"):
        write_cases(tmp_path / "cases", 1, 5, SMALL, overwrite=False, progress=SilentProgress())
    case = make_case(SMALL, 6)
    import SimpleITK as sitk

    for kind in ("clinical", "truth"):
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "cases" / f"case-000006-{kind}.nrrd")))
        assert np.array_equal(written, getattr(case, kind).array_kji)


def test_a_written_scan_is_read_as_ct(tmp_path):
    settings = CaseSettings(size_voxels=24, depth_mm=3.0)
    paths = write_cases(tmp_path, 1, 2, settings, overwrite=False, progress=SilentProgress())
    assert read_volume(paths[0]).geometry.size_ijk == (24, 24, 3)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-1, 0), (1, -1)])
def test_no_cases_and_negative_seeds_are_refused(tmp_path, count, seed):
    with pytest.raises(UsageError):
        write_cases(tmp_path, count, seed, SMALL, overwrite=False, progress=SilentProgress())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="can't be made"):
        write_cases(tmp_path / "file" / "cases", 1, 0, SMALL, overwrite=False, progress=SilentProgress())
