"""The command on good input: where the result lies and what it is."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from command_scans import OBLIQUE, chest, lung_piece, outer_corners_mm, read_json, voxels
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from written_files import GIVEN, write_scan

from CTMicroSRLib import read_volume, segment_lungs, super_resolve


@pytest.mark.parametrize("name", ["out.nrrd", "out.nii.gz", "out.mha"])
@pytest.mark.parametrize(
    ("region", "first_ijk", "size_ijk"),
    [("whole", (0, 0, 0), (24, 20, 3)), ("5:23,2:13,1:3", (5, 2, 1), (18, 11, 2))],
)
def test_the_result_covers_the_regions_physical_extent(
    ctmicrosr, command_model, tmp_path, name, region, first_ijk, size_ijk
):
    path = write_scan(tmp_path / "scan.nrrd", lung_piece(), directions=OBLIQUE)
    outcome = ctmicrosr("superres", path, tmp_path / name, "--region", region, "--model", command_model, *GIVEN)
    assert outcome.status == 0
    before, after = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / name))
    assert after.GetSize() == (8 * size_ijk[0], 8 * size_ijk[1], size_ijk[2])
    assert after.GetPixelID() == sitk.sitkInt16
    np.testing.assert_allclose(after.GetSpacing(), (0.7 / 8, 0.8 / 8, 1.5), rtol=1e-6)
    np.testing.assert_allclose(
        outer_corners_mm(after), outer_corners_mm(before, first_ijk, size_ijk), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("consistency", ["scan", "block", "off"])
@pytest.mark.parametrize("marker_ijk", [(9, 6, 1), (14, 13, 2)])
def test_a_bright_marker_stays_where_it_is_in_the_patient(ctmicrosr, command_model, tmp_path, marker_ijk, consistency):
    array_kji = np.full((4, 22, 26), -900, np.int16)
    i, j, k = marker_ijk
    array_kji[k, j, i] = 1500
    path = write_scan(tmp_path / "scan.nrrd", array_kji, directions=OBLIQUE)
    common = ("--region", "2:25,1:20,1:4", "--model", command_model, "--psf-fwhm-mm", "0.8", "--noise-hu", "1")
    outcome = ctmicrosr("superres", path, tmp_path / "out.nrrd", *common, "--consistency", consistency)
    assert outcome.status == 0
    image = sitk.ReadImage(str(tmp_path / "out.nrrd"))
    fine = sitk.GetArrayFromImage(image).astype(float)
    assert [int(fine[n].max() > 0) for n in range(3)] == [int(n == k - 1) for n in range(3)]
    # the marker is what stands out; the random weights print their own pattern everywhere else
    weight = np.clip(fine[k - 1] - 0.5 * fine[k - 1].max(), 0.0, None)
    rows, columns = np.indices(weight.shape)
    centroid = [float((weight * axis).sum() / weight.sum()) for axis in (columns, rows)]
    expected = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint(marker_ijk)
    found = image.TransformContinuousIndexToPhysicalPoint([*centroid, k - 1.0])
    assert np.linalg.norm(np.subtract(found, expected)) < 0.25 * max(image.GetSpacing()[:2])


def test_the_scan_comes_back_when_the_result_is_averaged_over_blocks(ctmicrosr, command_model, scan, tmp_path):
    arguments = ("--region", "whole", "--model", command_model, "--consistency", "block", *GIVEN)
    assert ctmicrosr("superres", scan, tmp_path / "out.nrrd", *arguments).status == 0
    means = voxels(tmp_path / "out.nrrd").reshape(3, 20, 8, 24, 8).mean(axis=(2, 4))
    assert np.abs(means - voxels(scan)).max() <= 0.5


def test_the_command_gives_the_voxels_that_python_gives(ctmicrosr, command_model, scan, tmp_path):
    arguments = ("--region", "3:21,0:18,0:2", "--passes", "4", "--seed", "9", "--tile", "32", *GIVEN)
    files = (tmp_path / "out.nrrd", "--uncertainty", tmp_path / "sd.mha", "--report", tmp_path / "r.json")
    assert ctmicrosr("superres", scan, *files, "--model", command_model, *arguments).status == 0
    from CTMicroSRLib import Region

    result = super_resolve(
        read_volume(scan),
        region=Region((3, 21), (0, 18), (0, 2)),
        model=str(command_model),
        uncertainty=True,
        passes=4,
        seed=9,
        tile=32,
        psf_fwhm_mm=1.1,
        noise_hu=20.0,
    )
    np.testing.assert_array_equal(voxels(tmp_path / "out.nrrd"), result.volume.array_kji)
    np.testing.assert_array_equal(voxels(tmp_path / "sd.mha"), result.uncertainty.array_kji)
    assert voxels(tmp_path / "sd.mha").max() > 0
    written = read_json(tmp_path / "r.json")
    for key in ("model", "region", "tiles", "seed", "consistency", "precision", "software"):
        assert written[key] == result.report[key]


def test_the_same_seed_gives_the_same_bytes_and_another_only_another_uncertainty(
    ctmicrosr, command_model, scan, tmp_path
):
    content = {}
    for name, seed in (("first", 5), ("again", 5), ("other", 2**40)):
        arguments = ("--passes", "3", "--seed", seed, "--region", "whole", "--model", command_model, *GIVEN)
        files = (tmp_path / f"{name}.nrrd", "--uncertainty", tmp_path / f"{name}-sd.nrrd")
        assert ctmicrosr("superres", scan, *files, *arguments).status == 0
        content[name] = [(tmp_path / f"{name}{end}.nrrd").read_bytes() for end in ("", "-sd")]
    assert content["first"] == content["again"]
    assert content["other"][0] == content["first"][0]
    assert content["other"][1] != content["first"][1]


def test_one_slice_is_enough(ctmicrosr, command_model, tmp_path):
    flat = sitk.GetImageFromArray(lung_piece((1, 20, 24))[0])
    flat.SetSpacing((0.7, 0.8))
    sitk.WriteImage(flat, str(tmp_path / "flat.nrrd"))
    write_scan(tmp_path / "slice.nrrd", lung_piece((1, 20, 24)), (0.7, 0.8, 1.0), (0.0, 0.0, 0.0))
    for name in ("flat", "slice"):
        arguments = ("--region", "whole", "--model", command_model, *GIVEN)
        assert ctmicrosr("superres", tmp_path / f"{name}.nrrd", tmp_path / f"{name}.mha", *arguments).status == 0
    assert voxels(tmp_path / "flat.mha").shape == (1, 160, 192)
    np.testing.assert_array_equal(voxels(tmp_path / "flat.mha"), voxels(tmp_path / "slice.mha"))


def test_a_scan_one_voxel_wide_is_taken_as_it_is(ctmicrosr, command_model, tmp_path):
    scan = write_scan(tmp_path / "scan.nrrd", lung_piece()[:, :, :1])
    arguments = ("--region", "whole", "--model", command_model, *GIVEN)
    assert ctmicrosr("superres", scan, tmp_path / "out.nrrd", *arguments).status == 0
    assert voxels(tmp_path / "out.nrrd").shape == (3, 160, 8)


def write_dicom_series(folder, array_kji):
    folder.mkdir()
    series = generate_uid()
    for k, array_ji in enumerate(array_kji):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = series, "1.2.3", "CT"
        data.PatientName = "Doe^Jane"
        data.Rows, data.Columns = array_ji.shape
        data.PixelSpacing, data.SliceThickness = [0.8, 0.7], 1.5
        data.ImagePositionPatient = [-31.5, 12.25, 404.0 + 1.5 * k]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = (array_ji + 1024).astype(np.int16).tobytes()
        data.save_as(folder / f"im{k:03}.dcm", enforce_file_format=True)
    return folder


def test_a_dicom_folder_one_of_its_files_and_an_image_file_give_the_same(ctmicrosr, command_model, scan, tmp_path):
    folder = write_dicom_series(tmp_path / "series", voxels(scan))
    assert pydicom.dcmread(folder / "im000.dcm").PatientName == "Doe^Jane"
    arguments = ("--region", "whole", "--model", command_model, *GIVEN)
    for name, source in (("image", scan), ("folder", folder), ("file", folder / "im001.dcm")):
        assert ctmicrosr("superres", source, tmp_path / f"{name}.nrrd", *arguments).status == 0
    image, other, one = (sitk.ReadImage(str(tmp_path / f"{n}.nrrd")) for n in ("image", "folder", "file"))
    for result in (other, one):
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(result), sitk.GetArrayViewFromImage(image))
        np.testing.assert_allclose(outer_corners_mm(result), outer_corners_mm(image), rtol=0, atol=1e-4)
    assert b"Doe" not in (tmp_path / "folder.nrrd").read_bytes()


def test_a_mask_from_elsewhere_says_where_the_network_runs(ctmicrosr, command_model, tmp_path):
    scan = write_scan(tmp_path / "scan.nrrd", lung_piece((2, 40, 140)))
    mask = np.zeros((2, 40, 140), np.uint8)
    mask[:, 10:20, 10:30] = 7
    write_scan(tmp_path / "mask.nii.gz", mask)
    arguments = ("--mask", tmp_path / "mask.nii.gz", "--model", command_model, "--consistency", "off", *GIVEN)
    for name, region in (("lungs", ()), ("whole", ("--region", "whole"))):
        files = (tmp_path / f"{name}.nrrd", "--report", tmp_path / f"{name}.json")
        assert ctmicrosr("superres", scan, *files, *arguments, *region).status == 0
    i, j, k = ([int(n) for n in part.split(":")] for part in read_json(tmp_path / "lungs.json")["region"].split(","))
    assert 0 <= i[0] <= 10 < 30 <= i[1] < 60
    assert (j[0] <= 10 < 20 <= j[1], k) == (True, [0, 2])
    whole = voxels(tmp_path / "whole.nrrd")
    inside = whole[:, 8 * j[0] : 8 * j[1], 8 * i[0] : 8 * i[1]]
    np.testing.assert_array_equal(voxels(tmp_path / "lungs.nrrd"), inside)
    # far from the mask it is interpolated: along the vessel's uniform row no weights have left their pattern
    row = lung_piece((2, 40, 140))[0, :, 100:].astype(float)
    far = whole[0, :, 800:].reshape(40, 8, 40, 8).mean(axis=(1, 3))
    assert np.abs(far - row)[2:-2, 2:-2].mean() < 10.0


def test_the_mask_that_segment_writes_gives_what_the_lungs_region_gives(ctmicrosr, command_model, chest_scan, tmp_path):
    outcome = ctmicrosr("segment", chest_scan, tmp_path / "mask.nii.gz")
    assert outcome.status == 0
    assert "litres of lung" in outcome.stdout
    mask = voxels(tmp_path / "mask.nii.gz")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask != 0, segment_lungs(read_volume(chest_scan)).array_kji != 0)
    truth = chest()[1]
    assert 2 * (truth & (mask != 0)).sum() / (truth.sum() + (mask != 0).sum()) > 0.95
    cropped = write_scan(tmp_path / "crop.nrrd", voxels(chest_scan), (4.0, 4.0, 10.0))
    common = ("--model", command_model, *GIVEN)
    assert ctmicrosr("superres", cropped, tmp_path / "a.nrrd", *common).status == 0
    given = ("--mask", tmp_path / "mask.nii.gz")
    assert ctmicrosr("superres", cropped, tmp_path / "b.nrrd", *common, *given).status == 0
    np.testing.assert_array_equal(voxels(tmp_path / "a.nrrd"), voxels(tmp_path / "b.nrrd"))


def test_an_existing_output_is_replaced_only_when_asked(ctmicrosr, command_model, scan, tmp_path):
    names = ("out.nrrd", "sd.nrrd", "r.json", "f.png")
    for name in names:
        (tmp_path / name).write_text("old")
    out, deviation, report, figure = (tmp_path / name for name in names)
    arguments = (out, "--uncertainty", deviation, "--passes", "2", "--report", report, "--figure", figure)
    common = ("--region", "0:16,0:16,0:1", "--model", command_model, *GIVEN)
    assert ctmicrosr("superres", scan, *arguments, *common).status == 2
    assert all((tmp_path / name).read_text() == "old" for name in names)
    assert ctmicrosr("superres", scan, *arguments, *common, "--overwrite").status == 0
    assert voxels(out).shape == voxels(deviation).shape == (1, 128, 128)
    assert read_json(report)["region"] == "0:16,0:16,0:1"
    assert figure.read_bytes().startswith(b"\x89PNG")
