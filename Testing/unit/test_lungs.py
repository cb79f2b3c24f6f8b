"""The lungs of a drawn chest whose truth is known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.errors import CancelledError, RefusedInputError, UsageError
from CTMicroSRLib.lungs import LungSettings, segment_lungs
from CTMicroSRLib.volume import Geometry, Region, Volume

LUNG_HU, TISSUE_HU, AIR_HU, GAS_HU, NODULE_HU = -850, 40, -1000, -980, 30


@dataclass(frozen=True)
class Chest:
    """A drawn chest; masks are on the volume's grid."""

    volume: Volume
    lungs: np.ndarray
    parts: dict[str, np.ndarray] = field(default_factory=dict)


def ellipsoid(xyz, centre, radii):
    return sum(((a - c) / r) ** 2 for a, c, r in zip(xyz, centre, radii, strict=True)) <= 1.0


def tube(xyz, start, end, radius):
    start, end = np.asarray(start, float), np.asarray(end, float)
    along = end - start
    t = sum((a - s) * d for a, s, d in zip(xyz, start, along, strict=True)) / (along @ along)
    t = np.clip(t, 0.0, 1.0)
    return sum((a - (s + t * d)) ** 2 for a, s, d in zip(xyz, start, along, strict=True)) <= radius**2


def draw_chest(
    spacing_xyz=(3.0, 3.0, 3.0),
    z_mm=(-150.0, 130.0),
    x_mm=(-180.0, 180.0),
    y_mm=(-150.0, 165.0),
    *,
    right_radii=(52.0, 80.0, 105.0),
    touching=False,
    lungs=True,
    noise_hu=12.0,
):
    """A chest in LPS: body, two lungs, airways, vessels, nodules, table, blanket, padding, stomach bubble."""
    axes = [np.arange(low + s / 2, high, s) for (low, high), s in zip((x_mm, y_mm, z_mm), spacing_xyz, strict=True)]
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij", sparse=True)
    xyz = (x, y, z)
    shape = tuple(len(a) for a in axes[::-1])
    hu = np.full(shape, AIR_HU, dtype=np.float32)
    body = np.broadcast_to((x / 158.0) ** 2 + (y / 112.0) ** 2 <= 1.0, shape)
    shell = np.broadcast_to(((abs(y - 122) < 2) | (abs(y - 150) < 2)) & (abs(x) < 160), shape)
    foam = np.broadcast_to((y > 124) & (y < 148) & (abs(x) < 160), shape)
    blanket = np.broadcast_to((abs(y + 118) < 5) & (abs(x) < 60), shape)
    hu[blanket], hu[foam], hu[shell], hu[body] = -700, -920, 150, TISSUE_HU

    parts = {"table": shell | foam, "blanket": blanket, "body": body}
    lung = np.zeros(shape, dtype=bool)
    if lungs:
        lung = ellipsoid(xyz, (-78, 0, 0), right_radii) | ellipsoid(xyz, (78, 0, 0), (52, 80, 105))
        if touching:
            lung = lung | ((abs(x) < 40) & (abs(y + 40) < 8) & (abs(z) < 30))
        hu[lung] = LUNG_HU
        vessels = np.zeros(shape, dtype=bool)
        for side, (dy, dz) in itertools.product((-1, 1), itertools.product((-45, 0, 40), (-60, 10, 60))):
            vessels |= tube(xyz, (30 * side, 0, 0), (110 * side, dy, dz), 2.5)
        vessels &= lung
        nodule = ellipsoid(xyz, (85, -15, 24), (9, 9, 9))
        at_pleura = ellipsoid(xyz, (125, 0, 25), (7, 7, 7))
        hu[vessels | nodule | at_pleura] = NODULE_HU
        lumen, wall = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for start, end, radius in (
            ((0, 20, 20), (0, 20, 200), 9.0),
            ((0, 20, 22), (-36, 22, -12), 6.5),
            ((0, 20, 22), (36, 22, -12), 6.5),
        ):
            lumen |= tube(xyz, start, end, radius)
            wall |= tube(xyz, start, end, radius + 3.0)
        hu[wall], hu[lumen] = TISSUE_HU, GAS_HU
        # A ball of 10 mm dips 1.3 mm into the 9.8 mm wide opening that the nodule leaves in the pleura; a voxel
        # more is the grid's.
        unreached_mm = 1.3 + max(1.5, *spacing_xyz)
        truth = lung & ~wall
        parts |= {
            "vessels": vessels & ~wall,
            "nodule": nodule,
            "at_pleura": at_pleura & lung,
            "deep": ellipsoid(xyz, (78, 0, 0), tuple(r - unreached_mm for r in (52.0, 80.0, 105.0))),
            "lumen": lumen & body,
        }
        lung = truth
    bubble = ellipsoid(xyz, (55, -45, -128), (32, 26, 14))
    hu[bubble] = GAS_HU
    parts["bubble"] = bubble & ~lung
    hu += np.random.default_rng(5).normal(0.0, noise_hu, shape).astype(np.float32)
    hu = np.maximum(hu, -1024.0)
    padding = np.broadcast_to(x**2 + y**2 > 172.0**2, shape)
    hu[padding] = -1024
    geometry = Geometry(
        size_ijk=shape[::-1],
        spacing_mm=spacing_xyz,
        origin_mm=tuple(float(a[0]) for a in axes),
    )
    return Chest(Volume(np.rint(hu).astype(np.int16), geometry), lung, parts)


