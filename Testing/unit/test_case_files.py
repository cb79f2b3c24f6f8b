"""Simulated cases as files: complete or absent, what was simulated when read back, and any change is found."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections import namedtuple
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from CTMicroSRLib import RefusedInputError, ResourceError, UsageError, read_volume
from CTMicroSRLib.errors import CancelledError
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.simulation import case_files
from CTMicroSRLib.simulation.case_files import case_bytes, cases_in, load_case, verify_cases, write_cases
from CTMicroSRLib.simulation.cases import CaseSettings, simulate_case
from CTMicroSRLib.simulation.description import Label
from CTMicroSRLib.simulation.kernels import KERNELS
from CTMicroSRLib.simulation.micro_scanner import micro_to_hu
from CTMicroSRLib.simulation.sets import SETS, case_set, consecutive_cases
from CTMicroSRLib.simulation.specimen import STRUCTURES

SMALL = CaseSettings(size_voxels=12, depth_mm=3.0, shift_voxels_ji=(0, 3), disease="diseased")
TWO = consecutive_cases(2, 5, SMALL)
KINDS = ("clinical", "truth", "labels", "micro", "tissue-labels")
WRONG_USE, REFUSED, RESOURCE, CANCELLED = 2, 3, 4, 130


def names(seeds, suffixes=(".nrrd",)):
    files = {f"case-{seed:06d}-{kind}{suffix}" for seed in seeds for kind in KINDS for suffix in suffixes}
    return files | {f"case-{seed:06d}-description.json" for seed in seeds} | {"manifest.json"}


def tree(folder):
    return {f.relative_to(folder): f.read_bytes() if f.is_file() else None for f in folder.rglob("*")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with two cases and their arrays, to be read only."""
    folder = tmp_path_factory.mktemp("written") / "cases"
    write_cases(folder, TWO, arrays=True)
    return folder


@pytest.fixture(scope="module")
def case():
    """The second of the two, in memory."""
    return simulate_case(SMALL, 6)


@pytest.fixture
def at_once(monkeypatch, case):
    """Make every case the one in memory: for tests of the files, not of what is in them."""
    made = []

    def simulate(settings, seed, _progress=None):
        made.append((seed, settings))
        return replace(case, settings=settings, seed=seed)

    monkeypatch.setattr(case_files, "simulate_case", simulate)
    return made


def test_a_folder_holds_all_files_of_all_cases_and_nothing_else(written):
    assert {f.name for f in written.iterdir()} == names((5, 6), (".nrrd", ".npy"))


