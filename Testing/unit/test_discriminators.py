"""The discriminators: parameters, sizes they accept, what a logit sees, and that they learn."""

from __future__ import annotations

import pytest
import torch

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.networks.discriminators import (
    MultiScaleDiscriminator,
    PatchDiscriminator,
    PooledDiscriminator,
    StridedDiscriminator,
)

SMALL = {
    "patch": lambda: PatchDiscriminator(channels=4),
    "patch with batch norm": lambda: PatchDiscriminator(channels=4, norm="batch"),
    "multi-scale": lambda: MultiScaleDiscriminator(channels=4),
    "pooled": lambda: PooledDiscriminator(channels=4),
    "strided 1": lambda: StridedDiscriminator(channels=4, strides=(1, 1, 1, 1), norm="none"),
    "strided 2": lambda: StridedDiscriminator(channels=4, strides=(2, 2, 2, 1), norm="batch"),
}


def image_of(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def answers(discriminator, image):
    result = discriminator(image)
    return result if isinstance(result, list) else [result]


def count(module):
    return sum(weights.numel() for weights in module.parameters())


def test_the_patch_discriminator_has_the_published_number_of_parameters():
    assert count(PatchDiscriminator()) == 2_762_689
    # CycleGAN's own form has factors and offsets of batch norm and no biases before them.
    assert count(PatchDiscriminator(norm="batch")) == 2_762_689 + 2 * (128 + 256 + 512) - (128 + 256 + 512)


def test_the_four_networks_of_the_paper_have_its_number_of_parameters():
    from CTMicroSRLib.networks import build_network
    from CTMicroSRLib.networks.micro_to_clinical import MicroToClinicalGenerator

    networks = [build_network("sr-cyclegan", {}), MicroToClinicalGenerator(), *(PatchDiscriminator() for _ in "12")]
    assert sum(count(network) for network in networks) == 19_264_369


def test_pooled_and_multi_scale_discriminators_have_the_parameters_of_their_layers():
    convolutions = [(1, 64, 9), (64, 64, 9), (64, 128, 9), (128, 128, 9), (128, 256, 9), (256, 256, 9)]
    convolutions += [(256, 512, 9), (512, 512, 9)]
    expected = sum(a * b * k + b for a, b, k in convolutions)  # a bias, or a norm's offset
    expected += sum(b for _, b, _ in convolutions[1:])  # a norm's factor
    expected += 512 * 1024 + 1024 + 1024 + 1
    assert count(PooledDiscriminator()) == expected
    one = sum(a * b * 16 + b for a, b in [(1, 64), (64, 128), (128, 256), (256, 512)]) + 512 + 1
    assert count(MultiScaleDiscriminator()) == 3 * one
    assert count(MultiScaleDiscriminator(scales=2, layers=1)) == 2 * (16 * 64 + 64 + 64 + 1)


@pytest.mark.parametrize(("edge", "logits"), [(256, 30), (48, 4), (32, 2), (24, 1)])
def test_the_patch_discriminator_takes_patches_of_either_domain(edge, logits):
    discriminator = PatchDiscriminator(channels=2)
    assert discriminator(image_of((2, 1, edge, edge))).shape == (2, 1, logits, logits)


def test_patches_that_are_too_small_are_refused_and_the_smallest_is_not():
    assert PatchDiscriminator(channels=2).smallest == 24
    for strides in [(2, 2, 2, 1), (1, 1, 1, 1), (2, 2, 1), (2,)]:
        discriminator = StridedDiscriminator(channels=2, strides=strides)
        edge = discriminator.smallest
        assert discriminator(image_of((1, 1, edge, edge))).isfinite().all()
        with pytest.raises(UsageError, match=f"make them {edge} voxels or more"):
            discriminator(image_of((1, 1, edge, edge - 1)))


def test_a_logit_of_the_patch_discriminator_sees_70_by_70_voxels():
    discriminator = PatchDiscriminator(channels=2, norm="none")
    image = image_of((1, 1, 160, 160)).requires_grad_()
    logits = discriminator(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = torch.nonzero(image.grad[0, 0])
    assert (seen.amax(dim=0) - seen.amin(dim=0) + 1).tolist() == [70, 70]


def test_strides_say_how_far_apart_a_strided_discriminators_logits_are():
    image = image_of((1, 1, 32, 40))
    assert StridedDiscriminator(channels=2, strides=(1, 1, 1, 1))(image).shape[-2:] == (27, 35)
    assert StridedDiscriminator(channels=2, strides=(2, 2, 1, 1))(image).shape[-2:] == (5, 7)
    same = StridedDiscriminator(channels=4, strides=(2, 2, 2, 1))
    same.load_state_dict(PatchDiscriminator(channels=4).state_dict())


@pytest.mark.parametrize("edges", [(256, 256), (48, 48), (32, 32), (24, 24), (6, 17)])
def test_the_multi_scale_discriminator_answers_for_every_scale_at_any_size(edges):
    discriminator = MultiScaleDiscriminator(channels=2)
    logits = discriminator(image_of((2, 1, *edges)))
    assert [answer.shape[:2] for answer in logits] == [(2, 1)] * 3
    assert logits[0].shape[-1] == max(1, edges[1] // 16)
    sum(answer.sum() for answer in logits).backward()
    assert all(weights.grad is not None for weights in discriminator.parameters())


def test_the_multi_scale_discriminator_is_the_published_one():
    """Layer by layer with torch's own functions on the same weights."""
    discriminator = MultiScaleDiscriminator(channels=3)
    image = image_of((2, 1, 64, 80))
    with torch.no_grad():
        logits = discriminator(image)
        for answer, layers in zip(logits, discriminator.scales, strict=True):
            x = image
            for layer in list(layers)[:-1]:
                padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
                x = torch.nn.functional.leaky_relu(
                    torch.nn.functional.conv2d(padded, layer.weight, layer.bias, stride=2), 0.2
                )
            expected = torch.nn.functional.conv2d(x, layers[-1].weight, layers[-1].bias)
            torch.testing.assert_close(answer, expected)
            ones = torch.nn.functional.avg_pool2d(torch.ones_like(image), 3, 2, 1)
            image = torch.nn.functional.avg_pool2d(image, 3, 2, 1) / ones


@pytest.mark.parametrize("edges", [(32, 32), (24, 24), (100, 60)])
def test_the_pooled_discriminator_gives_one_logit_for_any_size(edges):
    assert PooledDiscriminator(channels=2)(image_of((3, 1, *edges))).shape == (3, 1)


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_without_batch_norm_an_images_logits_do_not_depend_on_the_others(norm):
    for discriminator in (PatchDiscriminator(channels=4, norm=norm), PooledDiscriminator(channels=4, norm=norm)):
        images = image_of((3, 1, 32, 32))
        torch.testing.assert_close(discriminator(images)[:1], discriminator(images[:1]), rtol=0, atol=1e-5)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm is 'frozen'"):
        PatchDiscriminator(norm="frozen")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["lsgan", "log"])
def test_a_discriminator_learns_to_tell_two_batches_apart(name, kind):
    from CTMicroSRLib.training.losses.adversarial import discriminator_loss, generator_loss

    torch.manual_seed(0)
    discriminator = SMALL[name]()
    real = torch.nn.functional.interpolate(image_of((4, 1, 8, 8)), scale_factor=4)
    fake = image_of((4, 1, 32, 32), seed=1)
    adam = torch.optim.Adam(discriminator.parameters(), lr=4e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(24):
        loss = discriminator_loss(kind, discriminator(real), discriminator(fake))
        adam.zero_grad()
        loss.backward()
        assert all(weights.grad is not None for weights in discriminator.parameters())
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        assert generator_loss(kind, discriminator(real)) < generator_loss(kind, discriminator(fake))
        assert all(
            good.mean() > bad.mean()
            for good, bad in zip(answers(discriminator, real), answers(discriminator, fake), strict=True)
        )