def region_mm(chest, x=(-1e3, 1e3), y=(-1e3, 1e3), z=(-1e3, 1e3)):
    """The voxels whose centres lie between these positions."""
    geometry = chest.volume.geometry
    ranges = []
    for axis, (low, high) in enumerate((x, y, z)):
        centres = geometry.origin_mm[axis] + geometry.spacing_mm[axis] * np.arange(geometry.size_ijk[axis])
        inside = np.flatnonzero((centres >= low) & (centres <= high))
        ranges.append((int(inside[0]), int(inside[-1]) + 1))
    return Region(*ranges)


def found_and_true(chest, region):
    """The mask of a crop and the truth in it."""
    return segment_lungs(chest.volume.crop(region)).array_kji, chest.lungs[region.slices_kji]


def millilitres(chest, part):
    return np.count_nonzero(part) * np.prod(chest.volume.geometry.spacing_mm) / 1000.0


def dice(a, b):
    return 2.0 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def share_in(mask, part):
    return np.count_nonzero(mask & part) / np.count_nonzero(part)


@pytest.fixture(scope="module")
def chest():
    return draw_chest()


@pytest.fixture(scope="module")
def mask(chest):
    return segment_lungs(chest.volume)


def test_the_lungs_of_a_whole_chest_are_found_without_help(chest, mask):
    assert mask.array_kji.dtype == bool
    assert dice(mask.array_kji, chest.lungs) > 0.97
    assert mask.warnings == ()


def test_the_volume_in_millilitres_is_that_of_the_mask(chest, mask):
    assert mask.volume_ml == pytest.approx(millilitres(chest, mask.array_kji))
    assert mask.volume_ml == pytest.approx(millilitres(chest, chest.lungs), rel=0.05)


@pytest.mark.parametrize("part", ["table", "blanket", "bubble"])
def test_what_is_no_lung_stays_out(chest, mask, part):
    assert share_in(mask.array_kji, chest.parts[part]) == 0.0


def test_nothing_outside_the_body_is_lung(chest, mask):
    assert not (mask.array_kji & ~chest.parts["body"]).any()


@pytest.mark.parametrize("part", ["nodule", "vessels"])
def test_nodules_and_vessels_are_filled(chest, mask, part):
    assert share_in(mask.array_kji, chest.parts[part]) > 0.97


def test_a_nodule_at_the_pleura_is_filled_as_far_as_closing_reaches(chest, mask):
    assert share_in(mask.array_kji, chest.parts["at_pleura"] & chest.parts["deep"]) == 1.0


def test_without_closing_a_nodule_at_the_pleura_stays_out(chest):
    unclosed = segment_lungs(chest.volume, LungSettings(closing_mm=0.0))
    assert share_in(unclosed.array_kji, chest.parts["at_pleura"]) < 0.3
    assert share_in(unclosed.array_kji, chest.parts["nodule"]) > 0.97


def test_trachea_and_main_bronchi_are_out_unless_asked_for(chest, mask):
    with_airways = segment_lungs(chest.volume, LungSettings(include_airways=True))
    assert share_in(mask.array_kji, chest.parts["lumen"]) < 0.05
    assert share_in(with_airways.array_kji, chest.parts["lumen"]) > 0.95
    assert (with_airways.array_kji >= mask.array_kji).all()
    assert mask.airways_ml == pytest.approx(millilitres(chest, chest.parts["lumen"]), rel=0.3)


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 4.0), (3.0, 3.0, 10.0), (4.0, 4.0, 4.0)])
def test_fine_and_coarse_voxels_give_the_same_lungs(spacing):
    z_mm = (-150.0, 130.0) if spacing[2] > 4 or spacing[0] > 1 else (-20.0, 60.0)
    chest = draw_chest(spacing, z_mm)
    found = segment_lungs(chest.volume).array_kji
    assert dice(found, chest.lungs) > 0.96
    assert share_in(found, chest.parts["nodule"]) > 0.95


