"""Tables as files, the papers' numbers in them, and what the figure shows."""

from __future__ import annotations

import errno
import json
import math
import os

import numpy as np
import pytest

from CTMicroSRLib.errors import ResourceError, UsageError
from CTMicroSRLib.evaluation.candidates import find_candidates
from CTMicroSRLib.evaluation.crops_figure import plainest_crop, readable
from CTMicroSRLib.evaluation.results import Row, Table
from CTMicroSRLib.evaluation.tables import SUFFIXES, as_plain, markdown, table_paths, with_published, write_table
from CTMicroSRLib.simulation.case_figure import busiest_crop

TABLE = Table(
    [
        Row(
            "bicubic",
            {"psnr_db": 26.125, "ssim": 0.71234, "edge_rise_mm": 1.234, "nodule_volume_absolute_error": math.nan},
        ),
        Row("ours & <co>", {"psnr_db": math.inf, "ssim": 1.0}),
    ],
    {"ours": {"80%": 0.8123, "90%": 0.9, "AUSE": 0.1, "AUSE of chance": 0.4}},
    {"set": "test-1", "cases": 2, "seeds": [9, 11], "machine": "an abacus"},
)


def test_a_markdown_table_has_a_line_for_each_method_in_each_part_that_it_has_numbers_for(tmp_path):
    write_table(TABLE, tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2] == "| method | PSNR dB | SSIM |"
    assert lines[4:6] == ["| bicubic | 26.12 | 0.7123 |", "| ours & <co> | inf | 1.0000 |"]
    assert "| bicubic | 1.23 |  |" in lines
    assert "80% interval 81.2%, 90% interval 90.0%. It ranks the errors with an AUSE of 0.100" in markdown(TABLE)
    assert lines[-1] == "2 simulated specimens of test-1, seeds [9, 11]; an abacus."


def test_the_other_formats_hold_the_same_numbers(tmp_path):
    import csv
    from html.parser import HTMLParser

    for suffix in SUFFIXES:
        write_table(TABLE, tmp_path / f"table{suffix}")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["method"], float(rows[0]["psnr_db"]), rows[1]["edge_rise_mm"]) == ("bicubic", 26.125, "")
    kept = json.loads((tmp_path / "table.json").read_text())
    assert kept == as_plain(TABLE)
    assert kept["rows"][1]["psnr_db"] is None
    texts = []
    parser = HTMLParser()
    parser.handle_data = texts.append
    parser.feed((tmp_path / "table.html").read_text())
    assert "ours & <co>" in "".join(texts)
    assert "26.12" in texts


def test_shift_and_printed_grid_stand_in_every_kind_of_table(tmp_path):
    table = Table([Row("half off", {"shift_fine_voxels": 5.657, "grid_hu": 3.04})], {}, TABLE.protocol)
    for suffix in SUFFIXES:
        write_table(table, tmp_path / f"table{suffix}")
    for suffix in (".md", ".html"):
        text = (tmp_path / f"table{suffix}").read_text()
        for shown in ("shifted by fine voxels", "5.7", "printed grid HU", "3.0"):
            assert shown in text
    assert (tmp_path / "table.csv").read_text().splitlines() == [
        "method,shift_fine_voxels,grid_hu",
        "half off,5.657,3.04",
    ]


def test_a_table_of_another_kind_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(UsageError, match=r"not '\.xls'"):
        write_table(TABLE, tmp_path / "table.xls")
    assert not list(tmp_path.iterdir())


