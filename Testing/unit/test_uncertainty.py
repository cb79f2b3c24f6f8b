"""MC dropout: the statistics of the passes, their masks, what is computed once, and what they do to the result."""

from __future__ import annotations

import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from CTMicroSRLib import super_resolve
from CTMicroSRLib.card import Calibration
from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.networks.generator import WHOLE, Border
from CTMicroSRLib.session import ScanConditions, load_model
from CTMicroSRLib.uncertainty import calibrated, channel_masks, pass_statistics

CPU = torch.device("cpu")
CONDITIONS = ScanConditions(1.8, 15.0)
DROPOUT = {"dropout_rate": 0.25, "dropout_blocks": 1}
NETWORKS = {
    "compact": ("compact", {"channels": 8, "blocks": 3, "scale": 4, **DROPOUT}),
    "compact, last layer only": ("compact", {"channels": 8, "blocks": 1, "scale": 2, **DROPOUT, "dropout_blocks": 0}),
    "sr-cyclegan": ("sr-cyclegan", {"channels": 8, "blocks": 3, "doublings": 2, "norm": "frozen", **DROPOUT}),
}


@pytest.fixture(params=NETWORKS)
def network(request, make_network):
    return make_network(*NETWORKS[request.param])


@pytest.fixture
def window(tiny_model):
    return load_model(tiny_model, precision="fp32").card.window


class ConvolutionCounter(TorchFunctionMode):
    """Counts convolutions, whoever calls them."""

    def __init__(self):
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") == "conv2d"
        return func(*args, **(kwargs or {}))


def tile(seed=0, shape=(20, 26)):
    return torch.rand((1, 1, *shape), generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.inference_mode()
def statistics(network, passes, window, *, seed=0, image=None, border=WHOLE):
    masks = [channel_masks(network, seed, t, CPU) for t in range(passes)]
    return pass_statistics(network, tile() if image is None else image, border, masks, window)


@torch.inference_mode()
def stack(network, passes, window, seed=0):
    """Every pass on its own, from the start, in HU and float64: what the statistics are statistics of."""
    outputs = [
        network.to_image(network.suffix(network.prefix(tile(), WHOLE), WHOLE, channel_masks(network, seed, t, CPU)))
        for t in range(passes)
    ]
    return window.to_hu(torch.cat(outputs)[:, 0].double().numpy())


@pytest.mark.parametrize("passes", [2, 7, 20])
def test_mean_and_deviation_are_those_of_the_stacked_passes(network, window, passes):
    found, outputs = statistics(network, passes, window), stack(network, passes, window)
    deviation = outputs.std(axis=0, ddof=1)
    assert deviation.mean() > 5.0
    np.testing.assert_allclose(found.mean.numpy(), outputs.mean(axis=0), rtol=0, atol=0.01)
    # Sums of squares in float32 lose a deviation that is a thousandth of the passes' distance from the plain one.
    distance = np.sqrt(np.mean((outputs - found.plain.numpy()) ** 2, axis=0))
    assert (np.abs(found.standard_deviation.numpy() - deviation) <= 1e-3 * distance + 0.02).all()


def test_the_plain_pass_is_the_network_without_dropout_bit_for_bit(network, window):
    found = statistics(network, 3, window)
    with torch.inference_mode():
        assert torch.equal(found.plain, window.to_hu(network(tile(), WHOLE)[0, 0]))


def test_a_tiles_statistics_are_the_whole_images(network, window):
    image = tile(shape=(60, 70))
    halo, scale = network.halo, network.scale
    part = image[..., 20 - halo : 44 + halo, 25 - halo :]
    border = Border(left=False, right=True, top=False, bottom=False)
    whole, found = (statistics(network, 4, window, image=im, border=b) for im, b in ((image, WHOLE), (part, border)))
    at = np.s_[20 * scale : 44 * scale, 25 * scale :]
    for name in ("plain", "mean", "standard_deviation"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name)[at], rtol=0, atol=0.1)


