"""Every method in a short real training: losses fall, a resumed run has the same bits, and the picture is sane.

All on the same simulated patches, at tiny widths and 2x. The window is that of lung and soft tissue, so that some dozen
steps are enough to see structures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from CTMicroSRLib import super_resolve
from CTMicroSRLib.simulation.cases import CaseSettings, make_case
from CTMicroSRLib.training.batches import Batches
from CTMicroSRLib.training.methods import METHODS, changed, method_kind
from CTMicroSRLib.training.model_folder import Export, export_generator
from CTMicroSRLib.training.patches import PatchSettings
from CTMicroSRLib.training.settings import TrainerSettings
from CTMicroSRLib.training.simulated_patches import SimulatedPatchSettings, simulate_patches
from CTMicroSRLib.training.trainer import train
from CTMicroSRLib.training.training_log import read_log
from CTMicroSRLib.volume import Geometry, Volume

pytestmark = pytest.mark.slow

SCALE = 2
WINDOW = (-1000.0, 200.0)
PATCHES = PatchSettings(patch_voxels=24, scale=SCALE, clinical_window=WINDOW)
# Of the small sets, seed 6 has both lung and wall in either domain.
SIMULATION = SimulatedPatchSettings(
    specimens=2, patches_per_specimen=24, scans_per_specimen=2, margin_voxels=9, pixel_mm=(0.8, 0.9),
    psf_fwhm_mm=(0.6, 1.2), noise_hu=(3.0, 20.0), seed=6,
)  # fmt: skip

SETTINGS = TrainerSettings(
    steps=40, batch=2, schedule="constant", average_decay=0.8, pool_size=4, checkpoint_steps=1000, log_steps=1,
    image_steps=1000,
)  # fmt: skip

_RESNETS = {"channels": 8, "blocks": 2, "discriminator_channels": 8, "learning_rate": 3e-3, "identity": 1.0}
_UNIT = {"channels": 4, "blocks": 2, "critic_channels": 8, "critic_layers": 2, "critic_scales": 2}

TINY = {
    "sr-cyclegan": {"channels": 8, "blocks": 2, "discriminator_channels": 8, "learning_rate": 2e-3},
    "cyclegan": _RESNETS,
    "bayesian-cyclegan": {**_RESNETS, "dropout_rate": 0.2},
    "sr-unit": {**_UNIT, "learning_rate": 3e-3},
    "unit": {**_UNIT, "learning_rate": 1e-3},
    "two-stage": {
        "channels": 8,
        "blocks": 2,
        "discriminator_channels": 8,
        "synthesis_channels": 8,
        "synthesis_blocks": 2,
        "learning_rate": 2e-3,
        "synthesis_learning_rate": 2e-3,
    },
    "srgan": {"channels": 8, "blocks": 2, "discriminator_channels": 8, "learning_rate": 2e-3},
    "esrgan": {
        "channels": 8,
        "growth": 4,
        "blocks": 1,
        "discriminator_channels": 8,
        "learning_rate": 2e-3,
        "pixel_weight": 1.0,
    },
    "unet": {"channels": 4, "depth": 3, "learning_rate": 3e-3},
    "cincgan": {
        "channels": 8,
        "blocks": 2,
        "skip": True,
        "edsr_channels": 8,
        "edsr_blocks": 2,
        "critic_channels": 8,
        "inner_learning_rate": 1e-3,
        "outer_learning_rate": 1e-3,
    },
    "pseudo-sr": {
        "channels": 8,
        "groups": 1,
        "clean_blocks": 1,
        "enlarge_blocks": 2,
        "reduction": 4,
        "transfer_blocks": 1,
        "critic_channels": 8,
        "geometry_weight": 0.0,
        "learning_rate": 3e-3,
    },
    "compact": {"channels": 8, "blocks": 2, "learning_rate": 2e-3, "grid_weight": 1.0},
}
SEEDS = {"unit": 2, "sr-cyclegan": 3}
"""Of the seeds 1 to 3 two pass with a wide margin in either method; the weights of seed 1 start so badly that so few
steps, and twice as many, end near the limits, on either side of them with every change of rounding."""

STEPS = {"two-stage": 100, "pseudo-sr": 60, "cincgan": 60, "unet": 80, "unit": 100, "sr-cyclegan": 60}

FALL = {
    "sr-cyclegan": ("generators/ssim_", "generators/downsample", "generators/upsample", "generators/cycle_"),
    "cyclegan": ("generators/cycle_", "generators/identity_"),
    "bayesian-cyclegan": ("generators/cycle_", "generators/identity_"),
    "sr-unit": (
        "generators/reconstruction_",
        "generators/cycle_clinical",
        "generators/cycle_micro",
        "generators/ssim_",
    ),
    "unit": ("generators/reconstruction_", "generators/cycle_clinical", "generators/cycle_micro"),
    "two-stage": ("synthesis/cycle_", "synthesis/identity_", "synthesis/ssim_", "super_resolution/squared_error"),
    "srgan": ("generator/mean_square",),
    "esrgan": ("generator/l1",),
    "unet": ("generator/l1",),
    "cincgan": ("inner/inner_cycle", "inner/inner_identity", "inner/enlarging", "joint/outer_cycle"),
    "pseudo-sr": ("generators/cycle", "generators/identity", "generators/enlarging"),
    "compact": ("generator/l1",),
}
"""Beginnings of the names of losses that must fall: those that tie a result to its input or target. What a network is
told by its adversary need not."""

STAGES = {"two-stage": ("synthesis/", "super_resolution/"), "cincgan": ("inner/", "joint/")}

LEAST_CORRELATION = 0.5
"""Of the result's block means with the scan, over all voxels. Networks at their random start reach about 0, either
sign; one whose result does not depend on its input, or whose tiles or axes are mixed up, does too; an inverted one is
negative. It may fail for a training that is too short, which is why the losses are looked at beside it."""

UNTIED = ("unit",)
"""Methods whose losses leave open which way contrast goes (identity losses settle it): bright may become dark, and only
the size of the correlation counts."""


def method_settings(name, **values):
    return changed(method_kind(name).settings(), {"scale": SCALE, **TINY[name], **values}, name)


def run(name, patches, folder, settings, **options):
    kind, own = method_kind(name), method_settings(name)
    needs = kind.build(own).needs
    batches = Batches(patches, settings.batch, settings.seed, needs)
    train(kind, own, settings, batches.at, folder, device="cpu", **options)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """The bits of a sum depend on the number of threads; the sizes here need one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return simulate_patches(tmp_path_factory.mktemp("simulated") / "patches", SIMULATION, PATCHES)


