"""The command on good input: what it writes, prints and reports, in one process and as its own."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from CTMicroSRLib import read_volume, segment_lungs, super_resolve

GIVEN = ("--psf-fwhm-mm", "1.1", "--noise-hu", "20")
"""Blur and noise, so that nothing is estimated."""

OBLIQUE = tuple(
    (
        np.array([[0.0, -1.0, 0.0], [0.8, 0.0, -0.6], [0.6, 0.0, 0.8]])
        @ np.array([[np.cos(0.3), -np.sin(0.3), 0.0], [np.sin(0.3), np.cos(0.3), 0.0], [0.0, 0.0, 1.0]])
    ).ravel()
)


def write_scan(path, array_kji, spacing_mm=(0.7, 0.8, 1.5), origin_mm=(-31.5, 12.25, 404.0), directions=None):
    image = sitk.GetImageFromArray(np.asarray(array_kji))
    image.SetSpacing(spacing_mm)
    image.SetOrigin(origin_mm)
    if directions is not None:
        image.SetDirection(directions)
    sitk.WriteImage(image, str(path))
    return path


def lung_piece(shape_kji=(3, 20, 24)):
    """Lung with a vessel, as blurred as a scanner would show it, and noise."""
    array_kji = np.random.default_rng(3).normal(-860.0, 20.0, shape_kji)
    array_kji += 850.0 * np.exp(-0.5 * ((np.arange(shape_kji[1]) - 8.3) / 1.5) ** 2)[:, None]
    return np.rint(array_kji).astype(np.int16)


def chest(shape_kji=(6, 64, 80), spacing_mm=(4.0, 4.0, 10.0)):
    """Body with two lungs, in a scanner's air."""
    _, j, i = np.indices(shape_kji)
    x, y = (i - (shape_kji[2] - 1) / 2) * spacing_mm[0], (j - (shape_kji[1] - 1) / 2) * spacing_mm[1]
    array_kji = np.where((x / 148) ** 2 + (y / 108) ** 2 < 1, 40.0, -1000.0)
    lungs = ((abs(x) - 68) / 48) ** 2 + (y / 76) ** 2 < 1
    array_kji[lungs] = -860.0
    array_kji += np.random.default_rng(2).normal(0.0, 10.0, shape_kji)
    return np.rint(array_kji).astype(np.int16), lungs


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan.nrrd", lung_piece())


@pytest.fixture
def chest_scan(tmp_path):
    return write_scan(tmp_path / "chest.nrrd", chest()[0], (4.0, 4.0, 10.0))


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def outer_corners_mm(image, first_ijk=(0, 0, 0), size_ijk=None):
    """Physical positions of the eight outer corners of a box of voxels, by SimpleITK alone."""
    size_ijk = image.GetSize() if size_ijk is None else size_ijk
    ends = [(first - 0.5, first + size - 0.5) for first, size in zip(first_ijk, size_ijk, strict=True)]
    return np.array([image.TransformContinuousIndexToPhysicalPoint(corner) for corner in itertools.product(*ends)])


def scanner_matrix(size, fwhm_fine):
    """One axis of a scanner: Gaussian blur by the edge-extended line, then the mean of every 8."""
    sigma = fwhm_fine / (2 * np.sqrt(2 * np.log(2)))
    offsets = np.arange(-int(6 * sigma) - 1, int(6 * sigma) + 2)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((8 * size, 8 * size))
    for n in range(8 * size):
        np.add.at(matrix[n], np.clip(n + offsets, 0, 8 * size - 1), weights / weights.sum())
    return matrix.reshape(size, 8, 8 * size).mean(axis=1)


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


def test_progress_json_is_a_stream_of_events_that_ends_with_the_report(ctmicrosr, command_model, scan, tmp_path):
    arguments = ("--region", "whole", "--model", command_model, "--report", tmp_path / "r.json", "--progress", "json")
    outcome = ctmicrosr("superres", scan, tmp_path / "out.nrrd", *arguments)
    assert (outcome.status, outcome.stderr) == (0, "")

    def refuse_constant(name):
        raise AssertionError(f"{name} is not JSON")

    *progress, done = [json.loads(line, parse_constant=refuse_constant) for line in outcome.stdout.splitlines()]
    assert done == {"event": "done", "report": read_json(tmp_path / "r.json")}
    assert {event["event"] for event in progress} == {"progress"}
    stages = [stage for stage, _ in itertools.groupby(event["stage"] for event in progress)]
    assert len(set(stages)) == len(stages)
    assert stages[0] == "reading"
    assert stages[-2:] == ["super-resolving", "writing"]
    for stage in stages:
        fractions = [event["fraction"] for event in progress if event["stage"] == stage]
        assert fractions == sorted(fractions)
        assert all(0 <= fraction <= 1 for fraction in fractions)
    assert progress[-1]["fraction"] == 1.0


