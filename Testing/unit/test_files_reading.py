"""Reading NRRD, NIfTI and MetaImage files: voxels, geometry, dtype, padding, masks, warnings."""

from __future__ import annotations

import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.files import read_any_volume, read_mask, read_volume
from CTMicroSRLib.volume import Geometry

SUFFIXES = (".nrrd", ".nii", ".nii.gz", ".mha", ".mhd")


def chest_kji(shape_kji=(4, 6, 5), dtype=np.int16):
    array = np.random.default_rng(7).integers(-1000, 400, shape_kji)
    array[0, 0, :2] = -1000, 60
    return array.astype(dtype)


def oblique_directions():
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    return tuple(turn.ravel())


def itk_image(array_kji, spacing=(0.7, 0.6, 1.5), origin=(-12.5, 30.25, 1000.125), directions=None):
    image = sitk.GetImageFromArray(array_kji)
    image.SetSpacing(spacing[: image.GetDimension()])
    image.SetOrigin(origin[: image.GetDimension()])
    if directions is not None:
        image.SetDirection(directions)
    return image


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_voxels_and_geometry_of_an_oblique_file_come_as_simpleitk_stored_them(tmp_path, suffix, dtype):
    array_kji = chest_kji(dtype=dtype)
    image = itk_image(array_kji, directions=oblique_directions())
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"))
    volume = read_volume(tmp_path / f"scan{suffix}")
    assert volume.array_kji.dtype == dtype
    np.testing.assert_array_equal(volume.array_kji, array_kji)
    assert volume.geometry.size_ijk == image.GetSize()
    # NIfTI keeps geometry as float32; the corner 1 m from the origin is then exact to 1e-4 mm.
    tolerance_mm = 2e-4 if ".nii" in suffix else 1e-12 * 1000
    for corner in ((0, 0, 0), (4, 0, 0), (0, 5, 0), (0, 0, 3), (4, 5, 3)):
        expected = image.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(volume.geometry.physical_point_mm(corner), expected, rtol=0, atol=tolerance_mm)


def test_a_nifti_written_by_nibabel_lies_where_nibabel_says(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = np.array(oblique_directions()).reshape(3, 3) @ np.diag([0.7, 0.7, 2.0])
    affine[:3, 3] = (5.5, -20.25, 300.125)
    array_ijk = chest_kji().T
    nibabel.save(nibabel.Nifti1Image(array_ijk, affine), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.array_kji, array_ijk.T)
    x, y, z = (affine @ [3, 2, 1, 1])[:3]
    # NIfTI is right-anterior-superior, the geometry left-posterior-superior
    np.testing.assert_allclose(volume.geometry.physical_point_mm((3, 2, 1)), (-x, -y, z), rtol=0, atol=2e-4)


def test_a_nrrd_in_right_anterior_superior_space_is_turned_to_lps(tmp_path):
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 5 6 4\n"
        "space directions: (0.7,0,0) (0,0.6,0) (0,0,1.5)\nkinds: domain domain domain\n"
        "endian: little\nencoding: raw\nspace origin: (10,20,30)\n\n"
    )
    (tmp_path / "scan.nrrd").write_bytes(header.encode() + chest_kji().astype("<i2").tobytes())
    volume = read_volume(tmp_path / "scan.nrrd")
    np.testing.assert_allclose(volume.geometry.physical_point_mm((1, 0, 0)), (-10.7, -20, 30), rtol=0, atol=1e-12)


def test_scanner_padding_becomes_air_and_nothing_else_changes(tmp_path):
    array_kji = chest_kji()
    array_kji[1, 2, :3] = -3024, -2048, -1025
    array_kji[1, 3, :2] = -1024, -1023
    sitk.WriteImage(itk_image(array_kji), str(tmp_path / "scan.nrrd"))
    volume = read_volume(tmp_path / "scan.nrrd")
    assert volume.array_kji[1, 2, :3].tolist() == [-1024, -1024, -1024]
    assert volume.array_kji[1, 3, :2].tolist() == [-1024, -1023]
    unpadded = array_kji >= -1024
    np.testing.assert_array_equal(volume.array_kji[unpadded], array_kji[unpadded])


@pytest.mark.parametrize(
    ("stored", "read"),
    [(np.int32, np.int16), (np.int64, np.int16), (np.float32, np.float32), (np.float64, np.float32)],
)
def test_whole_numbers_are_read_as_int16_and_others_as_float32(tmp_path, stored, read):
    sitk.WriteImage(itk_image(chest_kji(dtype=stored)), str(tmp_path / "scan.nrrd"))
    volume = read_volume(tmp_path / "scan.nrrd")
    assert volume.array_kji.dtype == read
    np.testing.assert_array_equal(volume.array_kji, chest_kji())


