"""Patches of scans: what is cut, from where, in which form it is kept, and what is refused without leaving a trace."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from CTMicroSRLib.errors import CancelledError, RefusedInputError, ResourceError, UsageError
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.training import patch_sources
from CTMicroSRLib.training.patch_places import block_shares, draw_places, patch_shares
from CTMicroSRLib.training.patch_sources import patches_from_volumes, specimen_mask
from CTMicroSRLib.training.patches import PatchSettings, from_stored, open_patches, to_stored
from CTMicroSRLib.volume import Geometry, Volume

SETTINGS = PatchSettings(patch_voxels=8, scale=4, patches_per_case=30, seed=3)
CLINICAL_SHAPE, MICRO_SHAPE = (5, 30, 36), (4, 70, 90)


def write(path, array, spacing_mm=(0.8, 0.8, 1.5)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm)
    sitk.WriteImage(image, str(path))
    return path


def clinical_array(seed):
    rng = np.random.default_rng(seed)
    array = rng.normal(-800, 120, CLINICAL_SHAPE)
    array[:, :, :6] = rng.normal(40, 20, CLINICAL_SHAPE)[:, :, :6]
    array[2, 10, 10], array[3, 12, 20] = 2900, -1020
    return np.rint(array).astype(np.int16)


def micro_array(seed):
    """A disc of tissue with pores in air."""
    rng = np.random.default_rng(seed)
    _, j, i = np.indices(MICRO_SHAPE)
    disc = np.hypot(j - 35, i - 45) < 32
    grey = 1000 + disc * (rng.random(MICRO_SHAPE) < 0.5) * 5000 + rng.normal(0, 200, MICRO_SHAPE)
    return np.rint(grey).clip(0).astype(np.uint16)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two clinical scans with masks, and two micro-CTs."""
    folder = tmp_path_factory.mktemp("scans")
    lungs = np.zeros(CLINICAL_SHAPE, np.uint8)
    lungs[1:4, 3:28, 8:34] = 1
    return {
        "clinical": [write(folder / f"ct{n}.nrrd", clinical_array(n)) for n in range(2)],
        "micro": [write(folder / f"micro{n}.nrrd", micro_array(n), (0.2, 0.2, 0.2)) for n in range(2)],
        "clinical_masks": [write(folder / f"lungs{n}.nrrd", lungs) for n in range(2)],
    }


@pytest.fixture(scope="module")
def patches(scans, tmp_path_factory):
    return patches_from_volumes(tmp_path_factory.mktemp("made") / "patches", settings=SETTINGS, **scans)


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_every_patch_is_the_windowed_voxels_at_its_recorded_place(patches, scans):
    for side, edge, half, low in (("clinical", 8, 1750.0, -1000.0), ("micro", 32, 7500.0, 0.0)):
        stored, cases, places = (getattr(patches, name) for name in (side, f"{side}_case", f"{side}_place"))
        assert stored.shape == (60, edge, edge)
        arrays = {str(path): read(path).astype(float) for path in scans[side]}
        for patch, case, (scan, k, row, column) in zip(stored, cases, places, strict=True):
            assert scan == 0
            voxels = arrays[patches.sources[case]["file"]][k, row : row + edge, column : column + edge]
            normalised = (np.clip(voxels, low, low + 2 * half) - low) / half - 1.0
            np.testing.assert_array_equal(patch, np.rint(normalised * 32767))


def test_clinical_patches_lie_half_in_the_mask_and_on_its_slices(patches, scans):
    lungs = read(scans["clinical_masks"][0])
    shares = [lungs[k, j : j + 8, i : i + 8].mean() for _, k, j, i in patches.clinical_place]
    assert min(shares) >= 0.5
    assert set(patches.clinical_place[:, 1]) == {1, 2, 3}


