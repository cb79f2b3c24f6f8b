"""Where the error lies, and what the best estimates leave, on cases made by hand or with a known answer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from CTMicroSRLib.evaluation.error_shares import ErrorShares, Place, error_shares, places_of
from CTMicroSRLib.evaluation.linear_oracle import best_linear_estimate, texture_floor
from CTMicroSRLib.evaluation.metrics import psnr_db
from CTMicroSRLib.interpolators import INTERPOLATORS
from CTMicroSRLib.simulation.cases import Case, CaseSettings, simulate_case
from CTMicroSRLib.simulation.description import Description, Label, Tubes
from CTMicroSRLib.simulation.scanner import PairedScan, coarse_geometry
from CTMicroSRLib.volume import Geometry, Volume

RNG = np.random.default_rng
SMALL = CaseSettings(size_voxels=24, depth_mm=4.0, slice_mm=2.0, pixel_mm=0.7)


@pytest.fixture(scope="module")
def small_case():
    return simulate_case(SMALL, 2)


def hand_made_case():
    """One slice of five planes in a block of 64 x 64 voxels: what is drawn below, all else parenchyma."""
    voxel_mm, shape = 0.1, (5, 64, 64)
    tissue = np.full(shape, Label.PARENCHYMA, np.uint8)
    tissue[:, 20:24, :] = Label.AIRWAY_WALL
    tissue[:, 24:30, :] = Label.AIRWAY_LUMEN
    tissue[2, 50:54, 40:] = Label.ARTERY  # in one plane of the slice alone
    tissue[2, 50:54, 60:] = Label.NODULE
    tissue[:, :2, :] = Label.SOFT_TISSUE
    tissue[:, 2, :] = Label.PLEURA
    tissue[:, 60:, :8] = Label.EMPHYSEMA
    fine = Geometry((64, 64, 5), (voxel_mm, voxel_mm, 0.2), (0.05, 0.05, 0.1))
    one = Geometry((64, 64, 1), (voxel_mm, voxel_mm, 1.0), (0.05, 0.05, 0.5))
    truth = Volume(np.full((1, 64, 64), -860.0, np.float32), one)
    clinical = Volume(np.full((1, 8, 8), -860, np.int16), coarse_geometry(one, 8))
    scan = PairedScan(clinical, truth, Volume(tissue[2:3], one))
    settings = CaseSettings(size_voxels=8, pixel_mm=0.8, slice_mm=1.0, depth_mm=1.0)
    block = Volume(tissue, fine)
    nothing = Tubes.join([])  # the places come from the tissue alone
    return Case(settings, 0, scan, block, block, Description((6.4, 6.4, 1.0), nothing, nothing, nothing))


def test_a_voxel_lies_where_any_plane_of_its_slice_says():
    places = places_of(hand_made_case())[0]
    assert set(places[20:24].ravel()) == {Place.AIRWAY_WALL}
    assert set(places[24:30].ravel()) == {Place.AIRWAY_LUMEN}
    assert set(places[50:54, 40:60].ravel()) == {Place.VESSEL}
    assert set(places[50:54, 60:].ravel()) == {Place.NODULE}
    assert set(places[:3].ravel()) == {Place.SOFT_TISSUE}
    assert set(places[60:, :8].ravel()) == {Place.DISEASE}


def test_the_border_is_one_coarse_voxel_wide_and_beyond_it_is_parenchyma():
    places = places_of(hand_made_case())[0]
    assert places[2:12, 5].tolist() == [Place.SOFT_TISSUE] + [Place.BORDER] * 8 + [Place.PARENCHYMA]
    assert places[29:39, 5].tolist() == [Place.AIRWAY_LUMEN] + [Place.BORDER] * 8 + [Place.PARENCHYMA]
    assert places[51, 31:41].tolist() == [Place.PARENCHYMA] + [Place.BORDER] * 8 + [Place.VESSEL]
    # Soft borders of disease are not a structure's.
    assert places[62, 8] == Place.PARENCHYMA


def test_shares_add_up_to_one_and_are_those_of_known_errors():
    truth = RNG(0).normal(-860.0, 30.0, (1, 64, 64))
    places = places_of(hand_made_case())
    image = truth + np.where(places == Place.AIRWAY_WALL, 100.0, 0.0) + np.where(places == Place.VESSEL, -50.0, 0.0)
    found = error_shares(image, truth, places)
    wall, vessel = 4 * 64 * 100.0**2, 4 * 20 * 50.0**2
    assert found.shares[Place.AIRWAY_WALL] == pytest.approx(wall / (wall + vessel))
    assert found.shares[Place.VESSEL] == pytest.approx(vessel / (wall + vessel))
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.voxel_shares[Place.AIRWAY_WALL] == 4 / 64
    assert sum(found.voxel_shares.values()) == pytest.approx(1.0)
    assert (found.rms_hu[Place.AIRWAY_WALL], found.rms_hu[Place.PARENCHYMA]) == (pytest.approx(100.0), 0.0)


def test_psnr_is_that_of_the_metrics_and_that_of_an_image_made_perfect_there():
    rng = RNG(1)
    truth, places = rng.normal(-860.0, 30.0, (3, 32, 32)), rng.integers(0, len(Place), (3, 32, 32)).astype(np.uint8)
    image = truth + rng.normal(0.0, 40.0, truth.shape) * (1 + np.arange(3))[:, None, None]
    found = error_shares(image, truth, places)

    def mean_psnr(of):
        return np.mean([psnr_db(plane, true) for plane, true in zip(of, truth, strict=True)])

    assert found.psnr_db() == pytest.approx(mean_psnr(image))
    for place in Place:
        assert found.psnr_db({place}) == pytest.approx(mean_psnr(np.where(places == place, truth, image)))
    assert found.psnr_db(set(Place)) == math.inf
    assert ErrorShares.pool([found, found]).psnr_db() == pytest.approx(found.psnr_db())
    assert ErrorShares.pool([found, found]).shares == pytest.approx(found.shares)


def test_an_image_without_error_has_no_shares():
    truth = np.zeros((1, 32, 32))
    found = error_shares(truth, truth, np.zeros(truth.shape, np.uint8))
    assert math.isnan(found.shares[Place.VESSEL])
    assert math.isnan(found.rms_hu[Place.VESSEL])
    assert found.psnr_db() == math.inf


def test_shares_refuse_what_does_not_fit():
    truth = np.zeros((1, 32, 32))
    with pytest.raises(ValueError, match="places have shape"):
        error_shares(truth, truth, np.zeros((1, 16, 16), np.uint8))
    with pytest.raises(ValueError, match="last one"):
        error_shares(truth, truth, np.full(truth.shape, 99, np.uint8))
    with pytest.raises(ValueError, match="no case"):
        ErrorShares.pool([])


@pytest.mark.parametrize("name", ["bicubic", "B-spline", "Lanczos"])
def test_no_interpolation_is_better_than_the_best_linear_estimate(name):
    """An interpolation is such a filter itself, but at the border, so the best has no more error over the rest."""
    rng = RNG(2)
    truth = rng.normal(size=(3, 192, 192))
    truth = np.fft.ifft2(np.fft.fft2(truth) * np.exp(-200 * np.add.outer(*2 * [np.fft.fftfreq(192) ** 2]))).real
    truth = -860.0 + 100.0 * truth / truth.std()
    coarse = truth.reshape(3, 24, 8, 24, 8).mean(axis=(2, 4)) + rng.normal(0.0, 5.0, (3, 24, 24))
    fine = np.stack([INTERPOLATORS[name](plane, 8) for plane in coarse.astype(np.float32)])
    best = best_linear_estimate(coarse, truth, 8)
    assert np.mean((best - truth) ** 2) < np.mean((fine - truth) ** 2)


def test_a_truth_that_is_a_filter_of_the_scan_is_estimated_exactly():
    coarse = RNG(3).normal(-860.0, 50.0, (2, 24, 24)).astype(np.float32)
    truth = np.stack([INTERPOLATORS["bicubic"](plane, 4) for plane in coarse]).astype(np.float64)
    # The scan's edge goes on, as the interpolation has it.
    np.testing.assert_allclose(best_linear_estimate(coarse, truth, 4, 3), truth, rtol=0, atol=0.5)


def test_the_best_linear_estimate_leaves_what_wieners_theory_says():
    """Scale 1, white noise on a stationary texture of known spectrum: the mean of S N / (S + N)."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    transfer = np.exp(-2 * np.pi**2 * 1.2**2 * frequency**2)
    rng = RNG(4)
    truth = np.fft.ifft2(np.fft.fft2(rng.normal(0.0, 100.0, (6, 128, 128))) * transfer).real
    scan = truth + rng.normal(0.0, 15.0, truth.shape)
    signal, noise = 100.0**2 * transfer**2, 15.0**2
    expected = np.mean(signal * noise / (signal + noise))
    left = np.mean((best_linear_estimate(scan, truth, 1) - truth) ** 2)
    assert left == pytest.approx(expected, rel=0.03)
    assert left < 0.6 * noise


