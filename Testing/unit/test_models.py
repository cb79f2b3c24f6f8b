"""Model folders: found, listed, verified, imported and removed; damaged and hostile ones refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from CTMicroSRLib.card import Calibration, Plane, read_card
from CTMicroSRLib.errors import ModelError, UsageError
from CTMicroSRLib.models import (
    check_safetensors,
    find_model,
    import_model,
    list_models,
    remove_model,
    user_models_folder,
    verify_model,
)
from CTMicroSRLib.session import load_model

PLANE = Plane("psf_fwhm_voxels", mean=1.8, std=0.7, low=0.6, high=4.0)


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    """An empty folder for imported models, and no shipped ones."""
    folder = tmp_path / "user"
    monkeypatch.setenv("CTMICROSR_MODELS", str(folder))
    monkeypatch.setattr("CTMicroSRLib.models.shipped_models_folders", list)
    return folder


@pytest.fixture
def shipped(make_model, tmp_path, monkeypatch):
    """A model that came with the software."""
    (tmp_path / "shipped").mkdir()
    folder = make_model("shipped-one").rename(tmp_path / "shipped" / "shipped-one")
    monkeypatch.setattr("CTMicroSRLib.models.shipped_models_folders", lambda: [folder.parent])
    return folder


def edit_card(folder: Path, *, signed=False, **changes):
    """Other values on the card, which then has no checksum of its own unless it is to stay ``signed``."""
    card = json.loads((folder / "card.json").read_text())
    card.update(changes)
    if not signed:
        del card["card_sha256"]
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def replace_weights(folder: Path, content: bytes):
    """Other weights, and a card that vouches for them."""
    (folder / "model.safetensors").write_bytes(content)
    return edit_card(folder, sha256=hashlib.sha256(content).hexdigest())


def test_a_card_reads_back_as_it_was_written(make_model):
    folder = make_model(planes=(PLANE,), calibration=Calibration(1.5, 4.0), result="mean", title="A title – ü")
    card = read_card(folder)
    (folder / "card.json").write_text(card.to_json(), encoding="utf-8")
    assert read_card(folder) == card
    assert card.as_written
    assert card.card_sha256
    assert (card.planes, card.calibration, card.result, card.title) == (
        (PLANE,),
        Calibration(1.5, 4.0),
        "mean",
        "A title – ü",
    )


def test_a_model_is_found_by_its_folder(tiny_model):
    found = find_model(tiny_model)
    assert (found.folder, found.card.name, found.shipped) == (tiny_model, "tiny", False)
    assert find_model(str(tiny_model)).folder == tiny_model


def test_an_imported_model_is_found_by_name_and_can_be_removed(tiny_model, user_folder):
    imported = import_model(tiny_model)
    assert imported.folder == user_folder / "tiny"
    assert sorted(path.name for path in imported.folder.iterdir()) == ["card.json", "model.safetensors"]
    assert find_model("tiny").folder == imported.folder
    assert [model.card.name for model in list_models()[0]] == ["tiny"]
    assert load_model("tiny", precision="fp32").card == imported.card
    assert remove_model("tiny") == imported.folder
    assert list(user_folder.iterdir()) == []
    assert tiny_model.is_dir()
    with pytest.raises(ModelError, match="no model"):
        remove_model("tiny")


def test_only_card_and_weights_are_imported(tiny_model, user_folder):
    (tiny_model / "setup.py").write_text("raise SystemExit")
    import_model(tiny_model)
    assert sorted(path.name for path in (user_folder / "tiny").iterdir()) == ["card.json", "model.safetensors"]


def test_a_second_model_of_a_name_is_not_imported(tiny_model, shipped):
    import_model(tiny_model)
    for folder in (tiny_model, shipped):
        with pytest.raises(ModelError, match="already installed"):
            import_model(folder)


def test_a_bad_model_is_not_imported_and_leaves_nothing(tiny_model, user_folder):
    (tiny_model / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError):
        import_model(tiny_model)
    assert not user_folder.exists() or not list(user_folder.iterdir())


def test_a_shipped_model_comes_first_and_cannot_be_removed(shipped, make_model):
    import_model(make_model("an-own-one", seed=1))
    models, problems = list_models()
    assert [(model.card.name, model.shipped) for model in models] == [("shipped-one", True), ("an-own-one", False)]
    assert problems == []
    with pytest.raises(UsageError, match="came with CTMicroSR"):
        remove_model("shipped-one")
    assert (shipped / "model.safetensors").is_file()


def test_a_folder_that_is_no_model_is_named_and_hides_no_other(tiny_model, user_folder):
    import_model(tiny_model)
    (user_folder / "broken").mkdir()
    (user_folder / ".hidden").mkdir()
    (user_folder / "a file").write_text("")
    models, problems = list_models()
    assert [model.card.name for model in models] == ["tiny"]
    assert len(problems) == 1
    assert "broken" in problems[0]


def test_an_unknown_name_is_refused_with_the_names_there_are(tiny_model):
    with pytest.raises(ModelError, match="installed: none"):
        find_model("nobody")
    import_model(tiny_model)
    with pytest.raises(ModelError, match="installed: tiny"):
        find_model("nobody")


def test_imported_models_lie_where_the_variable_says_else_in_the_home_folder(user_folder, monkeypatch):
    assert user_models_folder() == user_folder
    monkeypatch.delenv("CTMICROSR_MODELS")
    monkeypatch.setattr(Path, "home", lambda: Path("somewhere"))
    assert user_models_folder() == Path("somewhere") / ".ctmicrosr" / "models"


def test_good_weights_are_verified(tiny_model):
    assert verify_model(find_model(tiny_model)) == tiny_model / "model.safetensors"


def test_altered_weights_are_refused(tiny_model):
    path = tiny_model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        load_model(tiny_model)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_truncated_weights_are_refused(tiny_model, kept):
    content = (tiny_model / "model.safetensors").read_bytes()
    replace_weights(tiny_model, content[:kept])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        load_model(tiny_model)


def test_weights_with_bytes_after_their_end_are_refused(tiny_model):
    content = (tiny_model / "model.safetensors").read_bytes()
    replace_weights(tiny_model, content + b"more")
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        load_model(tiny_model)


def test_missing_weights_are_refused(tiny_model):
    (tiny_model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        load_model(tiny_model)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("how", ["pickle", "torch", "old torch"])
def test_a_pickle_offered_as_weights_is_refused_and_not_executed(tiny_model, tmp_path, how):
    sprung, path = tmp_path / "sprung", tmp_path / "weights"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"weights": Trap(sprung)}, path, _use_new_zipfile_serialization=how == "torch")
    replace_weights(tiny_model, path.read_bytes())
    with pytest.raises(ModelError, match="can run code"):
        load_model(tiny_model)
    with pytest.raises(ModelError, match="can run code"):
        import_model(tiny_model)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap itself works"


headers = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "data_offsets", "dtype"]), inner),
    max_leaves=8,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=headers, length=st.none() | st.integers(0, 2**64 - 1), rest=st.binary(max_size=20))
def test_any_other_file_is_refused_and_nothing_else_happens(tmp_path, header, length, rest):
    text = json.dumps(header).encode()
    path = tmp_path / "any.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + rest)
    try:
        check_safetensors(path)
    except ModelError:
        return
    ends = [entry["data_offsets"][1] for entry in header.values()]
    assert max(ends) == len(rest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../escaped"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\\b"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": ".hidden"}, "name"),
        ({"name": "Upper"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "new\nline"}, "name"),
        ({"name": "end\n"}, "name"),
        ({"name": "n" * 65}, "name"),
        ({"name": 5}, "damaged"),
        ({"sha256": "0" * 63}, "SHA-256"),
        ({"sha256": None}, "damaged"),
        ({"format": 2}, "another format"),
        ({"scale": 0}, "scale"),
        ({"scale": 8.0}, "damaged"),
        ({"scale": True}, "damaged"),
        ({"halo": -1}, "halo"),
        ({"halo": "6"}, "damaged"),
        ({"result": "median"}, "result"),
        ({"window": {"low_hu": 10, "high_hu": 10}}, "window"),
        ({"window": {"low_hu": float("-inf"), "high_hu": 10}}, "window"),
        ({"window": {"low_hu": float("nan"), "high_hu": 10}}, "window"),
        ({"window": [0, 1]}, "damaged"),
        ({"window": {"low_hu": "low", "high_hu": 1}}, "damaged"),
        ({"calibration": {"scale": float("nan")}}, "calibration"),
        ({"calibration": {"scale": -1.0}}, "calibration"),
        ({"calibration": {"slope": 1.0}}, "damaged"),
        ({"planes": [{"quantity": "mass", "mean": 0, "std": 1, "low": 0, "high": 1}]}, "mass"),
        ({"planes": [{"quantity": "log_noise_hu", "mean": 0, "std": 0, "low": 0, "high": 1}]}, "plane"),
        ({"planes": [{"quantity": "log_noise_hu", "mean": float("nan"), "std": 1, "low": 0, "high": 1}]}, "plane"),
        ({"planes": [{"quantity": "log_noise_hu", "mean": 0, "std": 1, "low": 2, "high": 1}]}, "plane"),
        ({"planes": [{"quantity": "log_noise_hu"}]}, "damaged"),
        ({"planes": 3}, "damaged"),
        ({"surprise": 1}, "damaged"),
    ],
    ids=str,
)
def test_a_card_with_a_wrong_field_is_refused(tiny_model, changes, words):
    edit_card(tiny_model, **changes)
    with pytest.raises(ModelError, match=words):
        read_card(tiny_model)


ALTERED = {
    "window": {"low_hu": -1000.0, "high_hu": 2499.0},
    "planes": [{"quantity": "psf_fwhm_voxels", "mean": 1.8, "std": 0.7, "low": 0.65, "high": 4.0}],
    "calibration": {"scale": 1.1, "floor_hu": 0.0},
    "postprocess": {"histogram_cells": True, "median_voxels": 0},
    "result": "mean",
}


@pytest.mark.parametrize("key", ALTERED)
def test_a_card_that_was_altered_by_hand_is_refused_as_altered_weights_are(tiny_model, user_folder, key):
    load_model(tiny_model, device="cpu")
    edit_card(tiny_model, signed=True, **{key: ALTERED[key]})
    for use in (load_model, import_model, lambda folder: verify_model(find_model(folder))):
        with pytest.raises(ModelError, match=r"^The card .*card\.json was altered since .*; get the model [^.]*\.$"):
            use(tiny_model)


def test_what_is_for_people_may_be_changed_on_a_card_and_numbers_written_otherwise(tiny_model):
    edit_card(tiny_model, signed=True, name="other", title="Mine", licence="CC0-1.0")
    edit_card(tiny_model, signed=True, window={"high_hu": 2500, "low_hu": -1000})
    load_model(tiny_model, device="cpu")


def test_a_card_from_before_cards_had_a_checksum_is_taken_as_it_is(tiny_model):
    edit_card(tiny_model, window={"low_hu": -900.0, "high_hu": 2500.0})
    load_model(tiny_model, device="cpu")


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_a_checksum_that_is_no_text_is_refused(tiny_model, value):
    edit_card(tiny_model, signed=True, card_sha256=value)
    with pytest.raises(ModelError, match="card_sha256 is not text"):
        read_card(tiny_model)


@pytest.mark.parametrize(
    "missing", ["format", "name", "architecture", "parameters", "scale", "halo", "window", "sha256"]
)
def test_a_card_without_a_field_is_refused(tiny_model, missing):
    card = json.loads((tiny_model / "card.json").read_text())
    del card[missing]
    (tiny_model / "card.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="damaged"):
        read_card(tiny_model)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b'"card"', b"\xff\xfe{}", b"[" * 100_000])
def test_a_card_that_is_not_a_json_object_is_refused(tiny_model, content):
    (tiny_model / "card.json").write_bytes(content)
    with pytest.raises(ModelError):
        read_card(tiny_model)


def test_a_folder_without_a_card_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="not a model folder"):
        find_model(tmp_path)


def test_a_name_that_leads_out_of_the_folder_imports_nothing(tiny_model, user_folder):
    edit_card(tiny_model, name="../escaped")
    with pytest.raises(ModelError, match="not allowed"):
        import_model(tiny_model)
    assert not (user_folder.parent / "escaped").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "transformer"}, "unknown"),
        ({"architecture": "os.system"}, "unknown"),
        ({"parameters": {"channels": 8, "layers": 2}}, "parameters"),
        ({"parameters": {"channels": "8"}}, "parameters"),
        ({"parameters": [8, 2]}, "parameters"),
        ({"parameters": {"channels": 16, "blocks": 2, "planes": 0}}, "do not fit"),
        ({"parameters": {"channels": 8, "blocks": 1, "planes": 0}}, "do not fit"),
        ({"scale": 4}, "scale"),
        ({"halo": 7}, "halo"),
        ({"halo": 5}, "halo"),
        ({"planes": [{"quantity": "log_noise_hu", "mean": 0, "std": 1, "low": 0, "high": 1}]}, "planes"),
    ],
    ids=str,
)
def test_a_card_that_does_not_fit_its_network_is_refused(tiny_model, changes, words):
    load_model(tiny_model, precision="fp32")
    edit_card(tiny_model, **changes)
    with pytest.raises(ModelError, match=words):
        load_model(tiny_model, precision="fp32")


def test_weights_of_another_network_are_refused(tiny_model):
    path = tiny_model / "model.safetensors"
    weights = load_file(path)
    save_file({f"other.{key}": value for key, value in weights.items()}, path)
    replace_weights(tiny_model, path.read_bytes())
    with pytest.raises(ModelError, match="do not fit"):
        load_model(tiny_model)


def test_every_refusal_is_one_sentence_that_says_what_to_do(tiny_model):
    edit_card(tiny_model, scale=4)
    with pytest.raises(ModelError) as refused:
        load_model(tiny_model)
    assert refused.value.exit_status == 5
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("get the model again from its source.")