def test_masks_depend_on_seed_pass_and_layer_alone(network):
    def key(seed, index):
        return [mask.tolist() for mask in channel_masks(network, seed, index, CPU)]

    torch.manual_seed(1)
    first = key(0, 0)
    torch.manual_seed(2)
    assert key(0, 0) == first
    many = [key(seed, index) for seed in range(3) for index in range(6)]
    assert len({str(masks) for masks in many}) > 12
    assert [len(mask) for mask in first] == list(network.dropout_channels)


def test_masks_drop_channels_at_the_cards_rate_and_keep_the_mean(make_network):
    network = make_network(
        "compact", {"channels": 64, "blocks": 2, "scale": 2, "dropout_rate": 0.2, "dropout_blocks": 2}
    )
    masks = torch.stack([torch.cat(channel_masks(network, 5, t, CPU)) for t in range(200)])
    assert sorted(masks.unique().tolist()) == pytest.approx([0.0, 1.25])
    assert masks.mean() == pytest.approx(1.0, abs=0.02)
    for layer in range(3):  # layers are drawn on their own
        assert not torch.equal(masks[:, :64], masks[:, 64 * layer :][:, :64]) or layer == 0


@pytest.mark.parametrize("passes", [2, 20])
def test_what_lies_before_the_first_dropout_is_computed_once(network, window, passes):
    masks = [channel_masks(network, 0, t, CPU) for t in range(passes)]
    with torch.inference_mode(), ConvolutionCounter() as all_passes:
        pass_statistics(network, tile(), WHOLE, masks, window)
    with torch.inference_mode(), ConvolutionCounter() as prefix:
        state = network.prefix(tile(), WHOLE)
    with torch.inference_mode(), ConvolutionCounter() as suffix:
        network.suffix(state, WHOLE, masks[0])
    assert prefix.count > 0
    assert all_passes.count == prefix.count + (passes + 1) * suffix.count


def test_a_pass_of_the_compact_generator_costs_a_fraction_of_a_whole_one(make_network):
    network = make_network("compact", {"channels": 8, "blocks": 8})
    with torch.inference_mode(), ConvolutionCounter() as prefix:
        state = network.prefix(tile(), WHOLE)
    with torch.inference_mode(), ConvolutionCounter() as suffix:
        network.suffix(state, WHOLE, None)
    assert (prefix.count, suffix.count) == (16, 3)


def test_no_more_passes_are_in_memory_however_many_there_are(network, window):
    def most_alive(passes):
        outputs, alive = [], []
        suffix = network.suffix

        def watched(*arguments):
            output = suffix(*arguments)
            outputs.append(weakref.ref(output))
            alive.append(sum(reference() is not None for reference in outputs))
            return output

        network.suffix = watched
        statistics(network, passes, window)
        del network.suffix
        return max(alive)

    assert most_alive(3) == most_alive(30) <= 3


def test_the_calibrated_deviation_is_scaled_and_has_a_floor():
    deviation = torch.tensor([0.0, 2.0, 30.0])
    assert calibrated(deviation, Calibration(2.0, 3.0)).tolist() == pytest.approx([3.0, 5.0, np.hypot(60.0, 3.0)])
    assert torch.equal(calibrated(deviation, Calibration()), deviation)


@pytest.fixture
def scan(make_scan):
    return make_scan((1, 60, 80))


def resolved(scan, folder, **options):
    known = {"region": "whole", "psf_fwhm_mm": 1.2, "noise_hu": 12.0, "device": "cpu", "precision": "fp32", "passes": 4}
    return super_resolve(scan, model=str(folder), **{**known, **options})