def test_segment_and_simulate_end_their_events_with_done_too(ctmicrosr, chest_scan, tmp_path):
    segment = ctmicrosr("segment", chest_scan, tmp_path / "mask.nrrd", "--progress", "json")
    simulate = ctmicrosr("simulate", tmp_path / "s", "--size-voxels", "8", "--slice-mm", "4", "--progress", "json")
    for outcome in (segment, simulate):
        assert outcome.status == 0
        *progress, done = [json.loads(line) for line in outcome.stdout.splitlines()]
        assert {event["event"] for event in progress} == {"progress"}
        assert done["event"] == "done"
    assert json.loads(segment.stdout.splitlines()[-1])["volume_ml"] > 1000


def test_the_report_holds_what_the_design_demands(ctmicrosr, command_model, scan, tmp_path):
    arguments = ("--region", "0:16,0:16,1:3", "--model", command_model, "--report", tmp_path / "r.json")
    assert ctmicrosr("superres", scan, tmp_path / "out.nrrd", *arguments, "--seed", "3").status == 0
    report = read_json(tmp_path / "r.json")
    assert report["input"]["path"] == str(scan)
    assert report["output"]["path"] == str(tmp_path / "out.nrrd")
    digest = hashlib.sha256((command_model / "model.safetensors").read_bytes()).hexdigest()
    assert report["model"] == {"name": "small", "sha256": digest}
    assert report["region"] == "0:16,0:16,1:3"
    assert report["tiles"]["voxels"] > 0
    assert report["device"]
    assert report["precision"] in ("fp32", "bf16")
    assert report["seed"] == 3
    stages = {name: seconds for name, seconds in report["seconds"].items() if name != "total"}
    assert stages
    assert min(stages.values()) >= 0
    assert sum(stages.values()) <= report["seconds"]["total"] + 0.01 * len(stages)
    assert 50 < report["peak_memory_mb"] < 20_000
    consistency = report["consistency"]
    assert consistency["mode"] == "scan"
    for key in ("psf_fwhm_mm", "noise_hu", "residual_rms_hu", "residual_max_hu"):
        assert np.isfinite(consistency[key])
        assert consistency[key] >= 0
    assert consistency["residual_rms_hu"] <= consistency["residual_max_hu"]
    assert {"torch", "numpy", "SimpleITK", "python"} <= set(report["software"])


def test_the_reported_residual_is_the_one_an_independent_scan_of_the_result_finds(
    ctmicrosr, command_model, scan, tmp_path
):
    arguments = ("--region", "whole", "--model", command_model, "--report", tmp_path / "r.json", *GIVEN)
    assert ctmicrosr("superres", scan, tmp_path / "out.nrrd", *arguments).status == 0
    rows, columns = scanner_matrix(20, 1.1 * 8 / 0.8), scanner_matrix(24, 1.1 * 8 / 0.7)
    residual = voxels(scan) - rows @ voxels(tmp_path / "out.nrrd") @ columns.T
    reported = read_json(tmp_path / "r.json")["consistency"]
    assert reported["residual_rms_hu"] == pytest.approx(np.sqrt(np.mean(residual**2)), abs=0.02)
    assert reported["residual_max_hu"] == pytest.approx(np.abs(residual).max(), abs=0.6)
    assert np.abs(residual).max() < 2.0 * 20 + 0.6


@pytest.mark.parametrize("uncertainty", [False, True])
def test_the_figure_is_a_picture_that_opens(ctmicrosr, command_model, tmp_path, uncertainty):
    scan = write_scan(tmp_path / "scan.nrrd", lung_piece((2, 60, 64)))
    extra = ("--uncertainty", tmp_path / "sd.nrrd", "--passes", "2") if uncertainty else ()
    arguments = ("--region", "0:56,4:60,0:2", "--model", command_model, "--figure", tmp_path / "f.png")
    assert ctmicrosr("superres", scan, tmp_path / "out.nii.gz", *arguments, *extra, *GIVEN).status == 0
    picture = voxels(tmp_path / "f.png")
    assert picture.shape[1] > (4 if uncertainty else 3) * 300
    assert len(np.unique(picture[..., 0])) > 50
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


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


