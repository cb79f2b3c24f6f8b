"""The supervised methods' generators: parameters, exact tiles, receptive fields, folded norms, gradients."""

import math

import numpy as np
import pytest
import torch

from CTMicroSRLib.interpolation import phase_kernels
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.generator import WHOLE, Border
from CTMicroSRLib.networks.strips import STRIP_ROWS
from CTMicroSRLib.tiles import Rectangle, merge_cells, tile_of

TOLERANCE = 1e-5

NETWORKS = {
    "srresnet 8x": ("srresnet", {"channels": 8, "blocks": 2}),
    "srresnet 4x": ("srresnet", {"channels": 6, "blocks": 1, "scale": 4, "norm": "none"}),
    "srresnet 2x": ("srresnet", {"channels": 6, "blocks": 0, "scale": 2}),
    "rrdb 8x": ("rrdb", {"channels": 6, "growth": 4, "blocks": 1}),
    "rrdb 4x": ("rrdb", {"channels": 6, "growth": 4, "blocks": 1, "scale": 4}),
    "rrdb 2x": ("rrdb", {"channels": 6, "growth": 4, "blocks": 0, "scale": 2}),
    "unet 8x": ("unet", {"channels": 4, "depth": 4}),
    "unet 4x": ("unet", {"channels": 4, "depth": 3, "scale": 4}),
    "unet 2x": ("unet", {"channels": 4, "depth": 2, "scale": 2}),
    "unet 2x, deeper than a coarse voxel": ("unet", {"channels": 2, "depth": 3, "scale": 2}),
}


def random_network(name, seed=0):
    """Random weights under which a voxel's surroundings show, and norms that do something."""
    torch.manual_seed(seed)
    architecture, parameters = NETWORKS[name]
    network = build_network(architecture, parameters)
    with torch.no_grad():
        for weights in network.parameters():
            fan_in = weights[0].numel() if weights.dim() == 4 else 25.0
            weights.normal_(0.0, (2.0 / fan_in) ** 0.5 if weights.dim() == 4 else 0.1)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
    return network.eval()


def image_of(rows, columns, seed=0):
    return torch.rand((1, 1, rows, columns), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def whole(network, image):
    with torch.inference_mode():
        return network(image, WHOLE)[0, 0]


def of_tile(network, image, core):
    """The core's part of the whole image, from the tile with its halo."""
    tile = tile_of(core, tuple(image.shape[-2:]), network.halo)
    with torch.inference_mode():
        part = network(
            image[..., slice(*tile.rows), slice(*tile.columns)], Border(tile.left, tile.right, tile.top, tile.bottom)
        )[0, 0]
    top, left = 0 if tile.top else core.rows[0], 0 if tile.left else core.columns[0]
    s = network.scale
    return part[
        (core.rows[0] - top) * s : (core.rows[1] - top) * s, (core.columns[0] - left) * s : (core.columns[1] - left) * s
    ]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(96, 130), (37, 65), (5, 9)], ids=str)
