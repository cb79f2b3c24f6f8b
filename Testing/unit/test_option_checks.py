"""What Python callers give: every form of mask and number that means something, and one sentence for the rest."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest

from CTMicroSRLib import (
    LungMask,
    Options,
    Region,
    UsageError,
    Volume,
    read_volume,
    segment_lungs,
    super_resolve,
    write_volume,
)
from CTMicroSRLib.devices import DEVICES, PRECISIONS
from CTMicroSRLib.options import _OPTIONS
from CTMicroSRLib.session import load_model

KNOWN = {"psf_fwhm_mm": 1.2, "noise_hu": 12.0, "precision": "fp32"}


@pytest.fixture
def scan(make_scan):
    return make_scan((2, 40, 60))


@pytest.fixture
def inside(scan):
    mask = np.zeros(scan.array_kji.shape, bool)
    mask[0, 8:20, 5:30] = mask[1, 15:18, 40:50] = True
    return mask


def refusal(call, *arguments, **options):
    """The one sentence that a wrong call is refused with."""
    with pytest.raises(UsageError) as refused:
        call(*arguments, **options)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert sentence.count(";") == 1  # the cause; the next step
    return sentence


MASKS = {
    "uint8 of 255": lambda inside, _scan: inside.astype(np.uint8) * np.uint8(255),
    "int16 of -1": lambda inside, _scan: -inside.astype(np.int16),
    "labels": lambda inside, _scan: inside * np.arange(1, 61, dtype=np.int64),
    "multiples of 256": lambda inside, _scan: inside.astype(np.uint16) * np.uint16(256),
    "LungMask": lambda inside, _scan: LungMask(inside, 1.0, 0.0, ()),
    "Volume": lambda inside, scan: Volume(inside.astype(np.uint8), scan.geometry),
    "read-only": lambda inside, _scan: np.frombuffer(inside.tobytes(), bool).reshape(inside.shape),
}


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("region", ["lungs", "whole"])
def test_a_mask_in_any_form_gives_what_its_booleans_give(tiny_model, scan, inside, form, region):
    options = {**KNOWN, "model": tiny_model, "region": region}
    given, plain = (super_resolve(scan, mask=mask, **options) for mask in (MASKS[form](inside, scan), np.array(inside)))
    assert np.array_equal(given.volume.array_kji, plain.volume.array_kji)
    assert given.volume.geometry == plain.volume.geometry
    assert given.report["tiles"] == plain.report["tiles"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda inside: inside.astype(np.float32), "float32"),
        (lambda inside: np.where(inside, 1.0, np.nan), "float64"),
        (lambda inside: inside.astype(complex), "complex128"),
        (lambda inside: inside.astype(object), "object"),
        (lambda inside: inside.astype(str), "<U5"),
        (lambda inside: inside.tolist(), "list"),
        (lambda _inside: "mask.nrrd", "'mask.nrrd'"),
        (lambda _inside: True, "True"),
        (lambda _inside: 0, "0"),
        (lambda inside: inside[0], "(40, 60)"),
        (lambda inside: inside[:, :, 1:].astype(np.uint8), "(2, 40, 59)"),
        (lambda inside: LungMask(inside[:1], 1.0, 0.0, ()), "(1, 40, 60)"),
    ],
)
def test_what_is_no_mask_of_the_scan_is_refused(tiny_model, scan, inside, wrong, named):
    sentence = refusal(super_resolve, scan, mask=wrong(inside), model=tiny_model, **KNOWN)
    assert "mask" in sentence
    assert named in sentence


def test_a_volume_of_floats_or_of_another_size_is_no_mask(tiny_model, scan, make_scan):
    floats = Volume(scan.array_kji.astype(np.float32), scan.geometry)
    assert "float32" in refusal(super_resolve, scan, mask=floats, model=tiny_model, **KNOWN)
    assert "size (60, 40, 1)" in refusal(super_resolve, scan, mask=make_scan((1, 40, 60)), model=tiny_model, **KNOWN)


@pytest.mark.parametrize("wrong", ["scan.nrrd", None, 3, np.zeros((2, 40, 60), np.int16)], ids=type)
def test_a_scan_that_is_no_volume_is_to_be_read_first(tiny_model, wrong):
    assert "read_volume" in refusal(super_resolve, wrong, model=tiny_model, **KNOWN)
    assert "read_volume" in refusal(segment_lungs, wrong)


WRONG = {
    "region": [
        None,
        3,
        ((100, 164), (200, 264), (0, 1)),
        np.zeros((2, 3, 4)),
        Region((0, 8.0), (0, 8), (0, 1)),
        Region((0, 8), (0, True), (0, 1)),
        Region((0, 8, 9), (0, 8), (0, 1)),
        Region(0, 8, 1),
    ],
    "model": [None, 3, b"tiny", ["tiny"]],
    "uncertainty": [None, 1, "yes", "sr.nrrd"],
    "passes": [None, 2.5, 4.0, "4", True, np.True_, np.float32(4), [4]],
    "seed": [None, 1.5, "1", False],
    "consistency": [None, 1, ["scan"], np.array(["scan", "off"])],
    "psf_fwhm_mm": ["1", True, np.True_, 1j, [1.0], 10**400],
    "noise_hu": ["x", False, (1, 2)],
    "device": [None, 0, ["cpu"]],
    "precision": [None, 32, ["fp32"]],
    "tile": [64.0, "64", True, (64, 64)],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_of_a_wrong_type_is_refused_by_the_options_name(name, value):
    sentence = refusal(Options, **{name: value})
    assert sentence.startswith(f"The option {name} is ")
    assert sentence.endswith(f"; give {_OPTIONS[name][1]}.")


@pytest.mark.parametrize("name", ["psf_fwhm_mm", "noise_hu"])
def test_what_is_not_a_number_is_refused(name):
    assert "nan" in refusal(Options, **{name: np.float32("nan")})


@pytest.mark.parametrize("name", ["colour", "mode", "self", "default"])
def test_an_unknown_option_is_found_by_its_name(scan, name):
    sentence = refusal(super_resolve, scan, passes="4", **{name: 3})
    assert "no such option" in sentence
    assert repr(name) in sentence


def test_what_is_said_to_be_allowed_is_what_there_is():
    assert list(_OPTIONS) == [option.name for option in fields(Options)]
    for name, choices in (("device", DEVICES), ("precision", PRECISIONS)):
        *first, last = choices
        assert _OPTIONS[name][1] == f"{', '.join(first)} or {last}"


def test_numbers_of_any_kind_become_pythons_own():
    region = Region((np.int64(1), np.int32(9)), (0, np.uint8(8)), (0, 1))
    options = Options(
        region=region,
        uncertainty=np.True_,
        passes=np.int16(4),
        seed=np.uint64(2**63),
        psf_fwhm_mm=np.float32(0.75),
        noise_hu=Fraction(25, 2),
        tile=np.array(64),
    )
    given = [options.uncertainty, options.passes, options.seed, options.psf_fwhm_mm, options.noise_hu, options.tile]
    assert given == [True, 4, 2**63, 0.75, 12.5, 64]
    assert [type(value) for value in given] == [bool, int, int, float, float, int]
    assert {type(end) for ends in (options.region.i, options.region.j, options.region.k) for end in ends} == {int}
    assert Options(noise_hu=12).noise_hu == 12.0


def test_a_run_with_numpys_numbers_is_the_run_with_pythons(tiny_model, scan):
    numbers = [(int, float), (np.int64, np.float64)]
    results = []
    for whole, real in numbers:
        region = Region((whole(4), whole(30)), (whole(0), whole(20)), (whole(1), whole(2)))
        options = {"region": region, "passes": whole(3), "seed": whole(5), "tile": whole(32), "noise_hu": real(12.0)}
        results.append(super_resolve(scan, model=tiny_model, uncertainty=True, **{**KNOWN, **options}))
    one, other = results
    assert np.array_equal(one.volume.array_kji, other.volume.array_kji)
    assert np.array_equal(one.uncertainty.array_kji, other.uncertainty.array_kji)
    json.dumps(other.report, allow_nan=False)


def test_a_loaded_models_device_and_precision_are_its_own(tiny_model):
    model = load_model(tiny_model, device="cpu", precision="fp32")
    for agreed in ({}, {"device": "auto", "precision": "auto"}, {"device": "cpu", "precision": "fp32"}):
        assert Options(model=model, **agreed).model is model
    for name, asked in (("device", "cuda"), ("device", "abacus"), ("precision", "bf16")):
        sentence = refusal(Options, model=model, **{name: asked})
        assert f"loaded model's {name} is" in sentence
        assert repr(asked) in sentence


def test_a_mask_volume_that_lies_elsewhere_is_refused(make_scan, tiny_model):
    scan = make_scan((1, 40, 40))
    geometry = replace(scan.geometry, origin_mm=(scan.geometry.origin_mm[0] + 5.0, *scan.geometry.origin_mm[1:]))
    mask = Volume(np.ones((1, 40, 40), np.uint8), geometry)
    with pytest.raises(UsageError, match="not on the scan's grid"):
        super_resolve(scan, mask=mask, model=str(tiny_model))


def test_a_scan_or_a_model_that_is_no_path_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match="give the path of a file or folder"):
        read_volume(None)
    with pytest.raises(UsageError, match="give a model's name or the path of its folder"):
        load_model(5)


def test_what_can_not_be_written_or_written_to_is_refused_in_a_sentence(scan, tmp_path):
    assert "not a Volume" in refusal(write_volume, scan.array_kji, tmp_path / "v.nrrd")
    assert "give the path of a file" in refusal(write_volume, scan, scan)
    assert list(tmp_path.iterdir()) == []
