"""Many scans: what each becomes, going on after anything that stops a batch, and what is refused before the first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk

from CTMicroSRLib import batch_scan
from CTMicroSRLib.batch import Batch, BatchSettings
from CTMicroSRLib.batch_scan import RunningScans, ScanTask, run_scan
from CTMicroSRLib.batch_workers import LocalWorkers
from CTMicroSRLib.errors import UsageError

CANCELLED, REFUSED, USAGE, RESOURCE = 130, 3, 2, 4
QUICK = ("--region", "0:16,0:16,0:1", "--psf-fwhm-mm", "1.1", "--noise-hu", "20")


def write(path, seed=0, *, value=None, shape_kji=(2, 40, 48)):
    """A scan of noise with tissue in it, or of one value."""
    rng = np.random.default_rng(seed)
    array_kji = rng.normal(-850, 40, shape_kji) if value is None else np.full(shape_kji, value)
    if value is None:
        array_kji[:, 20:30] = 40
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array_kji.astype(np.int16))
    image.SetSpacing((0.7, 0.7, 1.0))
    sitk.WriteImage(image, str(path))
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def records(folder):
    return {Path(one["input"]).name: one for one in json.loads((folder / "batch.json").read_text())["scans"]}


@pytest.fixture
def batch(ctmicrosr, command_model, tmp_path):
    """Run ``ctmicrosr batch`` on scans into tmp_path/out."""

    def run(*scans_and_options):
        options = ("--output-dir", tmp_path / "out", "--model", command_model, *QUICK)
        return ctmicrosr("batch", *scans_and_options, *options)

    return run


def test_every_scan_becomes_what_superres_makes_of_it_and_a_refused_one_stops_no_other(
    batch, ctmicrosr, command_model, tmp_path
):
    scans = [write(tmp_path / "a.nrrd", 1), write(tmp_path / "air.nii.gz", value=-1000), write(tmp_path / "b.mha", 2)]
    outcome = batch(*scans, "--uncertainty", "--passes", "2", "--workers", "2")
    assert outcome.status == REFUSED
    assert "air.nii.gz: The scan holds only air" in outcome.stdout.replace(
        f"{tmp_path}/air.nii.gz: ", "air.nii.gz: ", 1
    )
    assert "2 of 3 scans done; 1 failed, try them again with --resume" in outcome.stdout
    out = tmp_path / "out"
    made = [f"{name}-{kind}" for name in "ab" for kind in ("report.json", "sr.nrrd", "uncertainty.nrrd")]
    assert names_in(out) == [*made[:3], *made[3:], "batch.json"]
    for scan, name in ((scans[0], "a"), (scans[2], "b")):
        files = (tmp_path / "alone.nrrd", "--uncertainty", tmp_path / "alone-sd.nrrd", "--passes", "2", "--overwrite")
        assert ctmicrosr("superres", scan, *files, "--model", command_model, *QUICK).status == 0
        for one, other in (("sr", "alone"), ("uncertainty", "alone-sd")):
            assert (out / f"{name}-{one}.nrrd").read_bytes() == (tmp_path / f"{other}.nrrd").read_bytes()
    found = records(out)
    assert [found[name]["state"] for name in ("a.nrrd", "air.nii.gz", "b.mha")] == ["done", "failed", "done"]
    assert found["air.nii.gz"]["exit_status"] == REFUSED
    assert found["a.nrrd"]["files"]["report"] == str(out / "a-report.json")


def test_going_on_runs_what_failed_what_changed_and_what_is_gone_and_nothing_else(batch, tmp_path):
    scans = [write(tmp_path / f"{name}.nrrd", seed) for seed, name in enumerate("abc")]
    broken = write(tmp_path / "d.nrrd", value=-1000)
    assert batch(*scans, broken, "--workers", "2").status == REFUSED
    out = tmp_path / "out"
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*-sr.nrrd")}
    write(broken, 7)
    write(scans[1], 8)
    (out / "c-sr.nrrd").unlink()
    outcome = batch(*scans, broken, write(tmp_path / "e.nrrd", 9), "--resume", "--workers", "2")
    assert (outcome.status, outcome.stdout.splitlines()[-1].split(": ")[1]) == (
        0,
        "5 of 5 scans done (batch.json has them all)",
    )
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*-sr.nrrd")}
    assert sorted(after) == [f"{name}-sr.nrrd" for name in "abcde"]
    assert [name for name in before if before[name] == after[name]] == ["a-sr.nrrd"]


def test_a_batch_is_not_gone_on_with_other_options_or_other_weights(batch, command_model, tmp_path):
    scan = write(tmp_path / "a.nrrd")
    assert batch(scan).status == 0
    before = (tmp_path / "out" / "a-sr.nrrd").read_bytes()
    for options, words in (
        ((), "go on with it (--resume) or choose another folder"),
        (("--resume", "--seed", "5"), "started with another seed ('0', now '5')"),
        (("--resume", "--uncertainty"), "started with another uncertainty (False, now True)"),
        (("--resume", "--overwrite"), "exclude each other"),
    ):
        outcome = batch(scan, *options)
        assert (outcome.status, words in outcome.stderr) == (USAGE, True), outcome.stderr
    summary = tmp_path / "out" / "batch.json"
    text = summary.read_text()
    summary.write_text(text.replace(json.loads(text)["settings"]["model_sha256"], "0" * 64))
    assert "another model_sha256" in batch(scan, "--resume").stderr
    summary.write_text("{}")
    assert "can't be read as that of a batch" in batch(scan, "--resume").stderr
    assert (tmp_path / "out" / "a-sr.nrrd").read_bytes() == before
    assert batch(scan, "--overwrite", "--seed", "5").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("nowhere.nrrd",), REFUSED, "There is nothing at nowhere.nrrd"),
        (("a.nrrd", "./a.nrrd"), USAGE, "is given twice"),
        (("a.nrrd", "a.mha"), USAGE, "would be called"),
        (("a.nrrd", "--workers", "0"), USAGE, "0 workers are not possible"),
        (("a.nrrd", "--workers", "5000"), USAGE, "5000 workers are not possible"),
        (("a.nrrd", "--workers", "2", "--scheduler", "x"), USAGE, "has its own workers"),
        (("a.nrrd", "--tries", "0"), USAGE, "0 tries"),
        (("a.nrrd", "--format", ".png"), USAGE, "not written as '.png'"),
        (("a.nrrd", "--region", "lung"), USAGE, "region"),
        (("a.nrrd", "--passes", "1"), USAGE, "1 passes are not possible"),
        (("a.nrrd", "--model", "nowhere"), 5, "There is no model 'nowhere'"),
        (("a.nrrd", "--output-dir", "not/there"), USAGE, "There is no folder not"),
        (("a.nrrd", "--output-dir", "a.nrrd"), USAGE, "a.nrrd can't be made"),
    ],
)
def test_what_is_wrong_for_every_scan_is_told_before_the_first(
    ctmicrosr, command_model, tmp_path, monkeypatch, arguments, status, words
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.nrrd")
    write(tmp_path / "a.mha")
    outcome = ctmicrosr("batch", "--output-dir", "out", "--model", command_model, *arguments)
    assert (outcome.status, outcome.stderr.count("\n")) == (status, 1)
    assert words in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_files_of_the_results_names_are_not_replaced_unless_asked(batch, tmp_path):
    scan = write(tmp_path / "a.nrrd")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a-report.json").write_text("precious")
    outcome = batch(scan)
    assert (outcome.status, "exists already" in outcome.stderr) == (USAGE, True)
    assert names_in(tmp_path / "out") == ["a-report.json"]
    assert batch(scan, "--overwrite").status == 0


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("s/a.nrrd", "t/b.nii.gz", "t/c"), ("a", "b", "c")),
        (("p1/ct", "p2/ct", "p2/mr"), ("p1-ct", "p2-ct", "mr")),
        (("p1/ct/1", "p1/pt/1", "p2/ct/1"), ("p1-ct-1", "pt-1", "p2-ct-1")),
        (("x/v.1.nrrd", "x/v.2.nrrd"), ("v.1", "v.2")),
    ],
)
def test_results_are_named_like_their_scans_with_folders_where_names_are_shared(tmp_path, paths, names):
    for path in paths:
        write(tmp_path / path) if "." in path else (tmp_path / path).mkdir(parents=True)
    made = Batch([tmp_path / p for p in paths], tmp_path / "out", BatchSettings(), resume=False, overwrite=False)
    assert [scan.outputs["output"].name for scan in made.scans] == [f"{name}-sr.nrrd" for name in names]


def test_the_scans_of_a_batch_tell_their_progress_together(batch, tmp_path):
    outcome = batch(write(tmp_path / "a.nrrd"), write(tmp_path / "b.nrrd", 1), "--progress", "json")
    events = [json.loads(line) for line in outcome.stdout.splitlines()]
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert {event["stage"] for event in events if event["event"] == "progress"} == {"scans"}
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert events[-1] == {"event": "done", "done": 2, "failed": 0}


def test_an_emptied_batch_ends_at_once(batch, tmp_path):
    scan = write(tmp_path / "a.nrrd")
    assert batch(scan).status == 0
    begun = time.monotonic()
    assert batch(scan, "--resume").status == 0
    assert time.monotonic() - begun < 5.0


FLAKY = """
import json, os, signal, sys
from pathlib import Path
seen = Path(sys.argv[1])
tries = int(seen.read_text()) + 1 if seen.exists() else 1
seen.write_text(str(tries))
if tries < int(sys.argv[2]):
    {death}
