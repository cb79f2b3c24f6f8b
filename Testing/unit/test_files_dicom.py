"""DICOM: series found, checked to be one regular stack, read in HU; everything else refused."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import MRImageStorage
from refused_scans import refuse_reading as refuse
from written_files import COLUMNS, ROWS, stored_slice, write_series, write_slice

from CTMicroSRLib.files import read_volume


def test_a_series_is_read_in_hu_sorted_along_its_normal(tmp_path):
    write_series(tmp_path / "s", heights=(6.0, 0.0, 4.0, 2.0))
    volume = read_volume(tmp_path / "s")
    assert volume.array_kji.dtype == np.int16
    np.testing.assert_array_equal(volume.array_kji, np.stack([stored_slice(k) for k in (1, 3, 2, 0)]) - 1024)
    assert volume.geometry.size_ijk == (COLUMNS, ROWS, 4)
    # PixelSpacing is (between rows, between columns)
    assert volume.geometry.spacing_mm == (0.7, 0.8, 2.0)
    assert volume.geometry.origin_mm == (-10.0, -20.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_marker_in_an_oblique_series_lies_where_dicom_puts_it(tmp_path, seed):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    row, column, normal = turn[:, 0], turn[:, 1], np.cross(turn[:, 0], turn[:, 1])
    origin, sign = rng.uniform(-300, 300, 3), (-1, 1)[seed % 2]
    for k in range(4):
        write_slice(
            tmp_path / f"{k}.dcm",
            origin + sign * 1.5 * k * normal,
            stored_slice(k)
            + (3000 * (np.indices((ROWS, COLUMNS)) == [[[4]], [[3]]]).all(0) * (k == 1)).astype(np.int16),
            series="1.2",
            orientation=(*row, *column),
        )
    volume = read_volume(tmp_path)
    k, j, i = np.unravel_index(volume.array_kji.argmax(), volume.array_kji.shape)
    # PS3.3 C.7.6.2.1.1: position + column index * row direction * column spacing + row index * …
    expected = origin + sign * 1.5 * normal + 3 * 0.7 * row + 4 * 0.8 * column
    np.testing.assert_allclose(volume.geometry.physical_point_mm((i, j, k)), expected, rtol=0, atol=1e-5)


def test_one_file_stands_for_its_series_among_others_in_the_folder(tmp_path):
    files = write_series(tmp_path, series="1.2.3.4", names="a{}.dcm")
    write_series(tmp_path, heights=(1.0, 9.0), series="1.2.3.5", names="b{}.dcm")
    for file in files:
        np.testing.assert_array_equal(read_volume(file).array_kji[2], stored_slice(2) - 1024)
        assert read_volume(file).geometry.size_ijk[2] == 4


def test_files_without_suffix_and_reports_beside_them_are_no_obstacle(tmp_path):
    write_series(tmp_path, names="IM{:04}")
    (tmp_path / "README").write_text("exported on a Tuesday")
    (tmp_path / "notes.txt").write_text("nothing")
    report = pydicom.dcmread(tmp_path / "IM0000")
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.Modality, report.SeriesInstanceUID = "SR", "1.9"
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated"):
        del report[name]
    report.save_as(tmp_path / "report.dcm")
    assert read_volume(tmp_path).geometry.size_ijk[2] == 4


def test_what_was_derived_from_the_only_ct_of_a_folder_is_left_out(tmp_path):
    write_series(tmp_path, names="ct{}.dcm")
    write_series(tmp_path, series="1.7", names="dose{}.dcm", Modality="RTDOSE")
    assert read_volume(tmp_path).geometry.size_ijk[2] == 4


def test_a_copy_of_the_same_image_counts_once(tmp_path):
    first = write_series(tmp_path)[0]
    (tmp_path / "copy.dcm").write_bytes(first.read_bytes())
    assert read_volume(tmp_path).geometry.size_ijk[2] == 4


def test_slope_intercept_and_padding_are_applied_to_every_slice_by_its_own_header(tmp_path):
    write_slice(tmp_path / "0.dcm", (0, 0, 0), stored_slice(0), series="1", RescaleIntercept="-1024")
    write_slice(tmp_path / "1.dcm", (0, 0, 1), stored_slice(1) // 2, series="1", RescaleSlope="2")
    padded = stored_slice(2)
    padded[2, 2] = -32768
    write_slice(tmp_path / "2.dcm", (0, 0, 2), padded, series="1")
    array_kji = read_volume(tmp_path).array_kji
    np.testing.assert_array_equal(array_kji[0], stored_slice(0) - 1024)
    np.testing.assert_array_equal(array_kji[1], stored_slice(1) // 2 * 2 - 1024)
    assert array_kji[2, 2, 2] == -1024


def test_a_fractional_slope_gives_float32(tmp_path):
    write_series(tmp_path, RescaleSlope="0.5", RescaleIntercept="-500.25")
    volume = read_volume(tmp_path)
    assert volume.array_kji.dtype == np.float32
    np.testing.assert_array_equal(volume.array_kji[1], stored_slice(1) * np.float32(0.5) - np.float32(500.25))


def test_a_single_slice_is_as_thick_as_its_slice_thickness(tmp_path):
    file = write_series(tmp_path, heights=(3.0,), SpacingBetweenSlices="6.5")[0]
    for path in (file, tmp_path):
        volume = read_volume(path)
        assert volume.geometry.shape_kji == (1, ROWS, COLUMNS)
        assert volume.geometry.spacing_mm == (0.7, 0.8, 1.25)


def test_metadata_says_how_the_scan_was_made_and_nothing_of_whom(tmp_path):
    names = ("ReferringPhysicianName", "InstitutionName", "AccessionNumber", "OperatorsName", "StationName", "StudyID")
    planted = {name: f"SECRET{n}" for n, name in enumerate(names)}
    write_series(tmp_path, StudyDate="20190203", SeriesDescription="Thorax SECRET", **planted)
    metadata = read_volume(tmp_path).metadata
    assert metadata["Modality"] == "CT"
    assert metadata["ConvolutionKernel"] == "B40f"
    assert not {"SeriesInstanceUID", "SeriesDescription"} & set(metadata)
    text = " ".join((*metadata, *metadata.values()))
    assert not any(
        private in text
        for private in ("Doe", "77", "1950", "2019", "SECRET", "1.2.3", "Thorax", "PatientName", "PatientID", "Birth")
    )


def test_metadata_that_changes_from_slice_to_slice_is_left_out(tmp_path):
    for k in range(2):
        write_slice(tmp_path / f"{k}.dcm", (0, 0, k), stored_slice(k), series="1", XRayTubeCurrent=100 + k)
    assert "XRayTubeCurrent" not in read_volume(tmp_path).metadata


def test_positions_rounded_by_the_scanner_are_still_even(tmp_path):
    write_series(tmp_path, heights=(0.0, 0.63, 1.25, 1.88, 2.5))
    assert read_volume(tmp_path).geometry.spacing_mm[2] == pytest.approx(0.625)


@pytest.mark.parametrize("missing", [1, 3])
def test_a_series_with_a_missing_slice_is_refused(tmp_path, capfd, missing):
    write_series(tmp_path, heights=[2.0 * k for k in range(6) if k != missing])
    refuse(tmp_path, capfd, "missing or unevenly spaced slices")
    refuse(tmp_path / "slice00.dcm", capfd, "missing or unevenly spaced slices")


def test_one_missing_slice_among_hundreds_is_refused(tmp_path, capfd):
    write_series(tmp_path, heights=[0.625 * k for k in range(201) if k != 100], names="{:03}.dcm")
    refuse(tmp_path, capfd, "missing or unevenly spaced slices")


def test_uneven_spacing_is_refused(tmp_path, capfd):
    write_series(tmp_path, heights=(0, 1, 2, 3.2, 4.2))
    refuse(tmp_path, capfd, "missing or unevenly spaced slices")


def test_two_slices_at_one_position_are_refused(tmp_path, capfd):
    write_series(tmp_path, heights=(0, 1, 1, 2))
    refuse(tmp_path, capfd, "two slices at the same position")


def test_several_series_in_one_folder_are_named_and_refused(tmp_path, capfd):
    write_series(tmp_path, series="1.1", names="a{}.dcm", SeriesDescription="Lung 1.0")
    write_series(tmp_path, series="1.2", names="b{}.dcm", SeriesDescription="Soft 5.0")
    refuse(tmp_path, capfd, r"2 series \('Lung 1.0' .*a0.dcm; 'Soft 5.0' .*b0.dcm\); give one file")


@pytest.mark.parametrize("degrees", [0.5, 12.0])
def test_a_tilted_gantry_is_refused(tmp_path, capfd, degrees):
    drift = np.tan(np.radians(degrees))
    for k in range(10):
        write_slice(tmp_path / f"{k}.dcm", (0, drift * 2 * k, 2 * k), stored_slice(k), series="1")
    refuse(tmp_path, capfd, "tilted gantry")


def test_mr_is_refused_as_a_file_and_as_a_folder(tmp_path, capfd):
    files = write_series(tmp_path, Modality="MR", SOPClassUID=MRImageStorage)
    refuse(files[0], capfd, "is MR, not CT")
    refuse(tmp_path, capfd, "is MR, not CT")


def test_colour_images_are_refused(tmp_path, capfd):
    pixels = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    tags = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "PixelRepresentation": 0,
    }
    tags |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleSlope": None, "RescaleIntercept": None}
    file = write_slice(tmp_path / "rgb.dcm", (0, 0, 0), pixels, series="1", **tags)
    refuse(file, capfd, "colour, vector or complex")
    refuse(tmp_path, capfd, "colour, vector or complex")


def test_a_multi_frame_image_is_refused(tmp_path, capfd):
    frames = np.stack([stored_slice(k) for k in range(3)])
    tags = {"NumberOfFrames": 3, "Rows": ROWS, "Columns": COLUMNS}
    refuse(write_slice(tmp_path / "f.dcm", (0, 0, 0), frames, series="1", **tags), capfd, "multi-frame")


@pytest.mark.parametrize("kept", [0.95, 0.5, 0.2])
def test_a_truncated_file_is_refused_alone_and_in_its_series(tmp_path, capfd, kept):
    files = write_series(tmp_path)
    content = files[-1].read_bytes()
    files[-1].write_bytes(content[: int(len(content) * kept)])
    refuse(files[-1], capfd, "damaged")
    refuse(files[0], capfd, "damaged")
    refuse(tmp_path, capfd, "damaged")


def test_a_folder_without_dicom_is_refused(tmp_path, capfd):
    refuse(tmp_path, capfd, "no DICOM images")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "LICENSE").write_text("nothing" * 100)
    refuse(tmp_path, capfd, "no DICOM images")


def test_slices_of_several_sizes_or_planes_are_refused(tmp_path, capfd):
    write_series(tmp_path / "sizes")
    write_slice(tmp_path / "sizes" / "x.dcm", (-10, -20, 8), np.ones((7, 5), np.int16), series="1.2.3.4")
    refuse(tmp_path / "sizes", capfd, "other pixels")
    write_series(tmp_path / "planes")
    coronal = (1, 0, 0, 0, 0, -1)
    write_slice(tmp_path / "planes" / "x.dcm", (0, 0, 0), stored_slice(9), series="1.2.3.4", orientation=coronal)
    refuse(tmp_path / "planes", capfd, "another plane")


def test_an_image_that_does_not_say_where_it_lies_is_refused(tmp_path, capfd):
    refuse(write_series(tmp_path, heights=(0,), ImagePositionPatient=None)[0], capfd, "where its slice lies")


def test_all_air_and_raw_values_without_intercept_are_refused(tmp_path, capfd):
    write_slice(tmp_path / "air.dcm", (0, 0, 0), np.zeros((ROWS, COLUMNS), np.int16), series="1")
    refuse(tmp_path / "air.dcm", capfd, "only air")
    (tmp_path / "air.dcm").unlink()
    tags = {"RescaleSlope": None, "RescaleIntercept": None}
    refuse(write_slice(tmp_path / "raw.dcm", (0, 0, 0), stored_slice(0), series="2", **tags), capfd, "HU")


def test_finer_pixels_than_a_fifth_of_a_millimetre_are_refused(tmp_path, capfd):
    refuse(write_series(tmp_path, PixelSpacing=[0.15, 0.15])[0], capfd, "finer than 0.2 mm")
