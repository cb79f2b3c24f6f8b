"""Headers of NRRD, NIfTI and MetaImage: what they must say, and what of them is kept."""

from __future__ import annotations

import re

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from refused_scans import refuse_reading as refuse
from written_files import write_scan

from CTMicroSRLib.files import read_any_volume, read_volume

DIRECTED = (
    "space: left-posterior-superior\nspace directions: (0.7,0,0) (0,0.8,0) (0,0,1.5)\nspace origin: (-10,-20,5)\n"
)


def chest_kji(shape_kji=(4, 6, 5)):
    array = np.random.default_rng(7).integers(-1000, 400, shape_kji)
    array[0, 0, :2] = -1000, 60
    return array.astype(np.int16)


def nrrd(path, geometry, *, sizes="5 6 4", encoding="raw"):
    axes = len(sizes.split())
    fixed = f"NRRD0005\ntype: short\ndimension: {axes}\nsizes: {sizes}\nencoding: {encoding}\nendian: little\n"
    path.write_bytes((fixed + geometry + "\n").encode() + chest_kji().astype("<i2").tobytes())
    return path


@pytest.mark.parametrize(
    ("geometry", "named"),
    [
        ("", "no spacings or space directions"),
        ("space: left-posterior-superior\n", "no spacings or space directions"),
        ("spacings: nan nan nan\n", "spacings nan nan nan"),
        ("spacings: 0.7 0.8 nan\n", "spacings 0.7 0.8 nan"),
        ("spacings: 0.7 0.8 0\n", "spacings 0.7 0.8 0"),
        (DIRECTED.replace("(0,0,1.5)", "none"), "space directions .* none"),
        (DIRECTED.replace("1.5", "nan"), "space directions .*nan"),
    ],
)
def test_a_nrrd_that_does_not_say_its_spacing_is_refused(tmp_path, capfd, geometry, named):
    refuse(nrrd(tmp_path / "s.nrrd", geometry), capfd, rf"how large its voxels are \({named}")


def test_a_nrrd_may_give_its_spacing_in_either_way_and_needs_none_along_one_slice(tmp_path):
    assert read_volume(nrrd(tmp_path / "a.nrrd", "spacings: 0.7 0.8 1.5\n")).geometry.spacing_mm == (0.7, 0.8, 1.5)
    assert read_volume(nrrd(tmp_path / "b.nrrd", DIRECTED)).geometry.spacing_mm == (0.7, 0.8, 1.5)
    units = 'space units: "mm" "mm" "mm"\n'
    assert read_volume(nrrd(tmp_path / "c.nrrd", DIRECTED + units)).geometry.spacing_mm == (0.7, 0.8, 1.5)
    one = read_volume(nrrd(tmp_path / "d.nrrd", "spacings: 0.7 0.8 nan\n", sizes="5 24 1"))
    assert one.geometry.spacing_mm[:2] == (0.7, 0.8)


@pytest.mark.parametrize(
    ("geometry", "encoding", "match"),
    [
        (DIRECTED + 'space units: "cm" "cm" "cm"\n', "raw", "lengths in 'cm'"),
        ('spacings: 0.7 0.8 1.5\nunits: "um" "um" "um"\n', "raw", "lengths in 'um'"),
        (DIRECTED.replace("left-posterior", "right-posterior"), "raw", "space 'right-posterior-superior', .*supported"),
        (DIRECTED, "bzip2", "'bzip2', which is not supported"),
    ],
)
def test_what_a_nrrd_says_and_nobody_reads_is_named(tmp_path, capfd, geometry, encoding, match):
    refuse(nrrd(tmp_path / "s.nrrd", geometry, encoding=encoding), capfd, match)


@pytest.mark.parametrize(("sizes", "at"), [("5 6 4 1", 3), ("5 6 2 2", 3), ("1 5 6 4", 0)])
def test_a_list_of_volumes_in_a_nrrd_has_four_axes(tmp_path, capfd, sizes, at):
    directions, kinds = ["(0.7,0,0)", "(0,0.8,0)", "(0,0,1.5)"], ["domain"] * 3
    directions.insert(at, "none")
    kinds.insert(at, "list")
    geometry = f"space: left-posterior-superior\nspace directions: {' '.join(directions)}\nkinds: {' '.join(kinds)}\n"
    refuse(nrrd(tmp_path / "s.nrrd", geometry, sizes=sizes), capfd, "4 axes")