def test_what_is_read_back_is_what_was_simulated(written, case):
    loaded = load_case(written, 6)
    assert (loaded.seed, loaded.settings) == (6, SMALL)
    pairs = [(getattr(loaded.scan, kind), getattr(case.scan, kind)) for kind in KINDS[:3]] + [
        (loaded.micro, case.micro),
        (loaded.tissue, case.tissue),
    ]
    for read, made in pairs:
        assert read.array_kji.dtype == made.array_kji.dtype
        np.testing.assert_array_equal(read.array_kji, made.array_kji)
        assert read.geometry.size_ijk == made.geometry.size_ijk
        for name in ("spacing_mm", "origin_mm", "directions"):
            np.testing.assert_allclose(getattr(read.geometry, name), getattr(made.geometry, name), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(micro_to_hu(loaded.micro), micro_to_hu(case.micro))


def test_a_description_comes_back_to_the_last_bit(written, case):
    read, made = load_case(written, 6).description, case.description
    assert (read.extent_mm, read.conditions, read.nodules) == (made.extent_mm, made.conditions, made.nodules)
    assert len(made.nodules) > 0
    for tree_name in ("airways", "arteries", "veins"):
        back, before = asdict(getattr(read, tree_name)), asdict(getattr(made, tree_name))
        assert len(before["radius_mm"]) > 0
        for name, values in before.items():
            assert back[name].dtype == values.dtype
            np.testing.assert_array_equal(back[name], values)


def test_a_description_says_what_its_numbers_are_and_empty_trees_come_back_empty(tmp_path, at_once, monkeypatch, case):
    none = case.description.airways.select(np.zeros(0, dtype=int))
    bare = replace(case, description=replace(case.description, airways=none, nodules=()))
    monkeypatch.setattr(case_files, "simulate_case", lambda settings, seed, _: replace(bare, seed=seed))
    write_cases(tmp_path, consecutive_cases(1, 0, SMALL))
    read = load_case(tmp_path, 0).description
    assert (len(read.airways), read.airways.start_mm.shape, read.nodules) == (0, (0, 3), ())
    content = json.loads((tmp_path / "case-000000-description.json").read_bytes())
    assert content["arteries"].keys() == {"start_mm", "end_mm", "radius_mm", "wall_mm", "branch", "parent"}


def test_another_reader_sees_the_voxels_and_an_unsigned_byte_label_map(written, case):
    for kind in KINDS[:3]:
        image = sitk.ReadImage(str(written / f"case-000006-{kind}.nrrd"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), getattr(case.scan, kind).array_kji)
        assert image.GetOrigin() == pytest.approx(getattr(case.scan, kind).geometry.origin_mm)
    labels = sitk.ReadImage(str(written / "case-000006-labels.nrrd"))
    assert labels.GetPixelID() == sitk.sitkUInt8
    assert labels.GetNumberOfComponentsPerPixel() == 1
    assert set(np.unique(sitk.GetArrayFromImage(labels))) <= set(map(int, Label))
    assert "2 airway lumen" in labels.GetMetaData("Labels")
    header = (written / "case-000006-labels.nrrd").read_bytes()[:200]
    assert b"space: left-posterior-superior" in header


def test_the_clinical_scan_is_read_as_ct_and_the_micro_ct_is_not(written):
    assert read_volume(written / "case-000005-clinical.nrrd").geometry.size_ijk == (11, 12, 3)
    with pytest.raises(RefusedInputError):
        read_volume(written / "case-000005-micro.nrrd")


def test_arrays_can_be_memory_mapped_and_hold_the_same_voxels(written, case):
    for kind in KINDS:
        array = np.load(written / f"case-000006-{kind}.npy", mmap_mode="r")
        assert isinstance(array, np.memmap)
        made = {"micro": case.micro, "tissue-labels": case.tissue}.get(kind) or getattr(case.scan, kind)
        np.testing.assert_array_equal(array, made.array_kji)


def test_the_manifest_tells_seeds_settings_versions_and_sums(written, case):
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["seeds"] == [5, 6]
    assert manifest["set"] is None
    assert manifest["software"].keys() >= {"ctmicrosr", "numpy"}
    assert manifest["labels"]["ARTERY"] == 4
    assert [entry["seed"] for entry in manifest["cases"]] == [5, 6]
    settings = manifest["cases"][1]["settings"]
    assert (settings["size_voxels"], settings["disease"], settings["shift_voxels_ji"]) == (12, "diseased", [0, 3])
    assert manifest["cases"][1]["micro"]["grey_per_hu"] == float(case.micro.metadata["GreyPerHU"])
    assert manifest["sha256"].keys() == names((5, 6), (".nrrd", ".npy")) - {"manifest.json"}
    for name, expected in manifest["sha256"].items():
        assert hashlib.sha256((written / name).read_bytes()).hexdigest() == expected
    assert cases_in(written) == TWO


def test_the_same_cases_are_the_same_bytes(written, tmp_path):
    write_cases(tmp_path, consecutive_cases(1, 5, SMALL))
    for name in names((5,)) - {"manifest.json"}:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_the_room_that_files_take_is_foreseen(written):
    for arrays, suffixes in ((False, (".nrrd",)), (True, (".nrrd", ".npy"))):
        taken = sum((written / name).stat().st_size for name in names((5,), suffixes) - {"manifest.json"})
        assert taken <= case_bytes(SMALL, arrays=arrays) < 2.0 * taken + 200_000


def test_a_set_is_written_with_its_name_and_read_back(tmp_path, at_once):
    chosen = case_set("shifted-1").first(3)
    write_cases(tmp_path, chosen)
    assert at_once == list(chosen.cases)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["set"] == {"name": "shifted-1", "version": 1}
    assert cases_in(tmp_path) == chosen
    assert load_case(tmp_path, 800_002).settings.disease == "diseased"


# What is not as it was


def test_verifying_finds_a_changed_byte_and_a_missing_file(written, tmp_path):
    assert verify_cases(written) == 22
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    path = copy / "case-000006-truth.nrrd"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefusedInputError, match=r"case-000006-truth\.nrrd is missing or was changed;"):
        verify_cases(copy)
    (copy / "case-000005-micro.npy").unlink()
    with pytest.raises(RefusedInputError, match=r"case-000005-micro\.npy and 1 more are missing or changed;"):
        verify_cases(copy)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"cases": 3, "set": null, "sha256": {}}',
        '{"cases": [], "set": null, "sha256": {"../../elsewhere": "00"}}',
        '{"cases": [], "set": null, "sha256": {"notes.txt": "00"}}',
        '{"cases": [{"seed": 1, "settings": {"colour": "red"}}], "set": null, "sha256": {}}',
        '{"cases": [{"seed": 1, "settings": {"pixel_mm": -1}}], "set": null, "sha256": {}}',
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RefusedInputError, match="simulate the cases again"):
        load_case(tmp_path, 1)


