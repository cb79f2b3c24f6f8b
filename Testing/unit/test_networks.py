"""The generators: parameters, tiles equal to the whole, receptive fields, folded norms, precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from CTMicroSRLib.card import Plane
from CTMicroSRLib.consistency import interpolation_matrix
from CTMicroSRLib.errors import ModelError, UsageError
from CTMicroSRLib.networks import ARCHITECTURES, build_network
from CTMicroSRLib.networks.freezing import freeze_norms
from CTMicroSRLib.networks.generator import WHOLE, Border
from CTMicroSRLib.networks.norms import FoldingLayer
from CTMicroSRLib.networks.sr_cyclegan import ClinicalToMicroGenerator
from CTMicroSRLib.session import ScanConditions, load_model
from CTMicroSRLib.tiles import Rectangle, fade_weights, merge_cells, needed_cells, tile_of

CONDITIONS = ScanConditions(psf_fwhm_voxels=1.8, noise_hu=15.0)

NORMALISED_RANGE = 2.0
CONTRACT = 1e-4 * NORMALISED_RANGE

NETWORKS = {
    "compact 8x": ("compact", {"channels": 8, "blocks": 3, "scale": 8}),
    "compact 4x with planes": ("compact", {"channels": 6, "blocks": 2, "scale": 4, "planes": 2}),
    "compact 3x": ("compact", {"channels": 6, "blocks": 1, "scale": 3, "dropout_blocks": 0}),
    "sr-cyclegan 8x": ("sr-cyclegan", {"channels": 16, "blocks": 2, "doublings": 3, "norm": "frozen"}),
    "sr-cyclegan 4x": ("sr-cyclegan", {"channels": 8, "blocks": 1, "doublings": 2, "norm": "frozen"}),
    "sr-cyclegan 2x": ("sr-cyclegan", {"channels": 8, "blocks": 2, "doublings": 1, "norm": "none"}),
    "sr-cyclegan, kernels 3 and 7": (
        "sr-cyclegan",
        {"channels": 8, "blocks": 1, "doublings": 2, "first_kernel": 3, "middle_kernel": 7, "norm": "frozen"},
    ),
}
SIZES = [(64, 96), (37, 70), (33, 65), (5, 9), (4, 100)]


@pytest.fixture(params=NETWORKS)
def network(request, make_network):
    return make_network(*NETWORKS[request.param])


def random_tile(network, shape, seed=0):
    channels = 1 + network.planes
    return torch.rand((1, channels, *shape), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def whole(network, image):
    with torch.inference_mode():
        return network(image, WHOLE)[0, 0]


def stitched(network, image, rectangles):
    """The rectangles' results, NaN where none ran."""
    scale, shape = network.scale, image.shape[-2:]
    result = torch.full([n * scale for n in shape], math.nan)
    for core in rectangles:
        tile = tile_of(core, tuple(shape), network.halo)
        border = Border(tile.left, tile.right, tile.top, tile.bottom)
        with torch.inference_mode():
            part = network(image[..., slice(*tile.rows), slice(*tile.columns)], border)[0, 0]
        top, left = 0 if tile.top else core.rows[0], 0 if tile.left else core.columns[0]
        source = [
            slice((start - first) * scale, (stop - first) * scale)
            for (start, stop), first in ((core.rows, top), (core.columns, left))
        ]
        target = [slice(ends[0] * scale, ends[1] * scale) for ends in (core.rows, core.columns)]
        assert part[source[0], source[1]].shape == result[target[0], target[1]].shape
        result[target[0], target[1]] = part[source[0], source[1]]
    return result


def test_the_faithful_generator_has_the_papers_number_of_parameters():
    network = build_network("sr-cyclegan", {})
    assert sum(weights.numel() for weights in network.parameters()) == 802_222
    assert (network.scale, network.halo, network.whole_slice_only) == (8, 25, True)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("tile", [32, 64])
def test_tiles_are_the_whole_image(network, size, tile):
    """The contract allows 1e-4 of the normalised range; a tenth of that is left to rounding."""
    image = random_tile(network, size)
    cells = np.ones([-(-n // 32) for n in size], dtype=bool)
    result = stitched(network, image, merge_cells(cells, size, network.halo, tile))
    reference = whole(network, image)
    assert reference.shape == tuple(n * network.scale for n in size)
    assert reference.std() > 0.05
    assert (result - reference).abs().max() <= CONTRACT / 10


@pytest.mark.parametrize("name", ["compact 4x with planes", "sr-cyclegan 4x"])
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), tile=st.sampled_from([32, 64, 512]))
def test_tiles_over_any_mask_are_the_whole_image(make_network, name, seed, tile):
    network = make_network(*NETWORKS[name])
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(4, 100, 2).tolist())
    mask = np.zeros(size, dtype=bool)
    row, column = rng.integers(0, size[0]), rng.integers(0, size[1])
    mask[row : row + rng.integers(1, 60), column : column + rng.integers(1, 60)] = True
    image = random_tile(network, size, seed)
    rectangles = merge_cells(needed_cells(fade_weights(mask)), size, network.halo, tile)
    result, reference = stitched(network, image, rectangles), whole(network, image)
    ran = ~result.isnan()
    assert ran.reshape(size[0], network.scale, size[1], network.scale).all(dim=3).all(dim=1)[mask].all()
    assert (result - reference)[ran].abs().max() <= CONTRACT / 10


