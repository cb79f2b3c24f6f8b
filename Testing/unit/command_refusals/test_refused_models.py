"""Models and machines that won't do: refused in one line, nothing left, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
from refused_scans import MODEL, RESOURCE
from safetensors.numpy import load_file, save_file
from written_files import GIVEN, tree


def altered_model(command_model, tmp_path, *, weights=None, checksum=True, **card):
    """A copy of the model with other weights (bytes) or other fields on its card."""
    import hashlib

    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(command_model, folder)
    content = json.loads((folder / "card.json").read_text())
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
        if checksum:
            content["sha256"] = hashlib.sha256(weights).hexdigest()
    content.update(card)
    del content["card_sha256"]
    (folder / "card.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def refuses_model(refused, scan, tmp_path):
    """superres, verify and import of a model that is to be refused."""

    def run(model, match, commands=("superres", "verify", "import")):
        for command in commands:
            if command == "superres":
                common = ("--model", model, "--region", "0:8,0:8,0:1", *GIVEN)
                refused(MODEL, match, "superres", scan, tmp_path / "out.nrrd", *common)
            else:
                refused(MODEL, match, "models", command, model)

    return run


def test_a_model_that_is_not_there_is_named(refuses_model, tmp_path):
    refuses_model("sharpest", "no model 'sharpest'", ("superres", "verify"))
    (tmp_path / "folder").mkdir()
    refuses_model(tmp_path / "folder", "not a model folder")


def test_altered_weights_are_refused(refuses_model, command_model, tmp_path):
    content = bytearray((command_model / "model.safetensors").read_bytes())
    content[-3] ^= 1
    refuses_model(altered_model(command_model, tmp_path, weights=bytes(content), checksum=False), "SHA-256 differs")


def test_truncated_or_missing_weights_are_refused(refuses_model, command_model, tmp_path):
    content = (command_model / "model.safetensors").read_bytes()
    for weights in (content[:-4], content[:5], b"", struct.pack("<Q", 2**60) + b"{}"):
        refuses_model(altered_model(command_model, tmp_path, weights=weights), "not a complete safetensors")
    folder = altered_model(command_model, tmp_path)
    (folder / "model.safetensors").unlink()
    refuses_model(folder, "missing")


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_offered_as_weights_is_refused_and_not_run(refuses_model, command_model, tmp_path, kind):
    trap = str(tmp_path / "executed")
    if kind == "pickle":
        weights = pickle.dumps(Bomb(trap))
    else:
        import torch

        torch.save({"first.weight": Bomb(trap)}, tmp_path / "bomb.pt")
        weights = (tmp_path / "bomb.pt").read_bytes()
    refuses_model(altered_model(command_model, tmp_path, weights=weights), "can run code")
    assert not os.path.exists(trap)
    pickle.loads(pickle.dumps(Bomb(trap)))
    assert os.path.exists(trap)


def test_weights_of_another_network_are_refused(refuses_model, command_model, tmp_path):
    weights = load_file(command_model / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, tmp_path / "less.safetensors")
    folder = altered_model(command_model, tmp_path, weights=(tmp_path / "less.safetensors").read_bytes())
    refuses_model(folder, "do not fit its architecture", ("superres",))


@pytest.mark.parametrize(
    ("card", "match"),
    [
        ({"format": 99}, "another format"),
        ({"architecture": "os.system"}, "unknown"),
        ({"parameters": {"channels": 8, "blocks": 2, "planes": 2, "colour": 1}}, "do not fit"),
        ({"parameters": {"channels": -8, "blocks": 2, "planes": 2}}, "do not fit"),
        ({"parameters": {"channels": 16, "blocks": 2, "planes": 2}}, "do not fit"),
        ({"scale": 4}, "another scale"),
        ({"halo": 0}, "another scale"),
        ({"scale": "8"}, "damaged"),
        ({"name": "../../etc"}, "not allowed"),
        ({"window": {"low_hu": 1}}, "damaged"),
        ({"nonsense": True}, "damaged"),
        ({"sha256": "0"}, "SHA-256"),
    ],
)
def test_a_card_that_does_not_describe_its_model_is_refused(refuses_model, command_model, tmp_path, card, match):
    refuses_model(altered_model(command_model, tmp_path, **card), match, ("superres",))


def test_a_card_that_is_no_json_is_refused(refuses_model, command_model, tmp_path):
    folder = altered_model(command_model, tmp_path)
    for text in ("", "{", "[]", "null", "[" * 100_000, '{"format": 1}'):
        (folder / "card.json").write_text(text)
        refuses_model(folder, "damaged")


def test_a_model_that_is_not_imported_cannot_be_removed(refused, command_model):
    for name in ("sharpest", "../small", str(command_model), "."):
        refused(MODEL, "no model named", "models", "remove", name)


def test_a_model_that_the_system_holds_stays_whole(ctmicrosr, refused, command_model, monkeypatch):
    assert ctmicrosr("models", "import", command_model).status == 0
    folder = Path(os.environ["CTMICROSR_MODELS"])
    before = tree(folder)

    def hold(path, _target):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", hold)
    refused(RESOURCE, "small could not be removed .* close what uses it", "models", "remove", "small")
    assert tree(folder) == before


def test_a_device_that_is_not_there_is_a_lack_of_resources(refuses_scan, scan, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuses_scan(scan, "no usable cuda device", RESOURCE, "--device", "cuda")


def test_a_run_that_needs_more_memory_than_there_is_ends_in_one_line(refuses_scan, scan, monkeypatch):
    from CTMicroSRLib.session import Model

    def run_out(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(Model, "run", run_out)
    refuses_scan(scan, "Not enough memory", RESOURCE, "--precision", "fp32")


def test_a_model_named_as_one_that_came_with_the_software_is_refused_with_what_can_be_done(
    refused, command_model, tmp_path, monkeypatch
):
    from CTMicroSRLib import models

    shutil.copytree(command_model, tmp_path / "shipped" / "small")
    monkeypatch.setattr(models, "shipped_models_folders", lambda: [tmp_path / "shipped"])
    refused(
        MODEL, "small is already installed and came with CTMicroSR; .*--name NAME", "models", "import", command_model
    )
