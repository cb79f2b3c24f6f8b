"""Wrong use of the command: the documented exit status and one line, and how it is told."""

from __future__ import annotations

import json
import re

import pytest
from refused_scans import WRONG_USE
from written_files import GIVEN


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
        (("train", "compact", "--output", "run", "--seed", "9"), "judged on"),
        (("train", "supervised", "--output", "run"), "use 'ctmicrosr train compact --preset shipped'"),
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
