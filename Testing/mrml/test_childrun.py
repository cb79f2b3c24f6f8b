"""Child processes without any process: what their lines mean, and that every end is reported once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from CTMicroSRSlicer.childrun import ChildRun, Step, explainCrash, parseEvent
from CTMicroSRSlicer.runfolder import RunFolder

from CTMicroSRLib.errors import CancelledError, CTMicroSRError, RefusedInputError, ResourceError


class Child:
    """Ends only when it is killed, and tells so while it is waited for, as QProcess::waitForFinished does."""

    def __init__(self, onFinished):
        self.killed, self._onFinished = False, onFinished

    def kill(self):
        self.killed = True

    def wait(self, seconds):
        if self.killed:
            self._onFinished(-9)
        return self.killed


class Launcher:
    """Starts nothing; a test says what the process prints and how it ends."""

    def __init__(self):
        self.started, self.delayed = [], []

    def start(self, arguments, environment, onLine, onFinished):
        self.started.append(list(arguments))
        self.say, self.end, self.child = lambda **event: onLine(json.dumps(event)), onFinished, Child(onFinished)
        self.print = onLine
        return self.child

    def later(self, seconds, function):
        self.delayed.append(function)


@pytest.fixture
def run(tmp_path):
    launcher, progress, outcomes = Launcher(), [], []

    def make(*steps):
        made = ChildRun(list(steps), RunFolder(tmp_path), launcher, "python", progress.append, outcomes.append)
        made.start()
        return made

    return make, launcher, progress, outcomes, tmp_path


def test_steps_follow_each_other_and_the_folder_goes_at_the_end(run):
    make, launcher, progress, outcomes, folder = run
    made = make(Step(["segment"]), Step(["superres"]))
    launcher.say(event="progress", stage="lungs", fraction=0.5, seconds_left=3.0)
    launcher.say(event="done", volume_ml=1)
    launcher.end(0)
    assert [command[-1] for command in launcher.started] == ["segment", "superres"]
    assert len(list(folder.iterdir())) == 1
    launcher.say(event="done", report={"a": 1})
    launcher.end(0)
    assert made.isFinished
    assert outcomes[0].results[1]["report"] == {"a": 1}
    assert (progress[0].stage, progress[0].fraction, progress[0].secondsLeft) == ("lungs", 0.5, 3.0)
    assert list(folder.iterdir()) == []


def test_a_check_between_steps_can_end_the_run(run):
    make, launcher, _progress, outcomes, folder = run

    def refuse(_event):
        raise RefusedInputError("No lung here.")

    make(Step(["segment"], refuse), Step(["superres"]))
    launcher.say(event="done")
    launcher.end(0)
    assert isinstance(outcomes[0].error, RefusedInputError)
    assert len(launcher.started) == 1
    assert list(folder.iterdir()) == []


def test_a_step_that_a_run_can_do_without_may_refuse_its_input_and_only_warns(run):
    make, launcher, _progress, outcomes, folder = run
    make(Step(["segment"], lambda _event: 1 / 0, withoutIt="Not checked."), Step(["superres"]))
    launcher.say(event="error", status=3, message="No lung here.")
    launcher.end(3)
    assert len(launcher.started) == 2
    launcher.say(event="done", report={})
    launcher.end(0)
    assert outcomes[0].results[0]["warnings"] == ["Not checked."]
    assert list(folder.iterdir()) == []


def test_a_step_that_a_run_can_do_without_still_ends_it_with_any_other_error(run):
    make, launcher, _progress, outcomes, _folder = run
    make(Step(["segment"], withoutIt="Not checked."), Step(["superres"]))
    launcher.say(event="error", status=4, message="Not enough memory.")
    launcher.end(4)
    assert isinstance(outcomes[0].error, ResourceError)
    assert len(launcher.started) == 1


def test_the_engines_error_comes_with_its_kind_and_sentence(run):
    make, launcher, _progress, outcomes, _folder = run
    make(Step(["superres"]))
    launcher.print("ctmicrosr: the line on standard error")
    launcher.say(event="error", status=4, message="Not enough memory.")
    launcher.end(4)
    assert isinstance(outcomes[0].error, ResourceError)
    assert str(outcomes[0].error) == "Not enough memory."


def test_an_end_without_a_result_is_an_error_even_with_status_0(run):
    make, launcher, _progress, outcomes, _folder = run
    make(Step(["superres"]))
    launcher.end(0)
    assert "ended unexpectedly" in str(outcomes[0].error)


def test_cancelling_asks_the_child_and_kills_it_only_when_it_does_not_listen(run):
    make, launcher, _progress, outcomes, folder = run
    made = make(Step(["superres"]))
    keep = next(folder.iterdir()) / "keep-running"
    assert keep.exists()
    made.cancel()
    made.cancel()
    assert not keep.exists()
    assert not launcher.child.killed
    assert outcomes == []
    launcher.delayed[0]()
    assert launcher.child.killed
    launcher.end(-9)
    assert [type(outcome.error) for outcome in outcomes] == [CancelledError]
    assert list(folder.iterdir()) == []


def test_what_a_cancelled_child_still_says_does_not_count(run):
    make, launcher, progress, outcomes, _folder = run
    made = make(Step(["superres"]))
    made.cancel("The scene was closed.")
    launcher.say(event="progress", stage="late", fraction=1.0)
    launcher.say(event="done", report={})
    launcher.end(0)
    assert progress == []
    assert str(outcomes[0].error) == "The scene was closed."


def test_closing_kills_and_reports_at_once_and_only_once(run):
    make, launcher, _progress, outcomes, folder = run
    made = make(Step(["superres"]))
    made.close()
    assert launcher.child.killed
    launcher.end(-9)
    assert len(outcomes) == 1
    assert list(folder.iterdir()) == []


def test_closing_a_real_qprocess_reports_once(tmp_path):
    import sys

    from CTMicroSRSlicer.launchers import ProcessLauncher

    outcomes = []
    steps = [Step(["simulate", str(tmp_path / "x"), "--set", "training-1"])]
    made = ChildRun(steps, RunFolder(tmp_path), ProcessLauncher(), sys.executable, lambda _p: None, outcomes.append)
    made.start()
    made.close()
    assert [type(outcome.error) for outcome in outcomes] == [CancelledError]
    assert list(tmp_path.glob("CTMicroSR-*")) == []


def test_a_process_that_does_not_start_is_named(run):
    make, launcher, _progress, outcomes, folder = run
    launcher.start = lambda *_: (_ for _ in ()).throw(OSError(2, "No such file"))
    make(Step(["superres"]))
    assert "could not be started" in str(outcomes[0].error)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "",
        "WARNING: text",
        "{",
        '{"event": "other"}',
        '["event"]',
        '{"event": "progress"}',
        "<filter-progress>",
        '{"a": 1}',
    ],
)
def test_lines_that_are_no_events_are_log_text(line):
    assert parseEvent(line) is None


@pytest.mark.parametrize(
    ("status", "log", "kind", "part"),
    [
        (-9, [], ResourceError, "memory ran out"),
        (137, ["Killed"], ResourceError, "memory ran out"),
        (1, ["std::bad_alloc"], ResourceError, "memory ran out"),
        (1, ["ModuleNotFoundError: No module named 'safetensors'"], ResourceError, "safetensors is missing"),
        (-11, ["Segmentation fault"], CTMicroSRError, "Segmentation fault"),
        (3, [], CTMicroSRError, "no message"),
    ],
)
def test_a_crash_is_explained(status, log, kind, part):
    error = explainCrash(status, log)
    assert isinstance(error, kind)
    assert part in str(error)


def test_a_temporary_folder_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(ResourceError, match="No temporary folder"):
        RunFolder(tmp_path / "missing")


def test_the_two_launchers_of_slicer_bring_the_same_lines(tmp_path):
    import sys
    import time

    import slicer
    from CTMicroSRSlicer.launchers import ConsoleLauncher, ProcessLauncher

    script = tmp_path / "child.py"
    script.write_text(
        "import sys, os\nprint('one')\nprint(os.environ['X'], file=sys.stderr)\nprint('end', end='')\nsys.exit(3)\n"
    )
    heard = {}
    for launcher in (ConsoleLauncher(), ProcessLauncher()):
        lines, ended = [], []
        child = launcher.start(
            [sys.executable, str(script)], {"X": "two", "PYTHONUNBUFFERED": "1"}, lines.append, ended.append
        )
        end = time.monotonic() + 60
        while not ended and time.monotonic() < end:
            slicer.app.processEvents()
            time.sleep(0.01)
        assert child.wait(1.0)
        heard[type(launcher)] = (lines, ended)
    assert heard[ConsoleLauncher] == heard[ProcessLauncher] == (["one", "two", "end"], [3])


def test_the_worker_lies_beside_the_runner():
    from CTMicroSRSlicer.childrun import WORKER

    assert Path(WORKER).is_file()
