"""Interrupting and killing the command: no output or a complete one, and an answer within seconds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from CTMicroSRLib.signals import cancel_on_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

# A second is promised; a test machine may be busy with something else.
ANSWER_SECONDS = 15.0
"""A second is promised; a machine that others load takes longer."""

CANCELLED = 130


@pytest.fixture(scope="module")
def long_scan(tmp_path_factory):
    """A scan that takes minutes."""
    path = tmp_path_factory.mktemp("scans") / "long.nrrd"
    # many small slices: progress comes soon and often
    array_kji = np.random.default_rng(0).normal(-850, 40, (600, 64, 64)).astype(np.int16)
    array_kji[:, 20:30] = 40
    image = sitk.GetImageFromArray(array_kji)
    image.SetSpacing((0.7, 0.7, 1.0))
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def started(command_line, command_model, long_scan, repository, tmp_path):
    """Start the command on the long scan in a new process that tells its progress as JSON lines."""

    @contextmanager
    def start(*options):
        arguments = ["superres", long_scan, tmp_path / "out.nrrd", "--model", command_model, "--progress", "json"]
        arguments += ["--psf-fwhm-mm", "1.1", "--noise-hu", "20"]
        process = subprocess.Popen(
            [*command_line, *map(str, arguments), *map(str, options)],
            cwd=repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    return start


def read_until(process, reached):
    """Read events up to the first that ``reached`` says yes to."""
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "error":
            break
        if reached(event):
            return event
    raise AssertionError(f"the run ended before: {process.stderr.read()}")


def halfway(event):
    return event.get("stage") == "super-resolving" and event["fraction"] > 0


def left_in(folder):
    return sorted(f.name for f in folder.iterdir())


@pytest.mark.parametrize(
    ("number", "reached"),
    [
        (signal.SIGINT, halfway),
        (signal.SIGTERM, halfway),
        (signal.SIGTERM, lambda event: event.get("stage") == "reading"),
    ],
)
def test_a_signal_ends_the_run_soon_and_leaves_nothing(started, tmp_path, number, reached):
    (tmp_path / "out.nrrd").write_text("an older result")
    files = ("--uncertainty", tmp_path / "sd.nrrd", "--passes", "2", "--report", tmp_path / "r.json", "--overwrite")
    with started("--region", "whole", *files) as process:
        read_until(process, reached)
        if reached is halfway:
            assert len([name for name in left_in(tmp_path) if name.endswith(".part")]) == 2
        process.send_signal(number)
        sent = time.monotonic()
        rest, complaint = process.communicate(timeout=60)
        assert time.monotonic() - sent < ANSWER_SECONDS
    assert process.returncode == CANCELLED
    assert complaint == "ctmicrosr: Cancelled; no output was written.\n"
    last = json.loads(rest.splitlines()[-1])
    assert (last["event"], last["status"]) == ("error", CANCELLED)
    assert left_in(tmp_path) == ["out.nrrd"]
    assert (tmp_path / "out.nrrd").read_text() == "an older result"


def test_a_second_signal_does_not_disturb_the_tidying(started, tmp_path):
    with started("--region", "whole") as process:
        read_until(process, halfway)
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        _, complaint = process.communicate(timeout=60)
    assert complaint == "ctmicrosr: Cancelled; no output was written.\n"
    assert (process.returncode, left_in(tmp_path)) == (CANCELLED, [])


REGION = "0:16,0:16,0:30"


def complete(path):
    image = sitk.ReadImage(str(path))
    return image.GetSize() == (128, 128, 30)


def test_killed_at_any_moment_it_leaves_a_complete_result_or_none_and_the_next_run_tidies_up(
    started, ctmicrosr, command_model, long_scan, tmp_path
):
    moments = random.Random(4)
    kills = [lambda event: event.get("stage") == "writing"]
    kills += [halfway, halfway]
    files = ("--uncertainty", tmp_path / "sd.nrrd", "--passes", "2", "--overwrite")
    seen_parts = 0
    for n, reached in enumerate(kills):
        with started("--region", REGION, *files) as process:
            read_until(process, reached)
            time.sleep(0.0 if n == 0 else moments.random())
            process.kill()
            process.wait(60)
        parts = [name for name in left_in(tmp_path) if name.startswith(".")]
        # those of the runs before were taken away by this one
        assert len(parts) <= 2
        assert all(f".{process.pid}." in name for name in parts)
        seen_parts += len(parts)
        assert all(complete(tmp_path / name) for name in set(left_in(tmp_path)) - set(parts))
    assert seen_parts > 0
    common = ("--model", command_model, "--psf-fwhm-mm", "1.1", "--noise-hu", "20")
    outcome = ctmicrosr("superres", long_scan, tmp_path / "out.nrrd", "--region", REGION, *files, *common)
    assert outcome.status == 0
    assert left_in(tmp_path) == ["out.nrrd", "sd.nrrd"]
    assert complete(tmp_path / "out.nrrd")
    assert complete(tmp_path / "sd.nrrd")


def test_a_signal_that_another_library_would_swallow_still_ends_the_run(
    ctmicrosr, command_model, long_scan, tmp_path, monkeypatch
):
    import CTMicroSRLib.superresolve

    reading = CTMicroSRLib.superresolve.estimate_acquisition

    def careless(*arguments, **keywords):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        except Exception:
            pytest.fail("swallowed")
        return reading(*arguments, **keywords)

    monkeypatch.setattr(CTMicroSRLib.superresolve, "estimate_acquisition", careless)
    before = signal.getsignal(signal.SIGTERM)
    outcome = ctmicrosr("superres", long_scan, tmp_path / "out.nrrd", "--region", "whole", "--model", command_model)
    assert (outcome.status, left_in(tmp_path)) == (CANCELLED, [])
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_uncertainty_does_not_stay_when_its_result_fails_to(
    ctmicrosr, command_model, long_scan, tmp_path, monkeypatch
):
    from CTMicroSRLib.files.writers import VolumeWriter

    commit = VolumeWriter.commit

    def interrupted(writer):
        if writer.path.name == "out.nrrd":
            raise KeyboardInterrupt
        commit(writer)

    monkeypatch.setattr(VolumeWriter, "commit", interrupted)
    common = ("--region", "0:8,0:8,0:1", "--model", command_model, "--psf-fwhm-mm", "1", "--noise-hu", "9")
    files = (tmp_path / "out.nrrd", "--uncertainty", tmp_path / "sd.nrrd", "--passes", "2")
    outcome = ctmicrosr("superres", long_scan, *files, *common)
    assert (outcome.status, left_in(tmp_path)) == (CANCELLED, [])


def test_a_result_in_use_does_not_take_its_uncertainty_with_it(
    ctmicrosr, command_model, long_scan, tmp_path, monkeypatch
):
    from CTMicroSRLib.files import writers

    replace = writers.os.replace

    def in_use(source, target):
        if Path(target).name == "out.nrrd":
            raise PermissionError(13, "in use by another process")
        replace(source, target)

    monkeypatch.setattr(writers.os, "replace", in_use)
    monkeypatch.setattr(writers, "REPLACE_SECONDS", 0.2)
    (tmp_path / "out.nrrd").write_text("in a viewer")
    common = ("--region", "0:8,0:8,0:1", "--model", command_model, "--psf-fwhm-mm", "1", "--noise-hu", "9")
    files = (tmp_path / "out.nrrd", "--uncertainty", tmp_path / "sd.nrrd", "--passes", "2", "--overwrite")
    outcome = ctmicrosr("superres", long_scan, *files, *common)
    assert outcome.status == 2
    assert "out.nrrd is in use by another program" in outcome.stderr
    assert left_in(tmp_path) == ["out-1.nrrd", "out.nrrd", "sd.nrrd"]
    assert (tmp_path / "out.nrrd").read_text() == "in a viewer"
    assert sitk.ReadImage(str(tmp_path / "out-1.nrrd")).GetSize() == (64, 64, 1)


@pytest.mark.parametrize("older", [(), ("out.nrrd", "r.json", "f.png")])
def test_interrupted_while_drawing_it_does_not_deny_the_result_nor_keep_an_older_ones_report_and_figure(
    ctmicrosr, command_model, long_scan, tmp_path, monkeypatch, older
):
    import CTMicroSRLib.figure

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(CTMicroSRLib.figure, "draw_result", interrupted)
    for name in older:
        (tmp_path / name).write_text("of an older result")
    common = ("--region", "0:8,0:8,0:1", "--model", command_model, "--psf-fwhm-mm", "1", "--noise-hu", "9")
    extras = ("--report", tmp_path / "r.json", "--figure", tmp_path / "f.png", "--overwrite")
    outcome = ctmicrosr("superres", long_scan, tmp_path / "out.nrrd", *common, *extras)
    assert outcome.status == CANCELLED
    assert "out.nrrd was complete" in outcome.stderr
    assert left_in(tmp_path) == ["out.nrrd"]


@pytest.mark.parametrize("moment", [1, 2])
def test_a_signal_while_files_get_their_names_waits_until_all_have_them(
    ctmicrosr, command_model, long_scan, tmp_path, monkeypatch, moment
):
    from CTMicroSRLib.files import writers

    flush, calls = writers._flush_folder, []

    def signalled(folder):
        calls.append(folder)
        if len(calls) == moment:
            signal.raise_signal(signal.SIGTERM)
        flush(folder)

    monkeypatch.setattr(writers, "_flush_folder", signalled)
    (tmp_path / "out.nrrd").write_text("an older result")
    common = ("--region", "0:8,0:8,0:1", "--model", command_model, "--psf-fwhm-mm", "1", "--noise-hu", "9")
    files = (tmp_path / "out.nrrd", "--uncertainty", tmp_path / "sd.nrrd", "--passes", "2", "--overwrite")
    outcome = ctmicrosr("superres", long_scan, *files, *common)
    assert outcome.status == CANCELLED
    assert "out.nrrd was complete" in outcome.stderr
    assert left_in(tmp_path) == ["out.nrrd", "sd.nrrd"]
    assert sitk.ReadImage(str(tmp_path / "out.nrrd")).GetSize() == (64, 64, 1)


@pytest.fixture
def hang_up_ends_processes():
    """Also where these tests run under nohup, which has it ignored by all that they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up_ends_processes")
def test_a_closed_terminal_ends_the_run_and_leaves_nothing(started, tmp_path):
    with started("--region", "whole") as process:
        read_until(process, halfway)
        process.send_signal(signal.SIGHUP)
        _, complaint = process.communicate(timeout=60)
    assert complaint == "ctmicrosr: Cancelled; no output was written.\n"
    assert (process.returncode, left_in(tmp_path)) == (CANCELLED, [])


def test_what_ignores_a_closed_terminal_goes_on_ignoring_it():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cancel_on_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
