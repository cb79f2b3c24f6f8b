"""UNIT's and SR-UNIT's networks: sizes, the shared latent space, frozen norms and exact tiles."""

from __future__ import annotations

import math

import pytest
import torch

from CTMicroSRLib.errors import ModelError
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.freezing import freeze_norms
from CTMicroSRLib.networks.generator import WHOLE, Border
from CTMicroSRLib.networks.unit import FrozenLayerNorm, LayerNorm, UnitGenerator, UnitReverse
from CTMicroSRLib.tiles import merge_cells, tile_of

KINDS = [(scale, interpolated) for scale in (2, 4, 8) for interpolated in (False, True)]
CLOSE = 1e-5


def image(rows, columns, seed=0):
    return torch.rand((1, 1, rows, columns), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def frozen_network(architecture, parameters):
    """A network with random weights whose statistics were frozen on images of its kind."""
    torch.manual_seed(0)
    network = build_network(architecture, {**parameters, "norm": "instance"})
    return freeze_norms(network, parameters, architecture, [image(24, 24, seed) for seed in range(3)])


def largest_tile_error(network, rows, columns, largest=32):
    """Largest difference of the tiles' results from the whole image's."""
    whole_image = image(rows, columns, 9)
    worst = 0.0
    with torch.inference_mode():
        whole = network(whole_image, WHOLE)[0, 0]
        cells = torch.ones((-(-rows // 32), -(-columns // 32)), dtype=torch.bool).numpy()
        for core in merge_cells(cells, (rows, columns), network.halo, largest):
            tile = tile_of(core, (rows, columns), network.halo)
            border = Border(tile.left, tile.right, tile.top, tile.bottom)
            part = network(whole_image[..., slice(*tile.rows), slice(*tile.columns)], border)[0, 0]
            top = 0 if tile.top else core.rows[0] * network.scale
            left = 0 if tile.left else core.columns[0] * network.scale
            same = whole[top : top + part.shape[0], left : left + part.shape[1]]
            worst = max(worst, float((part - same).abs().max()))
    return worst


@pytest.mark.parametrize(("scale", "interpolated"), KINDS)
def test_every_scale_enlarges_and_stays_within_the_window(scale, interpolated):
    network = UnitGenerator(channels=8, blocks=1, scale=scale, interpolated=interpolated).eval()
    with torch.inference_mode():
        fine = network(image(9, 13))
    assert fine.shape == (1, 1, 9 * scale, 13 * scale)
    assert float(fine.abs().max()) <= 1.0


@pytest.mark.parametrize(("scale", "interpolated"), KINDS)
def test_the_smallest_image_that_a_network_names_runs(scale, interpolated):
    network = UnitGenerator(channels=8, blocks=2, scale=scale, interpolated=interpolated).eval()
    edge = network.smallest
    with torch.inference_mode():
        assert network(image(edge, edge)).shape[-1] == edge * scale


@pytest.mark.parametrize(("scale", "interpolated"), KINDS)
def test_both_directions_meet_on_one_latent_grid_and_come_back(scale, interpolated):
    sizes = {"channels": 8, "blocks": 2, "scale": scale, "interpolated": interpolated}
    there, back = UnitGenerator(**sizes), UnitReverse(**sizes)
    clinical = there.own_grid(image(16, 16))
    codes = there.encode(clinical), back.encode(image(16 * scale, 16 * scale), there)
    assert codes[0].shape == codes[1].shape
    assert back.decode(codes[1], there).shape == clinical.shape


def test_the_latent_grid_of_sr_unit_is_the_clinical_one_and_that_of_unit_a_quarter_of_the_fine_one():
    assert UnitGenerator(channels=4, blocks=1, scale=8).encode(image(8, 8)).shape == (1, 16, 8, 8)
    original = UnitGenerator(channels=4, blocks=1, scale=8, interpolated=True)
    assert original.encode(original.own_grid(image(8, 8))).shape == (1, 16, 16, 16)


def test_the_original_has_as_many_parameters_as_its_table_of_layers():
    # 7x7 1-64, 4x4 64-128-256, 4 blocks | 4 blocks, 5x5 256-128-64 with factor and offset, 7x7 64-1; biases everywhere.
    block = 2 * (256 * 256 * 9 + 256)
    encoder = (49 + 1) * 64 + (64 * 16 + 1) * 128 + (128 * 16 + 1) * 256 + 4 * block
    decoder = 4 * block + (256 * 25 + 1 + 2) * 128 + (128 * 25 + 1 + 2) * 64 + 64 * 49 + 1
    network = UnitGenerator(interpolated=True)
    assert sum(p.numel() for p in network.parameters()) == encoder + decoder == 11_127_937


def test_shared_blocks_get_gradient_from_the_other_direction_alone():
    sizes = {"channels": 4, "blocks": 2, "scale": 2}
    there, back = UnitGenerator(**sizes), UnitReverse(**sizes)
    back.decode(back.encode(image(16, 16), there), there).square().mean().backward()
    assert all(p.grad is not None for p in back.parameters())
    reached = {name.split(".")[0] for name, p in there.named_parameters() if p.grad is not None}
    assert reached == {"encoder_last", "decoder_first"}


def test_directions_that_share_nothing_leave_each_other_alone():
    sizes = {"channels": 4, "blocks": 2, "scale": 2}
    there, back = UnitGenerator(**sizes), UnitReverse(**sizes, shared=False)
    back.decode(back.encode(image(16, 16), there), there).square().mean().backward()
    assert all(p.grad is not None for p in back.parameters())
    assert all(p.grad is None for p in there.parameters())


def test_the_latent_code_is_drawn_in_training_only():
    network = UnitGenerator(channels=4, blocks=1, scale=2)
    tile = image(12, 12)
    with torch.no_grad():
        assert not torch.equal(network(tile), network(tile))
        network.eval()
        assert torch.equal(network(tile), network(tile))


def test_layer_norm_has_mean_0_and_variance_1_over_all_channels():
    features = torch.randn(2, 5, 7, 3) * 4 + 2
    features[1] *= 3
    normal = LayerNorm(5)(features)
    assert normal.mean(dim=(1, 2, 3)).abs().max() < 1e-5
    assert (normal.var(dim=(1, 2, 3), correction=0) - 1).abs().max() < 1e-4
    assert normal.mean(dim=(2, 3)).abs().max() > 0.1  # not by channel


def test_a_layer_norm_frozen_to_an_images_own_statistics_does_the_same():
    features = torch.randn(1, 5, 7, 3) * 4 + 2
    live, frozen = LayerNorm(5), FrozenLayerNorm(5)
    with torch.no_grad():
        live.weight.uniform_()
        live.bias.uniform_()
    frozen.load_state_dict(live.state_dict(), strict=False)
    mean, variance = frozen.statistics(features)
    frozen.mean.copy_(mean)
    frozen.variance.copy_(variance)
    torch.testing.assert_close(frozen(features), live(features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interpolated", [False, True])
def test_frozen_to_one_image_the_network_gives_that_images_result(interpolated):
    torch.manual_seed(1)
    parameters = {"channels": 6, "blocks": 2, "scale": 4, "norm": "instance", "interpolated": interpolated}
    network = build_network("unit", parameters).eval()
    one = image(24, 24)
    frozen = freeze_norms(network, parameters, "unit", [one])
    with torch.inference_mode():
        torch.testing.assert_close(frozen(one), network(one), rtol=0, atol=1e-4)
    assert network.whole_slice_only
    assert not frozen.whole_slice_only


@pytest.mark.parametrize("size", [(96, 128), (67, 101)], ids=str)
@pytest.mark.parametrize(("scale", "interpolated"), KINDS)
def test_tiles_of_a_frozen_network_are_the_whole_image(scale, interpolated, size):
    if scale == 8 and size == (96, 128):
        size = (64, 96)
    parameters = {"channels": 4, "blocks": 1, "scale": scale, "interpolated": interpolated}
    assert largest_tile_error(frozen_network("unit", parameters), *size) <= CLOSE


@pytest.mark.parametrize("interpolated", [False, True])
def test_without_its_halo_a_tile_is_not_the_whole_image(interpolated):
    network = frozen_network("unit", {"channels": 4, "blocks": 1, "scale": 4, "interpolated": interpolated})
    network.halo = 2
    assert largest_tile_error(network, 67, 101) > CLOSE


@pytest.mark.parametrize("interpolated", [False, True])
def test_folding_frozen_norms_changes_nothing(interpolated):
    network = frozen_network("unit", {"channels": 6, "blocks": 2, "scale": 2, "interpolated": interpolated})
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, FrozenLayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    tile = image(20, 16)
    with torch.inference_mode():
        before = network(tile)
        network.fold()
        assert not any(isinstance(module, FrozenLayerNorm) for module in network.modules())
        torch.testing.assert_close(network(tile), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("changed", [{"scale": 3}, {"scale": 1}, {"blocks": 0}, {"norm": "batch"}, {"channels": 0}])
def test_impossible_parameters_are_a_damaged_card(changed):
    with pytest.raises(ModelError, match="do not fit"):
        build_network("unit", {"channels": 4, "blocks": 1, **changed})


def test_halos_grow_with_the_receptive_field_and_keep_to_the_strides():
    halos = [UnitGenerator(channels=4, blocks=n, scale=8).halo for n in (1, 2, 4)]
    assert halos == [math.ceil(3 + 2 + 4 * n + 1.75 + 0.375) for n in (1, 2, 4)]
    assert UnitGenerator(channels=4, blocks=1, scale=2, interpolated=True).halo % 2 == 0
