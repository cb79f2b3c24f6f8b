"""The simulated micro-CT: its grey values can be undone, its noise, blur, rings and holder are what was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from CTMicroSRLib import Geometry, UsageError, Volume
from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.point_spread import FWHM_PER_SIGMA
from CTMicroSRLib.simulation.description import Description, Label, Specimen, Tubes
from CTMicroSRLib.simulation.micro_scanner import (
    GREY_OF_AIR,
    GREY_PER_HU,
    MicroScannerSettings,
    micro_to_hu,
    scan_micro,
)

VOXEL_MM = 0.08
BARE = {"noise_grey": 0.0, "ring_grey": 0.0, "wall_mm": 0.0}


def block(array_kji, slice_mm=VOXEL_MM):
    array = np.asarray(array_kji, np.float32)
    geometry = Geometry(array.shape[::-1], (VOXEL_MM, VOXEL_MM, slice_mm))
    labels = Volume(np.full(array.shape, Label.PARENCHYMA, np.uint8), geometry)
    empty = Tubes.join([])
    return Specimen(Volume(array, geometry), labels, Description((1.0, 1.0, 1.0), empty, empty, empty), 0)


def grey_per_hu(micro):
    return float(micro.metadata["GreyPerHU"])


@pytest.mark.parametrize("seed", range(5))
def test_grey_values_are_undone_by_what_the_scan_tells(seed):
    fine = np.linspace(-1000.0, 1200.0, 24)[None, None, :] * np.ones((10, 24, 1))
    micro = scan_micro(block(fine), MicroScannerSettings(psf_fwhm_mm=0.0, **BARE), seed)
    assert micro.array_kji.dtype == np.uint16
    assert micro.array_kji.max() <= 15_000
    assert GREY_OF_AIR[0] <= micro.array_kji.min() <= GREY_OF_AIR[1]
    assert GREY_PER_HU[0] <= grey_per_hu(micro) <= GREY_PER_HU[1]
    np.testing.assert_allclose(micro_to_hu(micro), fine, atol=0.5 / GREY_PER_HU[0] + 1e-3)


def test_every_scan_has_its_own_gain_and_offset_and_the_same_seed_the_same_bytes():
    specimen = block(np.full((4, 40, 40), -850.0))
    scans = [scan_micro(specimen, MicroScannerSettings(), seed) for seed in (1, 1, 2, 3)]
    assert scans[0].array_kji.tobytes() == scans[1].array_kji.tobytes()
    assert len({scan.metadata["GreyOfAir"] for scan in scans}) == 3
    assert len({scan.metadata["GreyPerHU"] for scan in scans}) == 3


def test_a_clinical_scan_is_not_undone():
    volume = block(np.zeros((4, 8, 8))).volume
    with pytest.raises(RefusedInputError, match="grey value"):
        micro_to_hu(volume)


@pytest.mark.parametrize("slice_mm", [VOXEL_MM, 2 * VOXEL_MM])
@pytest.mark.parametrize("axis", range(3))
def test_the_point_spread_is_a_gaussian_of_the_width_asked_for(axis, slice_mm):
    fine = np.full((41, 41, 41), -1000.0)
    fine[20, 20, 20] += 10_000.0
    settings = MicroScannerSettings(psf_fwhm_mm=0.3, **BARE)
    hu = micro_to_hu(scan_micro(block(fine, slice_mm), settings, 0))
    hu -= hu[0, 0, 0]
    line = hu.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.float64)
    step_mm = slice_mm if axis == 0 else VOXEL_MM
    at = (np.arange(41) - 20) * step_mm
    near = np.abs(at) < 0.7
    mean, mass = np.sum((line * at)[near]) / line[near].sum(), line[near].sum()
    sigma = math.sqrt(np.sum((line * (at - mean) ** 2)[near]) / mass)
    assert mean == pytest.approx(0.0, abs=1e-3)
    assert mass == pytest.approx(10_000.0, rel=0.02)
    assert sigma * FWHM_PER_SIGMA == pytest.approx(0.3, rel=0.03)


def test_the_noise_has_the_deviation_asked_for_after_the_point_spread():
    specimen = block(np.full((24, 96, 96), -500.0))
    settings = MicroScannerSettings(psf_fwhm_mm=0.12, noise_grey=200.0, ring_grey=0.0, wall_mm=0.0)
    grey = scan_micro(specimen, settings, 4).array_kji.astype(np.float64)
    assert grey[4:-4, 4:-4, 4:-4].std() == pytest.approx(200.0, rel=0.02)
    image = grey[12] - grey[12].mean()
    neighbours = np.mean(image[:, 1:] * image[:, :-1]) / np.mean(image**2)
    assert 0.1 < neighbours < 0.8  # coloured by the point spread
    far = np.mean(image[:, 6:] * image[:, :-6]) / np.mean(image**2)
    assert abs(far) < 0.05


def test_rings_are_round_differ_in_radius_and_drift_slowly_along_z():
    shape = (50, 161, 161)
    settings = MicroScannerSettings(psf_fwhm_mm=0.1, noise_grey=0.0, ring_grey=300.0, wall_mm=0.0)
    grey = scan_micro(block(np.full(shape, -500.0)), settings, 1).array_kji.astype(np.float64)
    grey -= np.median(grey)
    assert np.std(grey[:, 20:-20, 20:-20]) == pytest.approx(300.0, rel=0.25)

    def left_after_rings(image, y, x):
        """Share of the variance that the mean over circles about (y, x) does not explain."""
        radius = np.rint(np.hypot(*np.meshgrid(np.arange(161) - y, np.arange(161) - x, indexing="ij"))).astype(int)
        rings = np.bincount(radius.ravel(), image.ravel()) / np.maximum(np.bincount(radius.ravel()), 1)
        return np.var((image - rings[radius])[30:-30, 30:-30]) / np.var(image[30:-30, 30:-30])

    image = grey[25]
    found = min(
        left_after_rings(image, 80 + y, 80 + x) for y in np.arange(-2, 2.1, 0.5) for x in np.arange(-2, 2.1, 0.5)
    )
    assert found < 0.25
    assert left_after_rings(image, 60, 80) > 0.7

    def alike(k):
        return np.corrcoef(grey[0].ravel(), grey[k].ravel())[0, 1]

    assert alike(1) > 0.95
    assert abs(alike(49)) < 0.4


def test_without_rings_noise_and_holder_only_the_specimen_is_seen():
    fine = np.random.default_rng(0).normal(-850.0, 30.0, (6, 40, 40))
    micro = scan_micro(block(fine), MicroScannerSettings(psf_fwhm_mm=0.0, **BARE), 3)
    np.testing.assert_allclose(micro_to_hu(micro), fine, atol=0.2)


def test_the_holder_is_a_cylinder_of_the_wall_asked_for_with_air_outside():
    settings = MicroScannerSettings(psf_fwhm_mm=0.0, noise_grey=0.0, ring_grey=0.0, wall_mm=0.8, wall_hu=200.0)
    hu = micro_to_hu(scan_micro(block(np.full((3, 160, 160), -850.0)), settings, 5))[1]
    assert hu[0, 0] == pytest.approx(-1000.0, abs=0.2)
    assert hu[80, 80] == pytest.approx(-850.0, abs=0.2)
    wall_mm2 = np.count_nonzero(hu > -300.0) * VOXEL_MM**2
    outer = 160 * VOXEL_MM / 2 - 4 * VOXEL_MM
    assert wall_mm2 == pytest.approx(math.pi * (outer**2 - (outer - 0.8) ** 2), rel=0.02)
    assert hu.max() == pytest.approx(200.0, abs=0.3)


def test_a_wall_without_room_inside_is_refused():
    with pytest.raises(UsageError, match="no room"):
        scan_micro(block(np.zeros((2, 24, 24))), MicroScannerSettings(), 0)


@pytest.mark.parametrize(
    "bad",
    [{"psf_fwhm_mm": -0.1}, {"noise_grey": math.nan}, {"ring_grey": -1.0}, {"wall_mm": math.inf}, {"wall_hu": -2000.0}],
)
def test_an_impossible_micro_scanner_is_refused_in_one_sentence(bad):
    with pytest.raises(UsageError) as refused:
        MicroScannerSettings(**bad)
    assert str(refused.value).endswith(".")
    assert ". " not in str(refused.value)
