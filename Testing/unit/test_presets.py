"""Settings of a run: every preset of every method makes one, and what is wrong is told by its key."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.training.methods import METHODS, method_kind
from CTMicroSRLib.training.patches import PatchSettings
from CTMicroSRLib.training.presets import differing, parse_values, run_settings
from CTMicroSRLib.training.settings import TrainerSettings

PRESETS = [(name, preset) for name in METHODS for preset in method_kind(name).presets]


# --- presets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_builds_its_networks_and_optimisers(name, preset):
    settings = run_settings(name, preset, {})
    with torch.device("meta"):  # without memory: the papers' networks are large
        method = settings.kind.build(settings.method)
        generator = build_network(*method.architecture())
    assert isinstance(method.generator(), Generator)
    assert method.scale == settings.patches.scale == method.generator().scale
    assert method.needs <= {"clinical", "micro", "truth"}
    shapes = {key: tuple(value.shape) for key, value in method.generator().state_dict().items()}
    assert {key: tuple(value.shape) for key, value in generator.state_dict().items()} == shapes
    own = {network for optimiser in method.optimisers().values() for network in optimiser.networks}
    assert own <= {network for network, _ in method.named_children()}


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_value_of_a_preset_arrives(name, preset):
    values = method_kind(name).presets[preset]
    settings = run_settings(name, preset, {})
    rooms = {"trainer": settings.trainer, "patches": settings.patches, "simulation": settings.simulation}
    for key, value in values.items():
        room, _, rest = key.rpartition(".")
        assert getattr(rooms.get(room, settings.method), rest) == value


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_papers_preset_and_a_small_one(name):
    presets = method_kind(name).presets
    full = "shipped" if name == "compact" else "paper"  # the compact generator has no paper
    with torch.device("meta"):
        sizes = {
            preset: sum(p.numel() for p in method_kind(name).build(run_settings(name, preset, {}).method).parameters())
            for preset in (full, "small")
        }
    assert sizes["small"] < sizes[full] / 3
    assert presets[full]["trainer.steps"] > (1_000 if name == "compact" else 10_000)


def test_the_shipped_models_preset_asks_for_its_patches_too():
    settings = run_settings("compact", "shipped", {})
    simulation, patches = settings.simulation, settings.patches
    assert (simulation.specimens_of("clinical"), simulation.specimens_of("micro")) == (120, 1)
    assert (simulation.patches_per_specimen, simulation.shaped_share, simulation.slice_mm) == (60, 0.35, (0.5, 5.0))
    assert (patches.patch_voxels, patches.least_lung_share, patches.scale) == (40, 0.3, 8)
    assert (settings.method.loss, settings.trainer.batch) == ("mean_square", 8)
    assert settings.method.grid_weight > 0 < settings.trainer.warm_up_share


def test_the_four_networks_of_sr_cyclegan_have_the_papers_number_of_parameters():
    for preset in ("paper", "jmi2022", "jmi2022-code"):
        with torch.device("meta"):
            method = method_kind("sr-cyclegan").build(run_settings("sr-cyclegan", preset, {}).method)
        assert sum(p.numel() for p in method.parameters()) == 19_264_369


def test_single_values_win_over_the_preset_and_the_preset_over_the_defaults():
    plain = run_settings("sr-cyclegan", None, {})
    assert (plain.method.blocks, plain.trainer) == (9, TrainerSettings())
    preset = run_settings("sr-cyclegan", "small", {})
    assert (preset.method.blocks, preset.method.channels, preset.trainer.steps) == (4, 16, 200)
    both = run_settings("sr-cyclegan", "small", {"blocks": 5, "trainer.steps": 7, "simulation.specimens": 3})
    assert (both.method.blocks, both.method.channels, both.trainer.steps) == (5, 16, 7)
    assert both.simulation.specimens == 3


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_scale_of_the_method_is_that_of_its_patches(name, scale):
    settings = run_settings(name, None, {"scale": scale})
    assert settings.method.scale == settings.patches.scale == scale


def test_a_presets_scale_is_that_of_its_patches_too():
    assert run_settings("sr-cyclegan", "4x", {}).patches == PatchSettings(scale=4)
    assert run_settings("sr-cyclegan", "4x", {"scale": 2}).patches == PatchSettings(scale=2)
    with pytest.raises(UsageError, match="scale is 8, that of its patches 4; set only 'scale'"):
        run_settings("sr-cyclegan", None, {"patches.scale": 4})


# --- presets of one's own --------------------------------------------------------------------------------------------


def test_a_json_file_is_a_preset_and_its_lists_become_tuples(tmp_path):
    values = {"blocks": 3, "scale": 4, "trainer.halving_shares": [0.25, 0.75], "patches.clinical_window": [-1000, 200]}
    (tmp_path / "mine.json").write_text(json.dumps(values))
    settings = run_settings("sr-cyclegan", str(tmp_path / "mine.json"), {"blocks": 2})
    assert (settings.method.blocks, settings.method.scale, settings.patches.scale) == (2, 4, 4)
    assert settings.trainer.halving_shares == (0.25, 0.75)
    assert settings.patches.clinical_window == (-1000, 200)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"3", b'"small"', b"null"])
def test_a_json_file_that_holds_no_preset_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^The preset .*mine\.json .* JSON object.*\.$") as error:
        run_settings("unet", str(path), {})
    assert "\n" not in str(error.value)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_unknown_method_or_preset_is_refused_with_those_that_there_are():
    with pytest.raises(UsageError) as error:
        run_settings("gan", None, {})
    assert all(name in str(error.value) for name in METHODS)
    with pytest.raises(UsageError) as error:
        run_settings("unet", "tiny", {})
    assert all(name in str(error.value) for name in method_kind("unet").presets)


@pytest.mark.parametrize(
    ("key", "offered"),
    [
        ("chanels", "channels"),
        ("trainer.step", "steps"),
        ("patches.edge", "patch_voxels"),
        ("simulation.count", "specimens"),
        ("trainer", "channels"),
        ("optimiser.rate", "learning_rate"),
    ],
)
def test_a_wrong_key_is_refused_with_those_that_there_are(key, offered):
    with pytest.raises(UsageError, match=rf"There is no setting '{key.partition('.')[2] or key}'|{key}") as error:
        run_settings("unet", None, {key: 1})
    assert offered in str(error.value)


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("steps", "trainer.steps"),
        ("patch_voxels", "patches.patch_voxels"),
        ("specimens", "simulation.specimens"),
        ("seed", "trainer.seed or patches.seed or simulation.seed"),
        ("trainer.channels", "channels"),
        ("simulation.batch", "trainer.batch"),
    ],
)
def test_a_key_without_its_room_or_in_another_is_refused_with_where_it_is(key, written):
    with pytest.raises(UsageError, match=rf"^There is no setting '{key}' of the method unet; write {written}\.$"):
        run_settings("unet", None, {key: 1})


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_refuses_a_value_that_makes_no_sense(name):
    settings = run_settings(name, None, {})
    for room in ("method", "trainer", "patches", "simulation"):
        for field in dataclasses.fields(getattr(settings, room)):
            key = field.name if room == "method" else f"{room}.{field.name}"
            for nonsense in ({}, "nonsense", float("nan"), {"a": 1}):
                with pytest.raises(UsageError) as error:
                    run_settings(name, None, {key: nonsense})
                assert str(error.value).endswith("."), str(error.value)
                assert "\n" not in str(error.value)
                assert field.name in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", 2.5),
        ("channels", "16"),
        ("channels", True),
        ("loss", "l3"),
        ("learning_rate", float("inf")),
        ("learning_rate", -1.0),
        ("trainer.steps", 0),
        ("trainer.steps", 2.5),
        ("trainer.precision", "fp8"),
        ("trainer.gradient_clip", 0),
        ("trainer.halving_shares", [0.5, "x"]),
        ("patches.clinical_window", [0, 100, 200]),
        ("patches.clinical_window", [100, 0]),
        ("patches.patch_voxels", 4),
        ("simulation.seed", 9),
        ("simulation.pixel_mm", [0.9, 0.5]),
    ],
)
def test_a_value_that_is_not_possible_is_refused_in_one_sentence(key, value):
    with pytest.raises(UsageError, match=r"^[A-Z][^\n]*[^.]\.$"):
        run_settings("unet", None, {key: value})


def test_whole_numbers_are_numbers_and_null_is_none_where_there_may_be_none():
    settings = run_settings("unet", None, {"learning_rate": 1, "trainer.gradient_clip": None})
    assert (settings.method.learning_rate, settings.trainer.gradient_clip) == (1, None)


# --- KEY=VALUE -------------------------------------------------------------------------------------------------------


def test_values_are_json_where_they_are_and_text_elsewhere():
    texts = ["a=1", "b=1e-3", "c=true", "d=null", "e=[1, 2]", "f=lsgan", 'g="lsgan"', "h=x=y", "i=", "trainer.steps=5"]
    assert parse_values(texts) == {
        "a": 1,
        "b": 1e-3,
        "c": True,
        "d": None,
        "e": [1, 2],
        "f": "lsgan",
        "g": "lsgan",
        "h": "x=y",
        "i": "",
        "trainer.steps": 5,
    }


@pytest.mark.parametrize("text", ["steps", "", "=5", "="])
def test_a_setting_without_key_or_value_is_refused(text):
    with pytest.raises(UsageError, match="is not KEY=VALUE; write for instance"):
        parse_values([text])


def test_a_setting_that_is_given_twice_is_refused():
    with pytest.raises(UsageError, match="The setting a is given twice"):
        parse_values(["a=1", "b=1", "a=1"])


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]+(\.[a-z_]+)?", fullmatch=True),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.integers()),
    )
)
def test_any_value_comes_back_from_its_json_text(values):
    assert parse_values([f"{key}={json.dumps(value)}" for key, value in values.items()]) == values


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_what_differs_from_the_defaults_makes_the_preset_again(name, preset):
    settings, plain = run_settings(name, preset, {}), run_settings(name, None, {})
    values = differing(settings.method, plain.method)
    values |= {f"trainer.{key}": value for key, value in differing(settings.trainer, plain.trainer).items()}
    values |= {f"patches.{key}": value for key, value in differing(settings.patches, plain.patches).items()}
    values |= {f"simulation.{key}": value for key, value in differing(settings.simulation, plain.simulation).items()}
    assert run_settings(name, None, json.loads(json.dumps(values))) == settings