def test_micro_patches_lie_nine_tenths_in_the_specimen(scans, tmp_path):
    disc = np.zeros(MICRO_SHAPE, np.uint8)
    _, j, i = np.indices(MICRO_SHAPE)
    disc[np.hypot(j - 35, i - 45) < 28] = 1
    masks = [write(tmp_path / f"disc{n}.nrrd", disc, (0.2, 0.2, 0.2)) for n in range(2)]
    patches = patches_from_volumes(tmp_path / "p", settings=SETTINGS, micro_masks=masks, **scans)
    assert min(disc[k, j : j + 32, i : i + 32].mean() for _, k, j, i in patches.micro_place) >= 0.9
    assert (patches.micro_place[:, 2:] % SETTINGS.scale == 0).all()


def test_each_scan_gives_as_many_patches(patches):
    assert np.bincount(patches.clinical_case, minlength=4).tolist() == [30, 30, 0, 0]
    assert np.bincount(patches.micro_case, minlength=4).tolist() == [0, 0, 30, 30]
    assert [source["domain"] for source in patches.sources] == ["clinical"] * 2 + ["micro"] * 2


def test_no_source_is_in_both_domains(patches):
    assert not set(patches.clinical_case.tolist()) & set(patches.micro_case.tolist())
    assert not patches.simulated
    assert patches.truth is None
    assert patches.scanner is None


def test_patches_are_mapped_and_not_loaded(patches):
    opened = open_patches(patches.folder)
    for name in ("clinical", "micro"):
        array = getattr(opened, name)
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        assert array.dtype == np.int16
    assert opened.settings == SETTINGS


def test_training_reads_patches_with_numpy_and_torch_alone(patches, repository):
    script = f"""
import sys
from pathlib import Path
for name in ("SimpleITK", "skimage", "scipy", "psutil", "tqdm", "safetensors", "matplotlib"):
    sys.modules[name] = None
from CTMicroSRLib.training.batches import Batches
from CTMicroSRLib.training.patches import open_patches
batch = Batches(open_patches(Path({str(patches.folder)!r})), 2, 1).at(0)
print(tuple(batch.clinical.shape), tuple(batch.micro.shape))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 1, 8, 8) (2, 1, 32, 32)\n", done.stderr


def test_stored_values_come_back_within_their_rounding():
    values = np.linspace(-1.0, 1.0, 1001, dtype=np.float32)
    assert to_stored(values)[[0, 500, 1000]].tolist() == [-32767, 0, 32767]
    assert np.abs(from_stored(to_stored(values)) - values).max() <= 0.5 / 32767 + 1e-7


def test_the_same_scans_and_settings_are_not_cut_again(patches, scans, monkeypatch):
    monkeypatch.setattr(patch_sources, "read_volume", lambda path: pytest.fail("it was read again"))
    again = patches_from_volumes(patches.folder, settings=SETTINGS, **scans)
    np.testing.assert_array_equal(again.micro, patches.micro)


def test_the_same_seed_cuts_the_same_patches_and_another_does_not(patches, scans, tmp_path):
    same = patches_from_volumes(tmp_path / "same", settings=SETTINGS, **scans)
    other = patches_from_volumes(tmp_path / "other", settings=replace(SETTINGS, seed=4), **scans)
    np.testing.assert_array_equal(same.clinical, patches.clinical)
    assert not np.array_equal(other.clinical_place, patches.clinical_place)


def test_a_folder_of_other_patches_is_refused(patches, scans):
    with pytest.raises(UsageError, match="other scans or settings"):
        patches_from_volumes(patches.folder, settings=replace(SETTINGS, seed=9), **scans)


def test_a_folder_with_something_else_is_refused(scans, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        patches_from_volumes(tmp_path, settings=SETTINGS, **scans)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_scan_in_both_domains_is_refused(scans, tmp_path):
    with pytest.raises(UsageError, match="in both domains"):
        patches_from_volumes(tmp_path / "p", scans["clinical"], [scans["clinical"][0]], SETTINGS)


def test_a_copy_in_another_format_is_still_the_same_scan(scans, tmp_path):
    copy = write(tmp_path / "copy.mha", read(scans["clinical"][0]).astype(np.float32))
    settings = replace(SETTINGS, scale=2, patch_voxels=8)
    masks = scans["clinical_masks"][:1]
    with pytest.raises(UsageError, match="same scan in both domains"):
        patches_from_volumes(
            tmp_path / "p", scans["clinical"][:1], [copy], settings, clinical_masks=masks, micro_masks=None
        )
    assert [path.name for path in tmp_path.iterdir()] == ["copy.mha"]


def test_a_scan_given_twice_is_refused(scans, tmp_path):
    with pytest.raises(UsageError, match="given twice"):
        patches_from_volumes(tmp_path / "p", scans["clinical"], scans["micro"][:1] * 2, SETTINGS)


@pytest.mark.parametrize("missing", ["clinical", "micro"])
def test_one_domain_alone_is_refused(scans, tmp_path, missing):
    given = {**scans, missing: []}
    with pytest.raises(UsageError, match=f"add --{missing}"):
        patches_from_volumes(tmp_path / "p", given["clinical"], given["micro"], SETTINGS)


def refused(tmp_path, scans, settings=SETTINGS, **changed):
    """What the refusal says; nothing must be left."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((UsageError, RefusedInputError)) as caught:
        patches_from_volumes(tmp_path / "new" / "patches", settings=settings, **{**scans, **changed})
    assert sorted(tmp_path.rglob("*")) == before
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_an_empty_mask_is_refused(scans, tmp_path):
    empty = write(tmp_path / "empty.nrrd", np.zeros(CLINICAL_SHAPE, np.uint8))
    assert "empty" in refused(tmp_path, scans, clinical_masks=[scans["clinical_masks"][0], empty])


