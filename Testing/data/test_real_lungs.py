"""The lungs of real scans, against reference masks, anatomy and each other."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.lungs import LungSettings, segment_lungs
from CTMicroSRLib.volume import Geometry, Region, Volume

pytestmark = pytest.mark.real_data


def as_volume(image):
    voxels = np.maximum(sitk.GetArrayFromImage(image), -1024).astype(np.int16)
    geometry = Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Volume(voxels, geometry)


def read_file(path):
    return as_volume(sitk.ReadImage(str(path)))


def read_series(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return as_volume(reader.Execute())


def read_mask(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0


def dice(a, b):
    return 2.0 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def share_of_each_half(mask):
    """How much of the mask lies on either side of the middle of its left-right range (i runs left-right)."""
    columns = np.flatnonzero(mask.any(axis=(0, 1)))
    middle = (columns[0] + columns[-1]) // 2
    first = np.count_nonzero(mask[:, :, :middle]) / np.count_nonzero(mask)
    return first, 1.0 - first


@pytest.fixture(scope="module")
def coarse(real_data):
    return read_file(real_data / "lung_mask" / "ct-64.nrrd")


@pytest.fixture(scope="module")
def whole(real_data):
    return read_file(real_data / "clinical" / "lidc_idri_1011.nrrd")


@pytest.fixture(scope="module")
def whole_mask(whole):
    return segment_lungs(whole)


def test_a_coarse_chest_agrees_with_its_reference_masks(real_data, coarse):
    lungs = read_mask(real_data / "lung_mask" / "wholeLung-64.nrrd")
    lungs_and_airways = read_mask(real_data / "lung_mask" / "lm-64.nrrd")
    without = segment_lungs(coarse).array_kji
    within = segment_lungs(coarse, LungSettings(include_airways=True)).array_kji
    assert dice(without, lungs) > 0.975
    assert dice(within, lungs_and_airways) > 0.975
    # Each option is closer to the reference that is drawn by its own convention.
    assert dice(without, lungs) > dice(within, lungs)
    assert dice(within, lungs_and_airways) > dice(without, lungs_and_airways)


def test_a_whole_chest_has_two_lungs_of_a_plausible_size(whole_mask):
    assert 4500.0 < whole_mask.volume_ml < 7000.0
    assert min(share_of_each_half(whole_mask.array_kji)) > 0.4
    assert 15.0 < whole_mask.airways_ml < 100.0
    assert whole_mask.warnings == ()


def test_the_mask_of_a_whole_chest_is_lung_by_density(whole, whole_mask):
    inside = whole.array_kji[whole_mask.array_kji]
    assert -900 < np.median(inside) < -800
    assert (inside < -300).mean() > 0.93
    assert (inside == -1024).mean() < 0.001


def test_bowel_gas_of_a_whole_chest_stays_out(whole, whole_mask):
    # The lowest 15 slices (37 mm) show liver, kidneys and gas in the colon, and no lung.
    assert (whole.array_kji[:15, 100:300, 120:420] < -800).sum() > 1000
    assert not whole_mask.array_kji[:15].any()
    with pytest.raises(RefusedInputError, match="No lung found"):
        segment_lungs(whole.crop(Region((0, 512), (0, 512), (0, 15))))


def test_the_table_and_the_air_around_a_whole_chest_stay_out(whole_mask):
    assert not whole_mask.array_kji[:, 400:].any()
    assert not whole_mask.array_kji[:, :90].any()


@pytest.mark.parametrize("half", [(0, 66), (66, 133)], ids=["lower", "upper"])
def test_half_a_chest_gives_half_the_lungs(whole, whole_mask, half):
    region = Region((0, 512), (0, 512), half)
    found = segment_lungs(whole.crop(region)).array_kji
    assert dice(found, whole_mask.array_kji[region.slices_kji]) > 0.99


@pytest.mark.parametrize("k", [44, 66, 88, 110])
def test_a_slice_by_itself_gives_its_part_of_the_lungs(whole, whole_mask, k):
    region = Region((0, 512), (0, 512), (k, k + 1))
    found = segment_lungs(whole.crop(region)).array_kji
    assert dice(found, whole_mask.array_kji[region.slices_kji]) > 0.98


def test_lung_bases_cut_off_by_the_field_of_view(real_data):
    volume = read_file(real_data / "clinical" / "rider_0117.nrrd")
    mask = segment_lungs(volume)
    assert 1800.0 < mask.volume_ml < 2200.0
    assert min(share_of_each_half(mask.array_kji)) > 0.3
    # The last slice lies across both lungs: 32 x 24 cm of chest, more than half of it lung.
    assert 300.0 < np.count_nonzero(mask.array_kji[-1]) * 0.645**2 / 100.0 < 450.0
    assert (volume.array_kji[mask.array_kji] == -1024).mean() < 0.001


def test_lung_apices_alone(real_data):
    volume = read_file(real_data / "clinical" / "lungfcp_0001.nrrd")
    mask = segment_lungs(volume)
    assert 1150.0 < mask.volume_ml < 1450.0
    assert min(share_of_each_half(mask.array_kji)) > 0.4
    assert mask.airways_ml > 10.0
    assert not mask.array_kji[84:].any(), "the neck has no lung"


def test_a_thick_slice_dicom_series(real_data):
    mask = segment_lungs(read_series(real_data / "dicom" / "lung_dx_a0002"))
    assert 2400.0 < mask.volume_ml < 3100.0
    assert min(share_of_each_half(mask.array_kji)) > 0.35
    assert not mask.array_kji[:, 390:].any(), "the table stays out"
    assert not mask.array_kji[29].any(), "the shoulders have no lung"


def test_two_slices_that_fill_the_image(real_data):
    volume = read_file(real_data / "lung_mask" / "crop_ct_2slices.nrrd")
    mask = segment_lungs(volume)
    air = volume.array_kji < -600
    assert 24.0 < mask.volume_ml < 30.0
    assert np.count_nonzero(mask.array_kji & air) / np.count_nonzero(air) > 0.95
    assert min(share_of_each_half(mask.array_kji)) > 0.4


def test_ten_millimetre_slices_of_a_patient_lying_on_the_face():
    package = find_spec("slicerio")
    if package is None or package.origin is None:
        pytest.skip("slicerio is not installed; it carries the scan CTChest4")
    path = Path(package.origin).parent / "data" / "CTChest4.nrrd"
    mask = segment_lungs(read_file(path))
    assert 5800.0 < mask.volume_ml < 7000.0
    assert min(share_of_each_half(mask.array_kji)) > 0.4
    assert not mask.array_kji[:6].any(), "the abdomen has gas but no lung"
    assert mask.airways_ml > 15.0
