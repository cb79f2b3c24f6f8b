"""Simulated cases: repeatable, on grids that fit, with the contents asked for, and refused where impossible."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from CTMicroSRLib import UsageError
from CTMicroSRLib.errors import CancelledError
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.simulation.cases import CaseSettings, make_case, simulate_case
from CTMicroSRLib.simulation.micro_scanner import micro_to_hu
from CTMicroSRLib.simulation.slices import slab_means
from CTMicroSRLib.simulation.specimen import STRUCTURES
from CTMicroSRLib.volume import Volume

SMALL = CaseSettings(size_voxels=12, depth_mm=3.0)
SHIFTED = CaseSettings(
    size_voxels=12, depth_mm=3.0, slice_spacing_mm=0.5, shift_voxels_ji=(2, 3), disease="healthy", without=("wall",)
)


@pytest.fixture(scope="module")
def shifted():
    """A healthy block without chest wall, overlapping slices, a grid that starts within a pixel."""
    return simulate_case(SHIFTED, 11)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    one, other = simulate_case(SMALL, 3), simulate_case(SMALL, 4)
    again = make_case(SMALL, 3)
    for kind in ("clinical", "truth", "labels"):
        first, second, third = (getattr(s, kind).array_kji.tobytes() for s in (one.scan, again, other.scan))
        assert first == second
        assert first != third
    assert one.micro.array_kji.tobytes() != other.micro.array_kji.tobytes()
    assert one.micro.array_kji.tobytes() == simulate_case(SMALL, 3).micro.array_kji.tobytes()


def test_scan_truth_and_labels_lie_on_grids_of_one_extent():
    case = make_case(CaseSettings(size_voxels=10, depth_mm=4.0, slice_mm=1.25, pixel_mm=0.7), 0)
    fine = case.clinical.geometry.refine((8, 8, 1))
    assert fine.size_ijk == case.truth.geometry.size_ijk
    np.testing.assert_allclose(fine.origin_mm, case.truth.geometry.origin_mm, rtol=0, atol=1e-9)
    np.testing.assert_allclose(fine.spacing_mm, case.truth.geometry.spacing_mm, rtol=1e-12)
    assert case.labels.geometry == case.truth.geometry
    assert case.clinical.geometry.spacing_mm == pytest.approx((0.7, 0.7, 1.25))
    assert (case.clinical.array_kji.dtype, case.truth.array_kji.dtype) == (np.int16, np.float32)
    assert case.labels.array_kji.dtype == np.uint8


def test_a_grid_that_starts_within_a_pixel_loses_one_and_overlapping_slices_are_closer(shifted):
    clinical, truth, voxel_mm = shifted.scan.clinical.geometry, shifted.scan.truth.geometry, 0.625 / 8
    assert clinical.size_ijk[:2] == (11, 11)
    assert truth.size_ijk[:2] == (88, 88)
    assert truth.origin_mm[:2] == pytest.approx((3.5 * voxel_mm, 2.5 * voxel_mm))
    assert clinical.spacing_mm == pytest.approx((0.625, 0.625, 0.5))
    assert clinical.size_ijk[2] == 5


def test_the_micro_ct_shows_the_truth_on_its_in_plane_grid(shifted):
    truth, micro = shifted.scan.truth, shifted.micro
    assert micro.geometry.size_ijk[:2] == truth.geometry.size_ijk[:2]
    assert micro.geometry.spacing_mm[:2] == truth.geometry.spacing_mm[:2]
    assert micro.geometry.origin_mm[:2] == pytest.approx(truth.geometry.origin_mm[:2])
    slabs = slab_means(Volume(micro_to_hu(micro), micro.geometry), SHIFTED.slice_mm, SHIFTED.slice_spacing_mm)
    assert slabs.geometry.origin_mm == pytest.approx(truth.geometry.origin_mm)
    expected = truth.array_kji[:, 24:64, 24:64]  # within the sample holder
    difference = np.array(
        [
            [np.std(slabs.array_kji[:, 24 + j : 64 + j, 24 + i : 64 + i] - expected) for i in range(-3, 4)]
            for j in range(-3, 4)
        ]
    )
    assert np.unravel_index(difference.argmin(), difference.shape) == (3, 3)
    assert slabs.array_kji[:, 24:64, 24:64].mean() == pytest.approx(expected.mean(), abs=3.0)


def test_a_healthy_lung_has_no_disease_and_a_diseased_one_has_all(shifted):
    healthy = shifted.description
    assert not healthy.nodules
    conditions = healthy.conditions
    assert (conditions["emphysema"], conditions["ground_glass"]) == (0.0, False)
    assert conditions["bronchial_wall_thickening"] == 1.0
    diseased = simulate_case(CaseSettings(size_voxels=12, depth_mm=3.0, disease="diseased"), 11).description
    assert diseased.nodules
    assert diseased.conditions["emphysema"] > 0.0
    assert diseased.conditions["ground_glass"]
    assert diseased.conditions["bronchial_wall_thickening"] > 1.0


def test_what_is_left_out_is_not_there_and_the_rest_is_the_same(shifted):
    bare = simulate_case(CaseSettings(**{**SHIFTED.__dict__, "without": ("wall", "veins", "airways")}), 11)
    assert (len(bare.description.airways), len(bare.description.veins)) == (0, 0)
    assert len(shifted.description.airways) > 0
    for name in ("start_mm", "end_mm", "radius_mm", "branch"):
        kept, before = (getattr(d.arteries, name) for d in (bare.description, shifted.description))
        np.testing.assert_array_equal(kept, before)
    assert bare.scan.truth.array_kji.tobytes() != shifted.scan.truth.array_kji.tobytes()


def test_the_order_of_what_is_left_out_does_not_matter():
    one, other = (CaseSettings(without=names) for names in (("veins", "airways"), ("airways", "veins", "veins")))
    assert one == other
    assert one.specimen.without == {"airways", "veins"}


def test_a_named_kernel_has_its_own_blur_and_the_scanner_gets_it():
    sharp, soft = CaseSettings(kernel="bone"), CaseSettings(kernel="smooth")
    assert sharp.psf_fwhm_mm == pytest.approx(2 * math.log(2) / (math.pi * 0.70))
    assert soft.psf_fwhm_mm == pytest.approx(2 * math.log(2) / (math.pi * 0.31))
    assert (sharp.scanner.kernel.mtf50_per_mm, sharp.scanner.kernel.mtf10_per_mm) == (0.70, 1.10)


def test_the_images_noise_is_that_of_the_patient():
    assert CaseSettings(noise_hu=12.0).image_noise_hu == pytest.approx(12.0)
    assert CaseSettings(noise_hu=12.0, patient_mm=(420.0, 260.0)).image_noise_hu > 14.0
    assert CaseSettings(noise_hu=12.0, patient_mm=(260.0, 260.0)).image_noise_hu < 8.0


def test_the_sample_holder_fits_into_the_smallest_block():
    case = CaseSettings(size_voxels=8, pixel_mm=0.2, depth_mm=1.0, slice_mm=0.5)
    assert 0 < case.micro_scanner.wall_mm < 0.25 * 8 * 0.2
    assert CaseSettings().micro_scanner.wall_mm == pytest.approx(0.8)


def test_making_a_case_leaves_the_global_random_state_alone():
    np.random.seed(0)  # noqa: NPY002 - the state that must not be touched
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    make_case(CaseSettings(size_voxels=8, depth_mm=2.0), 1)
    assert np.random.rand() == expected  # noqa: NPY002


def test_a_cancelled_case_is_not_made():
    class Cancelling(SilentProgress):
        def cancelled(self):
            return True

    with pytest.raises(CancelledError):
        simulate_case(SMALL, 1, Cancelling())


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"size_voxels": 7}, "8 to 256"),
        ({"size_voxels": -12}, "8 to 256"),
        ({"size_voxels": 257}, "8 to 256"),
        ({"size_voxels": 12.5}, "8 to 256"),
        ({"size_voxels": math.inf}, "8 to 256"),
        ({"pixel_mm": 0.1}, "pixel"),
        ({"pixel_mm": -0.6}, "pixel"),
        ({"pixel_mm": math.nan}, "pixel"),
        ({"pixel_mm": 2.1}, "pixel"),
        ({"scale": 0}, "scale"),
        ({"scale": 2.5}, "whole scale"),
        ({"psf_fwhm_mm": 0.0}, "point spread"),
        ({"psf_fwhm_mm": math.nan}, "point spread"),
        ({"kernel": "ultra"}, "no kernel 'ultra'.*smooth.*bone"),
        ({"slice_mm": 0.0}, "thickness"),
        ({"slice_mm": -1.0}, "thickness"),
        ({"slice_mm": math.nan}, "thickness"),
        ({"slice_mm": 0.4}, "thickness"),
        ({"slice_mm": 6.0}, "thickness"),
        ({"slice_mm": 0.6, "pixel_mm": 2.0}, "thinner than the specimen's planes"),
        ({"slice_mm": 4.0, "depth_mm": 3.0}, "thicker than the specimen"),
        ({"slice_spacing_mm": 0.0}, "spacing"),
        ({"slice_spacing_mm": 5.5}, "spacing"),
        ({"noise_hu": -1.0}, "noise"),
        ({"noise_hu": math.inf}, "noise"),
        ({"depth_mm": 0.0}, "depth"),
        ({"depth_mm": -8.0}, "depth"),
        ({"depth_mm": math.nan}, "depth"),
        ({"depth_mm": 101.0}, "depth"),
        ({"patient_mm": (50.0, 300.0)}, "patient"),
        ({"shift_voxels_ji": (0, 8)}, "shift"),
        ({"shift_voxels_ji": (-1, 0)}, "shift"),
        ({"disease": "plague"}, "usual, healthy, diseased"),
        ({"without": ("gills",)}, f"no structure 'gills'.*{STRUCTURES[-1]}"),
    ],
)
def test_an_impossible_case_is_refused_in_one_sentence(bad, match):
    with pytest.raises(UsageError, match=match) as refused:
        CaseSettings(**bad)
    assert re.fullmatch(r"[A-Z][^\n]*\.", str(refused.value))
    assert len(re.findall(r"\.(?:\s|$)", str(refused.value))) == 1