def test_masks_that_are_fewer_than_the_scans_are_refused(scans, tmp_path):
    assert "2 clinical scans and 1 masks" in refused(tmp_path, scans, clinical_masks=scans["clinical_masks"][:1])


def test_a_missing_file_is_refused(scans, tmp_path):
    assert "gone.nrrd" in refused(tmp_path, scans, micro=[tmp_path / "gone.nrrd"])


def test_a_window_that_leaves_nothing_of_a_scan_is_refused(scans, tmp_path):
    message = refused(tmp_path, scans, replace(SETTINGS, micro_window=(20000.0, 30000.0)))
    assert "20000 to 30000" in message
    assert "micro0.nrrd" in message
    message = refused(tmp_path, scans, replace(SETTINGS, clinical_window=(3000.0, 4000.0)))
    assert "--clinical-window" in message


def test_a_scan_that_is_constant_within_the_window_is_refused(scans, tmp_path):
    array = clinical_array(7)
    array[1:4, 3:28, 8:34] = -700
    flat = write(tmp_path / "flat.nrrd", array)
    assert "-700 to -700" in refused(tmp_path, scans, clinical=[scans["clinical"][0], flat])


def test_a_micro_ct_smaller_than_a_patch_is_refused(scans, tmp_path):
    assert "smaller than a patch of 80 x 80" in refused(
        tmp_path, scans, replace(SETTINGS, patch_voxels=20, least_lung_share=0.1)
    )


def test_a_micro_ct_of_one_value_is_refused(scans, tmp_path):
    flat = write(tmp_path / "flat.nrrd", np.full(MICRO_SHAPE, 5, np.uint16))
    assert "All voxels" in refused(tmp_path, scans, micro=[flat])


def test_a_micro_ct_with_nan_is_refused(scans, tmp_path):
    array = micro_array(5).astype(np.float32)
    array[2, 3, 4] = np.nan
    assert "NaN" in refused(tmp_path, scans, micro=[write(tmp_path / "nan.nrrd", array)])


def test_a_mask_smaller_than_a_patch_is_refused(scans, tmp_path):
    mask = np.zeros(CLINICAL_SHAPE, np.uint8)
    mask[2, 5:9, 5:9] = 1
    small = write(tmp_path / "small.nrrd", mask)
    assert "no place" in refused(tmp_path, scans, clinical_masks=[small, small])


def test_clinical_ct_without_lungs_is_refused_by_its_name(scans, tmp_path):
    array = np.full((12, 60, 60), -1000, np.int16)
    array[:, 8:52, 8:52] = np.random.default_rng(0).normal(40, 10, (12, 44, 44))
    leg = write(tmp_path / "leg.nrrd", array, (3.0, 3.0, 3.0))
    assert "leg.nrrd: no lungs" in refused(tmp_path, scans, clinical=[leg], clinical_masks=None)


