"""The command as a process of its own: what it imports, its streams, threads."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
from command_scans import voxels
from written_files import GIVEN

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
