"""Batches of patches: repeatable, the same for any number of processes, turned alike, unpaired unless asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.training.batches import Batches
from CTMicroSRLib.training.patches import Patches, PatchSettings

P, SCALE = 8, 4
ALL = ("clinical", "micro", "truth")


def patches_of(count=40, micro_count=50, *, paired=True):
    """Patches whose truth is the clinical patch with every voxel repeated, and whose corner tells their number."""
    rng = np.random.default_rng(0)
    clinical = rng.integers(-30000, 30000, (count, P, P)).astype(np.int16)
    micro = rng.integers(-30000, 30000, (micro_count, P * SCALE, P * SCALE)).astype(np.int16)
    scanner = np.stack([np.arange(count), 100.0 + np.arange(count)], axis=1).astype(np.float32)
    return Patches(
        Path("nowhere"),
        PatchSettings(patch_voxels=P, scale=SCALE),
        simulated=paired,
        sources=({}, {}),
        clinical=clinical,
        clinical_case=np.zeros(count, np.int32),
        clinical_place=np.zeros((count, 4), np.int32),
        micro=micro,
        micro_case=np.ones(micro_count, np.int32),
        micro_place=np.zeros((micro_count, 4), np.int32),
        truth=clinical.repeat(SCALE, axis=1).repeat(SCALE, axis=2) if paired else None,
        scanner=scanner if paired else None,
    )


@pytest.fixture(scope="module")
def patches():
    return patches_of()


def equal(first, second):
    return all(
        torch.equal(getattr(first, name).nan_to_num(7.0), getattr(second, name).nan_to_num(7.0))
        for name in ("clinical", "micro", "truth", "psf_fwhm_voxels", "noise_hu")
    )


def keys(images):
    """What identifies a patch however it is turned: its sorted voxels."""
    return [tuple(sorted(np.rint(image.numpy().ravel() * 32767).astype(int).tolist())[:20]) for image in images]


def test_shapes_types_and_range(patches):
    batch = Batches(patches, 6, 1, ALL).at(0)
    assert batch.clinical.shape == (6, 1, P, P)
    assert batch.micro.shape == batch.truth.shape == (6, 1, P * SCALE, P * SCALE)
    assert batch.psf_fwhm_voxels.shape == batch.noise_hu.shape == (6,)
    for image in (batch.clinical, batch.micro, batch.truth):
        assert image.dtype == torch.float32
        assert image.abs().max() <= 1.0


@pytest.mark.parametrize("mix_ratio", [0.0, 0.4])
@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_the_batch_of_one(patches, processes, mix_ratio):
    batches = Batches(patches, 6, 5, ALL, mix_ratio)
    whole = batches.at(11)
    parts = [batches.at(11, process, processes) for process in range(processes)]
    joined = type(whole)(
        **{
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("clinical", "micro", "truth", "psf_fwhm_voxels", "noise_hu")
        }
    )
    assert equal(joined, whole)


def test_a_step_has_the_same_batch_again_and_another_step_another(patches):
    assert equal(Batches(patches, 4, 1, ALL).at(7), Batches(patches, 4, 1, ALL).at(7))
    assert not torch.equal(Batches(patches, 4, 1).at(7).clinical, Batches(patches, 4, 1).at(8).clinical)
    assert not torch.equal(Batches(patches, 4, 1).at(7).clinical, Batches(patches, 4, 2).at(7).clinical)


def test_a_clinical_patch_and_its_truth_are_turned_alike(patches):
    for step in range(10):
        batch = Batches(patches, 8, 1, ALL).at(step)
        shrunk = torch.nn.functional.avg_pool2d(batch.truth, SCALE)
        torch.testing.assert_close(batch.clinical, shrunk, atol=1e-5, rtol=0)


def test_all_eight_turns_come_up(patches):
    original = torch.from_numpy(patches.clinical[0].astype(np.float32) / 32767)
    turns = {
        (turn, mirrored): torch.rot90(original.flip(1) if mirrored else original, turn)
        for turn in range(4)
        for mirrored in (False, True)
    }
    one = patches_of(1)
    one = type(one)(**{**vars(one), "clinical": patches.clinical[:1]})
    seen = set()
    for step in range(100):
        image = Batches(one, 1, 3).at(step).clinical[0, 0]
        seen.update(name for name, turned in turns.items() if torch.allclose(turned, image))
    assert len(seen) == 8


def test_scanner_values_belong_to_their_patch(patches):
    batch = Batches(patches, 10, 2, ALL).at(3)
    known = keys(torch.from_numpy(patches.clinical.astype(np.float32) / 32767))
    for key, psf, noise in zip(keys(batch.clinical), batch.psf_fwhm_voxels, batch.noise_hu, strict=True):
        assert known[int(psf)] == key
        assert noise == 100.0 + psf


def test_no_patch_is_twice_in_a_batch_while_there_are_enough(patches):
    for step in range(20):
        batch = Batches(patches, 40, 1).at(step)
        assert len(set(keys(batch.clinical))) == 40
        assert len(set(keys(batch.micro))) == 40


def test_a_batch_may_be_larger_than_the_number_of_patches():
    batch = Batches(patches_of(3, 5), 8, 1).at(0)
    assert len(batch.clinical) == len(batch.micro) == 8
    assert len(set(keys(batch.clinical))) <= 3


def test_clinical_and_micro_patches_are_drawn_independently():
    """Over 400 slots of 20 x 20 numbers, the same number comes up by chance in 5 % of them, not more."""
    patches = patches_of(20, 20)
    fine, coarse = (
        {key: n for n, key in enumerate(keys(_images(images)))} for images in (patches.micro, patches.clinical)
    )
    same = 0
    for step in range(40):
        batch = Batches(patches, 10, 1).at(step)
        pairs = zip(keys(batch.clinical), keys(batch.micro), strict=True)
        same += sum(coarse[c] == fine[m] for c, m in pairs)
    assert 5 <= same <= 40


def _images(stored):
    return torch.from_numpy(stored.astype(np.float32) / 32767)


def test_mixed_slots_have_the_ratio_asked_for_and_the_block_means_of_their_own_micro_ct(patches):
    batches = Batches(patches, 20, 1, ALL, mix_ratio=0.25)
    mixed = 0
    for step in range(50):
        batch = batches.at(step)
        shrunk = torch.nn.functional.avg_pool2d(batch.micro, SCALE)
        own = (batch.clinical - shrunk).abs().amax(dim=(1, 2, 3)) < 1e-5
        mixed += int(own.sum())
        assert torch.equal(batch.psf_fwhm_voxels.isnan(), own)
        assert torch.equal(batch.noise_hu.isnan(), own)
        assert torch.equal(batch.truth[own], batch.micro[own])
    # 1000 slots, 250 expected, standard deviation 14
    assert abs(mixed - 250) < 5 * 14


def test_mixing_is_off_unless_asked_for(patches):
    for step in range(30):
        batch = Batches(patches, 20, 1, ALL).at(step)
        assert not batch.psf_fwhm_voxels.isnan().any()


def test_mixing_changes_no_other_slot(patches):
    plain, mixed = (Batches(patches, 20, 1, ALL, ratio).at(4) for ratio in (0.0, 0.5))
    rest = ~mixed.psf_fwhm_voxels.isnan()
    assert 0 < rest.sum() < 20
    assert torch.equal(plain.clinical[rest], mixed.clinical[rest])
    assert torch.equal(plain.micro, mixed.micro)


def test_only_what_is_needed_is_filled(patches):
    whole = Batches(patches, 4, 1, ALL).at(0)
    unpaired = Batches(patches, 4, 1, ("clinical", "micro")).at(0)
    paired = Batches(patches, 4, 1, frozenset({"clinical", "truth"})).at(0)
    assert unpaired.truth is None
    assert paired.micro.shape == (4, 1, 0, 0)
    assert torch.equal(paired.truth, whole.truth)
    assert torch.equal(unpaired.micro, whole.micro)
    assert Batches(patches, 4, 1, {"micro"}).at(0).clinical.shape == (4, 1, 0, 0)


def test_patches_without_truth_are_refused_for_a_method_that_needs_it():
    real = patches_of(paired=False)
    with pytest.raises(UsageError, match="no truth"):
        Batches(real, 4, 1, ALL)
    batch = Batches(real, 4, 1).at(0)
    assert batch.psf_fwhm_voxels.isnan().all()
    assert batch.noise_hu.isnan().all()


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"batch": -1}, {"mix_ratio": 1.5}, {"mix_ratio": -0.1}, {"needs": {"teeth"}}]
)
def test_impossible_batches_are_refused(patches, wrong):
    with pytest.raises(UsageError):
        Batches(**{"patches": patches, "batch": 4, "seed": 1, "needs": ALL, **wrong})


def test_a_batch_that_processes_can_not_share_evenly_is_refused(patches):
    with pytest.raises(UsageError, match="3 processes"):
        Batches(patches, 4, 1).at(0, 0, 3)