def test_submillimetre_voxels():
    chest = draw_chest((0.75, 0.75, 0.75), (5.0, 42.0), x_mm=(0.0, 180.0))
    found = segment_lungs(chest.volume).array_kji
    assert dice(found, chest.lungs) > 0.98
    assert share_in(found, chest.parts["nodule"]) == 1.0
    assert share_in(found, chest.parts["at_pleura"] & chest.parts["deep"]) == 1.0
    assert not (found & ~chest.parts["body"]).any()


@pytest.mark.parametrize("z_mm", [(-130.0, -40.0), (50.0, 130.0)], ids=["bases", "apices"])
def test_bases_or_apices_alone_are_enough(chest, z_mm):
    assert dice(*found_and_true(chest, region_mm(chest, z=z_mm))) > 0.96


@pytest.mark.parametrize("thickness_mm", [3.0, 6.0], ids=["one slice", "two slices"])
def test_one_or_two_slices_are_enough(chest, thickness_mm):
    assert dice(*found_and_true(chest, region_mm(chest, z=(5.0, 4.9 + thickness_mm)))) > 0.96


@pytest.mark.parametrize("place", [{"y": (0.0, 2.9)}, {"x": (78.0, 80.9)}], ids=["coronal", "sagittal"])
def test_a_single_coronal_or_sagittal_slice_is_enough(chest, place):
    assert dice(*found_and_true(chest, region_mm(chest, **place))) > 0.95


def test_a_lung_that_touches_the_border_of_the_image_stays(chest):
    assert dice(*found_and_true(chest, region_mm(chest, (-142, 145), (-50, 70), (-50, 50)))) > 0.96


def test_a_crop_within_a_lung_is_all_lung(chest):
    found, _ = found_and_true(chest, region_mm(chest, (60, 105), (-30, 30), (-20, 20)))
    assert found.mean() > 0.99


def test_a_body_that_touches_the_border_of_the_image_is_no_obstacle(chest):
    assert dice(*found_and_true(chest, region_mm(chest, (-155, 155), (-108, 100), (-75, 75)))) > 0.97


def test_a_lung_cut_off_by_the_field_of_view_stays():
    chest = draw_chest(z_mm=(-40.0, 60.0))
    _, y, x = np.indices(chest.volume.array_kji.shape, sparse=True)
    seen = (3.0 * x - 178.5) ** 2 + (3.0 * y - 148.5) ** 2 < 120.0**2
    cut = np.where(seen, chest.volume.array_kji, np.int16(-1024))
    found = segment_lungs(Volume(cut, chest.volume.geometry)).array_kji
    assert dice(found, chest.lungs & seen) > 0.95
    assert not (found & ~seen).any()


def test_a_small_lung_is_kept_beside_a_large_one():
    chest = draw_chest(right_radii=(20.0, 24.0, 26.0))
    mask = segment_lungs(chest.volume)
    on_the_right = np.arange(chest.lungs.shape[2]) < chest.lungs.shape[2] // 2
    assert 20.0 < millilitres(chest, chest.lungs & on_the_right) < 60.0
    assert dice(mask.array_kji & on_the_right, chest.lungs & on_the_right) > 0.9
    assert mask.warnings == ()


def test_a_missing_lung_is_reported():
    chest = draw_chest(right_radii=(1e-6, 1e-6, 1e-6))
    mask = segment_lungs(chest.volume)
    assert any("one lung" in warning for warning in mask.warnings)


def test_lungs_that_touch_are_both_kept_and_the_mediastinum_stays_out():
    chest = draw_chest(touching=True)
    found = segment_lungs(chest.volume).array_kji
    assert dice(found, chest.lungs) > 0.96
    mediastinum = np.zeros_like(found)
    mediastinum[region_mm(chest, (-10, 10), (-25, 40), (-60, 60)).slices_kji] = True
    assert share_in(found, mediastinum & ~chest.lungs) == 0.0