@pytest.mark.parametrize(
    "changed",
    [
        {"patch_voxels": 0},
        {"patch_voxels": -32},
        {"patch_voxels": 8.5},
        {"scale": 1},
        {"patches_per_case": 0},
        {"patches_per_case": -5},
        {"seed": -1},
        {"clinical_window": (500.0, -1000.0)},
        {"micro_window": (0.0, float("inf"))},
        {"least_lung_share": 0.0},
        {"least_lung_share": 1.5},
        {"least_specimen_share": 0.0},
    ],
)
def test_impossible_settings_are_refused(changed):
    with pytest.raises(UsageError):
        PatchSettings(**changed)


def test_a_micro_ct_of_another_scale_is_only_warned_of(scans, tmp_path, caplog):
    coarse = write(tmp_path / "coarse.nrrd", micro_array(5), (0.9, 0.9, 0.9))
    with caplog.at_level(logging.WARNING):
        patches_from_volumes(tmp_path / "p", settings=SETTINGS, **{**scans, "micro": [coarse]})
    assert "voxels of 0.9 mm" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        patches_from_volumes(tmp_path / "q", settings=SETTINGS, **scans)
    assert caplog.text == ""


def test_few_places_are_taken_more_than_once_with_a_warning(scans, tmp_path, caplog):
    mask = np.zeros(CLINICAL_SHAPE, np.uint8)
    mask[2, 5:13, 10:18] = 1
    exact = write(tmp_path / "exact.nrrd", mask)
    with caplog.at_level(logging.WARNING):
        patches = patches_from_volumes(
            tmp_path / "p",
            settings=replace(SETTINGS, least_lung_share=1.0),
            **{**scans, "clinical_masks": [exact, exact]},
        )
    assert {tuple(place) for place in patches.clinical_place.tolist()} == {(0, 2, 5, 10)}
    assert "only 1 places" in caplog.text


def test_a_cancelled_run_leaves_nothing(scans, tmp_path):
    class Cancelled(SilentProgress):
        stages = 0

        def update(self, stage, done, total):
            self.stages += 1

        def cancelled(self):
            return self.stages > 2

    with pytest.raises(CancelledError):
        patches_from_volumes(tmp_path / "new" / "p", settings=SETTINGS, progress=Cancelled(), **scans)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="file sizes are limited on POSIX only")
