"""Networks of the unsupervised baselines: EDSR, RCAN, CinCGAN's and pseudo-SR's generators."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from CTMicroSRLib.errors import ModelError
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.cincgan import CinCGenerator, Translator
from CTMicroSRLib.networks.edsr import Edsr
from CTMicroSRLib.networks.freezing import freeze_norms
from CTMicroSRLib.networks.generator import WHOLE, Border
from CTMicroSRLib.networks.pseudo_sr import PseudoSrGenerator, TransferNetwork
from CTMicroSRLib.networks.rcan import ChannelAttention, Rcan
from CTMicroSRLib.tiles import merge_cells, tile_of

CLOSE = 1e-5
SMALL = {
    "cincgan": {"channels": 6, "blocks": 1, "edsr_channels": 6, "edsr_blocks": 1},
    "pseudo-sr": {"channels": 6, "groups": 1, "clean_blocks": 1, "enlarge_blocks": 1, "reduction": 2},
}


def image(rows, columns, seed=0, count=1):
    return torch.rand((count, 1, rows, columns), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def exportable(architecture, parameters):
    """A network with random weights as it is exported: pools frozen."""
    torch.manual_seed(0)
    if architecture == "cincgan":
        return build_network(architecture, parameters).eval()
    network = build_network(architecture, {**parameters, "norm": "instance"})
    return freeze_norms(network, parameters, architecture, [image(24, 24, seed) for seed in range(3)])


def largest_tile_error(network, rows, columns):
    """Largest difference of the tiles' results from the whole image's."""
    whole_image = image(rows, columns, 9)
    worst = 0.0
    with torch.inference_mode():
        whole = network(whole_image, WHOLE)[0, 0]
        cells = torch.ones((-(-rows // 32), -(-columns // 32)), dtype=torch.bool).numpy()
        for core in merge_cells(cells, (rows, columns), network.halo, 32):
            tile = tile_of(core, (rows, columns), network.halo)
            border = Border(tile.left, tile.right, tile.top, tile.bottom)
            part = network(whole_image[..., slice(*tile.rows), slice(*tile.columns)], border)[0, 0]
            top = 0 if tile.top else core.rows[0] * network.scale
            left = 0 if tile.left else core.columns[0] * network.scale
            same = whole[top : top + part.shape[0], left : left + part.shape[1]]
            worst = max(worst, float((part - same).abs().max()))
    return worst


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("architecture", SMALL)
def test_every_scale_enlarges(architecture, scale):
    network = build_network(architecture, {**SMALL[architecture], "scale": scale}).eval()
    with torch.inference_mode():
        assert network(image(5, 7)).shape == (1, 1, 5 * scale, 7 * scale)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("architecture", SMALL)
def test_tiles_of_an_exported_network_are_the_whole_image(architecture, scale):
    network = exportable(architecture, {**SMALL[architecture], "scale": scale})
    assert not network.whole_slice_only
    assert largest_tile_error(network, 67, 101) <= CLOSE


@pytest.mark.parametrize("architecture", SMALL)
def test_without_its_halo_a_tile_is_not_the_whole_image(architecture):
    network = exportable(architecture, {**SMALL[architecture], "scale": 2})
    network.halo = 2
    assert largest_tile_error(network, 67, 101) > CLOSE


def test_edsr_has_the_papers_number_of_parameters():
    # Lim et al., table 1: 43 M for 256 channels and 32 blocks.
    block = 2 * (256 * 256 * 9 + 256)
    up = 256 * 1024 * 9 + 1024
    ends = 256 * 9 + 256 + 256 * 9 + 1
    expected = 32 * block + block // 2 + 2 * up + ends
    assert sum(p.numel() for p in Edsr(scale=4).parameters()) == expected == 43_080_705


def test_an_edsr_block_scales_its_branch():
    torch.manual_seed(0)
    network = Edsr(channels=4, blocks=1, scale=2)
    block, features = network.blocks[0], torch.randn(1, 4, 6, 6)
    branch = functional.conv2d(features, block.first.weight, block.first.bias, padding=1).clamp(min=0)
    branch = functional.conv2d(branch, block.second.weight, block.second.bias, padding=1)
    torch.testing.assert_close(block(features), features + 0.1 * branch)


def test_channel_attention_weighs_channels_by_the_images_means():
    attention = ChannelAttention(3, 3, "instance")
    features = torch.rand(2, 3, 4, 5)
    means = features.flatten(2).mean(dim=2)
    inner = (means @ attention.first.weight[:, :, 0, 0].T + attention.first.bias).clamp(min=0)
    factors = torch.sigmoid(inner @ attention.second.weight[:, :, 0, 0].T + attention.second.bias)
    torch.testing.assert_close(attention(features), features * factors[:, :, None, None])


def test_attention_frozen_to_one_image_gives_that_images_result_and_no_longer_depends_on_another():
    torch.manual_seed(2)
    parameters = {**SMALL["pseudo-sr"], "scale": 2, "norm": "instance"}
    network = build_network("pseudo-sr", parameters).eval()
    one = image(16, 16)
    frozen = freeze_norms(network, parameters, "pseudo-sr", [one])
    bright = torch.cat([one, torch.ones(1, 1, 32, 16)], dim=2)
    with torch.inference_mode():
        torch.testing.assert_close(frozen(one), network(one), rtol=0, atol=1e-5)
        assert torch.equal(frozen(bright)[..., :2, :], frozen(one)[..., :2, :])
        assert not torch.allclose(network(bright)[..., :2, :], network(one)[..., :2, :], atol=1e-6)


def test_without_attention_an_rcan_has_no_image_wide_layer():
    network = PseudoSrGenerator(**SMALL["pseudo-sr"], scale=2, norm="none").eval()
    assert not network.whole_slice_only
    assert not any(isinstance(module, ChannelAttention) for module in network.modules())


def test_the_papers_sizes_are_the_defaults():
    clean, enlarge = Rcan(groups=5, blocks=10), Rcan(groups=5, blocks=20, scale=4)
    attention = 64 * 4 + 4 + 4 * 64 + 64
    convolution = 64 * 64 * 9 + 64
    ends = 64 * 9 + 64 + 64 * 9 + 1
    trunk = [5 * (n * (2 * convolution + attention) + convolution) + convolution + ends for n in (10, 20)]
    counts = [sum(p.numel() for p in network.parameters()) for network in (clean, enlarge)]
    assert counts == [trunk[0], trunk[1] + 2 * (64 * 256 * 9 + 256)]
    translator = 2 * (49 * 64) + 64 + 1 + 4 * convolution + 6 * 2 * convolution
    assert sum(p.numel() for p in Translator().parameters()) == translator


@pytest.mark.parametrize(("halvings", "size"), [(0, 32), (1, 16), (2, 8), (3, 4)])
def test_the_way_back_shrinks_to_the_coarse_grid(halvings, size):
    network = Translator(channels=4, blocks=1, halvings=halvings)
    assert network(image(32, 32)).shape == (1, 1, size, size)


def test_a_translator_with_a_skip_starts_near_the_image_and_can_not_shrink_it():
    torch.manual_seed(0)
    network, one = Translator(channels=4, blocks=1, skip=True), image(8, 8)
    difference = network(one) - one
    network.skip = False
    torch.testing.assert_close(network(one), difference)
    with pytest.raises(ValueError, match="smaller"):
        Translator(halvings=1, skip=True)


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("size", [(32, 32), (24, 30), (9, 11)], ids=str)
def test_the_transfer_network_keeps_the_size_and_hears_its_noise(norm, size):
    network = TransferNetwork(channels=8, blocks=1, norm=norm)
    clean = image(*size, count=2)
    noise = network.draw_noise(clean)
    assert noise.shape == (2, 1, -(-size[0] // 4), -(-size[1] // 4))
    made = network(clean, noise)
    assert made.shape == clean.shape
    assert not torch.allclose(made, network(clean, network.draw_noise(clean)))


@pytest.mark.parametrize(
    ("architecture", "changed"),
    [
        ("cincgan", {"scale": 3}),
        ("pseudo-sr", {"scale": 6}),
        ("pseudo-sr", {"norm": "batch"}),
        ("cincgan", {"norm": 1}),
    ],
)
def test_impossible_parameters_are_a_damaged_card(architecture, changed):
    with pytest.raises(ModelError, match="do not fit"):
        build_network(architecture, {**SMALL[architecture], **changed})


def test_the_generators_hold_all_that_they_need():
    names = {name.split(".")[0] for name in CinCGenerator(**SMALL["cincgan"]).state_dict()}
    assert names == {"clean", "enlarge"}