@pytest.mark.parametrize("architecture", ["compact", "sr-cyclegan"])
def test_turning_uncertainty_on_does_not_change_the_result(make_model, scan, architecture):
    folder = make_model(architecture=architecture)
    off, on = resolved(scan, folder), resolved(scan, folder, uncertainty=True)
    assert off.uncertainty is None
    assert np.array_equal(off.volume.array_kji, on.volume.array_kji)
    assert on.uncertainty.geometry == on.volume.geometry
    assert on.uncertainty.array_kji.mean() > 1.0
    assert on.report["uncertainty"] == {"passes": 4}


def test_a_model_whose_result_is_the_mean_of_the_passes_gives_that_mean(make_model, scan):
    folder = make_model("bayesian", result="mean")
    found = resolved(scan, folder, consistency="off", seed=3)
    model = load_model(folder, precision="fp32")
    coarse = torch.from_numpy(scan.array_kji[0].astype(np.float32))
    passes = model.run_passes(coarse, WHOLE, CONDITIONS, passes=4, seed=3)
    np.testing.assert_allclose(found.volume.array_kji[0], passes.mean.numpy(), rtol=0, atol=0.51)
    assert (passes.mean - passes.plain).abs().max() > 5.0
    with_uncertainty = resolved(scan, folder, consistency="off", seed=3, uncertainty=True)
    assert np.array_equal(with_uncertainty.volume.array_kji, found.volume.array_kji)
    assert not np.array_equal(
        resolved(scan, folder, consistency="off", seed=4).volume.array_kji, found.volume.array_kji
    )


def test_the_uncertainty_is_the_calibrated_deviation_rounded(make_model, scan):
    plain, scaled = (
        make_model(name, calibration=Calibration(scale, floor))
        for name, scale, floor in (("a", 1.0, 0.0), ("b", 1.5, 9.0))
    )
    one, other = (resolved(scan, folder, uncertainty=True).uncertainty.array_kji for folder in (plain, scaled))
    assert other.min() >= 9
    expected = np.hypot(1.5 * one.astype(float), 9.0)
    np.testing.assert_allclose(other, expected, rtol=0, atol=0.5 + 0.75)  # each is rounded, the first then scaled


def test_uncertainty_is_repeatable_from_its_seed_and_another_seed_gives_another(tiny_model, scan):
    first, again, other = (
        resolved(scan, tiny_model, uncertainty=True, seed=seed).uncertainty.array_kji for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_uncertainty_does_not_depend_on_the_tiles(tiny_model, make_scan):
    scan = make_scan((1, 100, 110))
    small, large = (resolved(scan, tiny_model, uncertainty=True, tile=tile) for tile in (32, 512))
    assert small.report["tiles"]["rectangles"] > large.report["tiles"]["rectangles"]
    for one, other in ((small.uncertainty, large.uncertainty), (small.volume, large.volume)):
        difference = np.abs(one.array_kji.astype(int) - other.array_kji)
        assert difference.max() <= 1
        assert Counter((difference > 0).ravel().tolist())[True] < 0.01 * difference.size


def test_uncertainty_is_nothing_where_the_network_did_not_run(tiny_model, make_scan):
    scan = make_scan((1, 60, 100))
    mask = np.zeros(scan.array_kji.shape, bool)
    mask[0, 20:30, 20:30] = True
    found = resolved(scan, tiny_model, mask=mask, uncertainty=True).uncertainty.array_kji
    assert found[0, 160:240, 160:240].mean() > 1.0
    assert not found[0, :, 8 * (30 + 11) :].any()


@pytest.mark.parametrize("parameters", [{"dropout_rate": 0.0, "dropout_blocks": 1}, {"dropout_rate": 0.2}])
def test_a_model_without_dropout_does_not_claim_to_be_certain(make_model, scan, parameters):
    folder = make_model(
        architecture="sr-cyclegan", parameters={"channels": 8, "blocks": 1, "norm": "frozen", **parameters}
    )
    with pytest.raises(UsageError, match="no dropout"):
        resolved(scan, folder, uncertainty=True)