@pytest.mark.parametrize("tile", [32, 64, 96])
def test_tiles_are_bit_equal_to_the_whole_where_no_sum_is_rounded(tile):
    """Small whole numbers as weights and voxels: every sum is exact in float32, in any order."""
    network = build_network("compact", {"channels": 4, "blocks": 1, "scale": 2, "dropout_blocks": 0}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in network.parameters():
            weights.copy_(torch.randint(-1, 2, weights.shape, generator=generator))
    image = torch.randint(0, 4, (1, 1, 75, 110), generator=generator).float()
    cells = np.ones((3, 4), dtype=bool)
    reference = whole(network, image)
    assert 1e3 < reference.abs().max() < 2**23
    assert torch.equal(stitched(network, image, merge_cells(cells, (75, 110), network.halo, tile)), reference)


def test_a_lone_pixel_column_at_the_images_edge_is_a_tile_like_any_other(network):
    image = random_tile(network, (40, 40))
    core = Rectangle((39, 40), (0, 1))
    result = stitched(network, image, [core])
    ran = ~result.isnan()
    assert ran.sum() == network.scale**2
    assert (result - whole(network, image))[ran].abs().max() <= CONTRACT / 10


def reach(network):
    """Coarse voxels that one coarse voxel's fine block depends on, on each side, by its gradient."""
    with torch.no_grad():
        for weights in network.parameters():  # weighted means: nothing cancels, no ReLU closes, tanh is not saturated
            if weights.dim() == 4:
                weights.abs_().div_(weights.sum(dim=(1, 2, 3), keepdim=True))
            else:
                weights.zero_()
    middle = network.halo + 6
    image = random_tile(network, (2 * middle + 1,) * 2).abs().requires_grad_()
    fine = slice(middle * network.scale, (middle + 1) * network.scale)
    network(image, WHOLE)[0, 0, fine, fine].sum().backward()
    rows, columns = np.nonzero(image.grad[0, 0].numpy())
    return {middle - rows.min(), rows.max() - middle, middle - columns.min(), columns.max() - middle}


@pytest.mark.parametrize("name", [name for name in NETWORKS if "none" in str(NETWORKS[name]) or "compact" in name])
def test_the_halo_is_the_receptive_field_and_not_a_voxel_more(make_network, name):
    network = make_network(*NETWORKS[name])
    assert reach(network) == {network.halo}


@pytest.mark.parametrize("doublings", [1, 2, 3])
@pytest.mark.parametrize("shape", [{"blocks": 0}, {"blocks": 3}, {"blocks": 1, "first_kernel": 3, "middle_kernel": 7}])
def test_the_faithful_generators_halo_is_its_receptive_field_for_other_parameters(make_network, doublings, shape):
    network = make_network("sr-cyclegan", {"channels": 8, "doublings": doublings, "norm": "none", **shape})
    assert network.scale == 2**doublings
    assert reach(network) == {network.halo}


def test_a_halo_one_voxel_too_small_changes_the_result(make_network):
    """What the test of tiles would see of a wrong halo: the outermost ring of context matters."""
    network = make_network(*NETWORKS["compact 8x"])
    image = random_tile(network, (60, 60))
    core = Rectangle((28, 32), (28, 32))
    ring = image.clone()
    keep = np.s_[..., 28 - network.halo + 1 : 32 + network.halo - 1, 28 - network.halo + 1 : 32 + network.halo - 1]
    ring[:] = 0.7
    ring[keep] = image[keep]
    inside = np.s_[28 * 8 : 32 * 8, 28 * 8 : 32 * 8]
    assert not torch.equal(stitched(network, ring, [core])[inside], stitched(network, image, [core])[inside])


@pytest.mark.parametrize("blocks", [0, 1, 4])
def test_folding_frozen_norms_changes_nothing(make_network, blocks):
    parameters = {"channels": 8, "blocks": blocks, "doublings": 2, "norm": "frozen"}
    network = make_network("sr-cyclegan", parameters)
    exact = make_network("sr-cyclegan", parameters).double()
    image = random_tile(network, (24, 30))
    reference = whole(exact, image.double())
    before = (whole(network, image) - reference).abs().max()
    network.fold()
    assert all(layer.norm is None for layer in network.modules() if isinstance(layer, FoldingLayer))
    after = (whole(network, image) - reference).abs().max()
    assert after <= max(2 * before, 2e-6)
    exact.fold()
    assert (whole(exact, image.double()) - reference).abs().max() <= 2e-7  # the last layer ends in float32


def test_norms_frozen_on_an_image_give_that_images_result(make_network):
    parameters = {"channels": 8, "blocks": 2, "doublings": 2, "norm": "instance"}
    network = make_network("sr-cyclegan", parameters)
    image = random_tile(network, (40, 50))
    frozen = freeze_norms(network, parameters, "sr-cyclegan", [image])
    assert not frozen.whole_slice_only
    assert (whole(frozen, image) - whole(network, image)).abs().max() <= 1e-4
    other = random_tile(network, (40, 50), seed=1) * 0.2
    assert (whole(frozen, other) - whole(network, other)).abs().max() > 1e-2


def test_freezing_leaves_the_instance_normed_network_as_it_was(make_network):
    parameters = {"channels": 8, "blocks": 1, "doublings": 1, "norm": "instance"}
    network = make_network("sr-cyclegan", parameters)
    image = random_tile(network, (20, 20))
    before = whole(network, image)
    freeze_norms(network, parameters, "sr-cyclegan", [image])
    assert torch.equal(whole(network, image), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_compact_network_that_adds_nothing_is_cubic_interpolation(make_network):
    network = make_network("compact", {"channels": 4, "blocks": 1, "scale": 8})
    with torch.no_grad():
        network.tail.weight.zero_()
        network.tail.bias.zero_()
    image = random_tile(network, (11, 17))
    rows, columns = (interpolation_matrix(n, 8).astype(np.float64) for n in (11, 17))
    expected = rows @ image[0, 0].double().numpy() @ columns.T
    np.testing.assert_allclose(whole(network, image).numpy(), expected, rtol=0, atol=2e-6)


def test_training_draws_whole_channels_and_evaluation_draws_nothing(make_network):
    network = make_network("compact", {"channels": 8, "blocks": 1, "scale": 2, "dropout_rate": 0.5})
    image = random_tile(network, (12, 12))
    assert torch.equal(whole(network, image), whole(network, image))
    network.train()
    assert not torch.equal(whole(network, image), whole(network, image))
    masks = network._training_masks(image)
    assert [mask.shape for mask in masks] == [(1, 8, 1, 1)] * 2
    assert {*torch.cat(masks).unique().tolist()} <= {0.0, 2.0}


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ("unheard-of", {}),
        ("__class__", {}),
        ("compact", {"width": 8}),
        ("compact", {"channels": "many"}),
        ("compact", {"channels": -8}),
        ("compact", {"blocks": 2.5}),
        ("compact", {"blocks": -1}),
        ("compact", {"dropout_rate": 1.0}),
        ("compact", {"dropout_rate": -0.1}),
        ("compact", {"dropout_rate": "often"}),
        ("compact", {"blocks": 2, "dropout_blocks": 3}),
        ("compact", {"dropout_blocks": -1}),
        ("sr-cyclegan", {"doublings": -1}),
        ("sr-cyclegan", {"norm": "batch"}),
        ("sr-cyclegan", {"first_kernel": 4}),
        ("sr-cyclegan", {"middle_kernel": -3}),
        ("sr-cyclegan", {"blocks": 2, "dropout_blocks": 3}),
    ],
    ids=str,
)
def test_an_architecture_or_parameters_that_make_no_network_are_refused(architecture, parameters):
    with pytest.raises(ModelError):
        build_network(architecture, parameters)


