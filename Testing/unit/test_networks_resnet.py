"""CycleGAN's generators: parameters, shapes, tiles equal to the whole, halos, freezing, dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from CTMicroSRLib.consistency import interpolation_matrix
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.context import run_with_context
from CTMicroSRLib.networks.freezing import freeze_norms
from CTMicroSRLib.networks.generator import WHOLE, Border
from CTMicroSRLib.networks.initialisation import initialise_normal
from CTMicroSRLib.networks.micro_to_clinical import MicroToClinicalGenerator
from CTMicroSRLib.networks.norms import FrozenNorm, InstanceNorm
from CTMicroSRLib.tiles import Rectangle, tile_of

NETWORKS = {
    "resnet 8x": ("resnet", {"channels": 4, "blocks": 1, "scale": 8, "norm": "frozen"}),
    "resnet 4x": ("resnet", {"channels": 4, "blocks": 2, "scale": 4, "norm": "frozen"}),
    "resnet 2x": ("resnet", {"channels": 4, "blocks": 1, "scale": 2, "norm": "none"}),
    "resnet 1x": ("resnet", {"channels": 4, "blocks": 0, "scale": 1, "norm": "frozen"}),
    "down-blocks 8x": ("down-blocks", {"channels": 8, "blocks": 1, "doublings": 3, "norm": "frozen"}),
    "down-blocks 2x": ("down-blocks", {"channels": 4, "blocks": 0, "doublings": 1, "norm": "none"}),
}


@pytest.fixture(params=NETWORKS)
def network(request, make_network):
    return make_network(*NETWORKS[request.param])


def image_of(shape, seed=0):
    return torch.rand((1, 1, *shape), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def whole(network, image):
    with torch.inference_mode():
        return network(image)[0, 0]


def part(network, image, core):
    """What a tile gives for its core, and what the whole image has there."""
    tile = tile_of(core, tuple(image.shape[-2:]), network.halo)
    with torch.inference_mode():
        result = network(
            image[..., slice(*tile.rows), slice(*tile.columns)], Border(tile.left, tile.right, tile.top, tile.bottom)
        )[0, 0]
    scale = network.scale
    first = (0 if tile.top else core.rows[0], 0 if tile.left else core.columns[0])
    own = [
        slice((a - start) * scale, (b - start) * scale)
        for (a, b), start in zip((core.rows, core.columns), first, strict=True)
    ]
    there = [slice(a * scale, b * scale) for a, b in (core.rows, core.columns)]
    assert result[tuple(own)].shape == whole(network, image)[tuple(there)].shape
    return result[tuple(own)], whole(network, image)[tuple(there)]


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [("resnet", 11_365_633), ("down-blocks", 11_387_137)],
)
def test_the_generators_have_the_published_numbers_of_parameters(architecture, parameters):
    network = build_network(architecture, {})
    assert sum(weights.numel() for weights in network.parameters()) == parameters
    assert (network.scale, network.whole_slice_only) == (8, True)


def test_the_reverse_generator_has_the_published_number_of_parameters():
    assert sum(weights.numel() for weights in MicroToClinicalGenerator().parameters()) == 12_936_769


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_results_are_as_many_times_finer_as_the_scale_says_and_in_the_normalised_range(scale):
    doublings = scale.bit_length() - 1
    shapes = {"channels": 8, "blocks": 1}
    for network in (
        build_network("resnet", {**shapes, "scale": scale}),
        build_network("down-blocks", {**shapes, "doublings": doublings}),
    ):
        result = network(image_of((13, 18)))
        assert result.shape == (1, 1, 13 * scale, 18 * scale)
        assert result.abs().max() <= 1
    reverse = MicroToClinicalGenerator(channels=4, blocks=1, doublings=doublings)
    assert reverse(image_of((8 * scale, 12 * scale))).shape == (1, 1, 8, 12)


def test_an_image_of_the_smallest_size_and_not_one_voxel_less_works(network):
    image = image_of((network.smallest, network.smallest + 3))
    assert whole(network, image).shape == tuple(n * network.scale for n in image.shape[-2:])
    training = build_network("resnet", {"channels": 4, "blocks": 1, "scale": 1})
    assert training(image_of((training.smallest,) * 2)).isfinite().all()
    if network.smallest > 1 and len(network.body.blocks):
        with pytest.raises(RuntimeError, match="adding"):
            network(image_of((network.smallest - 1,) * 2))


@pytest.mark.parametrize(
    "core",
    [
        Rectangle((64, 96), (64, 96)),
        Rectangle((0, 32), (64, 96)),
        Rectangle((128, 149), (32, 96)),
        Rectangle((64, 128), (96, 123)),
        Rectangle((128, 149), (96, 123)),
        Rectangle((0, 149), (64, 96)),
    ],
    ids=str,
)
def test_a_tile_with_its_halo_is_the_part_of_the_whole(network, core):
    """Inside, at each border and in a corner of an image whose edges fit no stride."""
    assert network.halo <= 32
    got, expected = part(network, image_of((149, 123)), core)
    assert expected.std() > 0.02
    assert (got - expected).abs().max() <= 1e-5


def test_the_part_is_not_the_whole_with_half_the_halo(make_network):
    """What the test of tiles would see of a wrong halo."""
    network = make_network(*NETWORKS["down-blocks 2x"])
    network.halo = network.halo // 8 * 4
    got, expected = part(network, image_of((100, 100)), Rectangle((32, 64), (32, 64)))
    assert (got - expected).abs().max() > 1e-4


@pytest.mark.parametrize("shape", [{"blocks": 0}, {"blocks": 2}])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_halos_are_the_receptive_fields_rounded_up_to_the_strides(scale, shape):
    """By the gradient of weighted means, in which nothing cancels."""
    of_resnet = ("resnet", {"channels": 2, "scale": scale, "norm": "none", **shape})
    of_down_blocks = ("down-blocks", {"channels": 8, "doublings": scale.bit_length() - 1, "norm": "none", **shape})
    for architecture, parameters in [of_resnet] + [of_down_blocks] * (scale > 1):
        network = build_network(architecture, parameters).eval()
        with torch.no_grad():
            for weights in network.parameters():
                weights.fill_(1.0 / weights[0].numel() if weights.dim() == 4 else 0.0)
        reach = 0
        for middle in range(network.halo + 4, network.halo + 8):  # every position within the strides
            image = image_of((2 * network.halo + 12, 12)).abs().requires_grad_()
            network(image)[0, 0, middle * scale : (middle + 1) * scale].sum().backward()
            rows = torch.nonzero(image.grad[0, 0].abs().sum(dim=1)).flatten()
            reach = max(reach, middle - int(rows.min()), int(rows.max()) - middle)
        align = 4 if architecture == "down-blocks" else max(1, 4 // scale)
        assert network.halo == -(-reach // align) * align


def test_context_is_cut_where_the_tile_has_it_and_nowhere_else():
    image = torch.arange(15.0).view(1, 1, 3, 5)
    seen = []

    def twice(tile):
        seen.append(tile)
        return tile.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    result = run_with_context(twice, image, Border(left=False, right=True, top=True, bottom=False), 2, 2, align=4)
    assert seen[0].shape == (1, 1, 4, 8)
    assert seen[0][0, 0, 3].tolist() == [10, 11, 12, 13, 14, 14, 14, 14]
    assert result[0, 0].tolist() == [[2, 2, 3, 3, 4, 4]] * 2


def test_the_residual_network_is_the_published_one():
    """Layer by layer with torch's own functions on the same weights."""
    network = build_network("resnet", {"channels": 4, "blocks": 2, "scale": 2}).eval()
    conv, deconv = torch.nn.functional.conv2d, torch.nn.functional.conv_transpose2d
    norm, pad = torch.nn.functional.instance_norm, torch.nn.functional.pad
    image = image_of((10, 14))

    def of(layer):
        return layer.convolution.parameters()

    def reflect(x, width):
        return pad(x, [width] * 4, mode="reflect")

    rows, columns = (torch.from_numpy(interpolation_matrix(n, 2).astype(np.float32)) for n in (10, 14))
    with torch.inference_mode():
        x = (rows @ image[0, 0] @ columns.T)[None, None]
        x = norm(conv(reflect(x, 3), *of(network.body.head))).relu()
        for layer in network.body.down:
            x = norm(conv(x, *of(layer), stride=2, padding=1)).relu()
        for block in network.body.blocks:
            y = norm(conv(reflect(x, 1), *of(block.first))).relu()
            x = x + norm(conv(reflect(y, 1), *of(block.second)))
        for layer in network.body.up:
            x = norm(deconv(x, *of(layer), stride=2, padding=1, output_padding=1)).relu()
        x = torch.tanh(conv(reflect(x, 3), *network.tail.parameters()))
    assert (x[0, 0] - whole(network, image)).abs().max() <= 1e-5


