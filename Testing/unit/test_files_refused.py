"""Bad input: each kind is refused with one sentence and its exit status, and nothing reaches the terminal."""

from __future__ import annotations

import gzip
import re

import nibabel
import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from written_files import write_scan

from CTMicroSRLib.errors import RefusedInputError, ResourceError
from CTMicroSRLib.files import check_is_ct, read_volume
from CTMicroSRLib.volume import Geometry, Volume

NRRD_HEADER = (
    "NRRD0004\ntype: {type}\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
    "space directions: (0.7,0,0) (0,0.7,0) (0,0,1.5)\nkinds: domain domain domain\n"
    "endian: little\nencoding: {encoding}\nspace origin: (0,0,0)\n\n"
)


def chest_kji(shape_kji=(12, 40, 50), dtype=np.int16):
    return np.random.default_rng(7).integers(-1000, 400, shape_kji).astype(dtype)


def refuse(path, capfd, match, error=RefusedInputError):
    with pytest.raises(error, match=match) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message
    # one sentence: the cause, a joint, the next step, one full stop at the end
    assert re.fullmatch(r".*[;:].*\.", message), message
    assert len(re.findall(r"\.(?=\s+[A-Z])", message)) == 0, message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nii", "scan.nii.gz", "scan.mha", "scan.mhd", "scan.dcm"])
@pytest.mark.parametrize("content", [b"", b"hello", b"this is a letter, not an image\n" * 40])
def test_what_is_not_an_image_is_refused(tmp_path, capfd, name, content):
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, capfd, "damaged")


@pytest.mark.parametrize("name", ["letter.txt", "scan", "picture.png"])
def test_other_formats_are_refused_by_name(tmp_path, capfd, name):
    (tmp_path / name).write_bytes(b"\x89PNG something else" * 40)
    refuse(tmp_path / name, capfd, "not a NRRD, NIfTI, MetaImage or DICOM")


@pytest.mark.parametrize("kept", [0.99, 0.6])
@pytest.mark.parametrize(
    ("name", "compress"),
    [("s.nrrd", False), ("s.nrrd", True), ("s.nii", False), ("s.nii.gz", True), ("s.mha", False), ("s.mha", True)],
)
def test_a_truncated_file_is_refused(tmp_path, capfd, name, compress, kept):
    path = write_scan(tmp_path / name, chest_kji(), compress=compress)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refuse(path, capfd, "truncated")


def test_a_metaimage_header_whose_data_file_is_short_or_missing_is_refused(tmp_path, capfd):
    path = write_scan(tmp_path / "s.mhd", chest_kji())
    raw = tmp_path / "s.raw"
    raw.write_bytes(raw.read_bytes()[:-2])
    refuse(path, capfd, "truncated")
    raw.unlink()
    refuse(path, capfd, "no s.raw beside it")


@pytest.mark.parametrize("name", ["s.nrrd", "s.nii.gz", "s.mha"])
def test_a_compressed_file_with_one_flipped_byte_in_its_voxels_is_refused(tmp_path, capfd, name):
    # so many voxels that the header's part of the stream is intact
    path = write_scan(tmp_path / name, chest_kji((40, 64, 64)), compress=True)
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 0xFF
    path.write_bytes(content)
    refuse(path, capfd, "truncated or damaged")


def test_a_raw_file_that_claims_more_than_it_holds_is_refused_before_memory_is_asked_for(tmp_path, capfd):
    header = NRRD_HEADER.format(type="short", sizes="51200 51200 13300", encoding="raw")
    (tmp_path / "huge.nrrd").write_bytes(header.encode() + bytes(1000))
    refuse(tmp_path / "huge.nrrd", capfd, "truncated")