def test_info_says_what_it_is_and_what_it_would_cost_and_writes_nothing(ctmicrosr, command_model, scan, tmp_path):
    outcome = ctmicrosr("info", scan, "--region", "whole", "--model", command_model)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "24 x 20 x 3" in outcome.stdout
    assert "192 x 160 x 3" in outcome.stdout
    facts = ctmicrosr("info", scan, "--region", "2:10,0:4,0:3", "--model", command_model, "--json")
    facts = json.loads(facts.stdout)
    assert facts["output_size_ijk"] == [64, 32, 3]
    assert facts["spacing_mm"] == pytest.approx([0.7, 0.8, 1.5])
    assert facts["output_gb"] == pytest.approx(64 * 32 * 3 * 2 / 1e9, abs=1e-3)
    assert facts["seconds"] >= 0
    assert facts["memory_gb"] > 0
    assert sorted(f.name for f in tmp_path.iterdir()) == ["scan.nrrd"]


def test_info_times_the_passes_of_an_uncertainty(command_model):
    from CTMicroSRLib.cost import seconds_per_voxel
    from CTMicroSRLib.session import load_model

    model, timed = load_model(command_model, precision="fp32"), []
    passes_of_it = model.run_passes
    model.run_passes = lambda *tile, passes, seed: timed.append(passes) or passes_of_it(*tile, passes=passes, seed=seed)
    assert seconds_per_voxel(model, passes=7) > 0
    assert set(timed) == {7}


def test_info_refuses_passes_that_a_model_cant_make(ctmicrosr, command_model, scan):
    assert ctmicrosr("info", scan, "--model", command_model, "--passes", "1").status == 2


def test_a_model_is_imported_listed_shown_verified_used_and_removed(ctmicrosr, command_model, scan, tmp_path):
    assert ctmicrosr("models", "import", command_model).status == 0
    assert "small" in ctmicrosr("models", "list").stdout
    shown = ctmicrosr("models", "show", "small")
    assert '"architecture": "compact"' in shown.stdout
    assert ctmicrosr("models", "verify", "small").status == 0
    again = ctmicrosr("models", "import", command_model)
    assert (again.status, again.stderr.count("\n")) == (5, 1)
    arguments = ("--region", "0:8,0:8,0:1", "--model", "small", *GIVEN)
    assert ctmicrosr("superres", scan, tmp_path / "out.nrrd", *arguments).status == 0
    doctor = ctmicrosr("doctor")
    assert "model small: verified" in " ".join(doctor.stdout.split())
    assert ctmicrosr("models", "remove", "small").status == 0
    assert ctmicrosr("models", "show", "small").status == 5
    assert (command_model / "card.json").is_file()


def test_doctor_names_an_altered_model_and_ends_with_its_status(ctmicrosr, command_model):
    assert ctmicrosr("models", "import", command_model).status == 0
    installed = Path(os.environ["CTMICROSR_MODELS"]) / "small" / "model.safetensors"
    content = bytearray(installed.read_bytes())
    content[-1] ^= 1
    installed.write_bytes(content)
    outcome = ctmicrosr("doctor")
    assert outcome.status == 5
    assert "SHA-256 differs" in outcome.stdout


SMALL_CASE = ("--size-voxels", "16", "--slice-mm", "4")


def test_simulate_writes_pairs_and_their_checksums_and_repeats_from_the_seed(ctmicrosr, tmp_path):
    for name, seed in (("first", 4), ("again", 4), ("other", 6)):
        arguments = ("--count", "2", "--seed", seed, *SMALL_CASE)
        assert ctmicrosr("simulate", tmp_path / name, *arguments).status == 0
    names = {
        f"case-{n:06}-{kind}.nrrd" for n in (4, 5) for kind in ("clinical", "truth", "labels", "micro", "tissue-labels")
    }
    names |= {f"case-{n:06}-description.json" for n in (4, 5)}
    assert {f.name for f in (tmp_path / "first").iterdir()} == {*names, "manifest.json"}
    sums = read_json(tmp_path / "first" / "manifest.json")["sha256"]
    assert sums == {n: hashlib.sha256((tmp_path / "first" / n).read_bytes()).hexdigest() for n in names}
    assert read_json(tmp_path / "again" / "manifest.json")["sha256"] == sums
    assert not set(read_json(tmp_path / "other" / "manifest.json")["sha256"].values()) & set(sums.values())
    clinical, truth = (
        sitk.ReadImage(str(tmp_path / "first" / f"case-000004-{kind}.nrrd")) for kind in ("clinical", "truth")
    )
    assert truth.GetSize()[:2] == (128, 128)
    np.testing.assert_allclose(outer_corners_mm(truth), outer_corners_mm(clinical), rtol=0, atol=1e-4)


