"""The Slicer CLI module in a process of its own, as Slicer starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "CTMicroSR" / "CTMicroSRBatch" / "CTMicroSRBatch.py"
SPECIMEN = REPOSITORY / "CTMicroSR" / "Resources" / "SampleData" / "CTMicroSR-specimen.nrrd"
OPTIONS = ["--region", "8:40,8:40,2:4", "--passes", "2", "--seed", "3"]


def run(*arguments, folder):
    # a folder without the library, and no path to it: the module has to find it itself
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, *[str(argument) for argument in arguments]]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    ran = run(SCRIPT, *OPTIONS, "--uncertainty", folder / "u.nrrd", SPECIMEN, folder / "o.nrrd", folder=folder)
    return folder, ran


def test_the_result_is_the_commands_byte_for_byte(files, tmp_path):
    folder, ran = files
    assert ran.returncode == 0, ran.stderr
    command = ["-m", "CTMicroSRLib", "superres", SPECIMEN, tmp_path / "o.nrrd", *OPTIONS]
    again = run(*command, "--uncertainty", tmp_path / "u.nrrd", folder=REPOSITORY)
    assert again.returncode == 0, again.stderr
    for name in ("o.nrrd", "u.nrrd"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_progress_is_what_slicer_reads(files):
    _folder, ran = files
    fractions = [float(text) for text in re.findall(r"<filter-progress>([\d.]+)</filter-progress>", ran.stdout)]
    assert fractions[-1] == 1.0
    assert len(fractions) > 3
    assert fractions == sorted(fractions)
    assert fractions.count(1.0) == 2, "the last stage and the end; no stage before fills the bar"
    assert "<filter-comment>super-resolving</filter-comment>" in ran.stdout
    assert '{"event"' not in ran.stdout


def test_warnings_are_said_once_and_not_as_slicers_errors(files):
    _folder, ran = files
    assert ran.stderr == ""
    assert ran.stdout.count("Too few sharp edges") == 1


def test_an_error_is_one_line_and_the_commands_status(tmp_path):
    ran = run(SCRIPT, tmp_path / "missing.nrrd", tmp_path / "o.nrrd", folder=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines() == [
        f"ctmicrosr: There is no file or folder {tmp_path / 'missing.nrrd'}; check the path."
    ]
    assert not (tmp_path / "o.nrrd").exists()
