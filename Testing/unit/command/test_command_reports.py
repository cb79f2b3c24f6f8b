"""The command on good input: progress, report and figure."""

from __future__ import annotations

import hashlib
import itertools
import json

import numpy as np
import pytest
from command_scans import lung_piece, read_json, voxels
from written_files import GIVEN, write_scan


def scanner_matrix(size, fwhm_fine):
    """One axis of a scanner: Gaussian blur by the edge-extended line, then the mean of every 8."""
    sigma = fwhm_fine / (2 * np.sqrt(2 * np.log(2)))
    offsets = np.arange(-int(6 * sigma) - 1, int(6 * sigma) + 2)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((8 * size, 8 * size))
    for n in range(8 * size):
        np.add.at(matrix[n], np.clip(n + offsets, 0, 8 * size - 1), weights / weights.sum())
    return matrix.reshape(size, 8, 8 * size).mean(axis=1)


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
