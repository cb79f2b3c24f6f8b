"""Where the command's result can't go: refused in one line, nothing replaced, nothing left."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from refused_scans import RESOURCE, WRONG_USE
from written_files import GIVEN, tree, write_scan


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