def test_a_damaged_or_missing_part_of_a_case_is_refused(tmp_path, at_once):
    write_cases(tmp_path, consecutive_cases(1, 5, SMALL))
    (tmp_path / "case-000005-description.json").write_text('{"seed": 5}')
    with pytest.raises(RefusedInputError, match=r"description\.json is damaged"):
        load_case(tmp_path, 5)
    (tmp_path / "case-000005-labels.nrrd").unlink()
    with pytest.raises(RefusedInputError, match=r"labels\.nrrd is missing"):
        load_case(tmp_path, 5)


def test_a_folder_without_cases_and_an_absent_seed_are_refused(tmp_path, written):
    for ask in (verify_cases, cases_in):
        with pytest.raises(UsageError, match="holds no simulated cases"):
            ask(tmp_path)
    with pytest.raises(UsageError, match="no case of seed 7; its seeds are 5, 6"):
        load_case(written, 7)


# Complete or absent


class CancellingAfter(SilentProgress):
    """Progress that is cancelled once it has been asked so many times."""

    def __init__(self, asked):
        self.left = asked

    def cancelled(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_cancelled_run_leaves_the_folder_as_it_was(tmp_path, at_once, overwrite, asked):
    folder = tmp_path / "new" / "cases"
    if overwrite:
        write_cases(folder, consecutive_cases(3, 4, SMALL))
    before = tree(tmp_path)
    with pytest.raises(CancelledError):
        write_cases(folder, TWO, overwrite=overwrite, progress=CancellingAfter(asked))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("overwrite", "moved"), [(False, 0), (False, 1), (False, 10), (True, 0), (True, 1), (True, 20)]
)
@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_interrupted_while_files_get_their_names_none_has_a_new_one(
    tmp_path, at_once, monkeypatch, overwrite, moved, trouble
):
    if overwrite:
        write_cases(tmp_path / "cases", consecutive_cases(3, 4, SMALL))
    before = tree(tmp_path)
    move, left = os.replace, [moved]

    def interrupted(source, target):
        if str(source).endswith(".part"):  # a volume inside the hidden folder
            return move(source, target)
        left[0] -= 1
        if left[0] == -1:
            raise trouble
        return move(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, ResourceError)):
        write_cases(tmp_path / "cases", TWO, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_the_manifest_is_the_first_to_go_and_the_last_to_come(tmp_path, at_once, monkeypatch):
    write_cases(tmp_path, TWO)
    moves, move = [], os.replace

    def noted(source, target):
        if not str(source).endswith(".part"):
            moves.append(os.path.basename(target))
        move(source, target)

    monkeypatch.setattr(os, "replace", noted)
    write_cases(tmp_path, TWO, overwrite=True)
    assert [n for n, name in enumerate(moves) if name == "manifest.json"] == [0, len(moves) - 1]


@pytest.mark.parametrize("number", [0, 2, 3, 14, 32])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, at_once, monkeypatch, number):
    flush, left = os.fsync, [number]

    def full(file):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"space[^.]*\S\.$"):
        write_cases(tmp_path / "cases", TWO, arrays=True)
    assert tree(tmp_path) == {}


def test_what_a_killed_run_left_goes_with_the_next(tmp_path, at_once):
    dead = tmp_path / f".simulate.{2**22 + 5}.part"
    dead.mkdir()
    (dead / "case-000005-truth.nrrd").write_text("half")
    write_cases(tmp_path, TWO)
    assert {f.name for f in tmp_path.iterdir()} == names((5, 6))