def test_every_architecture_builds_from_an_empty_card():
    for architecture in ARCHITECTURES:
        network = build_network(architecture, {})
        assert network.scale == 8
        assert network.halo > 0


def test_the_instance_normed_network_is_the_published_one():
    """Layer by layer from the paper's description, with torch's own layers, on the same weights."""
    network = ClinicalToMicroGenerator(channels=16, blocks=2, doublings=2).eval().double()
    conv = torch.nn.functional.conv2d
    norm, pad = torch.nn.functional.instance_norm, torch.nn.functional.pad
    image = random_tile(network, (20, 23)).double()
    with torch.inference_mode():
        x = norm(conv(pad(image, [3] * 4, mode="reflect"), *network.head.convolution.parameters()))
        x = torch.where(x > 0, x, x * network.head_activation.weight)
        for block in network.blocks:
            y = norm(conv(pad(x, [1] * 4, mode="reflect"), *block.first.convolution.parameters())).relu()
            x = x + norm(conv(pad(y, [1] * 4, mode="reflect"), *block.second.convolution.parameters()))
        x = norm(conv(pad(x, [1] * 4, mode="reflect"), *network.middle.convolution.parameters()))
        x = torch.where(x > 0, x, x * network.middle_activation.weight)
        for stage in network.up:
            x = norm(conv(x, *stage.convolution.convolution.parameters(), padding=1))
            x = torch.nn.functional.pixel_shuffle(x, 2)
            x = torch.where(x > 0, x, x * stage.activation.weight)
        x = torch.tanh(conv(pad(x, [3] * 4, mode="reflect"), *network.tail.parameters()))
    assert x.shape == (1, 1, 80, 92)
    assert (x[0, 0] - whole(network, image)).abs().max() <= 1e-7  # float64, but for the tanh


