"""Losses against values by hand, scipy, scikit-image and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity

from CTMicroSRLib.resampling import bicubic, block_mean, gaussian_pyramid, point_sampled, repeat
from CTMicroSRLib.training.losses.adversarial import discriminator_loss, generator_loss
from CTMicroSRLib.training.losses.latent import kl_to_unit_normal
from CTMicroSRLib.training.losses.mmsr import MmsrWeights, mmsr_losses
from CTMicroSRLib.training.losses.ssim import SSIM_CONSTANTS, SsimConstants, ssim
from CTMicroSRLib.training.losses.variation import total_variation

HALF, TWICE = math.log(2.0), 2.0 * math.log(2.0)


def image(*shape, seed=0, smooth=1.0):
    values = np.random.default_rng(seed).normal(size=shape)
    values = ndimage.gaussian_filter(values, (0, 0, smooth, smooth))
    return torch.from_numpy(np.clip(values / values.std() / 3, -1, 1))


# --- shrinking and enlarging -----------------------------------------------------------------------


def test_block_mean_is_numpys_mean_of_every_block():
    x = image(2, 1, 12, 8)
    expected = x.numpy().reshape(2, 1, 3, 4, 2, 4).mean(axis=(3, 5))
    np.testing.assert_allclose(block_mean(x, 4).numpy(), expected, atol=1e-15)


def test_repeat_is_numpys_repeat_and_block_mean_undoes_it():
    x = image(1, 1, 3, 4)
    np.testing.assert_array_equal(repeat(x, 4).numpy(), x.numpy().repeat(4, axis=2).repeat(4, axis=3))
    torch.testing.assert_close(block_mean(repeat(x, 4), 4), x)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_pyramid_is_scipys_mirrored_filter_and_the_mean_of_every_two_voxels(levels):
    x = image(2, 1, 32, 48)
    taps = np.array([1, 4, 6, 4, 1]) / 16
    expected = x.numpy()
    for _ in range(levels):
        for axis in (2, 3):
            expected = ndimage.convolve1d(expected, taps, axis=axis, mode="mirror")
        expected = expected[..., ::2, :] + expected[..., 1::2, :]
        expected = (expected[..., ::2] + expected[..., 1::2]) / 4
    np.testing.assert_allclose(gaussian_pyramid(x, levels).numpy(), expected, atol=1e-14)


def test_the_pyramid_leaves_a_ramp_where_block_means_leave_it():
    ramp = torch.arange(96, dtype=torch.float64).expand(1, 1, 96, 96)
    inner = slice(4, -4)
    torch.testing.assert_close(gaussian_pyramid(ramp, 3)[..., inner], block_mean(ramp, 8)[..., inner])


@pytest.mark.parametrize(("size", "scale"), [(256, 8), (64, 4), (48, 2)])
def test_point_sampling_is_scipys_zoom_but_for_a_last_row_and_column_that_scipy_may_lose(size, scale):
    x = image(1, 1, size, size, smooth=0.5)
    expected = ndimage.zoom(x[0, 0].numpy(), 1 / scale)
    sampled = point_sampled(x, scale)[0, 0].numpy()
    assert sampled.shape == (size // scale, size // scale)
    np.testing.assert_allclose(sampled[:-1, :-1], expected[:-1, :-1], atol=1e-12)


def test_point_sampling_takes_the_first_and_the_last_fine_voxel():
    x = image(1, 1, 64, 64, smooth=0.5)
    sampled = point_sampled(x, 8)
    torch.testing.assert_close(sampled[..., ::7, ::7], x[..., ::63, ::63])


def test_point_sampling_lets_detail_alias_that_block_means_remove():
    stripes = torch.tensor([1.0, -1.0]).repeat(32).expand(1, 1, 64, 64)
    assert block_mean(stripes, 8).abs().max() == 0
    assert point_sampled(stripes, 8).abs().max() > 0.5


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_bicubic_keeps_ramps_straight_and_voxels_where_they_are(scale):
    ramp = torch.arange(12, dtype=torch.float64).expand(1, 1, 12, 12)
    fine = bicubic(ramp, scale)[0, 0, 0].numpy()
    position = (np.arange(12 * scale) + 0.5) / scale - 0.5
    inner = slice(3 * scale, -3 * scale)
    np.testing.assert_allclose(fine[inner], position[inner], atol=1e-5)


# --- structural similarity -------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SSIM_CONSTANTS))
def test_ssim_of_whole_windows_is_scikit_images(name):
    a, b = image(1, 1, 40, 48), image(1, 1, 40, 48, seed=1)
    b = 0.7 * a + 0.3 * b
    constants = SSIM_CONSTANTS[name]
    _, full = structural_similarity(
        a[0, 0].numpy(),
        b[0, 0].numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        K1=math.sqrt(constants.c1),
        K2=math.sqrt(constants.c2),
        full=True,
    )
    expected = full[5:-5, 5:-5].mean()
    assert ssim(a, b, constants, padding="valid").item() == pytest.approx(expected, abs=1e-9)


def test_ssim_of_whole_windows_is_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = image(2, 1, 40, 48), image(2, 1, 40, 48, seed=1)
    b = 0.7 * a + 0.3 * b
    _, full = structural_similarity_index_measure(a, b, data_range=2.0, return_full_image=True)
    expected = full[..., 5:-5, 5:-5].mean()
    assert ssim(a, b, padding="valid").item() == pytest.approx(expected.item(), abs=1e-6)


def test_zero_padded_ssim_is_scipys_filter_with_zeros_outside():
    a, b = image(1, 1, 20, 16), image(1, 1, 20, 16, seed=1)
    c = SSIM_CONSTANTS["paper"]
    offset = np.arange(-5, 6)
    taps = np.exp(-(offset**2) / 4.5)
    taps /= taps.sum()

    def mean(values):
        rows = ndimage.convolve1d(values, taps, axis=0, mode="constant")
        return ndimage.convolve1d(rows, taps, axis=1, mode="constant")

    x, y = a[0, 0].numpy(), b[0, 0].numpy()
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    expected = ((2 * mx * my + c.c1) * (2 * vxy + c.c2) / ((mx**2 + my**2 + c.c1) * (vx + vy + c.c2))).mean()
    assert ssim(a, b, c).item() == pytest.approx(expected, abs=1e-12)


def test_ssim_of_constant_images_is_their_luminance_term_by_hand():
    a, b = torch.full((1, 1, 24, 24), 0.5), torch.full((1, 1, 24, 24), 0.1)
    expected = (2 * 0.5 * 0.1 + 0.02) / (0.5**2 + 0.1**2 + 0.02)
    assert ssim(a, b, SSIM_CONSTANTS["paper"], padding="valid").item() == pytest.approx(expected, abs=1e-5)


def test_ssim_is_one_only_for_the_same_image_and_symmetric():
    a, b = image(1, 1, 32, 32), image(1, 1, 32, 32, seed=1)
    assert ssim(a, a).item() == pytest.approx(1.0)
    assert ssim(a, b).item() < 0.9
    assert ssim(a, b).item() == pytest.approx(ssim(b, a).item())


@pytest.mark.parametrize("size", [1, 4, 7, 10])
def test_the_window_shrinks_on_an_image_that_is_smaller(size):
    a, b = image(1, 1, 12, 12)[..., :size], image(1, 1, 12, 12, seed=1)[..., :size]
    assert torch.isfinite(ssim(a, b, padding="valid"))
    assert ssim(a, a, padding="valid").item() == pytest.approx(1.0)


@pytest.mark.parametrize("padding", ["zero", "valid"])
def test_ssims_gradient_is_its_finite_difference(padding):
    a, b = image(1, 1, 12, 13), image(1, 1, 12, 13, seed=1)
    a.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: ssim(x, b, padding=padding), (a,), eps=1e-6, atol=1e-6)


def test_ssim_keeps_its_precision_under_autocast():
    a = image(1, 1, 32, 32).float() * 0.01 + 0.5
    b = a + image(1, 1, 32, 32, seed=1).float() * 0.001
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ssim(a, b)
    assert inside.item() == ssim(a, b).item()


# --- adversarial -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [
        # logits: real 1, 0; fake 0, -1
        ("lsgan", (1 + 4) / 2, ((0 + 1) / 2 + (0 + 1) / 2) / 2),
        (
            "log",
            (HALF + math.log(1 + math.e)) / 2,
            ((math.log(1 + math.exp(-1)) + HALF) + (HALF + math.log(1 + math.exp(-1)))) / 4,
        ),
        (
            # real - mean(fake) = 1.5, .5; fake - mean(real) = -.5, -1.5
            "relativistic",
            (math.log(1 + math.exp(0.5)) + math.log(1 + math.exp(1.5))) / 2,
            (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-1.5))) / 2,
        ),
    ],
)
def test_adversarial_losses_are_those_by_hand(kind, generator, discriminator):
    real, fake = torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0])
    assert generator_loss(kind, fake, real).item() == pytest.approx(generator, abs=1e-6)
    assert discriminator_loss(kind, real, fake).item() == pytest.approx(discriminator, abs=1e-6)


@pytest.mark.parametrize("kind", ["lsgan", "log", "relativistic"])
def test_a_discriminator_of_several_scales_counts_each_the_same(kind):
    real, fake = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    one = discriminator_loss(kind, real, fake)
    more = discriminator_loss(kind, [real, real[..., :1, :1]], [fake, fake[..., :1, :1]])
    other = discriminator_loss(kind, real[..., :1, :1], fake[..., :1, :1])
    torch.testing.assert_close(more, (one + other) / 2)


@pytest.mark.parametrize("kind", ["lsgan", "log", "relativistic"])
def test_both_sides_of_the_game_pull_fake_logits_apart(kind):
    real, fake = torch.zeros(4), torch.zeros(4, requires_grad=True)
    (up,) = torch.autograd.grad(generator_loss(kind, fake, real), fake)
    (down,) = torch.autograd.grad(discriminator_loss(kind, real + 0.5, fake), fake)
    assert (up < 0).all()
    assert kind == "lsgan" or (down > 0).all()


def test_logarithmic_losses_stay_finite_for_extreme_logits():
    far = torch.tensor([1e4, -1e4])
    for kind in ("log", "relativistic"):
        assert torch.isfinite(generator_loss(kind, far, far))
        assert torch.isfinite(discriminator_loss(kind, far, far))


def test_unknown_kinds_and_a_relativistic_loss_without_real_logits_are_refused():
    logits = torch.zeros(2)
    with pytest.raises(ValueError, match="unknown"):
        generator_loss("hinge", logits)
    with pytest.raises(ValueError, match="unknown"):
        discriminator_loss("hinge", logits, logits)
    with pytest.raises(ValueError, match="real"):
        generator_loss("relativistic", logits)


# --- multi-modality super-resolution ---------------------------------------------------------------


def constant(value, size):
    return torch.full((1, 1, size, size), value)


@pytest.mark.parametrize(("power", "expected"), [(1, (0.7 * 0.5, 0.3 * 0.25)), (2, (0.7 * 0.25, 0.3 * 0.0625))])
def test_mmsr_distances_of_constant_patches_are_those_by_hand(power, expected):
    losses = mmsr_losses(constant(0.5, 4), constant(0.0, 32), constant(0.0, 32), constant(0.25, 4), power=power)
    assert (losses["downsample"].item(), losses["upsample"].item()) == pytest.approx(expected)


def test_mmsr_is_zero_when_results_shrink_and_enlarge_to_their_inputs():
    coarse = image(2, 1, 4, 4, smooth=0.0)
    losses = mmsr_losses(coarse, repeat(coarse, 8), repeat(coarse, 8), coarse)
    assert list(losses) == ["ssim_clinical", "downsample", "ssim_micro", "upsample"]
    assert sum(loss.item() for loss in losses.values()) == pytest.approx(0.0, abs=1e-6)


def test_mmsrs_ssim_terms_are_one_minus_the_ssim_of_shrunk_and_enlarged():
    x, y = image(1, 1, 16, 16), image(1, 1, 128, 128, smooth=4.0)
    g1, g2 = image(1, 1, 128, 128, seed=1), image(1, 1, 16, 16, seed=1)
    constants = SsimConstants(0.1, 0.2)
    losses = mmsr_losses(x, g1, y, g2, weights=MmsrWeights(2.0, 3.0), constants=constants)
    torch.testing.assert_close(losses["ssim_clinical"], 2 * (1 - ssim(x, block_mean(g1, 8), constants)))
    torch.testing.assert_close(losses["ssim_micro"], 3 * (1 - ssim(y, repeat(g2, 8), constants)))


def test_mmsr_leaves_terms_of_weight_zero_out():
    patches = constant(0.5, 4), constant(0.0, 32), constant(0.0, 32), constant(0.25, 4)
    assert list(mmsr_losses(*patches, weights=MmsrWeights(0, 0, 0, 1))) == ["upsample"]
    assert mmsr_losses(*patches, weights=MmsrWeights(0, 0, 0, 0)) == {}
    with pytest.raises(ValueError, match="power"):
        mmsr_losses(*patches, power=3)


def test_mmsrs_gradient_reaches_both_generators_results():
    results = image(1, 1, 32, 32).requires_grad_(True), image(1, 1, 4, 4).requires_grad_(True)
    x, y = image(1, 1, 4, 4, seed=1), image(1, 1, 32, 32, seed=1)
    total = sum(mmsr_losses(x, results[0], y, results[1]).values())
    gradients = torch.autograd.grad(total, results)
    assert all(gradient.abs().min() > 0 for gradient in gradients)


# --- the rest --------------------------------------------------------------------------------------


def test_total_variation_of_a_tiny_image_is_that_by_hand():
    x = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert total_variation(x).item() == pytest.approx((9 + 4) / 2 + (1 + 0) / 2)
    assert total_variation(torch.ones(1, 1, 5, 5)).item() == 0


def test_the_divergence_from_a_unit_normal_grows_with_the_square_of_the_mean():
    assert kl_to_unit_normal(torch.tensor([[3.0, -4.0]])).item() == pytest.approx(12.5)
    assert kl_to_unit_normal(torch.zeros(2, 3)).item() == 0
