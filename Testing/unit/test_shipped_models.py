"""Every model that the project ships: what its card promises is so."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from CTMicroSRLib import load_model, super_resolve
from CTMicroSRLib.evaluation.metrics import quality
from CTMicroSRLib.interpolators import INTERPOLATORS
from CTMicroSRLib.models import find_model, shipped_models_folders, verify_model
from CTMicroSRLib.networks.generator import WHOLE, Border
from CTMicroSRLib.session import ScanConditions
from CTMicroSRLib.simulation.cases import CaseSettings, make_case
from CTMicroSRLib.tiles import merge_cells, tile_of

NAMES = sorted(
    folder.name for root in shipped_models_folders() if root.is_dir() for folder in root.iterdir() if folder.is_dir()
)
CONDITIONS = ScanConditions(psf_fwhm_voxels=1.7, noise_hu=15.0)


@pytest.fixture(scope="module")
def case():
    return make_case(CaseSettings(noise_hu=10.0, slice_mm=1.0, depth_mm=2.0), seed=950_001)


def test_a_model_is_shipped():
    assert "compact-8x" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_its_weights_are_those_of_its_card_and_small(name):
    path = verify_model(find_model(name))
    assert path.stat().st_size < 10e6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("largest", [32, 64, 96])
def test_tiles_give_the_untiled_pass(name, largest, case):
    model = load_model(name, device="cpu", precision="fp32")
    scan = np.pad(case.clinical.array_kji[0], ((0, 37), (0, 50)), mode="reflect").astype(np.float32)
    coarse = torch.from_numpy(scan)
    whole = model.run(coarse, WHOLE, CONDITIONS)
    shape, scale = tuple(coarse.shape), model.card.scale
    cells = np.ones((-(-shape[0] // 32), -(-shape[1] // 32)), dtype=bool)
    for core in merge_cells(cells, shape, model.card.halo, largest):
        tile = tile_of(core, shape, model.card.halo)
        border = Border(tile.left, tile.right, tile.top, tile.bottom)
        part = model.run(coarse[slice(*tile.rows), slice(*tile.columns)], border, CONDITIONS)
        first = (0 if tile.top else core.rows[0], 0 if tile.left else core.columns[0])
        rows = slice((core.rows[0] - first[0]) * scale, (core.rows[1] - first[0]) * scale)
        columns = slice((core.columns[0] - first[1]) * scale, (core.columns[1] - first[1]) * scale)
        expected = whole[core.rows[0] * scale : core.rows[1] * scale, core.columns[0] * scale : core.columns[1] * scale]
        assert (part[rows, columns] - expected).abs().max() <= 1e-4 * model.card.window.hu_per_unit


@pytest.mark.parametrize("name", NAMES)
def test_it_beats_every_interpolation_on_an_unseen_specimen(name, case):
    result = super_resolve(case.clinical, region="whole", model=name, psf_fwhm_mm=1.0, noise_hu=10.0, device="cpu")
    truth = case.truth.array_kji[0]
    ours = quality(result.volume.array_kji[0], truth)
    for interpolate in INTERPOLATORS.values():
        other = quality(interpolate(case.clinical.array_kji[0].astype(np.float32), 8), truth)
        assert ours.psnr_db > other.psnr_db + 2.0
        assert ours.ssim > other.ssim + 0.02


@pytest.mark.parametrize("name", NAMES)
def test_its_card_holds_the_measured_numbers_and_the_command(name):
    card = find_model(name).card
    methods = {row["method"]: row for row in card.metrics["rows"]}
    best = max(methods[key]["psnr_db"] for key in ("bicubic", "B-spline", "Lanczos"))
    assert methods[f"{name}, scan (default)"]["psnr_db"] > best
    assert card.command
    assert card.training_data
    assert card.licence


@pytest.mark.parametrize("name", NAMES)
def test_twenty_passes_cost_the_work_of_at_most_eight(name, monkeypatch):
    """Multiplications of the part that every pass repeats, counted from the layers' shapes."""
    network = load_model(name, device="cpu", precision="fp32").network
    if name != "compact-8x":
        pytest.skip("only the model for daily use promises it")
    work = {"once": 0, "each pass": 0}
    convolution = torch.nn.functional.conv2d

    def counted(part):
        def convolve(features, weight, *arguments, **options):
            result = convolution(features, weight, *arguments, **options)
            work[part] += result.numel() * weight[0].numel()
            return result

        return convolve

    tile = torch.zeros(1, 1 + network.planes, 64, 64)
    with torch.inference_mode():
        monkeypatch.setattr(torch.nn.functional, "conv2d", counted("once"))
        state = network.prefix(tile, WHOLE)
        monkeypatch.setattr(torch.nn.functional, "conv2d", counted("each pass"))
        network.suffix(state, WHOLE, None)
    assert min(work.values()) > 0
    assert (work["once"] + 21 * work["each pass"]) / sum(work.values()) <= 8.0


@pytest.mark.parametrize("name", NAMES)
def test_loading_it_does_not_wait_for_torchs_compiler_nor_leave_a_folder_for_it(name, repository, tmp_path):
    """The compiler takes seconds to import, and makes a folder among the temporary files."""
    code = (
        "import sys; from CTMicroSRLib import load_model; "
        f"load_model({name!r}); sys.exit('the compiler came too' if 'torch._dynamo' in sys.modules else 0)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
