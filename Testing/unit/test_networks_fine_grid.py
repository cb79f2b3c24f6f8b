"""Networks that interpolate first: the interpolation stays exact, whatever the precision of what follows."""

from __future__ import annotations

import pytest
import torch

from CTMicroSRLib.interpolation import phase_kernels
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.fine_grid import onto_fine_grid

INTERPOLATING = {
    "resnet": ({"channels": 4, "blocks": 1, "scale": 2}, "interpolation_kernels"),
    "unet": ({"channels": 4, "depth": 2, "scale": 2}, "kernels"),
    "unit": ({"channels": 4, "blocks": 1, "scale": 2, "interpolated": True}, "kernels"),
}


def coarse_image(scale=4):
    image = torch.rand((2, 1, 7, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return image, torch.from_numpy(phase_kernels(scale)), scale


@pytest.mark.parametrize("scale", [2, 8])
def test_a_parabola_is_interpolated_exactly_away_from_the_border(scale):
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(10.0), indexing="ij")
    fine_rows, fine_columns = torch.meshgrid(
        *((torch.arange(size * scale) + 0.5) / scale - 0.5 for size in (12, 10)), indexing="ij"
    )
    made = onto_fine_grid((0.1 * rows**2 + columns)[None, None], torch.from_numpy(phase_kernels(scale)), scale)[0, 0]
    inner = (slice(2 * scale, -2 * scale),) * 2
    torch.testing.assert_close(made[inner], (0.1 * fine_rows**2 + fine_columns)[inner], atol=1e-5, rtol=1e-5)


def test_autocast_does_not_touch_it():
    image, kernels, scale = coarse_image()
    exact = onto_fine_grid(image.float(), kernels, scale)
    with torch.autocast("cpu", torch.bfloat16):
        made = onto_fine_grid(image.float(), kernels, scale)
    assert made.dtype == torch.float32
    assert torch.equal(made, exact)


def test_double_precision_stays_double():
    image, kernels, scale = coarse_image()
    made = onto_fine_grid(image, kernels, scale)
    assert made.dtype == torch.float64
    torch.testing.assert_close(made.float(), onto_fine_grid(image.float(), kernels, scale))


@pytest.mark.parametrize("name", INTERPOLATING)
def test_the_kernels_are_neither_saved_nor_rounded_with_the_layers(name):
    parameters, kernels = INTERPOLATING[name]
    network = build_network(name, parameters)
    assert not [key for key in network.state_dict() if "kernels" in key]
    for layer in network.children():  # as the engine does for bfloat16
        layer.to(torch.bfloat16)
    assert torch.equal(getattr(network, kernels), torch.from_numpy(phase_kernels(2)))