def test_the_papers_number_stands_beside_the_own_one_and_is_called_another_data_set(make_model, tmp_path):
    import csv

    model = make_model("srcg", method="sr-cyclegan (preset small), 10 steps")
    (candidate,) = find_candidates([str(model)])
    rows = [
        Row("bicubic", {"paper_psnr_db": 20.0}),
        *(Row(f"srcg, {variant}", {"paper_psnr_db": 21.456}) for variant in ("consistency off", "scan (default)")),
    ]
    table = Table(with_published(rows, [candidate], "simulated"), {}, TABLE.protocol)
    text = markdown(table)
    assert "| srcg, consistency off | 21.46 (the paper's: 17.71, another data set) |" in text
    assert "| srcg, scan (default) | 21.46 |" in text  # consistency is not the papers'
    assert "| bicubic | 20.00 |" in text
    assert "The paper's numbers of P1, table 2 (micro-self): micro-CT of lung specimens" in text
    write_table(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        kept = list(csv.DictReader(file))
    assert [row["paper_psnr_db, the paper's (another data set)"] for row in kept] == ["", "17.71", ""]
    write_table(table, tmp_path / "t.json")
    plain = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert "published" not in plain[0]
    assert {(n["metric"], n["value"]) for n in plain[1]["published"]} >= {("paper_psnr_db", 17.71)}


def test_the_papers_number_beside_other_settings_names_them(make_model):
    model = make_model("srcg", method="sr-cyclegan (preset jmi2022, changed: channels, blocks)")
    rows = [Row("srcg, consistency off", {"paper_psnr_db": 21.456})]
    text = markdown(Table(with_published(rows, find_candidates([str(model)]), "simulated"), {}, TABLE.protocol))
    assert "21.46 (the paper's: 17.71, another data set, changed here: channels, blocks)" in text


def test_a_table_that_can_not_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "table.md"
    path.write_text("before")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("CTMicroSRLib.whole_files.os.fsync", full)
    with pytest.raises(ResourceError, match=r"^There is no space left to write .*; free some space and do it again\.$"):
        write_table(TABLE, path)
    assert [file.name for file in tmp_path.iterdir()] == ["table.md"]
    assert path.read_text() == "before"


def test_an_output_without_suffix_or_a_folder_is_all_four_kinds(tmp_path):
    assert [p.name for p in table_paths(str(tmp_path / "t.md"))] == ["t.md"]
    assert [p.name for p in table_paths(str(tmp_path / "t"))] == ["t.md", "t.html", "t.csv", "t.json"]
    for folder in (tmp_path, tmp_path / "new"):
        paths = table_paths(f"{folder}/")
        assert {p.parent for p in paths} == {folder}
        assert [p.name for p in paths] == [f"evaluation{suffix}" for suffix in SUFFIXES]
    assert table_paths(str(tmp_path)) == table_paths(f"{tmp_path}/")
    with pytest.raises(UsageError, match="can be"):
        table_paths("t.xls")


def test_the_plainest_crop_is_even_lung_and_not_even_air():
    rng = np.random.default_rng(0)
    truth = rng.normal(-850.0, 60.0, (160, 240)).astype(np.float32)
    truth[:, 160:] = -1000.0
    truth[80:120, 40:80] = rng.normal(-850.0, 5.0, (40, 40))
    assert plainest_crop(truth, 8, 5) == (slice(80, 120), slice(40, 80))
    nothing = plainest_crop(np.full((16, 16), 100.0, np.float32), 8, 5)
    assert nothing == (slice(0, 16), slice(0, 16))


def test_many_images_are_thinned_to_one_for_each_model():
    names = ["bicubic", "B-spline", "Lanczos", "bicubic, scan"]
    for n in range(8):
        names += [f"m{n}, consistency off", f"m{n}, scan (default)", f"m{n}, block"]
    names += ["alone, consistency off"]
    kept = readable({name: np.zeros((1, 1), np.float32) for name in names})
    assert list(kept) == ["bicubic", *(f"m{n}, scan (default)" for n in range(8)), "alone, consistency off"]
    few = {name: np.zeros((1, 1), np.float32) for name in names[:7]}
    assert readable(few) == few


def test_the_shown_crop_is_the_busiest_square_on_the_coarse_grid():
    truth = np.full((160, 240), -900.0, np.float32)
    truth[64:104, 120:160:4] = 0.0
    rows, columns = busiest_crop(truth, 8, 5)
    assert (rows, columns) == (slice(64, 104), slice(120, 160))
    assert busiest_crop(truth[:16, :16], 8, 5) == (slice(0, 16), slice(0, 16))
