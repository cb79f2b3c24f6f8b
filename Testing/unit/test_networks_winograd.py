"""Winograd's 3x3 convolution beside torch's in float64, and when it is taken."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.encoded_blocks import ResnetBlock
from CTMicroSRLib.networks.winograd import LEAST_CHANNELS, WideConvolution, convolve_padded, fits

ROUNDING = 3e-5
"""Of the largest value; float32 keeps 6e-8, and the transforms' factors are up to 64."""


def gradients(convolve: object, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The result of a convolution of ``inputs``, then a loss' gradient by each of them."""
    assert callable(convolve)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    result = convolve(*leaves)
    loss = (result * torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view_as(result)).sum()
    return (result.detach(), *torch.autograd.grad(loss, leaves))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal to rounding."""
    assert found.dtype == torch.float32
    assert (found.double() - expected).abs().max() <= ROUNDING * expected.abs().max()


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    channels_last=st.booleans(),
)
def test_results_and_gradients_are_those_of_a_float64_convolution(
    batch: int, inputs: int, outputs: int, rows: int, columns: int, channels_last: bool
) -> None:
    random = torch.Generator().manual_seed(batch + 10 * inputs + 100 * outputs)
    padded = torch.randn((batch, inputs, 4 * rows + 2, 4 * columns + 2), generator=random)
    padded = padded.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    weight = torch.randn((outputs, inputs, 3, 3), generator=random)
    bias = torch.randn(outputs, generator=random)
    found = gradients(convolve_padded, padded, weight, bias)
    expected = gradients(functional.conv2d, padded.double(), weight.double(), bias.double())
    for single, double in zip(found, expected, strict=True):
        assert_same(single, double)


def test_many_strips_make_the_same_as_one() -> None:
    random = torch.Generator().manual_seed(3)
    padded, weight = torch.randn((1, 3, 70, 70), generator=random), torch.randn((2, 3, 3, 3), generator=random)
    tall = convolve_padded(padded, weight, torch.zeros(2))
    top = convolve_padded(padded[:, :, :38], weight, torch.zeros(2))
    assert_same(tall[:, :, :36], top.double())


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_wide_layer_pads_as_torch_does(mode: Literal["zeros", "reflect"]) -> None:
    torch.manual_seed(4)
    layer = WideConvolution(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1, padding_mode=mode)
    stock = nn.Conv2d(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1, padding_mode=mode)
    stock.load_state_dict(layer.state_dict())
    features = torch.randn(2, LEAST_CHANNELS, 12, 8)
    assert fits(features, layer)
    assert_same(layer(features).detach(), stock.double()(features.double()))


def test_its_result_may_be_changed_in_place() -> None:
    torch.manual_seed(6)
    layer = WideConvolution(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1)
    features = torch.randn(1, LEAST_CHANNELS, 8, 8)
    assert fits(features, layer)
    gradient = {}
    for in_place in (False, True):
        layer.zero_grad()
        result = layer(features)
        assert result.is_contiguous(memory_format=torch.channels_last)
        functional.relu(result, inplace=in_place).square().sum().backward()
        assert layer.weight.grad is not None
        gradient[in_place] = layer.weight.grad.clone()
    assert torch.equal(gradient[True], gradient[False])


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    layer = WideConvolution(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1)
    layer.requires_grad_(False)
    features = torch.randn(1, LEAST_CHANNELS, 8, 8, requires_grad=True)
    layer(features).sum().backward()
    assert features.grad is not None
    assert layer.weight.grad is None
    layer.requires_grad_(True)
    layer(features.detach()).sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias is not None
    assert layer.bias.grad is not None


class TestStockConvolution:
    """Where it stays."""

    layer = WideConvolution(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1)
    features = torch.zeros(1, LEAST_CHANNELS, 8, 8)

    def test_without_gradients_so_that_tiles_stay_exact(self) -> None:
        assert fits(self.features, self.layer)
        with torch.no_grad():
            assert not fits(self.features, self.layer)
        with torch.inference_mode():
            assert not fits(self.features, self.layer)

    def test_where_tiles_are_not_whole(self) -> None:
        assert not fits(torch.zeros(1, LEAST_CHANNELS, 8, 10), self.layer)

    def test_in_other_precisions(self) -> None:
        assert not fits(self.features.double(), WideConvolution(LEAST_CHANNELS, LEAST_CHANNELS, 3).double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not fits(self.features, self.layer)

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(LEAST_CHANNELS // 2, LEAST_CHANNELS, 3, padding=1),
            nn.Conv2d(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1, stride=2),
            nn.Conv2d(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1, bias=False),
            nn.Conv2d(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=2, dilation=2),
            nn.Conv2d(LEAST_CHANNELS, LEAST_CHANNELS, 3, padding=1, groups=2),
            nn.Conv2d(LEAST_CHANNELS, LEAST_CHANNELS, 5, padding=1),
        ],
    )
    def test_of_other_layers(self, layer: nn.Conv2d) -> None:
        assert not fits(torch.zeros(1, layer.in_channels, 8, 8), layer)


def test_a_residual_block_has_the_same_weights_names_and_result_with_and_without_gradients() -> None:
    torch.manual_seed(5)
    block = ResnetBlock(LEAST_CHANNELS, "instance")
    features = torch.randn(1, LEAST_CHANNELS, 16, 16)
    with torch.no_grad():
        stock = block(features)
    trained = block(features)
    assert trained.requires_grad
    assert "first.convolution.weight" in block.state_dict()
    torch.testing.assert_close(trained.detach(), stock, rtol=0, atol=ROUNDING * float(stock.abs().max()))