print(json.dumps({{"event": "progress", "stage": "super-resolving", "fraction": 0.5}}))
print("no json")
print(json.dumps({{"event": "done", "report": {{"warnings": ["blurred"]}}}}))
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
NO_MEMORY = "sys.stderr.write('WARNING: x\\nctmicrosr: Not enough memory.\\n'); sys.exit(4)"
REFUSAL = "sys.stderr.write('ctmicrosr: It is no CT.\\n'); sys.exit(3)"
CRASH = "sys.exit(7)"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize(
    ("death", "needed", "tries", "status", "message", "made"),
    [
        (KILLED, 1, 1, 0, "", 1),
        (KILLED, 2, 2, 0, "", 2),
        (KILLED, 3, 2, 1, "ended by signal 9, perhaps for want of memory", 2),
        (NO_MEMORY, 3, 3, 0, "", 3),
        (NO_MEMORY, 3, 1, 4, "Not enough memory.", 1),
        (REFUSAL, 3, 3, 3, "It is no CT.", 1),
        (CRASH, 9, 2, 7, "ended with status 7 and said nothing", 2),
    ],
)
def test_a_scan_is_tried_again_where_that_may_help(tmp_path, monkeypatch, death, needed, tries, status, message, made):
    (tmp_path / "flaky.py").write_text(FLAKY.format(death=death))
    monkeypatch.setattr(batch_scan, "COMMAND", (sys.executable, str(tmp_path / "flaky.py")))
    heard = []
    outcome = run_scan(ScanTask("scan", (str(tmp_path / "seen"), str(needed)), tries), heard.append)
    assert (outcome.exit_status, int((tmp_path / "seen").read_text())) == (status, made)
    assert message in outcome.message
    assert (outcome.warnings, heard) == ((("blurred",), [0.5]) if status == 0 else ((), []))