@pytest.mark.parametrize("hu", [-1024, -1000, 0])
def test_a_scan_of_nothing_but_one_density_is_refused(hu):
    nothing = Volume(np.full((20, 40, 40), hu, dtype=np.int16), Geometry((40, 40, 20), (2.5, 2.5, 2.5)))
    with pytest.raises(RefusedInputError, match=r"No lung found .* --region.*--mask"):
        segment_lungs(nothing)


def test_an_abdomen_with_gas_in_it_is_refused():
    with pytest.raises(RefusedInputError, match="No lung found"):
        segment_lungs(draw_chest(lungs=False).volume)


def test_two_runs_give_the_same_mask(chest, mask):
    again = segment_lungs(chest.volume)
    np.testing.assert_array_equal(again.array_kji, mask.array_kji)


def test_float_voxels_give_the_same_mask(chest, mask):
    as_float = Volume(chest.volume.array_kji.astype(np.float32), chest.volume.geometry)
    np.testing.assert_array_equal(segment_lungs(as_float).array_kji, mask.array_kji)


COARSE = draw_chest((6.0, 5.0, 7.0))


@settings(max_examples=6, deadline=None)
@given(order=st.permutations([0, 1, 2]), flips=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_the_order_and_direction_of_the_axes_do_not_change_the_lungs(order, flips):
    expected = segment_lungs(COARSE.volume).array_kji
    geometry = COARSE.volume.geometry
    # order and flips are of the array axes (k, j, i); the geometry follows so that every voxel stays in place.
    index = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    array = COARSE.volume.array_kji[index].transpose(order)
    first = [float(n - 1) if flip else 0.0 for n, flip in zip(geometry.shape_kji, flips, strict=True)]
    columns = geometry.direction_matrix * np.where(flips[::-1], -1.0, 1.0)
    axes_ijk = [2 - order[2 - axis] for axis in range(3)]
    moved = Geometry(
        size_ijk=array.shape[::-1],
        spacing_mm=tuple(geometry.spacing_mm[a] for a in axes_ijk),
        origin_mm=geometry.physical_point_mm(tuple(first[::-1])),
        directions=tuple(columns[:, axes_ijk].ravel()),
    )
    found = segment_lungs(Volume(array, moved)).array_kji
    np.testing.assert_array_equal(found, expected[index].transpose(order))


def test_oblique_directions_are_taken_to_the_nearest_axis():
    angle = np.deg2rad(20.0)
    c, s = float(np.cos(angle)), float(np.sin(angle))
    geometry = COARSE.volume.geometry
    tilted = Geometry(geometry.size_ijk, geometry.spacing_mm, geometry.origin_mm, (c, -s, 0, s, c, 0, 0, 0, 1))
    np.testing.assert_array_equal(
        segment_lungs(Volume(COARSE.volume.array_kji, tilted)).array_kji,
        segment_lungs(COARSE.volume).array_kji,
    )


def test_the_bounding_region_holds_the_mask_tightly(mask):
    region = mask.bounding_region()
    inside = mask.array_kji[region.slices_kji]
    assert np.count_nonzero(inside) == np.count_nonzero(mask.array_kji)
    for axis in range(3):
        faces = inside.any(axis=tuple(a for a in range(3) if a != axis))
        assert faces[0]
        assert faces[-1]


class Recorder:
    """Progress that remembers, and cancels after a number of questions."""

    def __init__(self, cancel_after=None):
        self.reports = []
        self.questions = 0
        self.cancel_after = cancel_after

    def update(self, stage, done, total):
        self.reports.append((stage, done, total))

    def cancelled(self):
        self.questions += 1
        return self.cancel_after is not None and self.questions > self.cancel_after


def test_every_stage_of_progress_rises_to_its_end():
    recorder = Recorder()
    segment_lungs(COARSE.volume, progress=recorder)
    for stage in {report[0] for report in recorder.reports}:
        done = [report[1] for report in recorder.reports if report[0] == stage]
        assert done == sorted(done)
        assert done[-1] == next(report[2] for report in recorder.reports if report[0] == stage)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_cancelling_stops_it_wherever_it_is(share):
    recorder = Recorder()
    segment_lungs(COARSE.volume, progress=recorder)
    with pytest.raises(CancelledError):
        segment_lungs(COARSE.volume, progress=Recorder(cancel_after=int(share * recorder.questions)))


@pytest.mark.parametrize(
    "wrong",
    [{"threshold_hu": 0.0}, {"closing_mm": -1.0}, {"working_spacing_mm": 0.0}, {"minimum_lung_ml": -5.0}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        LungSettings(**wrong)
