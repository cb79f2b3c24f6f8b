"""Real scans: what is read is what other readers find in the files."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zlib

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files import read_mask, read_volume, write_volume

pytestmark = pytest.mark.real_data

CLINICAL = ("lidc_idri_1011", "rider_0117", "lungfcp_0001")


@pytest.mark.parametrize("name", CLINICAL)
def test_a_clinical_scan_is_read_as_its_bytes_say(real_data, name):
    path = real_data / "clinical" / f"{name}.nrrd"
    volume = read_volume(path)
    header, packed = path.read_bytes().split(b"\n\n", 1)
    sizes = tuple(int(n) for n in re.search(rb"sizes: (.*)", header)[1].split())
    origin = [float(x) for x in re.search(rb"space origin: \((.*)\)", header)[1].split(b",")]
    spacing = [float(x) for x in re.findall(rb"[\d.]+", re.search(rb"space directions: (.*)", header)[1]) if float(x)]
    stored_kji = np.frombuffer(zlib.decompress(packed, 31), "<i2").reshape(sizes[::-1])
    assert volume.geometry.size_ijk == sizes
    assert volume.geometry.origin_mm == tuple(origin)
    np.testing.assert_allclose(volume.geometry.spacing_mm, spacing, rtol=1e-14)
    np.testing.assert_array_equal(volume.array_kji, np.maximum(stored_kji, -1024))


def test_the_padding_of_real_scans_is_air(real_data):
    for name in ("lidc_idri_1011", "rider_0117"):
        assert sitk.GetArrayViewFromImage(sitk.ReadImage(str(real_data / "clinical" / f"{name}.nrrd"))).min() < -1024
        assert read_volume(real_data / "clinical" / f"{name}.nrrd").array_kji.min() == -1024


def test_the_dicom_series_is_complete_and_lies_where_its_headers_say(real_data):
    folder = real_data / "dicom" / "lung_dx_a0002"
    volume = read_volume(folder)
    assert volume.geometry.size_ijk == (512, 512, 30)
    assert volume.geometry.spacing_mm == (0.646484375, 0.646484375, 8.0)
    slices = sorted((pydicom.dcmread(f) for f in folder.glob("*.dcm")), key=lambda d: d.ImagePositionPatient[2])
    for k, one in enumerate(slices):
        np.testing.assert_allclose(volume.geometry.physical_point_mm((0, 0, k)), one.ImagePositionPatient, atol=1e-9)
        hu_ji = one.pixel_array.astype(np.int32) * int(one.RescaleSlope) + int(one.RescaleIntercept)
        np.testing.assert_array_equal(volume.array_kji[k], np.maximum(hu_ji, -1024))


def test_one_file_of_the_dicom_series_gives_the_same_volume_as_its_folder(real_data):
    folder = real_data / "dicom" / "lung_dx_a0002"
    whole, one = read_volume(folder), read_volume(folder / "1-17.dcm")
    assert one.geometry == whole.geometry
    assert one.metadata == whole.metadata
    np.testing.assert_array_equal(one.array_kji, whole.array_kji)


def test_the_dicom_series_with_a_slice_taken_out_is_refused(real_data, tmp_path):
    for file in (real_data / "dicom" / "lung_dx_a0002").glob("*.dcm"):
        if file.name != "1-11.dcm":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(RefusedInputError, match="missing or unevenly spaced slices"):
        read_volume(tmp_path)


def test_all_transfer_syntaxes_give_equal_voxels(real_data):
    files = sorted((real_data / "dicom" / "transfer_syntaxes").glob("*.dcm"))
    assert len(files) >= 7
    volumes = [read_volume(file) for file in files]
    digests = {hashlib.sha256(volume.array_kji.tobytes()).hexdigest() for volume in volumes}
    assert len(digests) == 1
    assert {volume.geometry for volume in volumes} == {volumes[0].geometry}
    plain = pydicom.dcmread(real_data / "dicom" / "transfer_syntaxes" / "explicit_little_endian.dcm")
    hu_ji = plain.pixel_array.astype(np.int32) * int(plain.RescaleSlope) + int(plain.RescaleIntercept)
    np.testing.assert_array_equal(volumes[0].array_kji[0], np.maximum(hu_ji, -1024))
    assert volumes[0].geometry.spacing_mm == pytest.approx((0.675781, 0.675781, 5.0))


def test_the_lung_masks_lie_on_their_scan_and_are_no_scans(real_data):
    folder = real_data / "lung_mask"
    scan = read_volume(folder / "ct-64.nrrd")
    for name, voxels in (("wholeLung-64", 65624), ("lm-64", None)):
        mask = read_mask(folder / f"{name}.nrrd", scan.geometry)
        assert voxels is None or mask.sum() == voxels
        with pytest.raises(RefusedInputError, match="label map"):
            read_volume(folder / f"{name}.nrrd")


def test_two_slices_of_a_lung_are_good_input(real_data):
    assert read_volume(real_data / "lung_mask" / "crop_ct_2slices.nrrd").geometry.size_ijk == (443, 349, 2)


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
def test_a_real_scan_comes_back_from_every_format(real_data, tmp_path, suffix):
    volume = read_volume(real_data / "lung_mask" / "crop_ct_2slices.nrrd")
    write_volume(volume, tmp_path / f"copy{suffix}")
    copy = read_volume(tmp_path / f"copy{suffix}")
    np.testing.assert_array_equal(copy.array_kji, volume.array_kji)
    np.testing.assert_allclose(
        copy.geometry.physical_point_mm((443, 349, 2)), volume.geometry.physical_point_mm((443, 349, 2)), atol=1e-4
    )


PEAK = """
import resource, sys
import SimpleITK, numpy
from CTMicroSRLib.files import read_volume
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
volume = read_volume(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / volume.array_kji.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize(("name", "limit"), [("clinical/rider_0117.nrrd", 2.4), ("dicom/lung_dx_a0002", 2.4)])
def test_reading_takes_about_twice_the_voxels_memory(real_data, repository, name, limit):
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(real_data / name)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout) < limit