def test_the_rescale_of_a_nifti_header_is_applied(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    image = nibabel.Nifti1Image((chest_kji().T + 1024).astype(np.int16), np.eye(4), header)
    image.header.set_slope_inter(1.0, 0.0)
    nibabel.save(image, tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[112:120] = np.array([1.0, -1024.0], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "scan.nii").write_bytes(content)
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii").array_kji, chest_kji())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_single_2d_image_becomes_one_slice(tmp_path, suffix):
    array_ji = chest_kji()[0]
    sitk.WriteImage(itk_image(array_ji), str(tmp_path / f"slice{suffix}"))
    volume = read_volume(tmp_path / f"slice{suffix}")
    np.testing.assert_array_equal(volume.array_kji, array_ji[None])
    np.testing.assert_allclose(volume.geometry.spacing_mm[:2], (0.7, 0.6), rtol=1e-6)


def test_a_4d_file_with_one_time_point_is_read_as_its_volume(tmp_path):
    image = nibabel.Nifti1Image(chest_kji().T[..., None], np.diag([0.7, 0.7, 1.5, 1]))
    nibabel.save(image, tmp_path / "scan.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii").array_kji, chest_kji())


def test_a_gzipped_nifti_is_read_itself_when_an_unzipped_one_lies_beside_it(tmp_path):
    sitk.WriteImage(itk_image(chest_kji()), str(tmp_path / "scan.nii.gz"))
    sitk.WriteImage(itk_image(chest_kji()[::-1]), str(tmp_path / "scan.nii"))
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii.gz").array_kji, chest_kji())


def test_a_detached_nrrd_header_is_read_with_its_data_file(tmp_path):
    sitk.WriteImage(itk_image(chest_kji()), str(tmp_path / "scan.nhdr"))
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nhdr").array_kji, chest_kji())


def test_metadata_about_the_scan_is_kept_and_about_the_patient_is_not(tmp_path):
    image = itk_image(chest_kji())
    for key, value in {"Modality": "CT", "ConvolutionKernel": "B40f", "PatientName": "Doe", "0010|0030": "1"}.items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    assert read_volume(tmp_path / "scan.nrrd").metadata == {"Modality": "CT", "ConvolutionKernel": "B40f"}


def test_pixels_over_one_millimetre_are_good_input(tmp_path):
    sitk.WriteImage(itk_image(chest_kji(), spacing=(1.2, 1.2, 3)), str(tmp_path / "coarse.nrrd"))
    assert read_volume(tmp_path / "coarse.nrrd").geometry.spacing_mm == (1.2, 1.2, 3.0)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "scan.nrrd")
    with pytest.raises(RefusedInputError, match="not a file"):
        read_volume(tmp_path / "scan.nrrd")


def test_any_scalar_volume_is_read_exactly_without_asking_whether_it_is_ct(tmp_path):
    labels = np.arange(120, dtype=np.uint16).reshape(4, 6, 5)
    sitk.WriteImage(itk_image(labels, spacing=(0.05, 0.05, 0.05)), str(tmp_path / "labels.nrrd"))
    volume = read_any_volume(tmp_path / "labels.nrrd")
    assert volume.array_kji.dtype == np.uint16
    np.testing.assert_array_equal(volume.array_kji, labels)


def test_nothing_at_the_path_is_wrong_use(tmp_path):
    with pytest.raises(UsageError, match="no file or folder"):
        read_volume(tmp_path / "missing.nrrd")


GRID = Geometry((5, 6, 4), (0.7, 0.6, 1.5), (-12.5, 30.25, 1000.125), oblique_directions())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_mask_from_elsewhere_on_the_same_grid_is_accepted_in_any_format(tmp_path, suffix, dtype):
    mask_kji = chest_kji() > 0
    image = itk_image((mask_kji * 20).astype(dtype), directions=GRID.directions)
    sitk.WriteImage(image, str(tmp_path / f"mask{suffix}"))
    read = read_mask(tmp_path / f"mask{suffix}", GRID)
    assert read.dtype == np.bool_
    np.testing.assert_array_equal(read, mask_kji)


@pytest.mark.parametrize(
    ("shape", "spacing", "origin_shift_mm", "directions", "named"),
    [
        ((4, 6, 6), GRID.spacing_mm, 0, GRID.directions, "size"),
        ((4, 6, 5), (0.7, 0.6, 1.51), 0, GRID.directions, "spacing"),
        ((4, 6, 5), GRID.spacing_mm, 0.05, GRID.directions, "origin"),
        ((4, 6, 5), GRID.spacing_mm, 0, (1, 0, 0, 0, 1, 0, 0, 0, 1), "orientation"),
    ],
)
def test_a_mask_on_another_grid_is_refused_and_the_difference_named(
    tmp_path, shape, spacing, origin_shift_mm, directions, named
):
    origin = tuple(o + origin_shift_mm for o in GRID.origin_mm)
    image = itk_image(np.ones(shape, np.uint8), spacing, origin, directions)
    sitk.WriteImage(image, str(tmp_path / "mask.nrrd"))
    with pytest.raises(RefusedInputError, match=named):
        read_mask(tmp_path / "mask.nrrd", GRID)