def test_bf16_stays_within_the_error_that_the_model_measured_of_it(make_model):
    folder = make_model(parameters={"channels": 16, "blocks": 3, "planes": 0})
    exact, fast = load_model(folder, precision="fp32"), load_model(folder, precision="bf16")
    assert (exact.precision, exact.precision_error_hu) == ("fp32", 0.0)
    assert fast.precision == "bf16"
    tile = torch.from_numpy(np.random.default_rng(5).normal(-600.0, 300.0, (40, 40)).astype(np.float32))
    error = (fast.run(tile, WHOLE, CONDITIONS) - exact.run(tile, WHOLE, CONDITIONS)).square().mean().sqrt()
    assert 0.0 < error <= 1.5 * fast.precision_error_hu < 100.0


def test_the_interpolation_under_a_bf16_network_stays_exact(make_model, make_network):
    from safetensors.torch import load_file

    folder = make_model()
    weights = load_file(folder / "model.safetensors")
    model = load_model(folder, precision="bf16")
    assert weights["tail.weight"].abs().max() > 0
    with torch.no_grad():
        model.network.tail.weight.zero_()
        model.network.tail.bias.zero_()
    air = model.run(torch.full((12, 12), -1000.0), WHOLE, CONDITIONS)
    assert (air + 1000.0).abs().max() <= 1e-2


@pytest.mark.parametrize(("limit_hu", "precision"), [(1e6, "bf16"), (1e-6, "fp32")])
def test_auto_takes_bf16_only_where_it_is_fast_and_its_error_small(tiny_model, monkeypatch, limit_hu, precision):
    monkeypatch.setattr("CTMicroSRLib.session.has_fast_bf16", lambda _device: True)
    monkeypatch.setattr("CTMicroSRLib.session.BF16_ERROR_LIMIT_HU", limit_hu)
    model = load_model(tiny_model, precision="auto")
    assert model.precision == precision
    assert next(model.network.parameters()).dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_auto_is_fp32_where_bf16_is_not_in_hardware(tiny_model, monkeypatch):
    monkeypatch.setattr("CTMicroSRLib.session.has_fast_bf16", lambda _device: False)
    assert load_model(tiny_model, precision="auto").precision == "fp32"


def test_an_unknown_precision_or_device_is_refused(tiny_model):
    with pytest.raises(UsageError, match="precision"):
        load_model(tiny_model, precision="fp8")
    with pytest.raises(UsageError, match="device"):
        load_model(tiny_model, device="abacus")


def test_the_network_sees_the_window_and_the_scans_blur_and_noise(make_model):
    planes = (
        Plane("psf_fwhm_voxels", mean=2.0, std=0.5, low=1.0, high=3.0),
        Plane("log_noise_hu", mean=2.0, std=1.0, low=1.0, high=4.0),
    )
    folder = make_model(parameters={"channels": 4, "blocks": 1, "planes": 2}, planes=planes)
    model = load_model(folder, precision="fp32")
    hu = torch.tensor([[-2000.0, -1000.0, 750.0, 2500.0, 4000.0]])
    image, blur, noise = model.input(hu, ScanConditions(2.5, math.e**3))[0]
    assert image.tolist() == [[-1.0, -1.0, 0.0, 1.0, 1.0]]
    assert blur.unique().tolist() == [1.0]
    assert noise.unique().tolist() == pytest.approx([1.0])
    _, blur, noise = model.input(hu, ScanConditions(9.0, 0.0))[0]
    assert blur.unique().tolist() == [2.0]
    assert noise.unique().tolist() == [-1.0]


def test_to_hu_undoes_the_window(tiny_model):
    window = load_model(tiny_model, precision="fp32").card.window
    hu = np.linspace(-1000.0, 2500.0, 8)
    np.testing.assert_allclose(window.to_hu(window.normalise(hu)), hu, rtol=0, atol=1e-9)
    assert window.hu_per_unit == 1750.0