def test_the_fine_grids_network_is_the_same_without_the_interpolation(make_network):
    network = make_network("resnet", {"channels": 4, "blocks": 1, "scale": 4, "norm": "instance"})
    image = image_of((9, 12))
    with torch.inference_mode():
        assert torch.equal(network.on_fine_grid(network.interpolate(image))[0, 0], whole(network, image))
        odd = image_of((21, 30))
        assert network.on_fine_grid(odd).shape == odd.shape


def test_the_interpolation_under_autocast_stays_exact(make_network):
    network, image = make_network("resnet", {"channels": 4, "blocks": 0, "scale": 4, "norm": "none"}), image_of((9, 12))
    with torch.autocast("cpu", torch.bfloat16):
        result = network.interpolate(image)
        assert (result - network.interpolate(image.double())).abs().max() <= 1e-6


@pytest.mark.parametrize("architecture", ["resnet", "down-blocks"])
def test_norms_frozen_on_an_image_give_that_images_result_and_exact_tiles(make_network, architecture):
    parameters = {"channels": 8, "blocks": 1, "norm": "instance"}
    network = make_network(architecture, parameters)
    image = image_of((64, 72))
    frozen = freeze_norms(network, parameters, architecture, [image])
    assert (network.whole_slice_only, frozen.whole_slice_only) == (True, False)
    assert (whole(frozen, image) - whole(network, image)).abs().max() <= 2e-4
    got, expected = part(frozen, image, Rectangle((32, 64), (32, 64)))
    assert (got - expected).abs().max() <= 1e-5


