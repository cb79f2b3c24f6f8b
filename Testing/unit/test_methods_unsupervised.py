"""Steps and losses of SR-UNIT, UNIT, CinCGAN and pseudo-SR."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from method_steps import PlainUpdate, make_batch, parameters_without_gradient, run_steps
from torch.nn import functional

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.resampling import block_mean
from CTMicroSRLib.training.methods import changed, method_kind
from CTMicroSRLib.training.methods.pseudo_sr import geometry_ensemble
from CTMicroSRLib.training.settings import TrainerSettings

TINY = {
    "unit": {"channels": 4, "blocks": 1, "critic_channels": 4, "critic_layers": 2},
    "sr-unit": {"channels": 4, "blocks": 1, "critic_channels": 4, "critic_layers": 2},
    "cincgan": {"channels": 4, "blocks": 1, "edsr_channels": 4, "edsr_blocks": 1, "critic_channels": 4},
    "pseudo-sr": {
        "channels": 6,
        "groups": 1,
        "clean_blocks": 1,
        "enlarge_blocks": 1,
        "reduction": 2,
        "transfer_blocks": 1,
        "critic_channels": 4,
    },
}
STAGES = {"unit": (0.0,), "sr-unit": (0.0,), "cincgan": (0.0, 0.9), "pseudo-sr": (0.0,)}


def build(name, seed=0, **values):
    torch.manual_seed(seed)
    kind = method_kind(name)
    return kind.build(changed(kind.settings(), {"scale": 2, **TINY[name], **values}, name))


def losses_of_one_step(method, batch, progress=0.0):
    update = PlainUpdate(method, move=False)
    update.progress = progress
    torch.manual_seed(0)
    method.train()
    method.step(batch, update)
    return update.losses


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("name", TINY)
def test_a_step_of_every_stage_runs_at_every_scale(name, scale):
    method = build(name, scale=scale)
    batch = make_batch(patch=12, scale=scale, truth=False)
    for progress in STAGES[name]:
        losses = losses_of_one_step(method, batch, progress)
        assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    assert method.generator()(batch.clinical).shape == batch.micro.shape


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient(name):
    values = {"shared": False} if "unit" in name else {}
    assert parameters_without_gradient(build(name, **values), make_batch(patch=16), STAGES[name]) == set()


def test_cincgans_first_stage_leaves_the_outer_cycles_networks_alone():
    method = build("cincgan")
    first = parameters_without_gradient(method, make_batch(patch=16), (0.0, 0.39))
    assert {name.split(".")[0] for name in first} == {"to_coarse", "micro_critic"}


@pytest.mark.parametrize("name", TINY)
def test_the_exported_generator_is_rebuilt_from_its_architecture_and_weights(name):
    method = build(name).eval()
    rebuilt = build_network(*method.architecture()).eval()
    rebuilt.load_state_dict(method.generator().state_dict())
    tile = make_batch(patch=12).clinical
    with torch.inference_mode():
        assert torch.equal(rebuilt(tile), method.generator()(tile))
    assert any(network is method.generator() for network in method.children())


@pytest.mark.parametrize("name", TINY)
def test_no_parameter_has_two_places_in_a_checkpoint(name):
    tensors = [value.data_ptr() for value in build(name).state_dict().values() if value.numel()]
    assert len(tensors) == len(set(tensors))


@pytest.mark.parametrize("name", TINY)
def test_every_optimiser_moves_networks_of_the_method_and_together_all_of_them(name):
    method = build(name)
    moved = {network for settings in method.optimisers().values() for network in settings.networks}
    assert moved == {network for network, _ in method.named_children()}


@pytest.mark.parametrize(
    ("name", "steps", "losses", "values"),
    [
        ("unit", 20, ("reconstruction_clinical", "reconstruction_micro"), {}),
        ("sr-unit", 20, ("downsample", "reconstruction_micro"), {}),
        ("cincgan", 40, ("inner_identity", "enlarging"), {"edsr_channels": 12, "skip": True}),
        ("pseudo-sr", 40, ("identity", "enlarging"), {"channels": 12}),
    ],
)
def test_a_short_training_lowers_the_distances(name, steps, losses, values):
    record = run_steps(build(name, seed=3, **values), make_batch(patch=12), steps, learning_rate=3e-3, stop=0.4)
    optimiser = "inner" if name == "cincgan" else "generators"
    for loss in losses:
        first, last = (sum(step[f"{optimiser}/{loss}"] for step in part) for part in (record[:3], record[-3:]))
        assert last < 0.8 * first, loss


@pytest.mark.parametrize("name", TINY)
def test_a_seed_repeats_a_training(name):
    first, second = (run_steps(build(name), make_batch(patch=12), 3, stop=1.0, learning_rate=1e-3) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", TINY)
def test_every_presets_keys_are_settings(name):
    kind = method_kind(name)
    known = {f"trainer.{field.name}" for field in fields(TrainerSettings)}
    assert {"paper", "small"} <= set(kind.presets)
    for values in kind.presets.values():
        own = {key: value for key, value in values.items() if not key.startswith("trainer.")}
        changed(kind.settings(), own, name)
        rest = {key for key in values if key.startswith("trainer.")}
        assert rest <= known
        changed(TrainerSettings(), {key.partition(".")[2]: values[key] for key in rest}, "the trainer")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("unit", {"scale": 3}),
        ("unit", {"blocks": 0}),
        ("unit", {"cycle_weight": -1.0}),
        ("sr-unit", {"ssim_constants": "other"}),
        ("sr-unit", {"distance_power": 3}),
        ("sr-unit", {"upsample_weight": -1.0}),
        ("cincgan", {"inner_share": 1.5}),
        ("cincgan", {"outer_learning_rate": 0.0}),
        ("pseudo-sr", {"transfer_norm": "layer"}),
        ("pseudo-sr", {"channels": 1}),
    ],
)
def test_impossible_settings_are_refused(name, values):
    with pytest.raises(UsageError, match="is not possible"):
        changed(method_kind(name).settings(), values, name)


# UNIT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unit", "sr-unit"])
def test_units_reconstruction_and_kl_are_weighted_means(name):
    method, batch = build(name), make_batch(patch=16)
    made = method.translate(batch)
    losses = method.generator_losses(batch, made)
    error = (made.micro_again - batch.micro).abs().mean()
    torch.testing.assert_close(losses["reconstruction_micro"], 10 * error)
    torch.testing.assert_close(losses["kl_clinical"], 0.01 * (made.clinical_mean**2).mean())
    answers = method.micro_critic(made.super_resolved)
    torch.testing.assert_close(losses["gan_micro"], sum(((logits - 1) ** 2).mean() for logits in answers))


def test_units_clinical_side_is_the_interpolated_patch_and_sr_units_the_patch_itself():
    batch = make_batch(patch=16, scale=4)
    assert torch.equal(build("sr-unit", scale=4).translate(batch).clinical, batch.clinical)
    assert build("unit", scale=4).translate(batch).clinical.shape == batch.micro.shape


def test_the_latent_code_is_drawn_anew_for_each_step_and_means_are_not():
    method, batch = build("unit"), make_batch(patch=16)
    first, second = method.translate(batch), method.translate(batch)
    assert torch.equal(first.micro_mean, second.micro_mean)
    assert not torch.equal(first.micro_again, second.micro_again)


@pytest.mark.parametrize("name", ["unit", "sr-unit"])
def test_a_step_in_the_micro_domain_alone_moves_the_shared_blocks_of_the_super_resolving_network(name):
    method, batch = build(name, blocks=2), make_batch(patch=16)
    made = method.translate(batch)
    (made.shrunk.square().mean() + made.micro_mean.square().mean()).backward()
    reached = {key.split(".")[0] for key, p in method.to_micro.named_parameters() if p.grad is not None}
    assert reached == {"encoder_last", "decoder_first"}


def test_sr_unit_adds_p2s_four_terms():
    method, batch = build("sr-unit"), make_batch(patch=16)
    made = method.translate(batch)
    losses = method.generator_losses(batch, made)
    shrunk_result = functional.avg_pool2d(made.super_resolved, 2)
    repeated = made.shrunk.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(losses["downsample"], ((shrunk_result - batch.clinical) ** 2).mean())
    torch.testing.assert_close(losses["upsample"], ((repeated - batch.micro) ** 2).mean())
    assert 0 < losses["ssim_clinical"].item() <= 4
    halved = build("sr-unit", ssim_clinical_weight=1.0).generator_losses(batch, made)
    torch.testing.assert_close(losses["ssim_clinical"], 2 * halved["ssim_clinical"])


# CinCGAN -----------------------------------------------------------------------------------------------------------


def test_cincgans_losses_are_the_papers():
    method, batch = build("cincgan"), make_batch(patch=16)
    clean, networks = block_mean(batch.micro, 2), method.to_micro
    cleaned = networks.clean(batch.clinical)
    fine = networks.enlarge(cleaned)
    losses = losses_of_one_step(method, batch, progress=0.9)
    expected = {
        "joint/inner_cycle": 10 * functional.mse_loss(method.to_noisy(cleaned), batch.clinical),
        "joint/inner_identity": 5 * functional.l1_loss(networks.clean(clean), clean),
        "joint/outer_cycle": 10 * functional.mse_loss(method.to_coarse(fine), batch.clinical),
        "joint/outer_identity": 5 * functional.l1_loss(networks.enlarge(clean), batch.micro),
        "joint/outer_gan": ((method.micro_critic(fine) - 1) ** 2).mean(),
        "joint/outer_variation": 2 * ((fine.diff(dim=2) ** 2).mean() + (fine.diff(dim=3) ** 2).mean()),
    }
    for name, value in expected.items():
        assert losses[name] == pytest.approx(float(value.detach()), rel=1e-4), name


@pytest.mark.parametrize(
    ("progress", "optimisers"), [(0.1, {"inner", "inner_critic"}), (0.5, {"joint", "joint_critics"})]
)
def test_cincgan_moves_only_optimisers_whose_span_it_is(progress, optimisers):
    method = build("cincgan")
    called = {name.split("/")[0] for name in losses_of_one_step(method, make_batch(patch=16), progress)}
    assert called == optimisers
    for name, settings in method.optimisers().items():
        assert (settings.span[0] <= progress < settings.span[1]) == (name in optimisers)


def test_without_an_inner_stage_everything_is_trained_from_the_first_step():
    method = build("cincgan", inner_share=0.0)
    assert parameters_without_gradient(method, make_batch(patch=16), (0.0,)) == set()


# pseudo-SR -----------------------------------------------------------------------------------------------------------


def test_the_geometry_ensemble_is_the_mean_over_eight_ways():
    weights = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1))
    all_ways = torch.stack(
        [torch.rot90(w.flip(-1) if m else w, k, (-2, -1)) for w in [weights] for k in range(4) for m in (False, True)]
    )
    # Turning image and result is turning the filter; the mean of the filters is the ensemble's.
    expected = functional.conv2d(images, all_ways.mean(dim=0), padding=1)

    def function(x):
        return functional.conv2d(x, weights, padding=1)

    torch.testing.assert_close(geometry_ensemble(function, images, function(images)), expected)


def test_a_function_that_does_not_care_for_directions_is_its_own_ensemble():
    images = torch.rand(2, 1, 6, 6)
    torch.testing.assert_close(geometry_ensemble(torch.tanh, images, torch.tanh(images)), torch.tanh(images))


def test_without_weight_the_ensemble_is_left_out():
    batch = make_batch(patch=16)
    assert "generators/geometry" in losses_of_one_step(build("pseudo-sr"), batch)
    assert "generators/geometry" not in losses_of_one_step(build("pseudo-sr", geometry_weight=0.0), batch)


def test_the_enlarging_network_learns_from_the_pairs_alone():
    batch, gradients = make_batch(patch=16), []
    for weight in (0.1, 50.0):
        method = build("pseudo-sr", fine_critic_weight=weight)
        seen = {}

        class Watching(PlainUpdate):
            def __call__(self, optimiser, losses, seen=seen):
                if optimiser == "generators":
                    total = sum(losses.values())
                    networks = self.method.to_micro
                    seen["enlarge"] = torch.autograd.grad(total, networks.enlarge.tail.weight, retain_graph=True)[0]
                    seen["clean"] = torch.autograd.grad(total, networks.clean.tail.weight, retain_graph=True)[0]
                super().__call__(optimiser, losses)

        torch.manual_seed(0)
        method.train().step(batch, Watching(method, move=False))
        gradients.append(seen)
    torch.testing.assert_close(gradients[0]["enlarge"], gradients[1]["enlarge"])
    assert not torch.allclose(gradients[0]["clean"], gradients[1]["clean"], rtol=1e-3)


def test_the_noise_makes_another_scan_of_the_same_clean_patch():
    method = build("pseudo-sr").eval()
    clean = block_mean(make_batch(patch=16).micro, 2)
    with torch.no_grad():
        scans = [method.to_clinical(clean, method.to_clinical.draw_noise(clean)) for _ in range(2)]
    assert not torch.allclose(*scans)


def test_discriminators_of_higher_scales_have_more_strides():
    counts = [
        sum(
            layer.stride[0] == 2
            for layer in build("pseudo-sr", scale=scale).fine_critic.layers
            if hasattr(layer, "stride")
        )
        for scale in (2, 4, 8, 16)
    ]
    assert counts == [1, 2, 3, 4]


def test_the_defaults_are_the_papers_weights():
    unit, pseudo = method_kind("unit").settings(), method_kind("pseudo-sr").settings()
    assert (unit.reconstruction_weight, unit.kl_weight, unit.cycle_weight, unit.cycle_kl_weight) == (10, 0.01, 10, 0.01)
    sr_unit = method_kind("sr-unit").settings()
    lambdas = [getattr(sr_unit, f"{n}_weight") for n in ("ssim_clinical", "ssim_micro", "downsample", "upsample")]
    assert lambdas == [2, 1, 1, 1]
    assert (pseudo.cycle_weight, pseudo.identity_weight, pseudo.geometry_weight) == (1, 2, 1)
    assert replace(pseudo, fine_critic_weight=0.0).fine_critic_weight == 0.0