@pytest.mark.parametrize(
    ("line", "named"),
    [("", "no ElementSpacing"), ("ElementSpacing = 0.7 0.8 0\n", "0.7 0.8 0"), ("ElementSize = 0.7 -1 1\n", "-1")],
)
def test_a_metaimage_that_does_not_say_its_spacing_is_refused(tmp_path, capfd, line, named):
    path = write_scan(tmp_path / "s.mha", chest_kji())
    path.write_bytes(re.sub(rb"ElementSpacing = .*\n", line.encode(), path.read_bytes()))
    refuse(path, capfd, rf"how large its voxels are \(.*{named}")


def test_a_metaimage_may_say_its_element_size_instead(tmp_path):
    path = write_scan(tmp_path / "s.mha", chest_kji(), (0.7, 0.8, 1.5))
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing", b"ElementSize"))
    assert read_volume(path).geometry.spacing_mm == (0.7, 0.8, 1.5)


def nifti(path, sform, *, qform_code=1, sform_code=1, slope_and_intercept=None):
    image = nibabel.Nifti1Image(chest_kji().T, np.diag([-0.7, -0.8, 1.5, 1.0]))
    image.set_qform(np.diag([-0.7, -0.8, 1.5, 1.0]), qform_code)
    image.set_sform(sform, sform_code)
    nibabel.save(image, path)
    if slope_and_intercept is not None:
        content = bytearray(path.read_bytes())
        content[112:120] = np.array(slope_and_intercept, "<f4").tobytes()  # scl_slope, scl_inter
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("degrees", [0.5, 15.0])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (1, 2)])
def test_a_sheared_sform_is_refused_also_beside_a_qform(tmp_path, capfd, degrees, codes):
    sform = np.diag([-0.7, -0.8, 1.5, 1.0])
    sform[1, 2] = 1.5 * np.tan(np.radians(degrees))
    path = nifti(tmp_path / "s.nii", sform, qform_code=codes[0], sform_code=codes[1])
    refuse(path, capfd, "not perpendicular .its sform is sheared")


