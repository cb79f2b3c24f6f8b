"""Checkpoint files: whole or not there, checked when they are read, and refused where they don't belong."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from CTMicroSRLib.errors import ModelError, ResourceError, UsageError
from CTMicroSRLib.training.checkpoints import (
    CHECKPOINT_FILE,
    Checkpoint,
    check_same_settings,
    read_checkpoint,
    save_tensors,
    write_checkpoint,
    write_file,
)

SETTINGS = {"method": "tiny", "method_settings": {"widths": (8, 16)}, "trainer": {"steps": 7, "log_steps": 2}}


def tensors(value=1.0):
    return {
        "method.weight": torch.full((2, 3), value),
        "adam.a.0.step": torch.tensor(4.0),
        "pool.x.counts": torch.tensor([1, 2]),
        "method.half": torch.full((3,), value, dtype=torch.bfloat16),
        "method.empty": torch.zeros(0),
    }


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path):
    write_checkpoint(tmp_path, Checkpoint(5, SETTINGS, tensors()))
    back = read_checkpoint(tmp_path)
    assert back.step == 5
    assert back.settings["method_settings"] == {"widths": [8, 16]}
    assert back.tensors.keys() == tensors().keys()
    for key, value in tensors().items():
        assert torch.equal(back.tensors[key], value)
        assert back.tensors[key].dtype == value.dtype
    assert set(back.part("method")) == {"weight", "half", "empty"}
    assert set(back.part("adam.a")) == {"0.step"}
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_a_checkpoint_says_its_method_and_step_to_any_reader(tmp_path):
    import hashlib

    write_checkpoint(tmp_path, Checkpoint(5, SETTINGS, tensors()))
    with safe_open(tmp_path / CHECKPOINT_FILE, framework="np") as file:
        metadata = file.metadata()
    assert (metadata["method"], metadata["step"]) == ("tiny", "5")
    assert metadata["settings_sha256"] == hashlib.sha256(metadata["settings"].encode()).hexdigest()


def test_tensors_that_share_memory_or_lie_otherwise_are_saved(tmp_path):
    weight = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    shared = {"a": weight, "b": weight, "c": weight[:, :1], "d": weight.reshape(-1)[::2]}
    (tmp_path / "file").write_bytes(save_tensors(shared, {}))
    back = load_file(tmp_path / "file")
    assert all(torch.equal(back[key], value) for key, value in shared.items())


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_checkpoint_that_was_cut_off_is_damaged(tmp_path, keep):
    write_checkpoint(tmp_path, Checkpoint(5, SETTINGS, tensors()))
    path = tmp_path / CHECKPOINT_FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ModelError, match=r"^The checkpoint .* is damaged \(.*\); restore it .*\.$"):
        read_checkpoint(tmp_path)


@given(st.data())
def test_a_checkpoint_with_any_byte_changed_is_damaged(tmp_path_factory, data):
    run = tmp_path_factory.mktemp("run")
    write_checkpoint(run, Checkpoint(5, {"method": "t"}, {"weight": torch.ones(40)}))
    path = run / CHECKPOINT_FILE
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(len(content) - 160, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        read_checkpoint(run)


@pytest.mark.parametrize("metadata", [None, {"step": "1", "settings": "{}"}])
def test_another_safetensors_file_is_not_a_checkpoint(tmp_path, metadata):
    save_file({"weight": torch.zeros(3)}, tmp_path / CHECKPOINT_FILE, metadata)
    with pytest.raises(ModelError, match="damaged"):
        read_checkpoint(tmp_path)


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint in .* without --resume\.$"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.ENOSPC, ResourceError, "no space left"),
        (errno.EDQUOT, ResourceError, "no space left"),
        (errno.EACCES, UsageError, "cannot be written"),
    ],
)
@pytest.mark.parametrize("place", ["whole_files.os.fsync", "whole_files.Path.replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path, monkeypatch, number, error, message, place):
    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    write_checkpoint(tmp_path, Checkpoint(5, SETTINGS, tensors()))
    monkeypatch.setattr(f"CTMicroSRLib.{place}", fail)
    with pytest.raises(error, match=message):
        write_checkpoint(tmp_path, Checkpoint(6, SETTINGS, tensors(2.0)))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path).step == 5
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    seen = []
    synchronise = os.fsync

    def look(descriptor):
        seen.append((sorted(path.suffix for path in tmp_path.iterdir()), os.fstat(descriptor).st_size))
        synchronise(descriptor)

    monkeypatch.setattr("CTMicroSRLib.whole_files.os.fsync", look)
    write_file(tmp_path / "a.bin", b"12345")
    assert seen == [([".part"], 5)]
    assert (tmp_path / "a.bin").read_bytes() == b"12345"


def test_settings_are_compared_as_json_and_the_first_difference_is_named(tmp_path):
    stored = {"method": "tiny", "method_settings": {"widths": [8, 16]}, "trainer": {"steps": 7, "log_steps": 2}}
    check_same_settings(tmp_path, stored, SETTINGS)
    check_same_settings(tmp_path, stored, SETTINGS | {"trainer": {"steps": 7, "log_steps": 5}})
    with pytest.raises(UsageError, match=r"trained with trainer\.steps = 7, not 8;"):
        check_same_settings(tmp_path, stored, SETTINGS | {"trainer": {"steps": 8, "log_steps": 2}})
    with pytest.raises(UsageError, match=r"trained with method_settings\.widths = \[8, 16\], not \[8\];"):
        check_same_settings(tmp_path, stored, SETTINGS | {"method_settings": {"widths": (8,)}})
    with pytest.raises(ModelError, match=r"of the method tiny, not unit;"):
        check_same_settings(tmp_path, stored, SETTINGS | {"method": "unit"})


def test_a_checkpoint_from_before_a_setting_was_there_goes_on_without_it(tmp_path):
    stored = {"method": "tiny", "method_settings": {"widths": [8, 16]}, "trainer": {"steps": 7}}
    check_same_settings(tmp_path, stored, SETTINGS | {"trainer": {"steps": 7, "warm_up_share": 0.0}})
    with pytest.raises(UsageError, match=r"trained with trainer\.warm_up_share = 0\.0, not 0\.1;"):
        check_same_settings(tmp_path, stored, SETTINGS | {"trainer": {"steps": 7, "warm_up_share": 0.1}})
