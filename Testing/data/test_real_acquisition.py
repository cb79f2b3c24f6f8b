"""Blur and noise of real scans: plausible, quick, and changed by a known blur as they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk

from CTMicroSRLib.acquisition import estimate_acquisition
from CTMicroSRLib.volume import Geometry, Volume

pytestmark = pytest.mark.real_data

SCANS = ["lidc_idri_1011", "lungfcp_0001", "rider_0117"]


def read(path):
    """The scan on a grid of its own spacing."""
    image = sitk.ReadImage(str(path))
    return Volume(sitk.GetArrayFromImage(image), Geometry(image.GetSize(), image.GetSpacing()))


def read_series(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    return Volume(sitk.GetArrayFromImage(image), Geometry(image.GetSize(), image.GetSpacing()))


def assert_plausible(found):
    """What standard kernels and usual doses give."""
    assert (found.psf_source, found.noise_source, found.notes) == ("estimated", "estimated", ())
    assert 0.9 < found.psf_fwhm_mm < 1.6
    assert 8 < found.noise_hu < 40
    assert found.noise_region == "soft tissue"
    low, high = found.psf_quartiles_mm
    assert low <= found.psf_fwhm_mm <= high


@pytest.mark.parametrize("name", SCANS)
def test_a_whole_scan_has_plausible_blur_and_noise(real_data, name):
    volume = read(real_data / "clinical" / f"{name}.nrrd")
    found = estimate_acquisition(volume)
    assert_plausible(found)
    assert found.edges > 1000


def test_thick_slices_of_a_dicom_series_have_plausible_blur_and_noise(real_data):
    assert_plausible(estimate_acquisition(read_series(real_data / "dicom" / "lung_dx_a0002")))


def test_two_slices_of_a_lung_have_plausible_blur_and_noise(real_data):
    assert_plausible(estimate_acquisition(read(real_data / "lung_mask" / "crop_ct_2slices.nrrd")))


@pytest.mark.parametrize("name", SCANS)
def test_a_known_blur_on_top_adds_up_in_squares(real_data, name):
    volume = read(real_data / "clinical" / f"{name}.nrrd")
    middle = volume.array_kji.shape[0] // 2
    part = volume.array_kji[middle - 5 : middle + 5]
    geometry = Geometry(part.shape[::-1], volume.geometry.spacing_mm)
    before = estimate_acquisition(Volume(part, geometry)).psf_fwhm_mm
    added_mm = 1.3
    position = np.subtract.outer(np.arange(part.shape[1]), np.arange(part.shape[1])) * geometry.spacing_mm[0]
    rows = np.exp(-4 * math.log(2) * (position / added_mm) ** 2)
    rows = (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)
    blurred = rows @ np.maximum(part, -1024).astype(np.float32) @ rows.T
    after = estimate_acquisition(Volume(blurred, geometry)).psf_fwhm_mm
    assert after == pytest.approx(math.hypot(before, added_mm), rel=0.10)


def test_halves_of_a_scan_agree(real_data):
    volume = read(real_data / "clinical" / "lidc_idri_1011.nrrd")
    halves = [volume.array_kji[20:66], volume.array_kji[66:112]]
    found = [
        estimate_acquisition(Volume(half, Geometry(half.shape[::-1], volume.geometry.spacing_mm))) for half in halves
    ]
    assert found[0].psf_fwhm_mm == pytest.approx(found[1].psf_fwhm_mm, rel=0.10)
