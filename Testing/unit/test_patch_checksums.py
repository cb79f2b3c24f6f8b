"""Damage inside stored patches: noticed before a run trains on them, whichever array and byte it is in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from CTMicroSRLib.errors import CancelledError, RefusedInputError
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.training import patches as patches_module
from CTMicroSRLib.training.patch_writing import CasePatches, writing_patches
from CTMicroSRLib.training.patches import ARRAYS, PatchSettings, open_patches, patch_layout, verify_patches

SETTINGS = PatchSettings(patch_voxels=8, scale=2, patches_per_case=3)


@pytest.fixture
def folder(tmp_path):
    """Patches of one case of either domain, as a simulation writes them."""
    rng = np.random.default_rng(0)
    coarse, fine, truth = (rng.integers(-9, 9, (3, n, n), dtype=np.int16) for n in (8, 16, 16))
    places = np.zeros((3, 4), np.int32)
    with writing_patches(tmp_path / "patches", SETTINGS, {}, clinical=3, micro=3, simulated=True) as writer:
        writer.add("clinical", CasePatches(coarse, places, {}, truth=truth, scanner=np.ones((3, 2), np.float32)))
        writer.add("micro", CasePatches(fine, places, {}))
    return tmp_path / "patches"


def test_every_array_is_looked_at(folder):
    assert set(ARRAYS) == set(patch_layout(SETTINGS, 1, 1, paired=True))
    verify_patches(open_patches(folder), SilentProgress())


@pytest.mark.parametrize("name", ["clinical", "micro", "truth", "scanner", "micro_place"])
@pytest.mark.parametrize("rows_at_once", [1, 1 << 24])
def test_a_changed_byte_is_refused_and_its_file_named(folder, monkeypatch, name, rows_at_once):
    monkeypatch.setattr(patches_module, "BYTES_AT_ONCE", rows_at_once)
    verify_patches(open_patches(folder), SilentProgress())
    path = folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    opened = open_patches(folder)  # nothing is to be seen of it from outside
    with pytest.raises(RefusedInputError, match=rf"{name}\.npy is not what was written .*; the patches are .*\.$"):
        verify_patches(opened, SilentProgress())


def test_patches_from_before_checksums_are_taken_and_said_to_be(folder, caplog):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["crc32"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    verify_patches(open_patches(folder), SilentProgress())
    assert "from before patches had checksums, so that damage in them can't be noticed" in caplog.text


def test_looking_can_be_cancelled(folder):
    class Cancelled(SilentProgress):
        def cancelled(self):
            return True

    with pytest.raises(CancelledError):
        verify_patches(open_patches(folder), Cancelled())


def test_a_run_does_not_train_on_damaged_patches(ctmicrosr, folder, tmp_path):
    path = folder / "truth.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    small = ("--scale", 2, "--batch", 1, "--steps", 1, "--set", "channels=2", "--set", "depth=1", "--device", "cpu")
    outcome = ctmicrosr("train", "unet", "--output", tmp_path / "run", "--patches", folder, *small)
    assert outcome.status == 3
    assert "truth.npy is not what was written" in outcome.stderr
    assert not (tmp_path / "run").exists()