def test_a_disk_that_fills_up_is_told_and_leaves_nothing(scans, tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(ResourceError, match="can't be written"):
            patches_from_volumes(tmp_path / "new" / "p", settings=SETTINGS, **scans)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_too_little_free_space_is_told_before_anything_is_read(scans, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("CTMicroSRLib.training.patch_writing.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr(patch_sources, "read_volume", lambda path: pytest.fail("it was read"))
    with pytest.raises(ResourceError, match="GB is free"):
        patches_from_volumes(tmp_path / "p", settings=SETTINGS, **scans)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next(scans, tmp_path):
    stale = tmp_path / ".p.999999999.part"
    stale.mkdir()
    (stale / "micro.npy").write_bytes(b"half")
    patches_from_volumes(tmp_path / "p", settings=SETTINGS, **scans)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.fixture
def copied(patches, tmp_path):
    """A copy of the patches to damage."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for path in patches.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def truncate(folder):
    path = folder / "micro.npy"
    path.write_bytes(path.read_bytes()[:-100])


def remove(folder):
    (folder / "clinical_case.npy").unlink()


def reshape(folder):
    np.save(folder / "clinical.npy", np.zeros((60, 9, 9), np.int16))


def retype(folder):
    np.save(folder / "clinical.npy", np.zeros((60, 8, 8), np.float32))


def scribble(folder):
    (folder / "clinical.npy").write_bytes(b"not an array")


def break_manifest(folder):
    (folder / "manifest.json").write_text("{")


def change_settings(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"]["scale"] = 0
    (folder / "manifest.json").write_text(json.dumps(manifest))


def another_version(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))


def pair(folder):
    np.save(folder / "micro_case.npy", np.zeros(60, np.int32))


def unknown_case(folder):
    np.save(folder / "micro_case.npy", np.full(60, 77, np.int32))


@pytest.mark.parametrize(
    "damage",
    [truncate, remove, reshape, retype, scribble, break_manifest, change_settings, another_version, pair, unknown_case],
)
def test_damaged_patches_are_refused_in_one_sentence(copied, damage):
    open_patches(copied)
    damage(copied)
    with pytest.raises(RefusedInputError) as caught:
        open_patches(copied)
    assert str(copied) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_patches_is_told(tmp_path):
    with pytest.raises(UsageError, match="holds no patches"):
        open_patches(tmp_path)


@given(
    rows=st.integers(3, 12),
    columns=st.integers(3, 12),
    size=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_shares_are_the_means_of_all_patches(rows, columns, size, seed):
    inside = np.random.default_rng(seed).random((rows, columns)) < 0.5
    shares = patch_shares(inside, size)
    if min(rows, columns) < size:
        assert shares.size == 0
        return
    windows = np.lib.stride_tricks.sliding_window_view(inside, (size, size))
    np.testing.assert_allclose(shares, windows.mean(axis=(2, 3)), atol=1e-12)


def test_drawing_all_places_draws_each_once():
    inside = np.random.default_rng(0).random((3, 9, 11)) < 0.6
    windows = np.lib.stride_tricks.sliding_window_view(inside, (4, 4), axis=(1, 2)).mean(axis=(3, 4))
    possible = np.argwhere(windows >= 0.5)
    places, total = draw_places(np.random.default_rng(1), inside, 4, len(possible), 0.5)
    assert total == len(possible)
    np.testing.assert_array_equal(places, possible)


def test_every_place_is_as_likely_as_any_other():
    inside = np.ones((2, 6, 5), bool)
    places, total = draw_places(np.random.default_rng(1), inside, 4, 24_000, 1.0)
    assert total == 12
    _, counts = np.unique(places, axis=0, return_counts=True)
    # 12 places, 2000 expected each, standard deviation 43
    assert len(counts) == 12
    assert np.abs(counts - 2000).max() < 5 * 43


def test_blocks_are_means_and_the_rest_is_cut_off():
    plane = np.arange(5 * 7).reshape(5, 7) % 2 == 0
    np.testing.assert_allclose(block_shares(plane, 2), np.full((2, 3), 0.5))


def test_the_specimen_is_the_disc_and_not_the_air_around_it():
    array = micro_array(3)
    inside = specimen_mask(Volume(array, Geometry(MICRO_SHAPE[::-1], (0.2, 0.2, 0.2))), 4, 8)
    _, j, i = np.indices(MICRO_SHAPE)
    radius = np.hypot(j - 35, i - 45)
    assert inside[radius < 26].all()
    assert not inside[radius > 40].any()


def test_micro_patches_show_tissue(patches):
    grey = (from_stored(patches.micro[:]) + 1.0) * 7500.0
    assert np.quantile(grey, 0.9, axis=(1, 2)).min() > 4000.0


def test_the_threshold_is_otsus():
    array = micro_array(3)
    ours = patch_sources._otsu_threshold(array)
    theirs = float(threshold_otsu(array, nbins=4096))
    # any value between the two classes is as good
    assert np.mean((array > ours) != (array > theirs)) < 1e-3


def test_a_file_that_was_changed_since_is_another_scan(scans, tmp_path):
    clinical = write(tmp_path / "ct.nrrd", clinical_array(8))
    given = {**scans, "clinical": [clinical], "clinical_masks": scans["clinical_masks"][:1]}
    patches_from_volumes(tmp_path / "p", settings=SETTINGS, **given)
    write(Path(clinical), clinical_array(9))
    with pytest.raises(UsageError, match="other scans or settings"):
        patches_from_volumes(tmp_path / "p", settings=SETTINGS, **given)
