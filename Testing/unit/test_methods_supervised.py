"""SRGAN, ESRGAN, U-Net and the compact generator as methods: what they need, what they compute, that they learn."""

import math
from dataclasses import replace

import pytest
import torch
from method_steps import PlainUpdate, make_batch, parameters_without_gradient, run_steps
from torch.nn import functional

from CTMicroSRLib.card import ModelCard
from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.generator import WHOLE
from CTMicroSRLib.training.losses.grid import grid_power
from CTMicroSRLib.training.methods import changed, method_kind
from CTMicroSRLib.training.methods.compact import PLANES
from CTMicroSRLib.training.pairing import NEEDS, input_and_target

TINY = {
    "srgan": {"scale": 2, "channels": 8, "blocks": 1, "discriminator_channels": 4},
    "esrgan": {"scale": 2, "channels": 8, "growth": 4, "blocks": 1, "discriminator_channels": 4, "pretrain_share": 0.0},
    "unet": {"scale": 2, "channels": 4, "depth": 2},
    "compact": {"scale": 2, "channels": 8, "blocks": 2},
}
WITH_PAIRING = ("srgan", "esrgan", "unet")
WITH_DISCRIMINATOR = ("srgan", "esrgan")


def make(name, **values):
    torch.manual_seed(1)
    kind = method_kind(name)
    return kind.build(changed(kind.settings(), {**TINY[name], **values}, name))


def full_preset(name):
    """That of the paper, where there is one."""
    return "shipped" if name == "compact" else "paper"


@pytest.fixture(scope="module")
def batch():
    return make_batch()


# --- what all have in common -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_every_preset_holds_keys_of_the_settings_and_values_that_they_take(name):
    kind = method_kind(name)
    assert {full_preset(name), "small"} <= set(kind.presets)
    for values in kind.presets.values():
        own = {key: value for key, value in values.items() if "." not in key}
        changed(kind.settings(), own, name)
        assert {key.partition(".")[0] for key in values if "." in key} <= {"trainer", "patches", "simulation"}


@pytest.mark.parametrize("name", TINY)
def test_presets_make_runs(name):
    from CTMicroSRLib.training.presets import run_settings

    for preset in method_kind(name).presets:
        assert run_settings(name, preset, {}).trainer.steps > 0


@pytest.mark.parametrize("name", TINY)
def test_the_small_preset_is_much_smaller_than_the_full_one(name):
    kind = method_kind(name)

    def parameters(preset):
        values = {key: value for key, value in kind.presets[preset].items() if "." not in key}
        with torch.device("meta"):
            network = kind.build(
                changed(kind.settings(), {**values, "same_start": False} if name == "compact" else values, name)
            ).generator()
        return sum(weights.numel() for weights in network.parameters())

    assert parameters("small") < parameters(full_preset(name)) / 3


@pytest.mark.parametrize("name", TINY)
def test_the_architecture_rebuilds_the_generator_with_its_weights(name):
    method = make(name)
    architecture, parameters = method.architecture()
    rebuilt = build_network(architecture, parameters)
    rebuilt.load_state_dict(method.generator().state_dict())
    assert rebuilt.scale == method.scale == 2


@pytest.mark.parametrize("name", TINY)
def test_the_optimisers_share_all_networks_among_them(name):
    method = make(name)
    networks = [network for settings in method.optimisers().values() for network in settings.networks]
    assert sorted(networks) == sorted(name for name, _ in method.named_children())


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_of_a_step_gets_a_gradient(name, batch):
    """But for one: the relativistic loss compares logits, so a constant that all share does not count."""
    without = {"discriminator.last.bias"} if name == "esrgan" else set()
    assert parameters_without_gradient(make(name), batch) == without


@pytest.mark.parametrize("name", TINY)
def test_some_steps_lower_the_distance_from_the_truth(name, batch):
    values = {"pixel_weight": 1.0} if name == "esrgan" else {}
    record = run_steps(make(name, **values), batch, 40, learning_rate=4e-3)
    first = next(iter(record[0]))
    assert first.startswith("generator/")
    assert record[-1][first] < 0.8 * record[0][first]
    assert all(math.isfinite(value) for losses in record for value in losses.values())


@pytest.mark.parametrize("name", TINY)
def test_the_same_seeds_give_the_same_losses(name, batch):
    assert run_steps(make(name), batch, 2) == run_steps(make(name), batch, 2)


@pytest.mark.parametrize("scale", [4, 8])
@pytest.mark.parametrize("name", TINY)
def test_other_scales_train(name, scale):
    record = run_steps(make(name, scale=scale), make_batch(patch=16, scale=scale), 1)
    assert all(math.isfinite(value) for value in record[0].values())


