"""What the tests of ``ctmicrosr train`` share: a user's scans, patches of them, a finished run, and refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import SimpleITK as sitk
from train_command import METHOD, SCALE, SMALL
from written_files import tree

from CTMicroSRLib.simulation.cases import CaseSettings, simulate_case


def write(path, array_kji, spacing_mm=(0.7, 0.7, 1.5)):
    image = sitk.GetImageFromArray(np.asarray(array_kji))
    image.SetSpacing(spacing_mm)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """The files of a user: a clinical CT of one simulated specimen, the micro-CT of another, and a mask of either."""
    folder = tmp_path_factory.mktemp("scans")
    settings = CaseSettings(size_voxels=40, depth_mm=4.5, slice_mm=1.5, noise_hu=10.0, pixel_mm=0.7, scale=SCALE)
    seen, other = (simulate_case(settings, seed) for seed in (3, 4))
    clinical, micro = seen.scan.clinical.array_kji, other.micro.array_kji
    inside = np.zeros(micro.shape, np.uint8)
    inside[:, 8:-8, 8:-8] = 1
    files = {
        "clinical": write(folder / "ct.nrrd", clinical, (0.7, 0.7, 1.5)),
        "clinical_mask": write(folder / "lungs.nrrd", np.ones(clinical.shape, np.uint8), (0.7, 0.7, 1.5)),
        "micro": write(folder / "micro.nrrd", micro, (0.35, 0.35, 1.05)),
        "micro_mask": write(folder / "specimen.nrrd", inside, (0.35, 0.35, 1.05)),
    }
    low, high = (float(f"{value:g}") for value in np.quantile(micro[:, 8:-8, 8:-8], (0.01, 0.99)))
    return files | {"micro_window": (low, high)}


@pytest.fixture(scope="session")
def own(scans):
    """Options that give these files."""
    return (
        *("--clinical", scans["clinical"], "--clinical-mask", scans["clinical_mask"], "--patches-per-case", 8),
        *("--micro", scans["micro"], "--micro-mask", scans["micro_mask"], "--micro-window", *scans["micro_window"]),
    )


@pytest.fixture(scope="session")
def session_command(tmp_path_factory):
    """The command for fixtures of the whole session."""
    from CTMicroSRLib.cli import main

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 0

    return run


@pytest.fixture(scope="session")
def patches(session_command, own, tmp_path_factory):
    """The folder of patches that ``--stop-at 0`` leaves."""
    run = tmp_path_factory.mktemp("cut") / "run"
    session_command("train", METHOD, "--output", run, *own, *SMALL, "--stop-at", 0)
    return run / "patches"


@pytest.fixture(scope="session")
def trained(session_command, own, tmp_path_factory):
    """A run on the user's scans, with its model; not to be changed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    session_command("train", METHOD, "--output", run, *own, *SMALL, "--name", "mine")
    return run


@pytest.fixture
def refused(ctmicrosr, tmp_path):
    """Run ``train``; check the status and the one line, and that no file came, went or changed."""

    def run(status, match, *arguments, method=METHOD):
        before = tree(tmp_path)
        outcome = ctmicrosr("train", method, *arguments)
        assert (outcome.status, outcome.stdout) == (status, ""), outcome
        assert re.fullmatch(r"ctmicrosr: [^\n]*[^\n.]\.\n", outcome.stderr), outcome.stderr
        assert re.search(match, outcome.stderr), outcome.stderr
        assert tree(tmp_path) == before
        return outcome.stderr

    return run
