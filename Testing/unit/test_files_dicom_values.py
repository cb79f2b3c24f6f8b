"""DICOM slices: what their headers say of pixel sizes, places and values, and when that is too little."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom
import pytest
from refused_scans import refuse_reading as refuse
from written_files import stored_slice, write_series, write_slice

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files import read_volume
from CTMicroSRLib.files.dicom_stack import check_stack


def set_text(file, tag, text):
    """Replace the text of a decimal string as no writer would."""
    content = file.read_bytes()
    at = content.index(tag + b"DS")
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    value = text.encode() + b" " * (len(text) % 2)
    file.write_bytes(content[: at + 6] + len(value).to_bytes(2, "little") + value + content[at + 8 + length :])


@pytest.mark.parametrize("text", [None, "", "0.7", "0\\0", "0.8\\-0.7", "nan\\0.7", "0.8\\1e999", "0.8\\x"])
@pytest.mark.parametrize("which", [0, 2])
def test_slices_that_do_not_say_their_pixel_spacing_are_refused(tmp_path, capfd, text, which):
    files = write_series(tmp_path)
    if text is None:
        data = pydicom.dcmread(files[which])
        del data.PixelSpacing
        data.ImagerPixelSpacing = [0.8, 0.7]
        data.save_as(files[which])
    else:
        set_text(files[which], b"\x28\x00\x30\x00", text)
    refuse(tmp_path, capfd, rf"{files[which].name} does not say how large its pixels are \(PixelSpacing\)")


@pytest.mark.parametrize("text", ["0\\0\\nan", "0\\0\\1e999", "-1e999\\0\\0"])
def test_a_place_that_is_not_finite_is_named_without_warnings(tmp_path, capfd, text):
    files = write_series(tmp_path)
    set_text(files[1], b"\x20\x00\x32\x00", text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse(tmp_path, capfd, "position that is not finite .ImagePositionPatient")


def test_an_inverted_image_is_refused_by_name(tmp_path, capfd):
    refuse(write_series(tmp_path, PhotometricInterpretation="MONOCHROME1")[0], capfd, "MONOCHROME1")


@pytest.mark.parametrize("kind", ["MGML", "Z_EFF", "HU_MOD", "PCT"])
def test_values_of_another_kind_than_hu_are_refused_by_name(tmp_path, capfd, kind):
    refuse(write_series(tmp_path, RescaleType=kind)[0], capfd, f"RescaleType {kind}")


@pytest.mark.parametrize("kind", ["HU", "US", "hu", "", "unspecified"])
def test_values_in_hu_or_of_no_stated_kind_are_read(tmp_path, kind):
    assert read_volume(write_series(tmp_path, RescaleType=kind)[0]).geometry.size_ijk[2] == 4


@pytest.mark.parametrize("lost", [("RescaleIntercept",), ("RescaleIntercept", "RescaleSlope")])
def test_a_series_that_lost_its_rescale_is_refused_though_padding_looks_like_air(tmp_path, capfd, lost):
    for k in range(4):
        stored = stored_slice(k) + 200
        stored[:, 0] = -2000
        write_slice(tmp_path / f"{k}.dcm", (0, 0, 2 * k), stored, series="1", **dict.fromkeys(lost))
    for path in (tmp_path, tmp_path / "0.dcm"):
        refuse(path, capfd, "lost its rescale tags .RescaleSlope, RescaleIntercept")


def test_a_series_without_rescale_whose_values_are_hu_is_read(tmp_path):
    lost = dict.fromkeys(("RescaleIntercept", "RescaleSlope"))
    file = write_slice(tmp_path / "s.dcm", (0, 0, 0), stored_slice(0) - 1024, series="1", **lost)
    np.testing.assert_array_equal(read_volume(file).array_kji[0], stored_slice(0) - 1024)


@pytest.mark.parametrize(
    ("dtype", "padding", "tag", "limit", "intercept", "bits"),
    [
        (np.uint16, 63536, 63536, None, -1024, 16),
        (np.uint16, 63536, 63530, 63540, -1024, 16),
        (np.uint16, 63536, 63540, 63530, -1024, 16),
        (np.uint16, 4095, 4095, None, -1024, 12),
        (np.int16, -2000, -2000, None, 0, 16),
        (np.int16, 3071, 3071, None, -1024, 16),
        (np.uint16, 40000, 40000, None, 0, 16),
    ],
)
def test_what_the_header_names_as_padding_is_air(tmp_path, dtype, padding, tag, limit, intercept, bits):
    stored = (stored_slice(0) - 1024 - intercept).clip(0 if dtype == np.uint16 else None).astype(dtype)
    expected = stored.astype(int) + intercept
    stored[2, :3], expected[2, :3] = padding, -1024
    tags = {"PixelPaddingValue": tag, "PixelPaddingRangeLimit": limit, "RescaleIntercept": str(intercept)}
    tags |= {"PixelRepresentation": int(dtype == np.int16), "BitsStored": bits, "HighBit": bits - 1}
    if limit is None:
        del tags["PixelPaddingRangeLimit"]
    if dtype == np.uint16 and intercept == 0:
        stored[0, 0], expected[0, 0] = 0, 0
        tags["RescaleIntercept"], expected = "-500", expected - 500
        expected[2, :3] = -1024
    file = write_slice(tmp_path / "s.dcm", (0, 0, 0), stored, series="1", **tags)
    np.testing.assert_array_equal(read_volume(file).array_kji[0], expected)


def test_a_padding_value_written_with_the_other_sign_is_the_same_padding(tmp_path):
    stored = stored_slice(0) - 1024 - 4000
    stored[2, :3] = -1500
    tags = {"RescaleIntercept": "4000", "PixelPaddingValue": -1500}
    file = write_slice(tmp_path / "s.dcm", (0, 0, 0), stored, series="1", **tags)
    content = file.read_bytes()
    at = content.index(b"\x28\x00\x20\x01SS")
    file.write_bytes(content[: at + 4] + b"US" + content[at + 6 :])  # -1500 as 64036
    array_ji = read_volume(file).array_kji[0]
    assert array_ji[2, :3].tolist() == [-1024] * 3
    np.testing.assert_array_equal(np.delete(array_ji, 2, axis=0), np.delete(stored, 2, axis=0) + 4000)


def test_padding_between_fractional_values_is_found(tmp_path):
    stored = stored_slice(0)
    stored[2, :3] = 4500
    tags = {"RescaleSlope": "0.7", "RescaleIntercept": "-1000.3", "PixelPaddingValue": 4500}
    array_ji = read_volume(write_slice(tmp_path / "s.dcm", (0, 0, 0), stored, series="1", **tags)).array_kji[0]
    assert array_ji[2, :3].tolist() == [-1024] * 3
    assert (array_ji[3:] > -1000).all()


@pytest.mark.parametrize(("value", "limit"), [(0, None), (-300, 300), (-950, None), (-2000, 40)])
def test_a_header_that_names_lung_or_tissue_as_padding_is_not_believed(tmp_path, value, limit):
    """Writers leave a padding value of 0 in headers of scans that hold 0 HU in every slice."""
    stored = stored_slice(0) - 1024
    stored[2, :4] = [0, -300, 40, -950]
    tags = {"RescaleIntercept": "0", "PixelPaddingValue": value, "PixelPaddingRangeLimit": limit}
    tags = {name: tag for name, tag in tags.items() if tag is not None}
    file = write_slice(tmp_path / "s.dcm", (0, 0, 0), stored, series="1", **tags)
    np.testing.assert_array_equal(read_volume(file).array_kji[0], stored)


def rounded(step_mm, count, first_mm=-100.03, decimals=1):
    return [round(first_mm + step_mm * k, decimals) for k in range(count)]


@pytest.mark.parametrize("count", [4, 5, 40, 300])
@pytest.mark.parametrize("step_mm", [0.5, 0.625, 0.75, 0.8, 1.25, 2.5])
def test_places_rounded_to_a_tenth_of_a_millimetre_are_even(tmp_path, step_mm, count):
    heights_mm = np.array(rounded(step_mm, count))
    positions_mm = np.column_stack([np.zeros((count, 2)), heights_mm])
    # rounding moves either end by up to 0.05 mm
    assert check_stack(tmp_path, positions_mm, np.array([0.0, 0.0, 1.0])) == pytest.approx(
        step_mm, abs=0.1 / (count - 1)
    )


def test_a_series_of_rounded_places_is_read(tmp_path):
    write_series(tmp_path, heights=rounded(0.75, 8))
    assert read_volume(tmp_path).geometry.spacing_mm[2] == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("decimals", [1, 3])
@pytest.mark.parametrize("count", [4, 5, 8, 60])
@pytest.mark.parametrize("step_mm", [0.25, 0.3, 0.5, 0.625, 0.75, 0.8, 1.0, 1.25, 2.0, 2.5, 3.0, 5.0, 10.0])
def test_a_missing_slice_is_found_at_every_step_also_among_rounded_places(tmp_path, capfd, step_mm, count, decimals):
    for missing in range(1, count - 1):
        heights_mm = np.delete(rounded(step_mm, count, decimals=decimals), missing)
        positions_mm = np.column_stack([np.zeros((count - 1, 2)), heights_mm])
        with pytest.raises(RefusedInputError, match="missing or unevenly spaced"):
            check_stack(tmp_path, positions_mm, np.array([0.0, 0.0, 1.0]))