# --- pairs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_PAIRING)
@pytest.mark.parametrize("pairing", list(NEEDS))
def test_a_method_needs_the_domains_of_its_pairing(name, pairing):
    assert make(name, pairing=pairing).needs == NEEDS[pairing]


def test_only_pairs_need_the_truth():
    assert [pairing for pairing, domains in NEEDS.items() if "truth" in domains] == ["paired"]


def test_targets_are_the_truth_the_other_specimens_or_the_shrunk_patchs_own(batch):
    assert input_and_target(batch, "paired", 2)[1] is batch.truth
    coarse, fine = input_and_target(batch, "unpaired", 2)
    assert coarse is batch.clinical
    assert fine is batch.micro
    coarse, fine = input_and_target(batch, "shrunk", 2)
    assert fine is batch.micro
    torch.testing.assert_close(coarse[0, 0, 0, 0], batch.micro[0, 0, :2, :2].mean())


def test_noise_is_added_to_the_input_only():
    batch = make_batch(patch=64, count=8)
    coarse, fine = input_and_target(batch, "paired", 2, noise=0.1)
    assert (coarse - batch.clinical).std().item() == pytest.approx(0.1, rel=0.05)
    assert fine is batch.truth


@pytest.mark.parametrize("name", WITH_PAIRING)
def test_unpaired_training_never_sees_the_truth(name, batch):
    run_steps(make(name, pairing="unpaired"), replace(batch, truth=None), 1)


# --- losses ----------------------------------------------------------------------------------------


def losses_of_a_step(method, batch, progress=0.0):
    update = PlainUpdate(method, move=False)
    update.progress = progress
    method.train()
    torch.manual_seed(7)
    method.step(batch, update)
    return update.losses


def test_srgans_losses_are_mean_square_and_a_thousandth_of_the_discriminators_surprise(batch):
    method = make("srgan", norm="none", discriminator_norm="none")
    losses = losses_of_a_step(method, batch)
    result = method.network(batch.clinical)
    logits, real = method.discriminator(result), method.discriminator(batch.truth)
    assert losses["generator/mean_square"] == pytest.approx((result - batch.truth).square().mean().item(), rel=1e-5)
    surprise = -torch.log(torch.sigmoid(logits)).mean().item()
    assert losses["generator/adversarial"] == pytest.approx(1e-3 * surprise, rel=1e-5)
    told_apart = -(torch.log(torch.sigmoid(real)).mean() + torch.log(1 - torch.sigmoid(logits)).mean()).item() / 2
    assert losses["discriminator/discriminator"] == pytest.approx(told_apart, rel=1e-5)


def test_esrgans_losses_are_l1_and_the_relativistic_ones(batch):
    method = make("esrgan", discriminator_norm="none")
    losses = losses_of_a_step(method, batch)
    result = method.network(batch.clinical)
    fake, real = method.discriminator(result), method.discriminator(batch.truth)
    assert losses["generator/l1"] == pytest.approx(1e-2 * (result - batch.truth).abs().mean().item(), rel=1e-5)
    entropy = functional.binary_cross_entropy_with_logits
    zeros, ones = torch.zeros_like(real), torch.ones_like(real)
    expected = (entropy(real - fake.mean(), zeros) + entropy(fake - real.mean(), ones)) / 2
    assert losses["generator/adversarial"] == pytest.approx(5e-3 * expected.item(), rel=1e-4)
    expected = (entropy(real - fake.mean(), ones) + entropy(fake - real.mean(), zeros)) / 2
    assert losses["discriminator/discriminator"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", WITH_DISCRIMINATOR)
def test_pretraining_leaves_the_discriminator_alone(name, batch):
    method = make(name, pretrain_share=0.5)
    before = [weights.clone() for weights in method.discriminator.parameters()]
    record = run_steps(method, batch, 2, stop=0.4)
    assert {key.partition("/")[0] for losses in record for key in losses} == {"generator"}
    assert all(map(torch.equal, before, method.discriminator.parameters()))
    assert "discriminator/discriminator" in losses_of_a_step(method, batch, progress=0.5)


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("mean_square", 2)])
def test_the_unets_loss_is_the_chosen_distance(batch, loss, power):
    method = make("unet", loss=loss)
    losses = losses_of_a_step(method, batch)
    expected = (method.network(batch.clinical) - batch.truth).abs().pow(power).mean().item()
    assert losses == {f"generator/{loss}": pytest.approx(expected, rel=1e-5)}