def test_frozen_statistics_are_the_mean_over_the_images(make_network):
    parameters = {"channels": 4, "blocks": 0, "scale": 1, "norm": "instance"}
    network = make_network("resnet", parameters)
    images = [image_of((20, 24), seed) * (1 + seed) for seed in range(3)]
    frozen = freeze_norms(network, parameters, "resnet", images)
    with torch.inference_mode():
        first = [network.body.head.convolution(image)[0].double() for image in images]
    mean = torch.stack([features.mean(dim=(1, 2)) for features in first]).mean(dim=0)
    variance = torch.stack([features.var(dim=(1, 2), correction=0) for features in first]).mean(dim=0)
    norm = frozen.body.head.norm
    assert isinstance(norm, FrozenNorm)
    torch.testing.assert_close(norm.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.variance.double(), variance, rtol=1e-5, atol=1e-6)


def test_freezing_needs_images_and_the_networks_own_parameters(make_network):
    parameters = {"channels": 4, "blocks": 1, "scale": 2, "norm": "instance"}
    network = make_network("resnet", parameters)
    with pytest.raises(ValueError, match="no calibration image"):
        freeze_norms(network, parameters, "resnet", [])
    with pytest.raises(ValueError, match="is no resnet"):
        freeze_norms(network, {**parameters, "blocks": 0}, "resnet", [image_of((12, 12))])
    with pytest.raises(RuntimeError, match="size mismatch"):
        freeze_norms(network, {**parameters, "channels": 2}, "resnet", [image_of((12, 12))])