def test_a_simulated_scan_is_good_input(ctmicrosr, command_model, tmp_path):
    assert ctmicrosr("simulate", tmp_path / "s", *SMALL_CASE, "--disease", "diseased").status == 0
    clinical = tmp_path / "s" / "case-000000-clinical.nrrd"
    arguments = ("--region", "whole", "--model", command_model)
    assert ctmicrosr("superres", clinical, tmp_path / "out.nrrd", *arguments, *GIVEN).status == 0
    truth = sitk.ReadImage(str(tmp_path / "s" / "case-000000-truth.nrrd"))
    result = sitk.ReadImage(str(tmp_path / "out.nrrd"))
    assert result.GetSize() == truth.GetSize()
    np.testing.assert_allclose(outer_corners_mm(result), outer_corners_mm(truth), rtol=0, atol=1e-4)


IMPORTED = """
import sys
from CTMicroSRLib.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as ended:
    status = ended.code
sys.stderr.write(repr((status, sorted({"torch", "matplotlib", "scipy"} & set(sys.modules)))))
"""


def start(repository, *arguments, code=IMPORTED, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=repository,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_needs_no_torch(repository):
    run = start(repository, "--help")
    assert run.stderr == "(0, [])"
    assert "superres" in run.stdout


def test_listing_models_needs_no_torch(repository, command_model):
    run = start(repository, "models", "list", CTMICROSR_MODELS=str(command_model.parent))
    assert run.stderr == "(0, [])"
    assert "small" in run.stdout


def test_segmenting_needs_no_torch(repository, chest_scan, tmp_path):
    run = start(repository, "segment", chest_scan, tmp_path / "mask.nrrd")
    assert run.stderr.splitlines() == ["(0, [])"]
    assert (tmp_path / "mask.nrrd").is_file()


def test_wrong_paths_are_refused_before_torch_is_loaded(repository, scan, tmp_path):
    run = start(repository, "superres", scan, tmp_path / "none" / "out.nrrd")
    assert run.stderr.splitlines()[-1] == "(2, [])"


def test_coarse_pixels_get_a_warning_and_odd_names_end_nothing(
    repository, command_line, command_model, chest_scan, tmp_path
):
    output = tmp_path / "größe 肺.nrrd"
    arguments = ("--region", "16:32,16:32,1:2", "--model", command_model, *GIVEN)
    run = subprocess.run(
        [*command_line, "superres", chest_scan, output, *arguments],
        cwd=repository,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert not run.stderr
    assert "Warning: The pixels are" in run.stdout
    assert "gr\\xf6\\xdfe" in run.stdout
    assert voxels(output).shape == (1, 128, 128)


def test_nothing_is_written_for_a_parent_that_stopped_listening(
    repository, command_line, command_model, scan, tmp_path
):
    arguments = ("--region", "whole", "--model", command_model, *GIVEN, "--progress", "json")
    with subprocess.Popen(
        [*command_line, "superres", scan, tmp_path / "out.nrrd", *arguments],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1
    assert [f.name for f in tmp_path.iterdir()] == ["scan.nrrd"]


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
def test_without_standard_streams_it_still_works(repository, command_line, tmp_path):
    for command, status in (("--version", 0), ("models verify none", 5)):
        line = f"{shlex.join(command_line)} {command} >&- 2>&-"
        assert subprocess.run(["sh", "-c", line], cwd=repository, timeout=60).returncode == status


def test_the_command_can_run_in_a_thread(ctmicrosr, command_model, scan, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    arguments = ("superres", scan, tmp_path / "out.nrrd", "--region", "0:8,0:8,0:1", "--model", command_model)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ctmicrosr, *arguments, *GIVEN).result().status == 0