def test_overwriting_replaces_the_cases_and_leaves_other_files_alone(tmp_path, at_once):
    write_cases(tmp_path, consecutive_cases(2, 4, SMALL), arrays=True)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "case-000099-truth.nrrd").write_text("from elsewhere")
    write_cases(tmp_path, consecutive_cases(1, 5, SMALL), overwrite=True)
    assert {f.name for f in tmp_path.iterdir()} == names((5,)) | {"notes.txt", "case-000099-truth.nrrd"}
    assert verify_cases(tmp_path) == 6


def test_files_that_exist_are_not_replaced_unasked(tmp_path, at_once):
    (tmp_path / "case-000006-labels.nrrd").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write_cases(tmp_path, TWO)
    assert not at_once
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="holds simulated cases already"):
        write_cases(tmp_path, TWO)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, at_once):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="can't be made"):
        write_cases(tmp_path / "file" / "cases", TWO)


def test_too_small_a_disk_is_refused_before_any_work(tmp_path, at_once, monkeypatch):
    free = namedtuple("Usage", "free")(case_bytes(SMALL, arrays=False))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    write_cases(tmp_path / "one", consecutive_cases(1, 5, SMALL))
    with pytest.raises(ResourceError, match=r"need .* GB but .* GB is free"):
        write_cases(tmp_path / "two", TWO)
    assert (len(at_once), (tmp_path / "two").exists()) == (1, False)


def test_a_specimen_that_memory_does_not_hold_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("CTMicroSRLib.simulation.specimen.psutil.virtual_memory", lambda: SimpleNamespace(available=9))
    with pytest.raises(ResourceError, match=r"memory.*; make it smaller"):
        write_cases(tmp_path / "cases", TWO)
    assert tree(tmp_path) == {}


# The command


@pytest.fixture
def asked_for(monkeypatch):
    """What the command would write."""
    asked = []

    def write(folder, cases, *, arrays, overwrite, progress):
        asked.append((folder, cases, arrays, overwrite))
        return []

    monkeypatch.setattr(case_files, "write_cases", write)
    return asked


def test_options_become_settings(ctmicrosr, asked_for, tmp_path):
    options = ("--pixel-mm", "0.7", "--kernel", "bone", "--slice-mm", "2", "--slice-spacing-mm", "1", "--noise-hu", "9")
    options += ("--size-voxels", "40", "--depth-mm", "5", "--disease", "healthy", "--count", "2", "--seed", "8")
    options += ("--without", "ground-glass", "--without", "airways", "--arrays", "--overwrite")
    assert ctmicrosr("simulate", tmp_path / "s", *options).status == 0
    settings = CaseSettings(
        pixel_mm=0.7,
        kernel="bone",
        slice_mm=2.0,
        slice_spacing_mm=1.0,
        noise_hu=9.0,
        size_voxels=40,
        depth_mm=5.0,
        disease="healthy",
        without=("airways", "ground glass"),
    )
    assert asked_for == [(tmp_path / "s", consecutive_cases(2, 8, settings), True, True)]


def test_no_options_are_one_default_case_and_a_set_is_all_or_the_first_of_it(ctmicrosr, asked_for, tmp_path):
    assert ctmicrosr("simulate", tmp_path).status == 0
    assert ctmicrosr("simulate", tmp_path, "--psf-fwhm-mm", "1.5").status == 0
    assert ctmicrosr("simulate", tmp_path, "--set", "test-1").status == 0
    assert ctmicrosr("simulate", tmp_path, "--set", "shifted-1", "--count", "2").status == 0
    own = [consecutive_cases(1, 0, settings) for settings in (CaseSettings(), CaseSettings(psf_fwhm_mm=1.5))]
    assert [asked[1] for asked in asked_for] == [*own, case_set("test-1"), case_set("shifted-1").first(2)]


