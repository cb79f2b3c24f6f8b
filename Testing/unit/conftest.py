"""What the unit tests of the engine share: small models with random weights, and small scans."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from CTMicroSRLib.card import ModelCard
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.models import sha256_of
from CTMicroSRLib.volume import Geometry, Volume

if str(Path(__file__).parent) not in sys.path:  # for method_steps, which several files import
    sys.path.insert(0, str(Path(__file__).parent))

# Time on a shared machine says nothing about an example, and the first one imports torch.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    """Random numbers of torch that a test draws without a seed don't depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


WINDOW = IntensityWindow(-1000.0, 2500.0)


def random_network(architecture, parameters, *, seed=0, gain=0.3):
    """A network whose output differs from interpolation by some hundred HU (times ``gain / 0.3``), voxel by voxel."""
    import torch

    from CTMicroSRLib.networks import build_network
    from CTMicroSRLib.networks.norms import FrozenNorm

    generator = torch.Generator().manual_seed(seed)
    network = build_network(architecture, parameters)
    with torch.no_grad():
        for weights in network.parameters():
            fan_in = weights[0].numel() if weights.dim() == 4 else 25.0
            weights.normal_(0.0, (2.0 / fan_in) ** 0.5 if weights.dim() == 4 else 0.1, generator=generator)
        for module in network.modules():
            if isinstance(module, FrozenNorm):
                module.mean.normal_(0.0, 0.3, generator=generator)
                module.variance.uniform_(0.5, 2.0, generator=generator)
        network.tail.weight.mul_(gain)
    return network.eval()


def write_model(folder: Path, network, parameters, *, architecture="compact", **fields) -> Path:
    """A model folder: card and weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
    card = ModelCard(
        name=folder.name,
        architecture=architecture,
        parameters=parameters,
        scale=network.scale,
        halo=network.halo,
        window=WINDOW,
        sha256=sha256_of(weights),
    )
    (folder / "card.json").write_text(replace(card, **fields).to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_network():
    """``make_network(architecture, parameters, seed=0)``: a network with random weights."""
    return random_network


@pytest.fixture
def make_model(tmp_path):
    """``make_model(name, architecture="compact", parameters=None, **card_fields)``: the folder of a small model."""

    def make(name="tiny", architecture="compact", parameters=None, *, seed=0, gain=0.3, **fields):
        if parameters is None:
            small = {"blocks": 2, "planes": 0} if architecture == "compact" else {"blocks": 1, "norm": "frozen"}
            parameters = {"channels": 8, "dropout_rate": 0.2, "dropout_blocks": 1, **small}
        network = random_network(architecture, parameters, seed=seed, gain=gain)
        return write_model(tmp_path / "models" / name, network, parameters, architecture=architecture, **fields)

    return make


@pytest.fixture
def tiny_model(make_model):
    """The folder of a compact model: 8 channels, 2 blocks, 8x, dropout in the last block."""
    return make_model()


@pytest.fixture(scope="session")
def make_scan():
    """``make_scan(shape_kji, ...)``: air and soft tissue with texture, int16 HU."""

    def make(shape_kji=(2, 70, 90), *, spacing_mm=(0.7, 0.7, 1.5), seed=0, **geometry):
        rng = np.random.default_rng(seed)
        array = rng.normal(-860.0, 25.0, shape_kji)
        k, j, i = np.indices(shape_kji)
        array[(j - shape_kji[1] / 2) ** 2 + (i - shape_kji[2] / 2 + 2 * k) ** 2 < (min(shape_kji[1:]) / 4) ** 2] += (
            900.0
        )
        array[:, :, -max(1, shape_kji[2] // 8) :] += 880.0
        size = (shape_kji[2], shape_kji[1], shape_kji[0])
        return Volume(np.rint(array).astype(np.int16), Geometry(size, spacing_mm, **geometry), {"Modality": "CT"})

    return make
