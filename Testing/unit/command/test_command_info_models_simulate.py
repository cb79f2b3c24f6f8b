"""The commands beside superres on good input: info, models, doctor and simulate."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command_scans import lung_piece, outer_corners_mm, read_json
from written_files import GIVEN, write_scan


def test_info_says_what_it_is_and_what_it_would_cost_and_writes_nothing(ctmicrosr, command_model, scan, tmp_path):
    outcome = ctmicrosr("info", scan, "--region", "whole", "--model", command_model)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "24 x 20 x 3" in outcome.stdout
    assert "192 x 160 x 3" in outcome.stdout
    facts = ctmicrosr("info", scan, "--region", "2:10,0:4,0:3", "--model", command_model, "--json")
    facts = json.loads(facts.stdout)
    assert facts["output_size_ijk"] == [64, 32, 3]
    assert facts["spacing_mm"] == pytest.approx([0.7, 0.8, 1.5])
    assert facts["output_gb"] == pytest.approx(64 * 32 * 3 * 2 / 1e9, abs=1e-3)
    assert facts["disk_gb"] == facts["output_gb"]
    assert facts["seconds"] >= 0
    assert facts["memory_gb"] > 0
    assert sorted(f.name for f in tmp_path.iterdir()) == ["scan.nrrd"]


def test_info_counts_the_disk_that_an_uncertainty_takes_and_says_whose_seconds_it_tells(
    ctmicrosr, command_model, tmp_path
):
    lungs = write_scan(tmp_path / "larger.nrrd", lung_piece((4, 150, 200)))
    arguments = ("info", lungs, "--region", "whole", "--model", command_model, "--passes", "2")
    facts = json.loads(ctmicrosr(*arguments, "--json").stdout)
    volume_gb = 2 * 64 * 4 * 150 * 200 / 1e9
    assert (facts["output_gb"], facts["disk_gb"]) == (round(volume_gb, 3), round(2 * volume_gb, 3))
    shown = ctmicrosr(*arguments).stdout
    assert f"disk gb in all: {facts['disk_gb']}" in shown
    assert "network seconds: " in shown


def test_info_times_the_passes_of_an_uncertainty(command_model):
    from CTMicroSRLib.cost import seconds_per_voxel
    from CTMicroSRLib.session import load_model

    model, timed = load_model(command_model, precision="fp32"), []
    passes_of_it = model.run_passes
    model.run_passes = lambda *tile, passes, seed: timed.append(passes) or passes_of_it(*tile, passes=passes, seed=seed)
    assert seconds_per_voxel(model, passes=7) > 0
    assert set(timed) == {7}


def test_info_refuses_passes_that_a_model_cant_make(ctmicrosr, command_model, scan):
    assert ctmicrosr("info", scan, "--model", command_model, "--passes", "1").status == 2


def test_a_model_is_imported_listed_shown_verified_used_and_removed(ctmicrosr, command_model, scan, tmp_path):
    assert ctmicrosr("models", "import", command_model).status == 0
    assert "small" in ctmicrosr("models", "list").stdout
    shown = ctmicrosr("models", "show", "small")
    assert '"architecture": "compact"' in shown.stdout
    assert ctmicrosr("models", "verify", "small").status == 0
    again = ctmicrosr("models", "import", command_model)
    assert (again.status, again.stderr.count("\n")) == (5, 1)
    arguments = ("--region", "0:8,0:8,0:1", "--model", "small", *GIVEN)
    assert ctmicrosr("superres", scan, tmp_path / "out.nrrd", *arguments).status == 0
    doctor = ctmicrosr("doctor")
    assert "model small: verified" in " ".join(doctor.stdout.split())
    assert ctmicrosr("models", "remove", "small").status == 0
    assert ctmicrosr("models", "show", "small").status == 5
    assert (command_model / "card.json").is_file()


def test_doctor_names_an_altered_model_and_ends_with_its_status(ctmicrosr, command_model):
    assert ctmicrosr("models", "import", command_model).status == 0
    installed = Path(os.environ["CTMICROSR_MODELS"]) / "small" / "model.safetensors"
    content = bytearray(installed.read_bytes())
    content[-1] ^= 1
    installed.write_bytes(content)
    outcome = ctmicrosr("doctor")
    assert outcome.status == 5
    assert "SHA-256 differs" in outcome.stdout


SMALL_CASE = ("--size-voxels", "16", "--slice-mm", "4")


def test_simulate_writes_pairs_and_their_checksums_and_repeats_from_the_seed(ctmicrosr, tmp_path):
    for name, seed in (("first", 4), ("again", 4), ("other", 6)):
        arguments = ("--count", "2", "--seed", seed, *SMALL_CASE)
        assert ctmicrosr("simulate", tmp_path / name, *arguments).status == 0
    names = {
        f"case-{n:06}-{kind}.nrrd" for n in (4, 5) for kind in ("clinical", "truth", "labels", "micro", "tissue-labels")
    }
    names |= {f"case-{n:06}-description.json" for n in (4, 5)}
    assert {f.name for f in (tmp_path / "first").iterdir()} == {*names, "manifest.json"}
    sums = read_json(tmp_path / "first" / "manifest.json")["sha256"]
    assert sums == {n: hashlib.sha256((tmp_path / "first" / n).read_bytes()).hexdigest() for n in names}
    assert read_json(tmp_path / "again" / "manifest.json")["sha256"] == sums
    assert not set(read_json(tmp_path / "other" / "manifest.json")["sha256"].values()) & set(sums.values())
    clinical, truth = (
        sitk.ReadImage(str(tmp_path / "first" / f"case-000004-{kind}.nrrd")) for kind in ("clinical", "truth")
    )
    assert truth.GetSize()[:2] == (128, 128)
    np.testing.assert_allclose(outer_corners_mm(truth), outer_corners_mm(clinical), rtol=0, atol=1e-4)


def test_a_simulated_scan_is_good_input(ctmicrosr, command_model, tmp_path):
    assert ctmicrosr("simulate", tmp_path / "s", *SMALL_CASE, "--disease", "diseased").status == 0
    clinical = tmp_path / "s" / "case-000000-clinical.nrrd"
    arguments = ("--region", "whole", "--model", command_model)
    assert ctmicrosr("superres", clinical, tmp_path / "out.nrrd", *arguments, *GIVEN).status == 0
    truth = sitk.ReadImage(str(tmp_path / "s" / "case-000000-truth.nrrd"))
    result = sitk.ReadImage(str(tmp_path / "out.nrrd"))
    assert result.GetSize() == truth.GetSize()
    np.testing.assert_allclose(outer_corners_mm(result), outer_corners_mm(truth), rtol=0, atol=1e-4)