def test_tiles_are_the_whole_image_inside_and_at_its_border(name, size):
    network = random_network(name)
    image = image_of(*size)
    reference = whole(network, image)
    s = network.scale
    assert reference.shape == tuple(n * s for n in size)
    assert reference.std() > 0.01
    cells = np.ones([-(-n // 32) for n in size], dtype=bool)
    for core in merge_cells(cells, size, network.halo, 32):
        part = reference[core.rows[0] * s : core.rows[1] * s, core.columns[0] * s : core.columns[1] * s]
        result = of_tile(network, image, core)
        assert result.shape == part.shape
        assert (result - part).abs().max() <= TOLERANCE * max(1.0, reference.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_an_inner_tile_with_nothing_but_its_halo_is_the_whole_images(name):
    network = random_network(name)
    halo, s = network.halo, network.scale
    start = (halo // 32 + 1) * 32
    core = Rectangle((start, start + 32), (start, start + 32))
    image = image_of(*(start + 32 + halo + 9,) * 2)
    tile = tile_of(core, tuple(image.shape[-2:]), halo)
    assert not any((tile.left, tile.right, tile.top, tile.bottom))
    assert tile.rows == tile.columns == (start - halo, start + 32 + halo)
    part = whole(network, image)[start * s : (start + 32) * s, start * s : (start + 32) * s]
    assert (of_tile(network, image, core) - part).abs().max() <= TOLERANCE * max(1.0, part.abs().max().item())


def reach(network, middle):
    """Coarse voxels that a coarse voxel's fine block depends on, on each side, by its gradient."""
    with torch.no_grad():
        for weights in network.parameters():
            weights.abs_().div_(weights.sum(dim=(1, 2, 3), keepdim=True)) if weights.dim() == 4 else weights.zero_()
        if hasattr(network, "kernels"):  # cubic weights cancel; where they are not zero is what counts
            network.kernels.abs_()
    image = torch.ones((1, 1, 2 * middle + 1, 2 * middle + 1), requires_grad=True)
    s = network.scale
    network.double()(image.double(), WHOLE)[
        0, 0, middle * s : (middle + 1) * s, middle * s : (middle + 1) * s
    ].sum().backward()
    rows, columns = np.nonzero(image.grad[0, 0].numpy())
    return {middle - rows.min(), rows.max() - middle, middle - columns.min(), columns.max() - middle}


@pytest.mark.parametrize("name", [name for name in NETWORKS if "unet" not in name])
def test_the_halo_is_the_receptive_field_and_not_a_voxel_more(name):
    architecture, parameters = NETWORKS[name]
    network = build_network(architecture, {**parameters, "norm": "none"} if architecture == "srresnet" else parameters)
    assert reach(network, network.halo + 4) == {network.halo}


@pytest.mark.parametrize(
    ("architecture", "halo"), [("srresnet", 40), ("rrdb", 349), ("unet", 16)], ids=["srresnet", "rrdb", "unet"]
)
def test_the_papers_networks_halos_are_those_by_hand(architecture, halo):
    """SRGAN: 4 + 32 + 1 + 1 + 1/2 + 1/4 + 4/8; ESRGAN: 2 + 23 * 15 + 1/2 + 1/4 + 1/8 + 2/8; both rounded up."""
    with torch.device("meta"):
        assert build_network(architecture, {}).halo == halo


def parameters_of_srgan(channels, blocks, doublings):
    c = channels
    ends = (81 * c + c + 1) + (81 * c + 1)
    convolution = 9 * c * c + c + 2 * c
    return ends + blocks * (2 * convolution + 1) + convolution + doublings * (9 * c * 4 * c + 4 * c + 1)


def parameters_of_esrgan(c, g, blocks, doublings):
    dense = sum(9 * (c + n * g) * g + g for n in range(4)) + 9 * (c + 4 * g) * c + c
    return (9 * c + c) + blocks * 3 * dense + (2 + doublings) * (9 * c * c + c) + (9 * c + 1)


def parameters_of_unet(c, depth):
    def pair(a, b):
        return 9 * a * b + b + 9 * b * b + b

    widths = [c * 2**n for n in range(depth + 1)]
    down = pair(1, c) + sum(pair(w // 2, w) for w in widths[1:])
    return down + sum(4 * 2 * w * w + w + pair(2 * w, w) for w in widths[:-1]) + c + 1


@pytest.mark.parametrize(
    ("architecture", "expected", "number"),
    [
        ("srresnet", parameters_of_srgan(64, 16, 3), 1_676_437),
        ("rrdb", parameters_of_esrgan(64, 32, 23, 3), 16_732_609),
        ("unet", parameters_of_unet(64, 4), 31_030_593),
    ],
)
def test_networks_have_the_papers_number_of_parameters(architecture, expected, number):
    with torch.device("meta"):
        network = build_network(architecture, {})
    assert sum(weights.numel() for weights in network.parameters()) == expected == number


def test_esrgan_at_4x_with_three_channels_would_have_its_published_number_of_parameters():
    """16,697,987: two more channels in, two more out."""
    with torch.device("meta"):
        network = build_network("rrdb", {"scale": 4})
    more = 2 * 9 * 64 + 2 * (9 * 64 + 1)
    assert sum(weights.numel() for weights in network.parameters()) + more == 16_697_987


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_a_gradient_in_training(name):
    network = random_network(name).train()
    network(image_of(16, 16).expand(2, 1, 16, 16) + torch.randn(2, 1, 16, 16), WHOLE).square().mean().backward()
    for key, weights in network.named_parameters():
        assert weights.grad is not None, key
        assert torch.isfinite(weights.grad).all(), key
    assert sum((weights.grad != 0).any().item() for weights in network.parameters()) >= 0.7 * len(
        list(network.parameters())
    )


@pytest.mark.parametrize("name", ["srresnet 8x", "rrdb 8x"])
def test_strips_of_rows_are_the_whole(name):
    network = random_network(name)
    image = image_of(3 * STRIP_ROWS + 5, 20)
    at_once = network(image, WHOLE).detach()[0, 0]
    torch.testing.assert_close(whole(network, image), at_once, atol=TOLERANCE, rtol=TOLERANCE)


def test_folding_batch_norms_changes_nothing():
    network = random_network("srresnet 8x").double()
    image = image_of(20, 24).double()
    before = whole(network, image)
    keys = set(network.state_dict())
    network.fold()
    assert any("norm" in key for key in keys)
    assert not any("norm" in key for key in network.state_dict())
    assert (whole(network, image) - before).abs().max() <= 1e-6


def test_batch_norms_follow_the_batch_in_training_only():
    network = random_network("srresnet 8x")
    one, two = image_of(12, 12), image_of(12, 12, seed=1)
    alone = network(one)
    together = network(torch.cat([one, two]))[:1]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    network.train()
    assert (network(one) - network(torch.cat([one, two]))[:1]).abs().max() > 1e-3


def test_a_unet_that_passes_the_image_on_gives_the_cubic_interpolation():
    network = build_network("unet", {"channels": 1, "depth": 1, "scale": 4}).eval()
    with torch.no_grad():
        for weights in network.parameters():
            weights.zero_()
        for pair, channel in ((network.down[0], 0), (network.joined[0], 0)):
            pair.first.weight[0, channel, 1, 1] = 1.0
            pair.second.weight[0, 0, 1, 1] = 1.0
        network.tail.weight.fill_(1.0)
    image = image_of(9, 11).abs() + 1.0
    padded = torch.nn.functional.pad(image, (2,) * 4, mode="replicate")
    expected = torch.nn.functional.pixel_shuffle(
        torch.nn.functional.conv2d(padded, torch.from_numpy(phase_kernels(4))), 4
    )
    torch.testing.assert_close(whole(network, image), expected[0, 0])


@pytest.mark.parametrize("architecture", ["srresnet", "rrdb", "unet"])
@pytest.mark.parametrize("scale", [1, 3, 6])
def test_a_scale_that_is_no_power_of_two_is_refused(architecture, scale):
    from CTMicroSRLib.errors import ModelError

    with pytest.raises(ModelError, match="power of 2"):
        build_network(architecture, {"scale": scale})


def test_an_unknown_norm_is_refused():
    from CTMicroSRLib.errors import ModelError

    with pytest.raises(ModelError, match="norm"):
        build_network("srresnet", {"norm": "instance"})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_bfloat16_is_near_the_exact_one(name):
    network = random_network(name)
    image = image_of(20, 20)
    exact = whole(network, image)
    for layer in network.children():
        layer.to(torch.bfloat16)
    rough = whole(network, image)
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean().sqrt() < 0.1 * exact.std() + 0.02


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_unets_halo_covers_its_receptive_field_wherever_the_strides_fall(depth, scale):
    """Positions lie differently to the strides; the one that sees farthest is covered, and not by much more."""
    network = build_network("unet", {"channels": 1, "depth": depth, "scale": scale})
    reaches = set()
    for offset in range(network.align):
        reaches |= reach(network, network.halo + 4 + offset)
    assert max(reaches) <= network.halo < max(reaches) + network.align + 1
    assert network.halo % network.align == 0
    assert not math.isnan(sum(reaches))
