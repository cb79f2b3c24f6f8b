"""Measures of realism on real scans: there, plausible and repeatable."""

from __future__ import annotations

import math

import pytest

from CTMicroSRLib.evaluation.realism import measure_scan
from CTMicroSRLib.evaluation.realism_table import TITLES
from CTMicroSRLib.files import read_volume
from CTMicroSRLib.volume import Region

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def part_of_a_scan(real_data):
    """Twenty slices of a lung's apices, contrast-free."""
    volume = read_volume(real_data / "clinical" / "lungfcp_0001.nrrd")
    size = volume.geometry.size_ijk
    return volume.crop(Region((0, size[0]), (0, size[1]), (10, 30)))


@pytest.fixture(scope="module")
def measured(part_of_a_scan):
    return measure_scan(part_of_a_scan)


def test_every_measure_is_there(measured):
    assert set(measured.measures.numbers) == set(TITLES)
    missing = [key for key, value in measured.measures.numbers.items() if not math.isfinite(value)]
    assert missing == []


def test_the_measures_are_those_of_a_lung(measured):
    found = measured.measures.numbers
    assert -930 < found["mode_hu"] < -830
    assert found["percentile_5_hu"] < found["mode_hu"] < found["percentile_95_hu"]
    assert 10 < found["lung_noise_hu"] < found["soft_tissue_noise_hu"] * 1.1 < 45
    assert 10 < found["local_std_hu_50"] < 50
    assert 0.0 <= found["texture_hu_50"] < found["local_std_hu_50"]
    assert 0.3 < found["plain_share"] < 0.95
    assert 0.002 < found["vessels_area"] < found["faint_vessels_area"] < 0.15
    assert found["vessels_>5"] < found["vessels_1-2"]
    assert 0.05 < found["soft_tissue_peak"] < found["soft_tissue_centroid"] < 0.5


def test_edges_are_as_wide_as_the_scans_blur_makes_them(measured):
    # A Gaussian step rises from 10 to 90 % over 1.09 of its full width at half maximum; the pixel adds its own.
    width_mm = math.hypot(measured.settings.psf_fwhm_mm, measured.settings.pixel_mm * 0.68)
    assert measured.measures.numbers["vessel_rise_mm_50"] == pytest.approx(1.09 * width_mm, rel=0.25)


def test_the_same_scan_gives_the_same_numbers(part_of_a_scan, measured):
    again = measure_scan(part_of_a_scan)
    assert again.settings == measured.settings
    assert again.measures.numbers == measured.measures.numbers
