"""A run's temporary folder holds the scan: it goes with its run, or with the Slicer that had it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from CTMicroSRSlicer.childrun import WORKER, libraryFolder
from CTMicroSRSlicer.runfolder import RunFolder, isAlive, removeAbandoned


@pytest.fixture
def deadProcess():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def folderOf(pid, folder):
    """A run's folder of another process, with a scan in it."""
    own = RunFolder(folder).path
    path = own.rename(own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{pid}-")))
    (path / "input.nrrd").touch()
    return path


def test_what_a_killed_slicer_left_is_deleted(tmp_path, deadProcess):
    path = folderOf(deadProcess, tmp_path)
    removeAbandoned(tmp_path)
    assert not path.exists()


def test_nothing_else_is_deleted(tmp_path, deadProcess):
    own = RunFolder(tmp_path).path
    living = folderOf(os.getppid(), tmp_path)
    left = folderOf(deadProcess, tmp_path)
    elsewhere = left.rename(left.with_name(left.name.replace("CTMicroSR-", "CTMicroSR-0")))
    others = [tmp_path / name for name in ("CTMicroSR-old", f"CTMicroSR-{deadProcess}-x", "Slicer")]
    for other in others:
        other.mkdir()
    removeAbandoned(tmp_path)
    assert all(path.exists() for path in (own, living, elsewhere, *others))
    removeAbandoned(tmp_path / "missing")


def test_a_process_of_somebody_else_is_alive(deadProcess):
    assert isAlive(os.getpid())
    assert isAlive(1)
    assert not isAlive(deadProcess)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_the_child_deletes_the_folder_of_a_slicer_that_was_killed(tmp_path, when):
    folder = RunFolder(tmp_path)
    (folder.path / "input.nrrd").touch()
    parent = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    command = [WORKER, libraryFolder(), folder.keepRunning, parent.pid, "simulate", folder.path / "x"]
    if when == "before":
        parent.kill()
        parent.wait()
    child = subprocess.Popen(
        [sys.executable, *map(str, command), "--set", "training-1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if when == "meanwhile":
        time.sleep(2)
        assert folder.path.exists()
        parent.kill()
        parent.wait()
    parent.stdin.close()
    child.communicate(timeout=60)
    assert list(tmp_path.iterdir()) == []
