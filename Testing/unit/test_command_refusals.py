"""The command on wrong use and bad input: the documented exit status, one line, nothing left, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from safetensors.numpy import load_file, save_file

GIVEN = ("--psf-fwhm-mm", "1.1", "--noise-hu", "20")
WRONG_USE, REFUSED, RESOURCE, MODEL = 2, 3, 4, 5


def write_scan(path, array_kji, spacing_mm=(0.7, 0.8, 1.5), *, compress=False, metadata=()):
    image = sitk.GetImageFromArray(array_kji)
    image.SetSpacing([*spacing_mm, 1.0][: image.GetDimension()])
    for key, value in dict(metadata).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path), compress)
    return path


def lung_piece(shape_kji=(3, 20, 24), dtype=np.int16):
    array_kji = np.random.default_rng(3).normal(-860.0, 20.0, shape_kji)
    array_kji[:, 7:10, :] += 850.0
    return np.rint(array_kji).astype(dtype)


def tree(folder):
    """Every file below a folder with its content."""
    return {f.relative_to(folder): f.read_bytes() if f.is_file() else None for f in folder.rglob("*")}


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan.nrrd", lung_piece())


@pytest.fixture
def refused(ctmicrosr, tmp_path):
    """Run the command; check the status, the one line, and that no file came, went or changed."""

    def run(status, match, *arguments):
        before = tree(tmp_path)
        outcome = ctmicrosr(*arguments)
        assert (outcome.status, outcome.stdout) == (status, ""), outcome
        assert re.fullmatch(r"ctmicrosr: [^\n]*[^\n.]\.\n", outcome.stderr), outcome.stderr
        assert re.search(match, outcome.stderr), outcome.stderr
        assert tree(tmp_path) == before

    return run


@pytest.fixture
def refuses_scan(refused, command_model, tmp_path):
    """superres on a file that is to be refused."""

    def run(path, match, status=REFUSED, *arguments):
        region = () if "--region" in arguments else ("--region", "whole")
        common = ("--model", command_model, "--report", tmp_path / "r.json", *GIVEN)
        refused(status, match, "superres", path, tmp_path / "out.nrrd", *common, *region, *arguments)

    return run


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((), "required: COMMAND"),
        (("embiggen",), "invalid choice: 'embiggen'"),
        (("models",), "required: ACTION"),
        (("models", "steal"), "invalid choice: 'steal'"),
        (("superres",), "required: input, output"),
        (("superres", "a.nrrd"), "required: output"),
        (("superres", "a.nrrd", "b.nrrd", "--sharpen"), "nrecognized arguments: --sharpen"),
        (("superres", "a.nrrd", "b.nrrd", "--reg", "whole"), "nrecognized arguments: --reg whole"),
        (("superres", "a.nrrd", "b.nrrd", "--passes", "many"), "invalid int value: 'many'"),
        (("superres", "a.nrrd", "b.nrrd", "--seed", "1.5"), "invalid int value"),
        (("superres", "a.nrrd", "b.nrrd", "--device", "tpu"), "invalid choice: 'tpu'"),
        (("superres", "a.nrrd", "b.nrrd", "--precision", "fp8"), "invalid choice: 'fp8'"),
        (("superres", "a.nrrd", "b.nrrd", "--consistency", "yes"), "invalid choice: 'yes'"),
        (("superres", "a.nrrd", "b.nrrd", "--progress", "loud"), "invalid choice: 'loud'"),
        (("superres", "a.nrrd", "b.nrrd", "--model"), "expected one argument"),
        (("train", "magic", "--output", "run"), "invalid choice: 'magic'"),
        (("train", "supervised", "--output", "run", "--seed", "9"), "judged on"),
        (("evaluate", "m", "--output", "table.docx"), "html"),
        (("evaluate", "m", "--output", "table.md", "--figure", "f.pdf"), "png"),
        (("evaluate", "m", "--output", "table.md", "--set", "best"), "no set 'best'"),
        (("evaluate", "m", "--output", "table.md", "--cases", "0"), "choose a count"),
        (("evaluate", "m", "--output", "no/such/table.md"), "no folder"),
        (("simulate", "folder", "--count", "0"), "count"),
        (("simulate", "folder", "--count", "-3"), "count"),
        (("simulate", "folder", "--seed", "-1"), "seed"),
        (("simulate", "folder", "--size-voxels", "4"), "8 to 256"),
        (("simulate", "folder", "--size-voxels", "100000"), "8 to 256"),
        (("simulate", "folder", "--pixel-mm", "0"), "pixel"),
        (("simulate", "folder", "--pixel-mm", "nan"), "pixel"),
        (("simulate", "folder", "--size-voxels", "8", "--psf-fwhm-mm", "-1"), "point spread"),
        (("simulate", "folder", "--size-voxels", "8", "--slice-mm", "0"), "thickness"),
        (("simulate", "folder", "--size-voxels", "8", "--noise-hu", "-1"), "noise"),
        (("simulate", "folder", "--slice-mm", "50", "--size-voxels", "8"), "thicker than the specimen"),
    ],
)
def test_wrong_use_is_answered_in_one_line(refused, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    if arguments[:1] == ("simulate",):
        (tmp_path / "folder").mkdir()
    refused(WRONG_USE, match, *arguments)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--region", "lung"), "lungs, whole or I0:I1"),
        (("--region", ""), "lungs, whole or I0:I1"),
        (("--region", "0:8,0:8"), "lungs, whole or I0:I1"),
        (("--region", "0:8,0:8,0:1.5"), "lungs, whole or I0:I1"),
        (("--region", "0:25,0:8,0:1"), "region I 0:25 does not lie inside 0:24"),
        (("--region", "0:8,-1:8,0:1"), "region J -1:8"),
        (("--region", "0:8,0:8,3:4"), "region K 3:4"),
        (("--region", "8:0,0:8,0:1"), "region I 8:0"),
        (("--region", "4:4,0:8,0:1"), "region I 4:4"),
        (("--tile", "0"), "multiple of 32"),
        (("--tile", "-32"), "multiple of 32"),
        (("--tile", "33"), "multiple of 32"),
        (("--passes", "0"), "2 to 1000"),
        (("--passes", "1"), "2 to 1000"),
        (("--passes", "100000"), "2 to 1000"),
        (("--seed", "-1"), "seed"),
        (("--psf-fwhm-mm", "0"), "point spread"),
        (("--psf-fwhm-mm", "-1"), "point spread"),
        (("--psf-fwhm-mm", "nan"), "point spread"),
        (("--psf-fwhm-mm", "inf"), "point spread"),
        (("--noise-hu", "0"), "noise"),
        (("--noise-hu", "-5"), "noise"),
        (("--noise-hu", "nan"), "noise"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(refuses_scan, scan, options, match):
    refuses_scan(scan, match, WRONG_USE, *options)


def test_a_seed_of_any_length_is_good(ctmicrosr, command_model, scan, tmp_path):
    common = ("--region", "0:8,0:8,0:1", "--model", command_model, "--uncertainty", tmp_path / "sd.nrrd", *GIVEN)
    outcome = ctmicrosr("superres", scan, tmp_path / "out.nrrd", *common, "--passes", "2", "--seed", 10**30)
    assert (outcome.status, outcome.stderr) == (0, "")


# Where the result goes


def test_an_output_that_exists_is_not_replaced_unasked(refused, command_model, scan, tmp_path):
    for option, name in ((None, "o.nrrd"), ("--uncertainty", "u.mha"), ("--report", "r.json"), ("--figure", "f.png")):
        (tmp_path / name).write_text("mine")
        arguments = (tmp_path / name,) if option is None else (tmp_path / "new.nrrd", option, tmp_path / name)
        refused(WRONG_USE, "exists already", "superres", scan, *arguments, "--model", command_model)
    refused(WRONG_USE, "exists already", "segment", scan, tmp_path / "o.nrrd")
    refused(WRONG_USE, "exists already", "evaluate", "m", "--output", tmp_path / "r.json")
    (tmp_path / "sim").mkdir()
    (tmp_path / "sim" / "manifest.json").write_text("{}")
    refused(WRONG_USE, "already", "simulate", tmp_path / "sim")


def test_an_output_that_is_an_input_is_refused_even_with_overwrite(refused, command_model, scan, tmp_path):
    link = tmp_path / "link.nrrd"
    link.symlink_to(scan)
    mask = write_scan(tmp_path / "mask.nrrd", np.ones((3, 20, 24), np.uint8))
    other = tmp_path / "." / "sub" / ".." / "scan.nrrd"
    (tmp_path / "sub").mkdir()
    for output in (scan, link, other):
        refused(WRONG_USE, "is an input", "superres", scan, output, "--overwrite", "--model", command_model)
    arguments = ("superres", scan, mask, "--mask", mask, "--overwrite", "--model", command_model)
    refused(WRONG_USE, "is an input", *arguments)
    refused(WRONG_USE, "is the input", "segment", scan, scan, "--overwrite")


def test_two_outputs_of_one_name_are_refused(refused, command_model, scan, tmp_path):
    out = tmp_path / "out.nrrd"
    arguments = (scan, out, "--uncertainty", tmp_path / "." / "out.nrrd", "--model", command_model)
    refused(WRONG_USE, "same file", "superres", *arguments)


@pytest.mark.parametrize(
    ("option", "name", "match"),
    [
        (None, "out", "no suffix"),
        (None, "out.dcm", "no suffix"),
        (None, "out.png", "no suffix"),
        (None, "out.mhd", ".mha"),
        (None, ".nrrd/x.nrrd", "no folder"),
        (None, "scan.nrrd/out.nrrd", "no folder"),
        (None, "none/out.nrrd", "no folder"),
        (None, "folder.nrrd", "is a folder"),
        ("--uncertainty", "sd.txt", "no suffix"),
        ("--uncertainty", "none/sd.nrrd", "no folder"),
        ("--report", "report.txt", "json"),
        ("--report", "none/report.json", "no folder"),
        ("--report", "folder.json", "is a folder"),
        ("--figure", "figure.jpg", "png"),
        ("--figure", "none/figure.png", "no folder"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_input_is_read(refused, tmp_path, option, name, match):
    for folder in ("folder.nrrd", "folder.json"):
        (tmp_path / folder).mkdir()
    scan = tmp_path / "scan.nrrd"
    scan.write_text("not even an image")
    output = (tmp_path / name,) if option is None else (tmp_path / "out.nrrd", option, tmp_path / name)
    refused(WRONG_USE, match, "superres", scan, *output, "--overwrite")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc takes no files on Linux only")
@pytest.mark.parametrize("option", [None, "--uncertainty", "--report", "--figure"])
def test_a_folder_that_takes_no_file_is_refused(refused, command_model, scan, tmp_path, option):
    suffix = {"--report": ".json", "--figure": ".png"}.get(option, ".nrrd")
    path = f"/proc/ctmicrosr{suffix}"
    output = (path,) if option is None else (tmp_path / "out.nrrd", option, path)
    refused(WRONG_USE, "cannot be written", "superres", scan, *output, "--model", command_model)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_folder_is_refused(refused, command_model, scan, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    refused(WRONG_USE, "cannot be written", "superres", scan, folder / "out.nrrd", "--model", command_model)


def test_a_figure_without_matplotlib_is_refused_before_any_work(refused, scan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ("superres", scan, tmp_path / "o.nrrd", "--figure", tmp_path / "f.png")
    refused(RESOURCE, "matplotlib", *arguments)


def test_a_disk_that_is_too_full_is_found_before_any_work(refuses_scan, scan, tmp_path, monkeypatch):
    from CTMicroSRLib.session import Model

    monkeypatch.setattr(Model, "run", lambda *_: pytest.fail("the network ran"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    refuses_scan(scan, "out.nrrd needs", RESOURCE, "--precision", "fp32")


@pytest.mark.parametrize("taken_bytes", [100, 90_000, 150_000])
def test_a_disk_that_fills_up_while_writing_leaves_nothing_but_what_was_there(
    refuses_scan, scan, tmp_path, monkeypatch, taken_bytes
):
    import errno
    from pathlib import Path

    class Full:
        """A file on a disk with a few bytes left."""

        def __init__(self, file):
            self.file, self.left = file, taken_bytes

        def write(self, content):
            self.left -= memoryview(content).nbytes
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

        def __getattr__(self, name):
            return getattr(self.file, name)

    before = Path.open

    def limited(path, mode="r", *arguments, **keywords):
        file = before(path, mode, *arguments, **keywords)
        return Full(file) if path.name.endswith(".part") and path.name.startswith(".out") else file

    monkeypatch.setattr(Path, "open", limited)
    (tmp_path / "out.nrrd").write_text("an older result")
    deviation = ("--uncertainty", tmp_path / "sd.nrrd", "--passes", "2")
    refuses_scan(scan, "no space left", RESOURCE, "--overwrite", *deviation)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from CTMicroSRLib.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of a file's size")
def test_a_file_that_may_not_grow_ends_in_one_line(repository, command_model, scan, tmp_path):
    common = ("--region", "whole", "--model", command_model, *GIVEN)
    before = tree(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, "100000", "superres", scan, tmp_path / "out.nii", *common],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (RESOURCE, "")
    assert re.fullmatch(r"ctmicrosr: There is no space left[^\n]*\.\n", run.stderr)
    assert tree(tmp_path) == before


# The input


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


# The model and the machine


def altered_model(command_model, tmp_path, *, weights=None, checksum=True, **card):
    """A copy of the model with other weights (bytes) or other fields on its card."""
    import hashlib

    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(command_model, folder)
    content = json.loads((folder / "card.json").read_text())
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
        if checksum:
            content["sha256"] = hashlib.sha256(weights).hexdigest()
    content.update(card)
    (folder / "card.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def refuses_model(refused, scan, tmp_path):
    """superres, verify and import of a model that is to be refused."""

    def run(model, match, commands=("superres", "verify", "import")):
        for command in commands:
            if command == "superres":
                common = ("--model", model, "--region", "0:8,0:8,0:1", *GIVEN)
                refused(MODEL, match, "superres", scan, tmp_path / "out.nrrd", *common)
            else:
                refused(MODEL, match, "models", command, model)

    return run


def test_a_model_that_is_not_there_is_named(refuses_model, tmp_path):
    refuses_model("sharpest", "no model 'sharpest'", ("superres", "verify"))
    (tmp_path / "folder").mkdir()
    refuses_model(tmp_path / "folder", "not a model folder")


def test_altered_weights_are_refused(refuses_model, command_model, tmp_path):
    content = bytearray((command_model / "model.safetensors").read_bytes())
    content[-3] ^= 1
    refuses_model(altered_model(command_model, tmp_path, weights=bytes(content), checksum=False), "SHA-256 differs")


def test_truncated_or_missing_weights_are_refused(refuses_model, command_model, tmp_path):
    content = (command_model / "model.safetensors").read_bytes()
    for weights in (content[:-4], content[:5], b"", struct.pack("<Q", 2**60) + b"{}"):
        refuses_model(altered_model(command_model, tmp_path, weights=weights), "not a complete safetensors")
    folder = altered_model(command_model, tmp_path)
    (folder / "model.safetensors").unlink()
    refuses_model(folder, "missing")


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_offered_as_weights_is_refused_and_not_run(refuses_model, command_model, tmp_path, kind):
    trap = str(tmp_path / "executed")
    if kind == "pickle":
        weights = pickle.dumps(Bomb(trap))
    else:
        import torch

        torch.save({"first.weight": Bomb(trap)}, tmp_path / "bomb.pt")
        weights = (tmp_path / "bomb.pt").read_bytes()
    refuses_model(altered_model(command_model, tmp_path, weights=weights), "can run code")
    assert not os.path.exists(trap)
    pickle.loads(pickle.dumps(Bomb(trap)))
    assert os.path.exists(trap)


def test_weights_of_another_network_are_refused(refuses_model, command_model, tmp_path):
    weights = load_file(command_model / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, tmp_path / "less.safetensors")
    folder = altered_model(command_model, tmp_path, weights=(tmp_path / "less.safetensors").read_bytes())
    refuses_model(folder, "do not fit its architecture", ("superres",))


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ({"format": 99}, "another format"),
        ({"architecture": "os.system"}, "unknown"),
        ({"parameters": {"channels": 8, "blocks": 2, "planes": 2, "colour": 1}}, "do not fit"),
        ({"parameters": {"channels": -8, "blocks": 2, "planes": 2}}, "do not fit"),
        ({"parameters": {"channels": 16, "blocks": 2, "planes": 2}}, "do not fit"),
        ({"scale": 4}, "another scale"),
        ({"halo": 0}, "another scale"),
        ({"scale": "8"}, "damaged"),
        ({"name": "../../etc"}, "not allowed"),
        ({"window": {"low_hu": 1}}, "damaged"),
        ({"nonsense": True}, "damaged"),
        ({"sha256": "0"}, "SHA-256"),
    ],
)
def test_a_card_that_does_not_describe_its_model_is_refused(refuses_model, command_model, tmp_path, card, match):
    refuses_model(altered_model(command_model, tmp_path, **card), match, ("superres",))


def test_a_card_that_is_no_json_is_refused(refuses_model, command_model, tmp_path):
    folder = altered_model(command_model, tmp_path)
    for text in ("", "{", "[]", "null", "[" * 100_000, '{"format": 1}'):
        (folder / "card.json").write_text(text)
        refuses_model(folder, "damaged")


def test_a_model_that_is_not_imported_cannot_be_removed(refused, command_model):
    for name in ("sharpest", "../small", str(command_model), "."):
        refused(MODEL, "no model named", "models", "remove", name)


def test_a_device_that_is_not_there_is_a_lack_of_resources(refuses_scan, scan, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuses_scan(scan, "no usable cuda device", RESOURCE, "--device", "cuda")


def test_a_run_that_needs_more_memory_than_there_is_ends_in_one_line(refuses_scan, scan, monkeypatch):
    from CTMicroSRLib.session import Model

    def run_out(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(Model, "run", run_out)
    refuses_scan(scan, "Not enough memory", RESOURCE, "--precision", "fp32")


# How it is told


def test_debug_shows_the_traceback_before_the_line(ctmicrosr, tmp_path):
    outcome = ctmicrosr("superres", tmp_path / "none.nrrd", tmp_path / "out.nrrd", "--debug")
    assert outcome.status == WRONG_USE
    assert "Traceback (most recent call last)" in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("ctmicrosr: There is no file")


@pytest.mark.parametrize("option", [("--progress", "json"), ("--progress=json",)])
@pytest.mark.parametrize(
    ("extra", "status"), [((), WRONG_USE), (("--nonsense",), WRONG_USE), (("--passes", "x"), WRONG_USE)]
)
def test_a_failure_is_an_event_too_where_json_is_asked_for(ctmicrosr, tmp_path, option, extra, status):
    outcome = ctmicrosr("superres", tmp_path / "none.nrrd", tmp_path / "out.nrrd", *option, *extra)
    *_, last = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert (last["event"], last["status"], outcome.status) == ("error", status, status)
    assert outcome.stderr == f"ctmicrosr: {last['message']}\n"


def test_a_file_called_json_asks_for_no_events(ctmicrosr, tmp_path):
    assert ctmicrosr("superres", "json", tmp_path / "json").stdout == ""


def test_an_error_of_the_software_itself_is_one_line_too(ctmicrosr, scan, tmp_path, monkeypatch):
    import CTMicroSRLib.jobs

    def break_down(*_):
        raise ZeroDivisionError("float division\nby zero")

    monkeypatch.setattr(CTMicroSRLib.jobs, "read_volume", break_down)
    outcome = ctmicrosr("superres", scan, tmp_path / "out.nrrd")
    assert outcome.status == 1
    assert re.fullmatch(r"ctmicrosr: Something unforeseen [^\n]*by zero[^\n]*--debug[^\n]*\n", outcome.stderr)