@pytest.fixture(scope="module")
def scan():
    """One slice of another specimen, lung and wall."""
    settings = CaseSettings(size_voxels=80, depth_mm=1.5, slice_mm=1.5, noise_hu=10.0, pixel_mm=0.7, scale=SCALE)
    clinical = make_case(settings, 3).clinical
    return Volume(clinical.array_kji[2:3], Geometry((80, 80, 1), clinical.geometry.spacing_mm), {"Modality": "CT"})


@pytest.fixture(scope="module")
def trained(patches, tmp_path_factory):
    """``trained(name)``: a run of the method, made once."""
    runs = {}

    def make(name):
        if name not in runs:
            steps, seed = STEPS.get(name, SETTINGS.steps), SEEDS.get(name, SETTINGS.seed)
            settings = replace(SETTINGS, steps=steps, seed=seed)
            runs[name] = run(name, patches, tmp_path_factory.mktemp(name) / "run", settings)
        return runs[name]

    return make


def test_the_table_has_every_method():
    assert set(TINY) == set(FALL) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_short_training_ends_with_lower_losses_than_it_began_with(trained, name):
    courses = {}
    for record in read_log(trained(name)):
        for loss, value in record["losses"].items():
            courses.setdefault(loss, []).append(value)
    for start in FALL[name]:
        falling = [loss for loss in courses if loss.startswith(start)]
        assert falling, start
        for loss in falling:
            tenth = max(3, len(courses[loss]) // 10)
            first, last = np.mean(courses[loss][:tenth]), np.mean(courses[loss][-tenth:])
            assert last < 0.9 * first, f"{loss}: {first} at first, {last} at last"
    assert all(np.isfinite(values).all() for values in courses.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(patches, tmp_path, name):
    settings = replace(SETTINGS, steps=8)
    whole = load_file(run(name, patches, tmp_path / "whole", settings) / "checkpoint.safetensors")
    for part, stop in enumerate((2, 6, None)):  # in either stage
        run(name, patches, tmp_path / "parts", settings, stop_at=stop, resume=part > 0)
    parts = load_file(tmp_path / "parts" / "checkpoint.safetensors")
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[key], whole[key]) for key in whole)
    moved = {key.split(".")[1] for key in whole if key.startswith("adam.") and key.endswith(".step")}
    assert moved == set(method_kind(name).build(method_settings(name)).optimisers())
    logged = {loss for record in read_log(tmp_path / "whole") for loss in record["losses"]}
    assert all(any(loss.startswith(stage) for loss in logged) for stage in STAGES.get(name, ()))


@pytest.mark.parametrize("name", ["sr-cyclegan", "cyclegan", "bayesian-cyclegan", "two-stage"])
def test_the_pool_of_earlier_images_is_full_and_kept(trained, name):
    pools = {key: value for key, value in load_file(trained(name) / "checkpoint.safetensors").items() if "pool." in key}
    assert pools
    assert all(value.tolist() == [2, 2] for key, value in pools.items() if key.endswith(".counts"))


@pytest.mark.parametrize("name", METHODS)
def test_the_exported_model_makes_a_sane_picture_whatever_its_tiles(trained, patches, scan, tmp_path, name):
    method = method_kind(name).build(method_settings(name))
    weights = load_file(trained(name) / "weights.safetensors")
    export = Export(name, name, "simulated", "", method.card_fields())
    model = export_generator(tmp_path / "model", weights, method.architecture(), patches, export)
    common = {"region": "whole", "consistency": "off", "psf_fwhm_mm": 1.0, "noise_hu": 10.0, "precision": "fp32"}
    whole, tiled = (super_resolve(scan, model=model, passes=4, tile=tile, **common) for tile in (None, 32))
    assert (whole.report["tiles"]["rectangles"], tiled.report["tiles"]["rectangles"]) == (1, 9)
    fine = whole.volume.array_kji
    assert fine.dtype == np.int16
    assert fine.shape == (1, 80 * SCALE, 80 * SCALE)
    assert np.abs(fine.astype(float)).max() < 8000  # int16's ends would be voxels that are not finite
    # 1e-4 of the normalised range is less than 1 HU at this window, so that rounding may differ by one.
    assert np.abs(fine.astype(int) - tiled.volume.array_kji).max() <= 1
    means = fine.reshape(80, SCALE, 80, SCALE).astype(float).mean(axis=(1, 3))
    expected = np.clip(scan.array_kji[0], *WINDOW)
    correlation = np.corrcoef(means.ravel(), expected.ravel())[0, 1]
    assert (abs(correlation) if name in UNTIED else correlation) > LEAST_CORRELATION