def test_an_oblique_sform_that_is_only_rounded_is_no_shear(tmp_path):
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = np.round(turn @ np.diag([0.7, 0.8, 1.5]), 4)
    image = nibabel.Nifti1Image(chest_kji().T, affine)
    nibabel.save(image, tmp_path / "s.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "s.nii").geometry.spacing_mm, (0.7, 0.8, 1.5), rtol=1e-3)


@pytest.mark.parametrize("pair", [(0, -1024), (np.nan, -1024), (np.inf, 0), (1, np.nan), (1, np.inf)])
def test_half_a_rescale_of_a_nifti_is_refused(tmp_path, capfd, pair):
    path = nifti(tmp_path / "s.nii", np.diag([-0.7, -0.8, 1.5, 1.0]), slope_and_intercept=pair)
    refuse(path, capfd, "half a rescale .scl_slope")


@pytest.mark.parametrize("pair", [(0, 0), (np.nan, np.nan), (1, 0), (0, np.nan), (np.nan, 0)])
def test_a_nifti_without_a_rescale_is_as_stored(tmp_path, pair):
    path = nifti(tmp_path / "s.nii", np.diag([-0.7, -0.8, 1.5, 1.0]), slope_and_intercept=pair)
    np.testing.assert_array_equal(read_volume(path).array_kji, chest_kji())


def test_a_pair_of_header_and_image_is_named(tmp_path, capfd):
    nibabel.save(nibabel.Nifti1Pair(chest_kji().T, np.diag([0.7, 0.7, 1.5, 1])), tmp_path / "s.img")
    for suffix in (".img", ".hdr"):
        refuse(tmp_path / f"s{suffix}", capfd, r"one of a \.hdr/\.img pair, .*convert it to \.nii\.gz")
    (tmp_path / "s.hdr").rename(tmp_path / "s.nii")
    refuse(tmp_path / "s.nii", capfd, r"the header of a \.hdr/\.img pair")


PRIVATE_KEYS = [
    *("PatientName", "Patient's Name", "DICOM.PatientName", "DICOM_0010_0010", "(0010,0010)", "00100010", "0010|0010"),
    *("PatientSex", "0008|0080", "0008|0050", "0008|0090", "0008|1070", "0020|000d", "0020|000e", "0008|103e"),
    *("ReferringPhysicianName", "InstitutionName", "AccessionNumber", "StudyDate", "OperatorsName", "MRN", "Name"),
    *("Subject", "Comments", "dicom:0010,0010", "HospitalNumber", "0009|1001", "SeriesInstanceUID", "modality"),
]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_of_a_headers_keys_only_technical_ones_are_kept(tmp_path, suffix):
    kept = {"Modality": "CT", "ConvolutionKernel": "B40f", "CTMicroSR.model": "tiny", "0018|0060": "120"}
    planted = {key: f"SECRET{n}" for n, key in enumerate(PRIVATE_KEYS)}
    path = write_scan(tmp_path / f"s{suffix}", chest_kji(), metadata={**planted, **kept})
    if suffix == ".mha":
        content = path.read_bytes()
        path.write_bytes(content.replace(b"ElementType = ", b"Comment = SECRET\nName = SECRET\nElementType = ", 1))
    if suffix == ".nii":
        content = bytearray(path.read_bytes())
        content[148:154] = b"SECRET"  # descrip
        path.write_bytes(content)
    for read in (read_volume, read_any_volume):
        metadata = read(path).metadata
        assert "SECRET" not in str(metadata)
        if suffix == ".nrrd":
            assert metadata == {"Modality": "CT", "ConvolutionKernel": "B40f", "CTMicroSR.model": "tiny", "KVP": "120"}


def hu_crop(tissue_share, shape_kji=(4, 40, 50)):
    """Soft tissue, fat and lung, of which the last is a small share."""
    rng = np.random.default_rng(5)
    array_kji = rng.normal(40.0, 20.0, shape_kji)
    array_kji[:, :6] = rng.normal(-100.0, 20.0, (4, 6, 50))
    array_kji[:, round(40 * tissue_share) :] = rng.normal(-860.0, 60.0, array_kji[:, round(40 * tissue_share) :].shape)
    return np.rint(array_kji).astype(np.int16)


def padded(array_kji, value=-2000):
    array_kji = array_kji.copy()
    array_kji[:, :, :12] = value
    return array_kji


@pytest.mark.parametrize("padding", [-2000, -1024, -3024])
def test_padding_does_not_make_an_offset_by_1024_hu(tmp_path, capfd, padding):
    for share in (0.3, 0.9):
        offset_kji = padded(hu_crop(share) + 1024, padding)
        refuse(write_scan(tmp_path / "s.nrrd", offset_kji.astype(np.int16)), capfd, "do not look like CT in HU")


def test_crops_and_phantoms_in_hu_are_accepted_with_padding_and_without(tmp_path):
    lung = np.random.default_rng(5).normal(-860.0, 60.0, (4, 40, 50)).astype(np.int16)
    lung[0, 0, -1] = -300
    bones = hu_crop(0.5)
    bones[:, :16] = 900
    water = np.random.default_rng(6).normal(0.0, 15.0, (4, 40, 50)).astype(np.int16)
    for array_kji in (lung, hu_crop(0.975), bones):
        read_volume(write_scan(tmp_path / "s.nrrd", array_kji))
        read_volume(write_scan(tmp_path / "s.nrrd", padded(array_kji)))
    # a phantom whose air a scanner of 12 bits cut off at -1024
    read_volume(write_scan(tmp_path / "s.nrrd", padded(water, -1024)))


def test_simpleitk_writes_what_is_read(tmp_path):
    for suffix in (".nrrd", ".nhdr", ".mha", ".mhd", ".nii", ".nii.gz"):
        for array in (chest_kji(), chest_kji()[0], chest_kji()[None]):
            path = tmp_path / f"s{suffix}"
            sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(path))
            assert read_volume(path).geometry.spacing_mm == (1.0, 1.0, 1.0)
