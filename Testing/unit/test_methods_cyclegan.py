"""SR-CycleGAN, CycleGAN, Bayesian CycleGAN and two-stage: their losses by hand, gradients, presets, export."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method_steps import PlainUpdate, make_batch, parameters_without_gradient, run_steps

from CTMicroSRLib.card import Postprocess
from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.resampling import gaussian_pyramid
from CTMicroSRLib.training.losses.ssim import SSIM_CONSTANTS, ssim
from CTMicroSRLib.training.methods import changed, method_kind
from CTMicroSRLib.training.methods.sr_cyclegan import PRESETS, Settings

NAMES = ("sr-cyclegan", "cyclegan", "bayesian-cyclegan", "two-stage")
TINY = {
    "sr-cyclegan": {"channels": 8, "blocks": 1, "discriminator_channels": 4},
    "cyclegan": {"channels": 4, "blocks": 1, "discriminator_channels": 4},
    "bayesian-cyclegan": {"channels": 4, "blocks": 1, "discriminator_channels": 4},
    "two-stage": {
        "channels": 4,
        "blocks": 1,
        "discriminator_channels": 4,
        "synthesis_channels": 4,
        "synthesis_blocks": 1,
    },
}


def method_of(name, *, seed=0, **values):
    kind = method_kind(name)
    torch.manual_seed(seed)
    return kind.build(changed(kind.settings(), {"scale": 2, **TINY[name], **values}, name))


def count(*modules):
    return sum(weights.numel() for module in modules for weights in module.parameters())


class Recorder(PlainUpdate):
    """Keeps the losses as tensors and moves nothing."""

    def __call__(self, optimiser, losses):
        self.losses |= {f"{optimiser}/{name}": value.detach() for name, value in losses.items()}


def recorded(method, batch, progress=0.0):
    update = Recorder(method)
    update.progress = progress
    method.step(batch, update)
    return update.losses


def test_sr_cyclegan_has_the_papers_networks():
    method = method_kind("sr-cyclegan").build(Settings())
    assert count(method) == 19_264_369
    assert count(method.generator()) == 802_222
    weights = method.clinical_to_micro.head.convolution.weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_other_methods_have_their_papers_networks():
    cyclegan = method_kind("cyclegan").build(method_kind("cyclegan").settings())
    assert count(cyclegan) == 2 * (11_365_633 + 2_762_689)
    down_blocks = method_kind("sr-cyclegan").build(Settings(generator="down-blocks"))
    assert count(down_blocks.generator()) == 11_387_137
    two_stage = method_kind("two-stage").build(method_kind("two-stage").settings())
    assert len(two_stage.micro_to_clinical.body.blocks) == 6
    assert count(two_stage.synthesizer()) == 11_365_633 - 3 * 2 * (256 * 256 * 9 + 256)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_generator_is_rebuilt_by_its_architecture_and_enlarges_by_the_scale(name, scale):
    method = method_of(name, scale=scale)
    architecture, parameters = method.architecture()
    rebuilt = build_network(architecture, parameters)
    rebuilt.load_state_dict(method.generator().state_dict())
    assert (method.scale, rebuilt.scale) == (scale, scale)
    image = make_batch(patch=12, scale=2).clinical
    with torch.inference_mode():
        result = rebuilt.eval()(image)
        assert result.shape == (2, 1, 12 * scale, 12 * scale)
        assert torch.equal(result, method.generator().eval()(image))
    assert any(network is method.generator() for network in method.children())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sr-cyclegan", {}),
        ("sr-cyclegan", {"generator": "down-blocks", "adversarial": "relativistic"}),
        ("sr-cyclegan", {"identity_micro": 0.2, "power": 2, "adversarial": "log"}),
        ("cyclegan", {}),
        ("cyclegan", {"adversarial": "relativistic", "identity": 0.0}),
        ("bayesian-cyclegan", {}),
        ("two-stage", {}),
        ("two-stage", {"synthesis_adversarial": "relativistic"}),
    ],
    ids=str,
)
def test_a_step_gives_every_parameter_a_gradient(name, values):
    """Biases before an instance norm cancel in its mean: theirs is rounding, or 0."""
    method = method_of(name, **values)
    without = parameters_without_gradient(method, make_batch(scale=2), progresses=(0.0, 0.75))
    assert not {name for name in without if not name.endswith("bias")}
    moved = {network for settings in method.optimisers().values() for network in settings.networks}
    assert moved == {network for network, _ in method.named_children()}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_leaves_networks_trainable_and_without_gradient(name):
    method = method_of(name)
    run_steps(method, make_batch(scale=2), 2)
    assert all(weights.requires_grad and weights.grad is None for weights in method.parameters())


@pytest.mark.parametrize(
    ("name", "values", "progress", "optimiser"),
    [
        ("sr-cyclegan", {"adversarial_clinical": 0.0, "adversarial_micro": 0.0}, 0.0, "generators"),
        ("cyclegan", {}, 0.0, "generators"),
        ("bayesian-cyclegan", {"dropout_rate": 0.1, "adversarial_weight": 0.01}, 0.0, "generators"),
        ("two-stage", {}, 0.0, "synthesis"),
        ("two-stage", {}, 0.5, "super_resolution"),
    ],
    ids=str,
)
def test_a_short_training_lowers_the_losses_that_tie_results_to_their_input(name, values, progress, optimiser):
    batch = make_batch(scale=2, blob=8)
    record = run_steps(method_of(name, **values), batch, 24, start=progress, stop=progress, learning_rate=5e-3)

    def tied(losses):
        own = {key: value for key, value in losses.items() if key.startswith(f"{optimiser}/")}
        return sum(value for key, value in own.items() if "adversarial" not in key)

    assert sum(map(tied, record[-3:])) < 0.85 * sum(map(tied, record[:3]))


@pytest.mark.parametrize("name", ["sr-cyclegan", "cyclegan"])
def test_the_discriminators_learn_where_the_generators_stand_still(name):
    method, batch = method_of(name), make_batch(scale=2)
    update = PlainUpdate(method)
    for group in update.adam["generators"].param_groups:
        group["lr"] = 0.0
    for group in update.adam["discriminators"].param_groups:
        group["lr"] = 4e-3
    record = []
    for _ in range(20):
        method.step(batch, update)
        record.append(update.losses["discriminators/micro"] + update.losses["discriminators/clinical"])
    assert record[-1] < 0.5 * record[0]


@pytest.mark.parametrize("name", NAMES)
def test_losses_in_bfloat16_are_those_in_float32_but_for_its_precision(name):
    method, batch = method_of(name).eval(), make_batch(scale=2)
    for progress in (0.0, 0.75):
        exact = recorded(method, batch, progress)
        with torch.autocast("cpu", torch.bfloat16):
            fast = recorded(method, batch, progress)
        assert {value.dtype for value in fast.values()} == {torch.float32}
        for key, value in exact.items():
            torch.testing.assert_close(fast[key], value, rtol=0.05, atol=0.02, msg=key)


def test_sr_cyclegans_losses_are_those_of_the_paper_by_hand():
    batch = make_batch(scale=2)
    x, y = batch.clinical, batch.micro
    for power, constants, kind in [(1, "standard", "lsgan"), (2, "paper", "log")]:
        method = method_of("sr-cyclegan", power=power, ssim_constants=constants, adversarial=kind).eval()
        losses = recorded(method, batch)
        with torch.no_grad():
            g1, g2 = method.clinical_to_micro, method.micro_to_clinical
            d1, d2 = method.micro_discriminator, method.clinical_discriminator
            down, up = torch.nn.functional.avg_pool2d(g1(x), 2), g2(y).repeat_interleave(2, 2).repeat_interleave(2, 3)

            def distance(a, b, power=power):
                return (a - b).abs().pow(power).mean()

            def fooled(logits, kind=kind):
                return (logits - 1).square().mean() if kind == "lsgan" else -torch.sigmoid(logits).log().mean()

            def told(real, fake, kind=kind):
                if kind == "lsgan":
                    return ((real - 1).square().mean() + fake.square().mean()) / 2
                return -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean()) / 2

            expected = {
                "generators/ssim_clinical": 1 - ssim(x, down, SSIM_CONSTANTS[constants]),
                "generators/ssim_micro": 1 - ssim(y, up, SSIM_CONSTANTS[constants]),
                "generators/downsample": 0.7 * distance(x, down),
                "generators/upsample": 0.3 * distance(y, up),
                "generators/adversarial_clinical": fooled(d2(g2(y))),
                "generators/adversarial_micro": fooled(d1(g1(x))),
                "generators/cycle_clinical": distance(g2(g1(x)), x),
                "generators/cycle_micro": distance(g1(g2(y)), y),
                "discriminators/micro": told(d1(y), d1(g1(x))),
                "discriminators/clinical": told(d2(x), d2(g2(y))),
            }
        assert set(losses) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_codes_identity_losses_compare_with_the_enlarged_input():
    method = method_of("sr-cyclegan", identity_clinical=0.02, identity_micro=0.2, scale=4).eval()
    batch = make_batch(patch=24, scale=4)
    losses = recorded(method, batch)
    with torch.no_grad():
        again = torch.nn.functional.avg_pool2d(method.clinical_to_micro(batch.micro), 4)
        assert losses["generators/identity_micro"] == pytest.approx(0.2 * float((again - batch.micro).abs().mean()))
        shrunk = method.micro_to_clinical(batch.clinical)
        assert shrunk.shape[-1] == 6
        again = torch.nn.functional.interpolate(shrunk, size=(24, 24), mode="bilinear", align_corners=False)
        expected = 0.02 * float((again - batch.clinical).abs().mean())
        assert losses["generators/identity_clinical"] == pytest.approx(expected)
    method = method_of("sr-cyclegan", identity_clinical=0.02, scale=8)
    with pytest.raises(UsageError, match="need 32 voxels"):
        recorded(method, make_batch(patch=24, scale=8))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name[:2] in ("cy", "no", "on", "jm", "do")])
def test_an_ablation_leaves_out_the_losses_of_weight_0_and_no_others(preset):
    own = {key: value for key, value in PRESETS[preset].items() if "." not in key}
    method = method_of("sr-cyclegan", **{"scale": 2, **own, **TINY["sr-cyclegan"]})
    losses = recorded(method, make_batch(scale=2))
    s = method.settings
    terms = ("ssim_clinical", "ssim_micro", "downsample", "upsample", "adversarial_clinical", "adversarial_micro")
    terms += ("identity_clinical", "identity_micro")
    expected = {f"generators/{term}" for term in terms if getattr(s, term)}
    expected |= {"generators/cycle_clinical", "generators/cycle_micro"}
    assert set(losses) == expected | {"discriminators/micro", "discriminators/clinical"}


def test_the_presets_of_sr_cyclegan_differ_where_the_papers_text_and_its_code_do():
    def of(preset):
        return changed(Settings(), {k: v for k, v in PRESETS[preset].items() if "." not in k}, preset)

    text, code = of("jmi2022"), of("jmi2022-code")
    assert (text.power, text.adversarial, text.identity_micro, text.downsample) == (2, "log", 0.0, 0.7)
    assert (code.power, code.adversarial, code.identity_micro, code.downsample) == (1, "lsgan", 0.2, 1.0)
    assert PRESETS["jmi2022-code"]["trainer.mix_ratio"] == 0.25
    assert "trainer.mix_ratio" not in PRESETS["jmi2022"]
    kernels = of("kernels-3-7")
    assert (kernels.first_kernel, kernels.middle_kernel) == (3, 7)


def test_without_an_adversarial_loss_there_is_no_discriminator_to_move():
    method = method_of("sr-cyclegan", adversarial_micro=0.0)
    assert method.optimisers()["discriminators"].networks == ("clinical_discriminator",)
    assert "discriminators/micro" not in recorded(method, make_batch(scale=2))
    method = method_of("sr-cyclegan", adversarial_micro=0.0, adversarial_clinical=0.0)
    assert set(method.optimisers()) == {"generators"}
    assert run_steps(method, make_batch(scale=2), 1)


def test_discriminators_see_what_the_pool_gives_them():
    method, batch = method_of("sr-cyclegan").eval(), make_batch(scale=2)
    update = Recorder(method)
    asked = {}

    def pool(name, images):
        asked[name] = images
        return torch.full_like(images, 0.25)

    update.pool = pool
    method.step(batch, update)
    assert {name: images.shape for name, images in asked.items()} == {
        "micro": batch.micro.shape,
        "clinical": batch.clinical.shape,
    }
    assert not any(images.requires_grad for images in asked.values())
    with torch.no_grad():
        d = method.micro_discriminator
        expected = ((d(batch.micro) - 1).square().mean() + d(torch.full_like(batch.micro, 0.25)).square().mean()) / 2
    assert update.losses["discriminators/micro"] == pytest.approx(float(expected), rel=1e-5)


def test_cyclegans_losses_are_the_originals_on_the_interpolated_patch():
    method, batch = method_of("cyclegan").eval(), make_batch(scale=2)
    losses = recorded(method, batch)
    with torch.no_grad():
        x, y = method.clinical_to_micro.interpolate(batch.clinical), batch.micro
        assert x.shape == y.shape
        g, f = method.clinical_to_micro.on_fine_grid, method.micro_to_clinical
        expected = {
            "generators/adversarial_micro": (method.micro_discriminator(g(x)) - 1).square().mean(),
            "generators/adversarial_clinical": (method.clinical_discriminator(f(y)) - 1).square().mean(),
            "generators/cycle_clinical": 10 * (f(g(x)) - x).abs().mean(),
            "generators/cycle_micro": 10 * (g(f(y)) - y).abs().mean(),
            "generators/identity_micro": 5 * (g(y) - y).abs().mean(),
            "generators/identity_clinical": 5 * (f(x) - x).abs().mean(),
        }
        torch.testing.assert_close(g(x), method.generator()(batch.clinical))
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert set(losses) == set(expected) | {"discriminators/micro", "discriminators/clinical"}


def test_the_bayesian_cyclegan_draws_dropout_in_training_and_its_mean_is_the_result():
    method, batch = method_of("bayesian-cyclegan"), make_batch(scale=2)
    assert method.card_fields() == {"result": "mean", "postprocess": Postprocess(True, 3)}
    generator = method.generator()
    assert (generator.dropout_rate, generator.dropout_channels) == (0.5, (16,))
    assert method.micro_to_clinical.dropout_rate == 0.5
    torch.manual_seed(0)
    first = recorded(method, batch)
    assert recorded(method, batch)["generators/cycle_micro"] != first["generators/cycle_micro"]
    torch.manual_seed(0)
    assert recorded(method, batch) == first
    method.eval()
    assert recorded(method, batch) == recorded(method, batch)
    assert not [name for name in first if "identity" in name]


def test_the_two_stages_take_turns_and_the_synthesis_stands_still_in_the_second():
    method, batch = method_of("two-stage", first_share=0.25), make_batch(scale=2)
    before = {name: value.clone() for name, value in method.state_dict().items()}

    def moved():
        now = method.state_dict()
        return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, now[name])}

    first = run_steps(method, batch, 1, start=0.0)
    synthesis = {"micro_to_clinical", "clinical_to_micro", "clinical_discriminator", "coarse_micro_discriminator"}
    assert moved() == synthesis
    assert {name.split("/")[0] for name in first[0]} == {"synthesis", "synthesis_discriminators"}
    before = {name: value.clone() for name, value in method.state_dict().items()}
    second = run_steps(method, batch, 1, start=0.25)
    assert moved() == {"super_resolution", "micro_discriminator"}
    assert set(second[0]) == {"super_resolution/squared_error", "super_resolution/adversarial", "discriminator/micro"}
    spans = {name: settings.span for name, settings in method.optimisers().items()}
    assert spans["synthesis"] == spans["synthesis_discriminators"] == (0.0, 0.25)
    assert spans["super_resolution"] == spans["discriminator"] == (0.25, 1.0)


def test_the_two_stages_losses_are_the_papers_by_hand():
    method, batch = method_of("two-stage").eval(), make_batch(scale=2)
    losses = recorded(method, batch)
    with torch.no_grad():
        shrunk = gaussian_pyramid(batch.micro, 1)
        synthesized = method.synthesizer()(shrunk)
        constants = SSIM_CONSTANTS["paper"]
        assert losses["synthesis/ssim_micro"] == pytest.approx(0.5 * (1 - float(ssim(shrunk, synthesized, constants))))
        back = method.clinical_to_micro(batch.clinical)
        expected = 0.4 * (1 - float(ssim(batch.clinical, back, constants)))
        assert losses["synthesis/ssim_clinical"] == pytest.approx(expected)
        again = 10 * (method.clinical_to_micro(synthesized) - shrunk).abs().mean()
        torch.testing.assert_close(losses["synthesis/cycle_coarse_micro"], again, rtol=1e-4, atol=1e-6)
        made = method.generator()(synthesized)
        losses = recorded(method, batch, progress=0.5)
        squared = (made - batch.micro).square().mean()
        torch.testing.assert_close(losses["super_resolution/squared_error"], squared, rtol=1e-4, atol=1e-6)
        adversarial = -1e-3 * torch.sigmoid(method.micro_discriminator(made)).log().mean()
        torch.testing.assert_close(losses["super_resolution/adversarial"], adversarial, rtol=1e-4, atol=1e-8)


def test_the_synthesizer_is_rebuilt_by_its_architecture():
    method = method_of("two-stage", scale=4)
    rebuilt = build_network(*method.synthesizer_architecture()).eval()
    rebuilt.load_state_dict(method.synthesizer().state_dict())
    micro = make_batch(patch=12, scale=4).micro
    with torch.inference_mode():
        coarse = method.shrink(micro)
        assert coarse.shape == (2, 1, 12, 12)
        assert torch.equal(rebuilt(coarse), method.synthesizer().eval()(coarse))


def test_no_method_looks_at_the_truth():
    for name in NAMES:
        batch = make_batch(scale=2, truth=True)
        method = method_of(name).eval()
        for progress in (0.0, 0.75):
            torch.manual_seed(0)
            with_truth = recorded(method, batch, progress)
            torch.manual_seed(0)
            assert recorded(method, replace(batch, truth=None), progress) == with_truth
        assert method.needs == {"clinical", "micro"}


@pytest.mark.parametrize("name", NAMES)
def test_presets_hold_settings_that_there_are(name):
    from CTMicroSRLib.training.presets import run_settings

    kind = method_kind(name)
    assert {"paper", "small"} <= set(kind.presets)
    for preset in kind.presets:
        run_settings(name, preset, {})
    small = run_settings(name, "small", {})
    torch.manual_seed(0)
    assert count(kind.build(small.method)) < 2_000_000


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sr-cyclegan", {"scale": 3}),
        ("sr-cyclegan", {"channels": 12, "scale": 8}),
        ("sr-cyclegan", {"generator": "sideways"}),
        ("sr-cyclegan", {"generator": "down-blocks", "middle_kernel": 7}),
        ("sr-cyclegan", {"cycle": -1.0}),
        ("sr-cyclegan", {"power": 3}),
        ("sr-cyclegan", {"ssim_constants": "mine"}),
        ("sr-cyclegan", {"adversarial": "hinge"}),
        ("sr-cyclegan", {"learning_rate": 0.0}),
        ("cyclegan", {"scale": 16}),
        ("cyclegan", {"cycle": -1.0}),
        ("cyclegan", {"dropout_rate": 1.0}),
        ("bayesian-cyclegan", {"dropout_rate": 0.0}),
        ("two-stage", {"first_share": 1.0}),
        ("two-stage", {"ssim_constants": "mine"}),
        ("two-stage", {"ssim_micro": -0.5}),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(name, values):
    with pytest.raises(UsageError, match="is not possible"):
        changed(method_kind(name).settings(), values, name)


def test_kernels_that_have_no_middle_are_refused_when_the_networks_are_made():
    with pytest.raises(ValueError, match="not odd"):
        method_of("sr-cyclegan", first_kernel=4)
