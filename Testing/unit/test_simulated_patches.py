"""Simulated patches: other specimens in either domain, truth beside the scan, the same for any number of processes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from CTMicroSRLib.errors import CancelledError, ResourceError, UsageError
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.simulation.kernels import GAUSSIAN_RATIO
from CTMicroSRLib.simulation.sets import HELD_OUT_SEEDS, SETS, case_set
from CTMicroSRLib.training import simulated_patches
from CTMicroSRLib.training.patches import PatchSettings, from_stored, open_patches
from CTMicroSRLib.training.simulated_patches import SimulatedPatchSettings, simulate_patches

PATCHES = PatchSettings(patch_voxels=12, scale=4)
SETTINGS = SimulatedPatchSettings(specimens=2, patches_per_specimen=10, scans_per_specimen=2, margin_voxels=10)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return simulate_patches(tmp_path_factory.mktemp("simulated") / "patches", SETTINGS, PATCHES)


def hu(stored):
    return from_stored(np.asarray(stored)) * 1750.0 + 750.0


def test_there_is_truth_for_every_clinical_patch(patches):
    assert patches.simulated
    assert patches.clinical.shape == (20, 12, 12)
    assert patches.truth.shape == patches.micro.shape == (20, 48, 48)
    assert patches.scanner.shape == (20, 2)
    assert isinstance(patches.truth, np.memmap)


def test_no_specimen_is_in_both_domains(patches):
    seeds = {
        side: {s["specimen_seed"] for s in patches.sources if s["domain"] == side} for side in ("clinical", "micro")
    }
    assert len(seeds["clinical"]) == len(seeds["micro"]) == 2
    assert not seeds["clinical"] & seeds["micro"]
    assert not set(patches.clinical_case.tolist()) & set(patches.micro_case.tolist())


def test_seeds_of_the_domains_are_apart_for_any_settings_and_never_those_models_are_judged_on():
    held_out = {seed for name in SETS if name != "training-1" for seed in case_set(name).seeds}
    most = SimulatedPatchSettings(specimens=50_000)
    for seed in (0, 1, 6, 10):
        first, last = (
            {
                side: simulated_patches._Task(side, n, replace(most, seed=seed), PATCHES).specimen_seed
                for side in ("clinical", "micro")
            }
            for n in (0, most.specimens - 1)
        )
        assert first["clinical"] <= last["clinical"] < first["micro"] <= last["micro"]
        assert not any(first["clinical"] <= seed <= last["micro"] for seed in held_out)


@pytest.mark.parametrize("seed", HELD_OUT_SEEDS)
def test_seeds_that_models_are_judged_on_are_refused(seed):
    with pytest.raises(UsageError, match="judged on"):
        SimulatedPatchSettings(seed=seed)


def test_truth_shows_what_the_clinical_patch_shows(tmp_path):
    """A scanner that is almost perfect leaves the block means of the truth."""
    perfect = replace(SETTINGS, specimens=1, psf_fwhm_mm=(0.1, 0.1), noise_hu=(0.1, 0.1))
    patches = simulate_patches(tmp_path / "patches", perfect, PATCHES)
    clinical, truth = hu(patches.clinical), hu(patches.truth)
    means = truth.reshape(len(truth), 12, 4, 12, 4).mean(axis=(2, 4))
    error = np.abs(clinical - means)
    assert np.median(error) < 2.0
    assert np.quantile(error, 0.99) < 40.0
    assert np.std(means) > 100.0


def test_noise_and_blur_are_those_that_are_told(patches):
    pixels = {source["case"]: source.get("pixel_mm") for source in patches.sources}
    for case in np.unique(patches.clinical_case):
        own = patches.clinical_case == case
        psf_mm = patches.scanner[own, 0] * pixels[case]
        assert ((psf_mm >= 0.6 - 1e-6) & (psf_mm <= 2.0 + 1e-6)).all()
        assert ((patches.scanner[own, 1] >= 3.0 - 1e-4) & (patches.scanner[own, 1] <= 60.0 + 1e-4)).all()
        assert len(np.unique(patches.scanner[own, 1])) == SETTINGS.scans_per_specimen


def test_the_noise_in_the_patches_is_the_noise_that_is_told(tmp_path):
    noisy = replace(SETTINGS, specimens=1, patches_per_specimen=40, noise_hu=(60.0, 60.0), psf_fwhm_mm=(0.6, 0.6))
    clean = replace(noisy, noise_hu=(0.1, 0.1))
    loud, quiet = (
        simulate_patches(tmp_path / name, settings, PATCHES) for name, settings in (("loud", noisy), ("quiet", clean))
    )
    np.testing.assert_array_equal(loud.truth, quiet.truth)
    noise = hu(loud.clinical) - hu(quiet.clinical)
    # what falls below the window is clipped, so look where nothing is
    bright = hu(quiet.clinical) > -750.0
    assert bright.sum() > 300
    assert 45.0 < noise[bright].std() < 75.0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_asked_for_share_of_kernels_is_not_gaussian(share):
    settings = replace(SETTINGS, shaped_share=share)
    rng = np.random.default_rng(1)
    kernels = [simulated_patches._kernel(rng, settings) for _ in range(400)]
    ratios = np.array([kernel.mtf10_per_mm / kernel.mtf50_per_mm for kernel in kernels])
    shaped = np.abs(ratios - GAUSSIAN_RATIO) > 1e-6
    assert shaped.mean() == pytest.approx(share, abs=0.08)
    low, high = settings.kernel_ratio
    assert ((ratios[shaped] >= low - 1e-6) & (ratios[shaped] <= high + 1e-6)).all()
    widths = np.array([kernel.psf_fwhm_mm for kernel in kernels])[~shaped]
    assert all((0.6 - 1e-6 <= width <= 2.0 + 1e-6) for width in widths)


def test_there_may_be_few_micro_ct_where_a_method_has_no_use_for_them(tmp_path):
    settings = replace(SETTINGS, specimens=2, micro_specimens=1, patches_per_specimen=2, scans_per_specimen=1)
    made = simulate_patches(tmp_path / "patches", settings, PATCHES)
    assert [source["domain"] for source in made.sources] == ["clinical", "clinical", "micro"]
    assert (len(made.clinical), len(made.micro)) == (4, 2)


def test_the_patches_know_what_they_were_simulated_with(patches):
    assert tuple(patches.simulation["noise_hu"]) == SETTINGS.noise_hu
    assert patches.simulation["specimens"] == 2


def test_micro_ct_is_in_hu_with_the_clinical_window(patches):
    assert patches.settings.micro_window == patches.settings.clinical_window == (-1000.0, 2500.0)
    values = hu(patches.micro)
    # parenchyma's mean density is -922 HU with a deviation of 18; with noise clipped at -1000 a little more
    assert -960.0 < np.median(values) < -800.0
    assert np.quantile(values, 0.995) > -300.0


def test_enough_of_every_patch_is_lung(patches):
    dark = (hu(patches.truth) < -300.0).mean(axis=(1, 2))
    assert dark.min() > 0.3


def test_patches_keep_off_the_blocks_border(patches):
    edge = PATCHES.patch_voxels + SETTINGS.margin_voxels
    assert patches.clinical_place[:, 2:].min() >= 4
    assert patches.clinical_place[:, 2:].max() + PATCHES.patch_voxels <= edge - 4


def test_scans_of_a_specimen_are_numbered(patches):
    for case in np.unique(patches.clinical_case):
        assert np.bincount(patches.clinical_place[patches.clinical_case == case, 0]).tolist() == [5, 5]


def test_the_patches_do_not_depend_on_the_number_of_processes(patches, tmp_path):
    shared = simulate_patches(tmp_path / "shared", SETTINGS, PATCHES, workers=2)
    for name in ("clinical", "truth", "micro", "scanner", "clinical_case", "micro_case", "clinical_place"):
        np.testing.assert_array_equal(getattr(shared, name), getattr(patches, name))


def test_the_same_settings_are_not_simulated_again(patches, monkeypatch):
    monkeypatch.setattr(simulated_patches, "_cut", lambda task: pytest.fail("it was simulated again"))
    again = simulate_patches(patches.folder, SETTINGS, PATCHES)
    np.testing.assert_array_equal(again.clinical, patches.clinical)
    with pytest.raises(UsageError, match="other scans or settings"):
        simulate_patches(patches.folder, replace(SETTINGS, seed=2), PATCHES)


def test_patches_from_before_a_setting_was_there_are_those_without_it(patches, tmp_path):
    old = tmp_path / "patches"
    shutil.copytree(patches.folder, old)
    manifest = json.loads((old / "manifest.json").read_text())
    for name in ("micro_specimens", "shaped_share", "kernel_ratio"):
        del manifest["request"]["simulation"][name]
    (old / "manifest.json").write_text(json.dumps(manifest))
    again = simulate_patches(old, SETTINGS, PATCHES)
    np.testing.assert_array_equal(again.clinical, patches.clinical)
    with pytest.raises(UsageError, match="other scans or settings"):
        simulate_patches(old, replace(SETTINGS, shaped_share=0.5), PATCHES)


@pytest.mark.parametrize("scale", [2, 8])
def test_other_scales_work(tmp_path, scale):
    settings = replace(SETTINGS, specimens=1, patches_per_specimen=3)
    made = simulate_patches(tmp_path / "patches", settings, replace(PATCHES, scale=scale, patch_voxels=8))
    assert open_patches(made.folder).micro.shape == (3, 8 * scale, 8 * scale)
    assert (
        np.corrcoef(
            made.clinical[:].ravel(),
            made.truth[:].reshape(3, 8, scale, 8, scale).mean(axis=(2, 4)).ravel(),
        )[0, 1]
        > 0.7
    )


def test_a_cancelled_simulation_leaves_nothing(tmp_path):
    class Cancelled(SilentProgress):
        def cancelled(self):
            return True

    with pytest.raises(CancelledError):
        simulate_patches(tmp_path / "new" / "patches", SETTINGS, PATCHES, Cancelled())
    assert list(tmp_path.iterdir()) == []


def test_every_specimen_is_told(tmp_path, monkeypatch):
    told = []

    class Recorder(SilentProgress):
        def update(self, stage, done, total):
            told.append((done, total))

    settings = replace(SETTINGS, specimens=1, patches_per_specimen=2)
    simulate_patches(tmp_path / "patches", settings, PATCHES, Recorder())
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_no_room_on_the_disk_is_told_before_anything_is_simulated(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("CTMicroSRLib.training.patch_writing.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr(simulated_patches, "_cut", lambda task: pytest.fail("it was simulated"))
    with pytest.raises(ResourceError, match="free"):
        simulate_patches(tmp_path / "patches", SETTINGS, PATCHES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"specimens": 0},
        {"specimens": 60_000},
        {"patches_per_specimen": 0},
        {"scans_per_specimen": -1},
        {"margin_voxels": 8},
        {"seed": -1},
        {"micro_specimens": -1},
        {"shaped_share": 1.5},
        {"kernel_ratio": (1.0, 9.0)},
        {"pixel_mm": (0.9, 0.5)},
        {"slice_mm": (0.1, 4.0)},
        {"noise_hu": (0.0, 3.0)},
    ],
)
def test_impossible_settings_are_refused(changed):
    with pytest.raises(UsageError):
        SimulatedPatchSettings(**changed)
