"""Fixtures that several tiers share."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans: ``CTMICROSR_TEST_DATA``, else ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("CTMICROSR_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "clinical").is_dir():
        pytest.skip(f"no real scans at {folder}; set CTMICROSR_TEST_DATA to their folder")
    return folder


@dataclass(frozen=True)
class Outcome:
    """What a run of the command left: exit status and what it printed."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def command_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small compact model of random weights, as ``--model`` takes it."""
    import torch
    from safetensors.torch import save_file

    from CTMicroSRLib.card import CARD_FILE, WEIGHTS_FILE, ModelCard
    from CTMicroSRLib.intensity import IntensityWindow
    from CTMicroSRLib.models import sha256_of
    from CTMicroSRLib.networks import build_network
    from CTMicroSRLib.training.methods.compact import PLANES

    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    parameters = {"channels": 8, "blocks": 2, "planes": len(PLANES)}
    with torch.random.fork_rng():
        torch.manual_seed(20)
        network = build_network("compact", parameters)
    save_file(network.state_dict(), folder / WEIGHTS_FILE)
    card = ModelCard(
        name="small",
        architecture="compact",
        parameters=parameters,
        scale=network.scale,
        halo=network.halo,
        window=IntensityWindow(-1000.0, 2500.0),
        planes=PLANES,
        sha256=sha256_of(folder / WEIGHTS_FILE),
    )
    (folder / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
    return folder


@pytest.fixture
def ctmicrosr(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory):
    """Run the command in this process, with no model installed; what C++ prints is captured too."""
    from CTMicroSRLib.cli import main

    monkeypatch.setenv("CTMICROSR_MODELS", str(tmp_path_factory.mktemp("installed")))

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Outcome(status, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def command_line() -> list[str]:
    """How a new process runs the command; with the checkout as its working folder."""
    return [sys.executable, "-m", "CTMicroSRLib"]