def test_noise_alone_is_estimated_as_the_mean():
    """But for what fits by chance: of the truth's power the number of weights over that of coarse voxels."""
    rng = RNG(5)
    truth, scan = rng.normal(-860.0, 40.0, (4, 64, 64)), rng.normal(-860.0, 40.0, (4, 32, 32))
    found = best_linear_estimate(scan, truth, 2, 1)
    assert found.mean() == pytest.approx(truth.mean(), abs=0.01)
    assert found.std() == pytest.approx(40.0 * math.sqrt((3 * 3 + 1) / (4 * 32 * 32)), rel=0.1)


def test_oracles_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="2 times as fine"):
        best_linear_estimate(np.zeros((1, 8, 8)), np.zeros((1, 24, 24)), 2)
    with pytest.raises(ValueError, match="too few"):
        best_linear_estimate(np.zeros((1, 8, 8)), np.zeros((1, 16, 16)), 2)


def test_the_floor_of_the_texture_is_wrong_by_no_more_than_the_texture(small_case):
    truth = np.asarray(small_case.scan.truth.array_kji, np.float64)
    bare = simulate_case(replace(SMALL, without=("texture",)), 2).scan.truth.array_kji
    floor = texture_floor(small_case)
    assert floor.shape == truth.shape
    assert 0.3 * np.mean((bare - truth) ** 2) < np.mean((floor - truth) ** 2) < np.mean((bare - truth) ** 2)


def test_a_case_without_texture_has_no_floor():
    case = simulate_case(replace(SMALL, without=("texture",)), 2)
    np.testing.assert_allclose(texture_floor(case), case.scan.truth.array_kji, rtol=0, atol=1e-3)
