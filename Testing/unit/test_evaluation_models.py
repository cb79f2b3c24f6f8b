"""Which models an evaluation compares, what they are called, and what the papers say of their methods."""

from __future__ import annotations

import pytest

from CTMicroSRLib.errors import ModelError, UsageError
from CTMicroSRLib.evaluation.candidates import find_candidates
from CTMicroSRLib.evaluation.published import PUBLISHED, published_for
from CTMicroSRLib.training.methods import method_kind


def test_a_run_is_found_by_its_exported_model(make_model, tmp_path):
    run = tmp_path / "run-a"
    run.mkdir()
    make_model("tiny").rename(run / "model")
    (found,) = find_candidates([str(run)])
    assert (found.label, found.folder) == ("run-a", run / "model")  # not its card's name


def test_a_run_without_exported_model_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ModelError, match=r"no exported model; let the training finish .*, or give a model folder\.$"):
        find_candidates([str(tmp_path / "run")])


def test_models_of_one_name_are_called_by_their_runs_and_no_model_is_taken_twice(make_model, tmp_path):
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        make_model("tiny").rename(tmp_path / run / "model")
    other = make_model("other")
    names = [str(tmp_path / "first"), str(tmp_path / "second"), str(other)]
    assert [c.label for c in find_candidates(names)] == ["first", "second", "other"]
    with pytest.raises(UsageError, match="twice"):
        find_candidates([names[0], str(tmp_path / "first" / "model")])


def test_runs_that_share_even_their_folders_name_are_called_by_their_paths(make_model, tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "run").mkdir(parents=True)
        make_model("tiny").rename(tmp_path / place / "run" / "model")
    names = [str(tmp_path / place / "run") for place in ("one", "two")]
    assert [c.label for c in find_candidates(names)] == names


def card_of(folder):
    return find_candidates([str(folder)])[0].card


def test_a_models_method_and_preset_find_what_its_paper_says(make_model):
    def value(method, protocol, metric="paper_psnr_db"):
        card = card_of(make_model(f"m{abs(hash((method, protocol)))}", method=method))
        found = published_for(card, protocol).get(metric)
        return None if found is None else (found.paper, found.table, found.value)

    assert value("sr-cyclegan (preset small), 3 steps", "micro-self") == ("P1", 2, 17.71)
    assert value("sr-cyclegan (preset jmi2022)", "ct-self") == ("P1", 6, 26.10)
    assert value("sr-cyclegan (preset down-blocks)", "micro-self") == ("P1", 2, 16.48)
    assert value("sr-cyclegan (preset cyclegan-upblocks)", "micro-self") == ("P1", 2, 13.64)
    assert value("sr-cyclegan (preset no-upsample)", "micro-self") == ("P1", 3, 15.78)
    assert value("sr-cyclegan (preset jmi2022)", "synthesized", "paper_ssim") == ("P0", 1, 0.40)
    assert value("two-stage (preset paper)", "simulated", "paper_ssim") == ("P0", 1, 0.51)
    assert value("cincgan", "simulated") == ("P1", 4, 9.99)
    assert value("bayesian-cyclegan", "simulated", "m_hum_mean_of_minima") == ("P3", 2, 0.28)
    assert value("supervised on simulated pairs, L2", "simulated") is None


def test_a_papers_number_says_which_settings_were_changed(make_model):
    card = card_of(make_model("changed", method="sr-cyclegan (preset jmi2022, changed: channels, blocks)"))
    assert published_for(card, "micro-self")["paper_psnr_db"].changed == "channels, blocks"
    card = card_of(make_model("as-told", method="sr-cyclegan (preset jmi2022)"))
    assert published_for(card, "micro-self")["paper_psnr_db"].changed == ""


def test_a_papers_variant_is_the_preset_that_trains_it():
    for number in PUBLISHED:
        assert number.variant == "" or number.variant in method_kind(number.method).presets


def test_every_number_of_the_papers_tables_is_there():
    of_table = {}
    for number in PUBLISHED:
        of_table.setdefault((number.paper, number.table), []).append(number)
    counts = {table: len(numbers) for table, numbers in of_table.items()}
    # The CycleGAN of table 2 stands beside two methods of ours; conditions B and J of table 3 are one.
    p1 = {("P1", 2): 10, ("P1", 3): 24, ("P1", 4): 6, ("P1", 5): 12, ("P1", 6): 8, ("P1", 7): 12}
    assert counts == {**p1, ("P0", 1): 2, ("P3", 2): 3}
    assert len(set(PUBLISHED)) == len(PUBLISHED)
