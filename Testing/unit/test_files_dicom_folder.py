"""A folder of DICOM files: which belong to the scan, which are something else, which may be lost slices."""

from __future__ import annotations

import io
import sys

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage, generate_uid
from refused_scans import refuse_reading as refuse
from written_files import COLUMNS, ROWS, stored_slice, write_series, write_slice

from CTMicroSRLib.files import read_volume

SCOUT = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "orientation": (1, 0, 0, 0, 0, -1)}
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def whole(slices=4):
    return np.stack([stored_slice(k) for k in range(slices)]) - 1024


def assert_read(path, slices=4):
    np.testing.assert_array_equal(read_volume(path).array_kji, whole(slices))


def write_colour(path, **tags):
    grey = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    grey |= {"PixelRepresentation": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    grey |= {"RescaleSlope": None, "RescaleIntercept": None, "SOPClassUID": SecondaryCaptureImageStorage}
    return write_slice(path, (0, 0, 0), np.zeros((ROWS, COLUMNS, 3), np.uint8), series="1.9", **{**grey, **tags})


@pytest.mark.parametrize("uids", [["1.2.3"] * 4, ["1.1", "1.2", "1.3", "1.3"], ["1.3", "1.3", "1.3", "1.4"]])
def test_slices_at_several_places_are_all_read_though_they_share_a_uid(tmp_path, uids):
    for k, uid in enumerate(uids):
        write_slice(tmp_path / f"{k}.dcm", (0, 0, 2 * k), stored_slice(k), series="1", SOPInstanceUID=uid)
    assert_read(tmp_path)
    assert_read(tmp_path / "1.dcm")


def test_one_uid_and_place_with_other_pixels_is_refused(tmp_path, capfd):
    for k in range(4):
        write_slice(tmp_path / f"{k}.dcm", (0, 0, 2 * k), stored_slice(k), series="1", SOPInstanceUID=f"1.{k}")
    write_slice(tmp_path / "edited.dcm", (0, 0, 4), stored_slice(9), series="1", SOPInstanceUID="1.2")
    refuse(tmp_path, capfd, "two slices at the same position")
    write_slice(tmp_path / "edited.dcm", (0, 0, 4), stored_slice(2), series="1", SOPInstanceUID="1.2")
    assert_read(tmp_path)


LOST_CONTENT = {
    "empty": lambda _content: b"",
    "zeros": lambda content: bytes(len(content)),
    "cut in the preamble": lambda content: content[:100],
    "cut in the first elements": lambda content: content[132:200],
}


NO_LINKS = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


@pytest.mark.parametrize("kind", [*LOST_CONTENT, pytest.param("link to nowhere", marks=NO_LINKS)])
@pytest.mark.parametrize("names", ["IM{:04}", "1.2.840.{:03}", "slice{:02}.dcm", "s{:02}.img"])
def test_a_file_without_content_may_be_the_last_slice_and_is_refused(tmp_path, capfd, kind, names):
    last = write_series(tmp_path, names=names)[-1]
    content = last.read_bytes()
    last.unlink()
    if kind == "link to nowhere":
        last.symlink_to(tmp_path / "nowhere" / "s.dcm")
    else:
        last.write_bytes(LOST_CONTENT[kind](content))
    for path in (tmp_path, tmp_path / names.format(0)):
        refuse(path, capfd, rf"{last.name} (has no content and may be a lost slice|is damaged)")


def test_an_empty_dicom_file_beside_slices_of_other_names_is_refused(tmp_path, capfd):
    write_series(tmp_path, names="IM{:04}")
    (tmp_path / "x.dcm").write_bytes(b"")
    refuse(tmp_path, capfd, r"x\.dcm is damaged")


def test_what_exports_put_beside_slices_is_no_lost_slice(tmp_path):
    write_series(tmp_path, names="IM{:04}")
    for name in ("DICOMDIR", "README", "VERSION", "LOCKFILE", ".DS_Store", "Thumbs.db", "notes.txt", "list.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "NOTES").write_text("exported on a Tuesday")
    (tmp_path / "viewer.exe").write_bytes(b"MZ" + bytes(50))
    for first in (2, 8):
        (tmp_path / f"table{first}.bin").write_bytes(np.arange(first, first + 4000, 2, dtype="<i4").tobytes())
        (tmp_path / f"sizes{first}.bin").write_bytes(np.array([first, 4] + [70000] * 100, dtype="<i4").tobytes())
    assert_read(tmp_path)


@NO_LINKS
def test_links_are_followed_and_those_of_other_kinds_to_nowhere_are_none_of_the_scans(tmp_path):
    (tmp_path / "links").mkdir()
    for file in write_series(tmp_path / "s"):
        (tmp_path / "links" / file.name).symlink_to(file)
    (tmp_path / "links" / "notes.txt").symlink_to(tmp_path / "nowhere")
    assert_read(tmp_path / "links")


def test_a_file_without_a_series_uid_is_read_as_its_folder(tmp_path):
    for k in range(4):
        write_slice(tmp_path / f"{k}.dcm", (0, 0, 2 * k), stored_slice(k), series="1", SeriesInstanceUID=None)
    assert_read(tmp_path)
    assert_read(tmp_path / "2.dcm")


@pytest.mark.parametrize("series", ["9.1", "1.2.3.4"])
def test_a_localizer_beside_the_scan_is_left_out_and_alone_refused(tmp_path, capfd, series):
    write_series(tmp_path / "s")
    scout = write_slice(tmp_path / "s" / "scout.dcm", (-100, 0, 100), stored_slice(9), series=series, **SCOUT)
    assert_read(tmp_path / "s")
    assert_read(tmp_path / "s" / "slice01.dcm")
    refuse(scout, capfd, "localizer")
    (tmp_path / "alone").mkdir()
    write_slice(tmp_path / "alone" / "scout.dcm", (-100, 0, 100), stored_slice(9), series=series, **SCOUT)
    refuse(tmp_path / "alone", capfd, "localizer")


@pytest.mark.parametrize("modality", ["CT", "OT", "SR"])
def test_a_colour_report_beside_the_scan_is_left_out(tmp_path, modality):
    files = write_series(tmp_path)
    write_colour(tmp_path / "dose.dcm", Modality=modality)
    assert_read(tmp_path)
    assert_read(files[2])


def test_a_grey_picture_of_the_screen_beside_the_scan_is_left_out(tmp_path):
    write_series(tmp_path)
    for series in ("1.9", "1.2.3.4"):
        path = tmp_path / f"screen{series}.dcm"
        write_slice(path, (0, 0, 50), stored_slice(9), series=series, SOPClassUID=SecondaryCaptureImageStorage)
    assert_read(tmp_path)
    assert_read(tmp_path / "slice00.dcm")


def test_colour_in_the_scans_own_series_is_refused(tmp_path, capfd):
    write_series(tmp_path, series="1.9")
    write_colour(tmp_path / "rgb.dcm", SOPClassUID=CTImageStorage)
    refuse(tmp_path, capfd, "colour")


def test_a_damaged_file_of_another_series_is_left_out(tmp_path, capfd):
    files = write_series(tmp_path)
    (other,) = write_series(tmp_path, heights=(50.0,), series="9.9", names="other{}.dcm")
    content = other.read_bytes()
    other.write_bytes(content[: content.index(b"\xe0\x7f\x10\x00") - 2])
    assert_read(files[0])
    assert_read(tmp_path)
    # a header that does not come to the series tells nothing
    other.write_bytes(content[: content.index(b"\x20\x00\x0d\x00")])
    refuse(files[0], capfd, r"other0\.dcm is damaged")


def test_a_series_uid_within_a_sequence_is_not_the_files_own(tmp_path, capfd):
    files = write_series(tmp_path)
    data = pydicom.dcmread(files[-1])
    item = pydicom.Dataset()
    item.SeriesInstanceUID = "9.9"
    for undefined_length in (False, True):
        data.ReferencedSeriesSequence = [item]
        data["ReferencedSeriesSequence"].is_undefined_length = undefined_length
        data.save_as(files[-1])
        content = files[-1].read_bytes()
        files[-1].write_bytes(content[: content.index(b"\xe0\x7f\x10\x00") - 2])
        refuse(files[0], capfd, rf"{files[-1].name} is damaged")
        files[-1].write_bytes(content)


@pytest.mark.parametrize("names", ["IM{:04}", "1.2.840.{:03}", "s{:02}.img"])
@pytest.mark.parametrize("start", ["meta information", "explicit data set", "implicit data set"])
def test_files_without_a_preamble_are_read_whatever_their_names(tmp_path, names, start):
    files = write_series(tmp_path, names=names)
    for file in files[1:]:
        content = file.read_bytes()
        data_set = content.index(b"\x08\x00\x16\x00UI")
        file.write_bytes(content[132 if start == "meta information" else data_set :])
        if start == "implicit data set":
            data = pydicom.dcmread(io.BytesIO(content))
            data.file_meta, data.preamble = FileMetaDataset(), None
            pydicom.dcmwrite(file, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert_read(tmp_path)
    assert_read(files[2])


def test_the_index_of_a_disc_is_named(tmp_path, capfd):
    (tmp_path / "files").mkdir()
    index = FileSet()
    for file in write_series(tmp_path / "files", StudyID="1", StudyDate="20200101", StudyTime="101010", SeriesNumber=1):
        data = pydicom.dcmread(file)
        data.InstanceNumber = 1
        index.add(data)
    index.write(tmp_path / "disc")
    refuse(tmp_path / "disc" / "DICOMDIR", capfd, "is a DICOMDIR, .*give the folder")
    refuse(tmp_path / "disc", capfd, "no DICOM images")


@pytest.mark.parametrize("frames", [1, 3])
def test_an_enhanced_ct_is_named(tmp_path, capfd, frames):
    stored = np.stack([stored_slice(k) for k in range(frames)])
    tags = {"NumberOfFrames": frames, "Rows": ROWS, "Columns": COLUMNS, "SOPClassUID": ENHANCED_CT}
    tags |= {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    refuse(write_slice(tmp_path / "e.dcm", (0, 0, 0), stored, series="1", **tags), capfd, "is an Enhanced CT image")


@pytest.mark.parametrize(
    ("syntax", "name"),
    [("1.2.840.10008.1.2.4.102", "MPEG video"), ("1.2.840.113619.5.2", "GE's private"), ("1.2.3.4.5", "1.2.3.4.5")],
)
def test_a_transfer_syntax_that_is_not_supported_is_named(tmp_path, capfd, syntax, name):
    (file,) = write_series(tmp_path, heights=(0.0,))
    content = file.read_bytes()
    at = content.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    group_at = content.index(b"\x02\x00\x00\x00UL") + 8
    group = int.from_bytes(content[group_at : group_at + 4], "little") + len(value) - length
    element = content[at : at + 6] + len(value).to_bytes(2, "little") + value
    content = content[:at] + element + content[at + 8 + length :]
    # what remains of the pixels is no image in any syntax
    file.write_bytes(content[:group_at] + group.to_bytes(4, "little") + content[group_at + 4 : -20])
    refuse(file, capfd, rf"transfer syntax {name}.* is not supported")


def test_series_without_description_are_told_apart_by_a_file(tmp_path, capfd):
    write_series(tmp_path, series="1.1", names="a{}.dcm", SeriesDescription=None)
    write_series(tmp_path, series=generate_uid(), names="b{}.dcm", SeriesDescription=None)
    refuse(tmp_path, capfd, r"2 series \(one without description with 4 images such as a0.dcm; .*b0.dcm\)")