@pytest.mark.parametrize("name", ["huge.nrrd", "huge.mha", "huge.nii.gz"])
def test_huge_claimed_dimensions_of_a_compressed_file_end_before_memory_is_asked_for(tmp_path, capfd, name):
    path = write_scan(tmp_path / name, chest_kji((2, 2, 2)), compress=True)
    if name == "huge.nii.gz":
        header = bytearray(gzip.decompress(path.read_bytes()))
        header[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()
        path.write_bytes(gzip.compress(header))
    else:
        path.write_bytes(path.read_bytes().replace(b"2 2 2\n", b"51200 51200 13300\n", 1))
    before = psutil.Process().memory_info().rss
    refuse(path, capfd, "GB of memory is free", ResourceError)
    assert psutil.Process().memory_info().rss - before < 50e6


@pytest.mark.parametrize(
    "line",
    [
        b"NDims = 900",
        b"NDims = -1",
        b"DimSize = 50 40 12 7 7 7",
        b"DimSize = 0 40 12",
        b"ElementDataFile = " + b"x" * 4000,
        b"TransformMatrix = " + b"1 " * 5000,
        b"ElementSpacing = " + b"9" * 500 + b" 1 1",
        b"ElementSpacing = 0.7 0.8e699 1.5",
        b"ElementType = MET_NONSENSE",
        b"ElementDataFile = LIST",
        b"CompressedDataSize = x",
        b"ElementNumberOfChannels = many",
    ],
)
def test_a_metaimage_header_with_a_field_out_of_shape_never_reaches_itk(tmp_path, capfd, line):
    path = write_scan(tmp_path / "s.mha", chest_kji(), compress=True)
    header, voxels = path.read_bytes().split(b"ElementDataFile = LOCAL\n", 1)
    name = line.split(b" = ")[0]
    lines = [*header.splitlines(), b"ElementDataFile = LOCAL"]
    kept = [line if other.startswith(name + b" = ") else other for other in lines]
    path.write_bytes(b"\n".join(kept if line in kept else [line, *kept]) + b"\n" + voxels)
    refuse(path, capfd, "damaged|several files")


def nifti(path, *, endianness="<", version=1, pixdim=None, sform=None, qform=None, shape=(50, 40, 12)):
    """A NIfTI file of 0.7 x 0.8 x 1.5 mm voxels whose header then says something else."""
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    header = kind.header_class(endianness=endianness)
    image = kind(chest_kji(shape[::-1]).T, np.diag([0.7, 0.8, 1.5, 1]), header)
    image.set_data_dtype(np.int16)
    image.header["vox_offset"] = len(image.header.binaryblock) + 4
    if sform is not None:
        image.set_sform(np.diag([*sform, 1]), code=1, update_affine=False)
    if qform is not None:
        image.set_qform(np.diag([*qform, 1]), code=1, update_affine=False)
    if pixdim is not None:
        image.header["pixdim"][1 : 1 + len(pixdim)] = pixdim
    content = bytearray(image.header.binaryblock) + bytes(4)
    content += chest_kji(shape[::-1]).astype(f"{endianness}i2").tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


NIFTI_KINDS = [("s.nii", "<"), ("s.nii", ">"), ("s.nii.gz", "<"), ("s.nii.gz", ">")]


@pytest.mark.parametrize(("name", "endianness"), NIFTI_KINDS)
@pytest.mark.parametrize("pixdim", [(0.0, 0.8, 1.5), (0.7, np.nan, 1.5), (0.7, 0.8, np.inf)])
def test_a_nifti_that_does_not_say_its_spacing_is_refused(tmp_path, capfd, name, endianness, pixdim):
    path = nifti(tmp_path / name, endianness=endianness, pixdim=pixdim)
    refuse(path, capfd, r"how large its voxels are \(pixdim .*put their spacing into its header")


@pytest.mark.parametrize(("name", "endianness"), NIFTI_KINDS)
def test_a_nifti_whose_affine_says_another_spacing_is_refused(tmp_path, capfd, name, endianness):
    wrong = nifti(tmp_path / name, endianness=endianness, sform=(0.7, 0.8, 3.0))
    refuse(wrong, capfd, "0.7 x 0.8 x 1.5 in pixdim and 0.7 x 0.8 x 3 in sform")
    for z in (1.5, 1.501):
        volume = read_volume(nifti(tmp_path / name, endianness=endianness, sform=(-0.7, -0.8, z)))
        np.testing.assert_allclose(volume.geometry.spacing_mm, (0.7, 0.8, 1.5), rtol=1e-6)


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("name", ["s.nii", "s.nii.gz"])
def test_nifti_2_is_named(tmp_path, capfd, name, endianness):
    refuse(nifti(tmp_path / name, endianness=endianness, version=2), capfd, r"is NIfTI-2, .* convert it to \.nii\.gz")


def test_a_nifti_in_the_scanners_place_may_also_lead_to_a_template(tmp_path):
    """The qform, which pixdim belongs to, says where the voxels are; the sform is of another space."""
    size_mm = (0.7, 0.8, 1.5)
    volume = read_volume(nifti(tmp_path / "s.nii", qform=size_mm, sform=(0.77, 0.88, 1.65)))
    np.testing.assert_allclose(volume.geometry.spacing_mm, size_mm, rtol=1e-6)


def test_a_nifti_of_one_slice_needs_no_distance_of_slices(tmp_path):
    for shape in ((50, 40), (50, 40, 1)):
        volume = read_volume(nifti(tmp_path / "s.nii", shape=shape, pixdim=(0.7, 0.8, 0.0), sform=(0.7, 0.8, 1.0)))
        np.testing.assert_allclose(volume.geometry.spacing_mm[:2], (0.7, 0.8), rtol=1e-6)


def test_colour_is_refused(tmp_path, capfd):
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    for name in ("rgb.nrrd", "rgb.nii", "rgb.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        refuse(tmp_path / name, capfd, "colour, vector or complex")


def test_complex_voxels_are_refused(tmp_path, capfd):
    refuse(write_scan(tmp_path / "kspace.nii", np.ones((4, 5, 6), np.complex64)), capfd, "colour, vector or complex")


@pytest.mark.parametrize("name", ["series.nrrd", "series.nii", "series.mha"])
def test_a_4d_series_is_refused(tmp_path, capfd, name):
    image = sitk.JoinSeries([sitk.GetImageFromArray(chest_kji((4, 6, 5)))] * 3)
    sitk.WriteImage(image, str(tmp_path / name))
    refuse(tmp_path / name, capfd, "4 axes")


def test_a_sheared_grid_is_refused(tmp_path, capfd):
    path = write_scan(tmp_path / "s.nrrd", chest_kji())
    path.write_bytes(re.sub(rb"\(0,0,1.5\)", b"(0,0.3,1.5)", path.read_bytes()))
    refuse(path, capfd, "perpendicular")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused(tmp_path, capfd, bad):
    array_kji = chest_kji(dtype=np.float32)
    array_kji[3, 4, 5] = bad
    refuse(write_scan(tmp_path / "s.nrrd", array_kji), capfd, "NaN or infinite")


@pytest.mark.parametrize("air", [-1000, -3024])
def test_all_air_is_refused(tmp_path, capfd, air):
    refuse(write_scan(tmp_path / "s.nrrd", np.full((4, 6, 5), air, np.int16)), capfd, "only air")


def test_a_label_map_is_refused(tmp_path, capfd):
    labels = np.random.default_rng(0).integers(0, 6, (12, 40, 50)).astype(np.uint8)
    refuse(write_scan(tmp_path / "s.nrrd", labels), capfd, "label map")


def test_mr_values_are_refused(tmp_path, capfd):
    mr = np.random.default_rng(0).gamma(2.0, 200.0, (12, 40, 50)).astype(np.uint16)
    refuse(write_scan(tmp_path / "s.nrrd", mr), capfd, "do not look like CT in HU")


def test_stored_values_without_their_rescale_are_refused(tmp_path, capfd):
    refuse(
        write_scan(tmp_path / "s.nrrd", (chest_kji() + 1024).astype(np.uint16)), capfd, "rescale slope and intercept"
    )


def test_ct_normalised_to_one_is_refused(tmp_path, capfd):
    refuse(write_scan(tmp_path / "s.nrrd", chest_kji().astype(np.float32) / 1000), capfd, "do not look like CT in HU")


def test_values_of_another_scale_are_refused(tmp_path, capfd):
    phase = np.random.default_rng(0).integers(-9000, 9000, (12, 40, 50)).astype(np.int16)
    refuse(write_scan(tmp_path / "s.nrrd", phase), capfd, "do not look like CT in HU")
    refuse(write_scan(tmp_path / "w.nrrd", phase.astype(np.int32) * 10), capfd, "which no CT in HU has")


def test_a_modality_in_the_metadata_other_than_ct_is_refused(tmp_path, capfd):
    refuse(write_scan(tmp_path / "s.nrrd", chest_kji(), metadata={"Modality": "MR"}), capfd, "MR, not CT")


def test_pixels_finer_than_a_fifth_of_a_millimetre_are_refused(tmp_path, capfd):
    refuse(write_scan(tmp_path / "s.nrrd", chest_kji(), (0.19, 0.19, 1)), capfd, "finer than 0.2 mm")
    read_volume(write_scan(tmp_path / "at_the_limit.nii", chest_kji(), (0.2, 0.2, 1)))


def test_a_spacing_that_no_scanner_has_is_refused(tmp_path, capfd):
    refuse(write_scan(tmp_path / "s.nrrd", chest_kji(), (0.7, 0.7, 1500)), capfd, "no scanner's")


def test_metal_does_not_make_a_ct_look_like_another_scale(tmp_path):
    array_kji = chest_kji()
    array_kji[0, :5, :5] = 30000
    assert read_volume(write_scan(tmp_path / "s.nrrd", array_kji)).array_kji.max() == 30000


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_])
def test_arrays_from_python_are_checked_for_their_kind_too(dtype):
    volume = Volume(np.ones((2, 3, 4), dtype), Geometry((4, 3, 2), (0.7, 0.7, 1.0)))
    with pytest.raises(RefusedInputError, match="not HU"):
        check_is_ct(volume)


def test_a_ct_array_from_python_with_scanner_padding_is_accepted():
    array_kji = chest_kji((2, 30, 40))
    array_kji[:, 0] = -3024
    check_is_ct(Volume(array_kji, Geometry((40, 30, 2), (0.7, 0.7, 1.0))))


def test_itk_warnings_are_as_before_after_reading(tmp_path):
    path = write_scan(tmp_path / "s.nrrd", chest_kji())
    for setting in (True, False):
        sitk.ProcessObject.SetGlobalWarningDisplay(setting)
        read_volume(path)
        assert sitk.ProcessObject.GetGlobalWarningDisplay() is setting
    sitk.ProcessObject.SetGlobalWarningDisplay(True)