@pytest.mark.parametrize("name", ["resnet 4x", "down-blocks 8x"])
def test_folding_frozen_norms_changes_nothing(make_network, name):
    network = make_network(*NETWORKS[name]).double()
    image = image_of((24, 20)).double()
    before = whole(network, image)
    network.fold()
    assert not any(isinstance(module, FrozenNorm) for module in network.modules())
    assert (whole(network, image) - before).abs().max() <= 1e-6


@pytest.mark.parametrize(("architecture", "own"), [("resnet", {"scale": 2}), ("down-blocks", {"doublings": 1})])
def test_a_pass_under_dropout_drops_whole_channels_after_the_shared_part(make_network, architecture, own):
    parameters = {"channels": 4, "blocks": 3, "dropout_rate": 0.5, "dropout_blocks": 2, "norm": "none", **own}
    network = make_network(architecture, parameters)
    assert network.dropout_channels == (16, 16)
    image = image_of((12, 12))
    with torch.inference_mode():
        state = network.prefix(image, WHOLE)
        kept = network.suffix(state, WHOLE, [torch.ones(16)] * 2)
        dropped = network.suffix(state, WHOLE, [torch.zeros(16)] * 2)
        plain = network.suffix(state, WHOLE, None)
        # A block that loses every channel adds its second convolution's bias alone.
        features = state[0]
        for block in network.body.blocks[1:]:
            features = features + block.second.convolution.bias.view(1, -1, 1, 1)
        expected = network.suffix((features, image), WHOLE, None)
        for block in network.body.blocks[1:]:
            block.second.convolution.weight.zero_()
            block.second.convolution.bias.zero_()
        expected = network.suffix((features, image), WHOLE, None)
    assert torch.equal(kept, plain)
    assert not torch.equal(dropped, plain)
    torch.testing.assert_close(dropped, expected, rtol=0, atol=1e-5)


def test_training_draws_dropout_on_the_fine_grid_too(make_network):
    network = make_network(
        "resnet", {"channels": 4, "blocks": 1, "scale": 2, "dropout_rate": 0.5, "dropout_blocks": 1, "norm": "none"}
    )
    image = image_of((16, 16))
    with torch.inference_mode():
        assert torch.equal(network.on_fine_grid(image), network.on_fine_grid(image))
        network.train()
        assert not torch.equal(network.on_fine_grid(image), network.on_fine_grid(image))


def test_starting_weights_are_normal_with_the_given_deviation():
    torch.manual_seed(0)
    network = MicroToClinicalGenerator(channels=8, blocks=1, doublings=1)
    initialise_normal(network, 0.05)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert len(layers) == 9
    for layer in layers:
        assert not layer.bias.any()
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
    assert weights.std() == pytest.approx(0.05, rel=0.02)
    assert weights.mean().abs() < 2e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_instance_norm_is_torchs_with_its_gradient(layout):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((2, 5, 7, 9), generator=generator, dtype=torch.float64) * 3 + 1
    features = features.to(memory_format=layout).requires_grad_()
    weights = torch.randn((2, 5, 7, 9), generator=generator, dtype=torch.float64)
    own, torchs = InstanceNorm()(features), torch.nn.InstanceNorm2d(5)(features)
    torch.testing.assert_close(own, torchs)
    gradients = [torch.autograd.grad((image * weights).sum(), features)[0] for image in (own, torchs)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(InstanceNorm(), features)


@pytest.mark.parametrize("name", ["resnet", "sr-cyclegan"])
def test_a_network_whose_instance_norms_are_not_frozen_runs_in_bfloat16_as_the_engine_has_it(make_network, name):
    parameters = {"channels": 8, "blocks": 1, "norm": "instance"}
    network = make_network(name, parameters | ({"doublings": 1} if name == "sr-cyclegan" else {"scale": 2}))
    image = image_of((16, 20))
    exact = whole(network, image)
    for layer in network.children():
        layer.to(torch.bfloat16)
    near = whole(network, image)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().mean() < 0.05 * exact.std()
