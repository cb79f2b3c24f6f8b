"""One bar for a whole run: it never goes back, ends where the run ends, and tells the time that is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from CTMicroSRLib.run_progress import RunProgress, guess_network_seconds, lung_seconds, superres_seconds

SECONDS = {"lungs": 10.0, "reading": 2.0, "super-resolving": 84.0, "writing": 4.0}


def test_a_stage_moves_the_bar_by_its_share_of_the_time():
    run = RunProgress(SECONDS)
    assert [run.update(stage, 1.0)[0] for stage in SECONDS] == pytest.approx([0.1, 0.12, 0.96, 1.0])
    half = RunProgress(SECONDS)
    assert half.update("super-resolving", 0.5)[0] == pytest.approx(0.12 + 0.42)


@given(st.lists(st.tuples(st.sampled_from([*SECONDS, "unheard of"]), st.floats(0, 1))))
def test_the_bar_never_goes_back_or_beyond_its_end(events):
    run, before = RunProgress(SECONDS), 0.0
    for stage, fraction in events:
        after, _left = run.update(stage, fraction)
        assert before <= after <= 1.0
        before = after


def test_a_stage_that_is_not_expected_moves_nothing():
    run = RunProgress(SECONDS)
    run.update("lungs", 0.5)
    assert run.update("polishing", 1.0, 7.0) == (0.05, None)


def test_the_time_left_is_of_the_whole_run_where_the_network_was_timed():
    run = RunProgress(SECONDS, is_timed=True)
    assert run.update("lungs", 0.0)[1] == pytest.approx(100.0)
    assert run.update("super-resolving", 0.0)[1] == pytest.approx(88.0)
    # at first the time is what was expected, at the end what the stage itself says
    assert run.update("super-resolving", 0.01, 5.0)[1] == pytest.approx(0.99**2 * 84 + 0.05 + 4)
    assert run.update("super-resolving", 0.99, 2.0)[1] == pytest.approx(2.0 + 4.0, abs=0.05)
    assert run.update("writing", 1.0, 0.0)[1] == 0.0


def test_the_time_left_is_not_told_while_it_would_be_a_guess():
    run = RunProgress(SECONDS)
    assert run.update("lungs", 0.5, 3.0)[1] is None
    assert run.update("reading", 1.0, 0.0)[1] is None
    assert run.update("super-resolving", 0.5, 20.0)[1] == pytest.approx(24.0)


def test_a_large_scan_and_a_long_run_take_longer():
    small, large = superres_seconds(10**6, 5.0), superres_seconds(10**8, 50.0)
    assert list(small) == list(large)
    assert small["super-resolving"] == 5.0
    assert all(small[stage] <= large[stage] for stage in small)
    assert all(seconds > 0 for seconds in {**small, **lung_seconds(1)}.values())
    assert guess_network_seconds(1000, passes=20) > guess_network_seconds(1000) > 0


def test_every_stage_of_the_engine_is_expected(ctmicrosr, tmp_path):
    """A run in lungs that it finds itself, by the stages that the command really tells."""
    import json

    import numpy as np
    import SimpleITK as sitk

    _, j, i = np.indices((6, 64, 80))
    x, y = 4.0 * (i - 39.5), 4.0 * (j - 31.5)
    array_kji = np.where((x / 148) ** 2 + (y / 108) ** 2 < 1, 40.0, -1000.0)
    array_kji[((abs(x) - 68) / 48) ** 2 + (y / 76) ** 2 < 1] = -860.0
    array_kji += np.random.default_rng(2).normal(0.0, 10.0, array_kji.shape)
    image = sitk.GetImageFromArray(np.rint(array_kji).astype(np.int16))
    image.SetSpacing((4.0, 4.0, 10.0))
    sitk.WriteImage(image, str(tmp_path / "chest.nrrd"))
    told = {}
    for command in ("segment", "superres"):
        outcome = ctmicrosr(command, tmp_path / "chest.nrrd", tmp_path / f"{command}.nrrd", "--progress", "json")
        assert outcome.status == 0
        events = [json.loads(line) for line in outcome.stdout.splitlines()]
        told[command] = list(dict.fromkeys(event["stage"] for event in events if event["event"] == "progress"))
    assert set(told["segment"]) == set(lung_seconds(1))
    expected = superres_seconds(1, 1.0, lungs=True)
    assert set(told["superres"]) == set(expected)
    assert [s for s in told["superres"] if "lungs" not in s] == [s for s in expected if "lungs" not in s]