def test_the_help_names_every_kernel_set_and_structure(ctmicrosr):
    text = " ".join(ctmicrosr("simulate", "--help").stdout.split())
    for name in (*SETS, *KERNELS, *STRUCTURES, "usual", "healthy", "diseased"):
        assert re.search(rf"\b{name.replace(' ', '[ -] ?')}\b", text), name


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--set", "test-9"), "no set 'test-9'.*test-1"),
        (("--set", "test-1", "--count", "25"), "1 to 24"),
        (("--set", "test-1", "--pixel-mm", "0.6"), "leave out --pixel-mm"),
        (("--set", "test-1", "--seed", "3"), "leave out --seed"),
        (("--set", "test-1", "--without", "airways"), "leave out --without"),
        (("--kernel", "bone", "--psf-fwhm-mm", "1"), "--psf-fwhm-mm or --kernel"),
        (("--kernel", "ultra"), "no kernel"),
        (("--without", "gills"), "no structure 'gills'"),
        (("--disease", "plague"), "no disease"),
        (("--slice-mm", "0.5", "--pixel-mm", "2"), "thinner than the specimen's planes"),
        (("--depth-mm", "-1"), "depth"),
        (("--size-voxels", "-64"), "8 to 256"),
        (("--slice-spacing-mm", "9"), "spacing"),
        (("--count", "0"), "count"),
        (("--verify", "--count", "3"), "--verify only looks"),
        (("--verify", "--overwrite"), "--verify only looks"),
        (("--verify",), "holds no simulated cases"),
    ],
)
def test_wrong_use_is_one_line_and_makes_nothing(ctmicrosr, tmp_path, options, match):
    outcome = ctmicrosr("simulate", tmp_path / "new", *options)
    assert (outcome.status, outcome.stdout) == (WRONG_USE, "")
    assert re.fullmatch(r"ctmicrosr: [^\n]*[^\n.]\.\n", outcome.stderr)
    assert re.search(match, outcome.stderr), outcome.stderr
    assert tree(tmp_path) == {}


def test_too_little_memory_and_a_changed_file_have_their_own_exit_status(ctmicrosr, tmp_path, monkeypatch, at_once):
    assert ctmicrosr("simulate", tmp_path / "s", "--size-voxels", "12", "--depth-mm", "3").status == 0
    verified = ctmicrosr("simulate", tmp_path / "s", "--verify", "--progress", "json")
    assert json.loads(verified.stdout.splitlines()[-1]) == {"event": "done", "verified": 6}
    (tmp_path / "s" / "case-000000-truth.nrrd").write_bytes(b"")
    changed = ctmicrosr("simulate", tmp_path / "s", "--verify")
    assert changed.status == REFUSED
    assert re.fullmatch(r"ctmicrosr: [^\n]*case-000000-truth\.nrrd[^\n]*[^\n.]\.\n", changed.stderr)
    monkeypatch.setattr("CTMicroSRLib.simulation.specimen.psutil.virtual_memory", lambda: SimpleNamespace(available=9))
    monkeypatch.setattr(case_files, "simulate_case", simulate_case)
    refused = ctmicrosr("simulate", tmp_path / "big", "--size-voxels", "12", "--depth-mm", "3")
    assert refused.status == RESOURCE
    assert re.fullmatch(r"ctmicrosr: [^\n]* make it smaller[^\n]*\.\n", refused.stderr)


def test_ctrl_c_leaves_nothing(ctmicrosr, tmp_path, monkeypatch, at_once, case):
    def interrupted(settings, seed, _progress):
        if seed == 1:
            raise KeyboardInterrupt
        return replace(case, settings=settings, seed=seed)

    monkeypatch.setattr(case_files, "simulate_case", interrupted)
    outcome = ctmicrosr("simulate", tmp_path / "a" / "b", "--count", "3", "--size-voxels", "12", "--depth-mm", "3")
    assert (outcome.status, outcome.stderr) == (CANCELLED, "ctmicrosr: Cancelled; no output was written.\n")
    assert tree(tmp_path) == {}


def test_a_figure_shows_the_first_case(ctmicrosr, tmp_path, at_once):
    arguments = ("simulate", tmp_path / "s", "--size-voxels", "12", "--depth-mm", "3")
    assert ctmicrosr(*arguments, "--figure", tmp_path / "case.pdf").status == 2
    assert not (tmp_path / "s").exists()
    assert ctmicrosr(*arguments, "--figure", tmp_path / "case.png").status == 0
    assert (tmp_path / "case.png").read_bytes()[:4] == b"\x89PNG"