# --- compact ---------------------------------------------------------------------------------------


def test_compact_starts_from_interpolation_without_a_grid(batch):
    method = make("compact")
    network = method.network.eval()
    tile = method.told(batch)
    difference = network(tile) - functional.pixel_shuffle(network.prefix(tile, WHOLE)[0], 2)
    assert 0 < difference.abs().max() < 0.05
    assert grid_power(difference, 2).item() < 1e-12 < grid_power(difference + ramp_of_phases(difference), 2).item()


def ramp_of_phases(like):
    """1e-3 at every second column."""
    return 1e-3 * (torch.arange(like.shape[-1]) % 2).expand_as(like)


def test_compact_is_told_a_misjudged_blur_and_noise(batch):
    method = make("compact", misjudged_psf=0.12, misjudged_noise=0.2)
    count = 2000
    many = replace(
        batch,
        clinical=torch.zeros(count, 1, 1, 1),
        psf_fwhm_voxels=torch.full((count,), 1.5),
        noise_hu=torch.full((count,), 20.0),
    )
    told = method.told(many)[:, 1:, 0, 0]
    psf = told[:, 0] * PLANES[0].std + PLANES[0].mean
    noise = torch.exp(told[:, 1] * PLANES[1].std + PLANES[1].mean)
    assert (psf.min().item(), psf.max().item()) == pytest.approx((1.5 * 0.88, 1.5 * 1.12), rel=0.01)
    assert (noise.min().item(), noise.max().item()) == pytest.approx((16.0, 24.0), rel=0.01)


def test_compact_takes_the_mean_where_the_scan_is_unknown(batch):
    unknown = torch.full((2,), math.nan)
    told = make("compact").told(replace(batch, psf_fwhm_voxels=unknown, noise_hu=unknown))
    assert (told[:, 1:] == 0).all()
    torch.testing.assert_close(told[:, :1], batch.clinical)


def test_the_grids_power_is_that_by_hand_and_blind_to_a_constant():
    difference = torch.zeros(2, 1, 4, 4)
    difference[..., ::2, ::2] = 4.0  # one phase of four: mean 1, deviations 3, -1, -1, -1
    assert grid_power(difference, 2).item() == pytest.approx((9 + 3) / 4)
    assert grid_power(difference + 5.0, 2).item() == pytest.approx(3.0, rel=1e-5)
    assert grid_power(torch.ones(1, 1, 8, 8), 4).item() == 0


def test_the_grids_power_pulls_bright_phases_down_and_dark_ones_up():
    difference = torch.tensor([[0.1, -0.1], [0.1, -0.1]]).repeat(4, 4)[None, None].requires_grad_()
    (gradient,) = torch.autograd.grad(grid_power(difference, 2), difference)
    assert (gradient.sign() == difference.sign()).all()


def test_compact_has_the_weighted_power_of_the_grid_as_a_loss_only_where_asked_for(batch):
    assert list(losses_of_a_step(make("compact"), batch)) == ["generator/l1"]
    method = make("compact", grid_weight=100.0, dropout_rate=0.0, misjudged_psf=0.0, misjudged_noise=0.0)
    losses = losses_of_a_step(method, batch)
    power = grid_power(method.network(method.told(batch)) - batch.truth, 2).item()
    assert losses["generator/grid"] == pytest.approx(100 * power, rel=1e-4)


def test_compacts_card_has_its_planes():
    method = make("compact")
    card = ModelCard(
        name="compact-test",
        architecture="compact",
        parameters=method.architecture()[1],
        scale=2,
        halo=method.network.halo,
        window=IntensityWindow(-1000.0, 2500.0),
        sha256="0" * 64,
        **method.card_fields(),
    )
    assert len(card.planes) == method.network.planes == 2


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("srgan", {"pairing": "hidden"}),
        ("srgan", {"pretrain_share": 1.5}),
        ("srgan", {"adversarial_weight": -1.0}),
        ("esrgan", {"pairing": ""}),
        ("esrgan", {"pretrain_share": -0.1}),
        ("esrgan", {"pixel_weight": -1.0}),
        ("unet", {"pairing": "none"}),
        ("unet", {"loss": "l3"}),
        ("unet", {"noise": -0.1}),
        ("compact", {"loss": "ssim"}),
        ("compact", {"dropout_rate": 1.0}),
        ("compact", {"misjudged_noise": 1.0}),
        ("compact", {"grid_weight": -1.0}),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(name, values):
    kind = method_kind(name)
    with pytest.raises(UsageError, match="not possible"):
        changed(kind.settings(), values, name)