def test_threads_are_shared_among_the_scans(tmp_path, monkeypatch):
    script = tmp_path / "threads.py"
    script.write_text("import os, sys; open(sys.argv[1], 'w').write(os.environ.get('OMP_NUM_THREADS', 'all'))")
    monkeypatch.setattr(batch_scan, "COMMAND", (sys.executable, str(script)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("CTMicroSRLib.batch_workers.usable_cores", lambda: 8)
    for count, threads in ((1, "all"), (2, "4"), (3, "2"), (8, "1")):
        run_scan(ScanTask("scan", (str(tmp_path / "told"),), 1, LocalWorkers(count).threads))
        assert (tmp_path / "told").read_text() == threads
    with pytest.raises(UsageError, match="give 1 to 8"):
        LocalWorkers(9)


def test_no_scan_starts_once_all_are_ended():
    running = RunningScans()
    running.end()
    assert run_scan(ScanTask("scan", ()), running=running).exit_status == CANCELLED


@pytest.fixture
def long_batch(command_line, command_model, repository, tmp_path):
    """A batch of three scans in a new process, of which the first is done soon and the second takes minutes."""
    scans = [
        write(tmp_path / "a.nrrd"),
        write(tmp_path / "b.nrrd", shape_kji=(900, 64, 64)),
        write(tmp_path / "c.nrrd"),
    ]
    arguments = ["batch", *scans, "--output-dir", tmp_path / "out", "--model", command_model, "--region", "whole"]
    arguments += ["--psf-fwhm-mm", "1.1", "--noise-hu", "20", "--progress", "json"]
    command = [*command_line, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if json.loads(line).get("fraction", 0) > 0.34:
                break
        try:
            yield process, scans
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_batch_leaves_no_process_and_no_half_and_goes_on(
    long_batch, ctmicrosr, command_model, tmp_path, number
):
    process, scans = long_batch
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    options = ("--output-dir", tmp_path / "out", "--model", command_model, "--region", "whole", "--resume")
    refused = ctmicrosr("batch", *scans, *options, "--psf-fwhm-mm", "1.1", "--noise-hu", "20")
    assert (refused.status, f"(process {process.pid} on" in refused.stderr) == (USAGE, True)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == CANCELLED
        assert complaint == "ctmicrosr: Cancelled with 1 of 3 scans done; go on with --resume.\n"
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    lock = [".batch.lock"] if number == signal.SIGKILL else []
    assert names_in(tmp_path / "out") == [*lock, "a-report.json", "a-sr.nrrd", "batch.json"]
    assert records(tmp_path / "out")["a.nrrd"]["state"] == "done"
    shutil.copy(scans[0], scans[1])
    before = (tmp_path / "out" / "a-sr.nrrd").stat().st_mtime_ns
    outcome = ctmicrosr("batch", *scans, *options, "--psf-fwhm-mm", "1.1", "--noise-hu", "20")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert [one["state"] for one in records(tmp_path / "out").values()] == ["done"] * 3
    assert (tmp_path / "out" / "a-sr.nrrd").stat().st_mtime_ns == before


def test_a_full_disk_under_the_summary_is_told(batch, tmp_path, monkeypatch):
    import CTMicroSRLib.whole_files

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(CTMicroSRLib.whole_files.os, "fsync", full)
    outcome = batch(write(tmp_path / "a.nrrd"))
    assert (outcome.status, "go on with --resume" in outcome.stderr) == (RESOURCE, True)


DASK = """
import sys
from distributed import LocalCluster
from CTMicroSRLib import batch_workers
from CTMicroSRLib.cli import main

def divided(task):
    return 1 / 0

kind, arguments = sys.argv[1], sys.argv[2:]
if kind == "nobody":
    batch_workers.SECONDS_TO_ANSWER = 1
    sys.exit(main(["batch", *arguments, "--scheduler", "tcp://127.0.0.1:9"]))
if kind == "breaks":
    batch_workers.run_scan = divided
of_threads = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp://", "host": "127.0.0.1"}
with LocalCluster(dashboard_address=None, **of_threads) as cluster:
    status = main(["batch", *arguments, "--scheduler", cluster.scheduler_address])
sys.exit(status)
"""


@pytest.fixture
def on_dask(command_model, repository, tmp_path):
    """Run ``ctmicrosr batch`` on a Dask cluster of its own, in a process of its own, which ends Dask's threads."""

    def run(kind, *scans_and_options):
        options = ("--output-dir", tmp_path / "out", "--model", command_model, *QUICK)
        command = [sys.executable, "-c", DASK, kind, *map(str, (*scans_and_options, *options))]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, timeout=240)

    return run


def test_a_dask_cluster_makes_what_this_machine_makes(on_dask, ctmicrosr, command_model, tmp_path):
    scans = [write(tmp_path / "a.nrrd", 1), write(tmp_path / "air.nrrd", value=-1000)]
    done = on_dask("works", *scans)
    assert (done.returncode, "1 of 2 scans done; 1 failed" in done.stdout) == (REFUSED, True), done.stderr
    assert ctmicrosr("superres", scans[0], tmp_path / "alone.nrrd", "--model", command_model, *QUICK).status == 0
    assert (tmp_path / "out" / "a-sr.nrrd").read_bytes() == (tmp_path / "alone.nrrd").read_bytes()


def test_a_scheduler_that_is_not_there_is_told(on_dask, tmp_path):
    done = on_dask("nobody", write(tmp_path / "a.nrrd"))
    words = "ctmicrosr: No Dask scheduler answers at tcp://127.0.0.1:9"
    assert (done.returncode, words in done.stderr) == (RESOURCE, True), done.stderr


def test_a_worker_that_breaks_is_a_scan_that_failed(on_dask, tmp_path):
    done = on_dask("breaks", write(tmp_path / "a.nrrd"))
    assert (done.returncode, "could not run it (ZeroDivisionError" in done.stdout) == (RESOURCE, True), done.stderr
