"""What is no CT that can be super-resolved honestly: refused in one line, nothing left."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from refused_scans import REFUSED, RESOURCE, WRONG_USE, lung_piece
from written_files import GIVEN, write_scan


def test_a_path_with_nothing_there_is_wrong_use(refuses_scan, refused, tmp_path):
    refuses_scan(tmp_path / "none.nrrd", "no file or folder", WRONG_USE)
    refused(WRONG_USE, "no file or folder", "segment", tmp_path / "none.nrrd", tmp_path / "m.nrrd")
    refused(WRONG_USE, "no file or folder", "info", tmp_path / "none.nrrd")


@pytest.mark.parametrize("command", ["superres", "segment", "info"])
@pytest.mark.parametrize("name", ["letter.txt", "letter.nrrd", "letter.nii.gz", "letter.mha", "letter.dcm", "folder"])
def test_what_is_no_image_is_refused_by_every_command(refused, tmp_path, command, name):
    if name == "folder":
        (tmp_path / name).mkdir()
        (tmp_path / name / "holiday.jpg").write_bytes(b"\xff\xd8\xff\xe0" * 100)
    else:
        (tmp_path / name).write_text("Dear colleague, thank you for referring this patient.\n" * 20)
    output = () if command == "info" else (tmp_path / "out.nrrd",)
    refused(REFUSED, "", command, tmp_path / name, *output)


@pytest.mark.parametrize("name", ["s.nrrd", "s.nii.gz", "s.mha"])
@pytest.mark.parametrize("compress", [False, True])
def test_a_truncated_file_is_refused(refuses_scan, tmp_path, name, compress):
    path = write_scan(tmp_path / name, lung_piece(), compress=compress)
    path.write_bytes(path.read_bytes()[:-500])
    refuses_scan(path, "truncated")


@pytest.mark.parametrize("name", ["s.nrrd", "s.mha"])
def test_huge_claimed_dimensions_are_refused(refuses_scan, tmp_path, name):
    for compress, status in ((False, REFUSED), (True, RESOURCE)):
        path = write_scan(tmp_path / name, lung_piece((2, 2, 2)), compress=compress)
        path.write_bytes(path.read_bytes().replace(b"2 2 2\n", b"51200 51200 13300\n", 1))
        refuses_scan(path, "truncated|GB of memory", status)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused(refuses_scan, tmp_path, bad):
    array_kji = lung_piece(dtype=np.float32)
    array_kji[1, 2, 3] = bad
    refuses_scan(write_scan(tmp_path / "s.nrrd", array_kji), "NaN or infinite")


def test_volumes_that_are_not_a_clinical_ct_are_refused(refuses_scan, tmp_path):
    rng = np.random.default_rng(1)
    colour = sitk.GetImageFromArray(np.zeros((3, 20, 24, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "rgb.nrrd"))
    series = sitk.JoinSeries([sitk.GetImageFromArray(lung_piece())] * 2)
    sitk.WriteImage(series, str(tmp_path / "four.nrrd"))
    cases = {
        tmp_path / "rgb.nrrd": "colour",
        tmp_path / "four.nrrd": "4 axes",
        write_scan(tmp_path / "labels.nrrd", rng.integers(0, 6, (3, 20, 24)).astype(np.uint8)): "label map",
        write_scan(tmp_path / "mr.nrrd", rng.gamma(2.0, 200.0, (3, 20, 24)).astype(np.uint16)): "do not look like CT",
        write_scan(tmp_path / "tagged.nrrd", lung_piece(), metadata={"Modality": "MR"}): "MR, not CT",
        write_scan(tmp_path / "air.nrrd", np.full((3, 20, 24), -1000, np.int16)): "only air",
        write_scan(tmp_path / "padding.nrrd", np.full((3, 20, 24), -3024, np.int16)): "only air",
        write_scan(tmp_path / "fine.nrrd", lung_piece(), (0.09, 0.09, 1.0)): "finer than 0.2 mm",
    }
    for path, match in cases.items():
        refuses_scan(path, match)


def test_a_result_is_not_super_resolved_again(ctmicrosr, refuses_scan, command_model, scan, tmp_path):
    common = ("--region", "0:16,0:16,0:1", "--model", command_model, *GIVEN)
    assert ctmicrosr("superres", scan, tmp_path / "once.nrrd", *common).status == 0
    refuses_scan(tmp_path / "once.nrrd", "finer than 0.2 mm")


def test_a_ct_without_lungs_has_no_lungs_region(refuses_scan, refused, tmp_path):
    k, j, i = np.indices((6, 48, 48))
    abdomen = np.where((i - 24) ** 2 + (j - 24) ** 2 < 400, 50.0, -1000.0) + np.random.default_rng(0).normal(
        0, 10, k.shape
    )
    path = write_scan(tmp_path / "abdomen.nrrd", abdomen.astype(np.int16), (0.9, 0.9, 5.0))
    refuses_scan(path, "[Ll]ung", REFUSED, "--region", "lungs")
    refused(REFUSED, "[Ll]ung", "segment", path, tmp_path / "mask.nrrd")


def write_slices(folder, heights, *, series="1.2.3", modality="CT", offset=(0.0, 0.0), name="{}.dcm", tilt=0.0):
    """Small CT slices; ``tilt`` shifts each along y per mm of height, as a tilted gantry does."""
    folder.mkdir(exist_ok=True)
    for k, height in enumerate(heights):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = series, "1.2", modality
        data.Rows, data.Columns = 20, 24
        data.PixelSpacing, data.SliceThickness = [0.8, 0.7], 1.5
        data.ImagePositionPatient = [offset[0], offset[1] + tilt * height, height]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = (lung_piece((1, 20, 24))[0] + 1024).astype(np.int16).tobytes()
        data.save_as(folder / name.format(k), enforce_file_format=True)
    return folder


def test_dicom_that_is_not_one_regular_stack_of_ct_is_refused(refuses_scan, tmp_path):
    regular = [0.0, 1.5, 3.0, 4.5, 6.0]
    missing = write_slices(tmp_path / "missing", [0.0, 1.5, 4.5, 6.0])
    several = write_slices(tmp_path / "several", regular)
    write_slices(several, [100.0, 101.5], series="9.9", name="other{}.dcm")
    tilted = write_slices(tmp_path / "tilted", regular, tilt=0.2)
    mr = write_slices(tmp_path / "mr", regular, modality="MR")
    cut = write_slices(tmp_path / "cut", regular)
    (cut / "2.dcm").write_bytes((cut / "2.dcm").read_bytes()[:-300])
    report = write_slices(tmp_path / "report", [0.0])
    data = pydicom.dcmread(report / "0.dcm")
    del data["PixelData"]
    data.save_as(report / "0.dcm")
    cases = {
        missing: "missing",
        several: "series",
        tilted: "tilt",
        mr: "MR",
        mr / "1.dcm": "MR",
        cut: "",
        report: "",
    }
    for path, match in cases.items():
        refuses_scan(path, match)


def test_a_mask_of_another_grid_or_an_empty_one_is_refused(refuses_scan, scan, tmp_path):
    ones = np.ones((3, 20, 24), np.uint8)
    cases = {
        write_scan(tmp_path / "spacing.nrrd", ones, (0.7, 0.8, 2.0)): "spacing",
        write_scan(tmp_path / "size.nrrd", ones[:, :, :20]): "size",
        write_scan(tmp_path / "empty.nrrd", 0 * ones): "empty",
    }
    moved = sitk.ReadImage(str(write_scan(tmp_path / "origin.nrrd", ones)))
    moved.SetOrigin((1.0, 0.0, 0.0))
    sitk.WriteImage(moved, str(tmp_path / "origin.nrrd"))
    cases[tmp_path / "origin.nrrd"] = "origin"
    (tmp_path / "text.nrrd").write_text("lungs, please")
    cases[tmp_path / "text.nrrd"] = "damaged"
    for mask, match in cases.items():
        for region in ("lungs", "whole"):
            refuses_scan(scan, match, REFUSED, "--mask", mask, "--region", region)
    refuses_scan(scan, "no file or folder", WRONG_USE, "--mask", tmp_path / "none.nrrd")
