"""The named sets of simulated cases share nothing, never change under a name, and are refused where impossible."""

from __future__ import annotations

from itertools import combinations

import pytest

from CTMicroSRLib import UsageError
from CTMicroSRLib.simulation.cases import CaseSettings
from CTMicroSRLib.simulation.sets import HELD_OUT_SEEDS, SETS, SHIFTS, case_set, consecutive_cases
from CTMicroSRLib.training.simulated_patches import FIRST_MICRO_SEED, SimulatedPatchSettings

SCANNER_VALUES = ("pixel_mm", "psf_fwhm_mm", "slice_mm", "noise_hu")


def values(name, field):
    return {getattr(settings, field) for _, settings in case_set(name).cases}


@pytest.mark.parametrize(("one", "other"), list(combinations(SETS, 2)))
def test_two_sets_share_no_seed_and_no_value_of_the_scanner(one, other):
    assert not set(case_set(one).seeds) & set(case_set(other).seeds)
    for field in SCANNER_VALUES:
        assert not values(one, field) & values(other, field), field
    assert not values(one, "kernel") & values(other, "kernel") - {None}


@pytest.mark.parametrize("name", SETS)
def test_no_seed_comes_twice_in_a_set(name):
    seeds = case_set(name).seeds
    assert len(set(seeds)) == len(seeds) > 0


@pytest.mark.parametrize("name", ["training-1", "validation-1", "test-1"])
def test_no_scanner_comes_twice_in_a_set(name):
    scanners = [settings.scanner for _, settings in case_set(name).cases]
    assert all(one != other for one, other in combinations(scanners, 2))


@pytest.mark.parametrize("name", ["validation-1", "test-1"])
@pytest.mark.parametrize("field", SCANNER_VALUES)
def test_what_is_measured_on_lies_between_values_of_training(name, field):
    trained, seen = values("training-1", field), values(name, field)
    assert min(trained) < min(seen)
    assert max(seen) < max(trained)


def test_the_seeds_of_other_sets_are_those_that_training_patches_must_not_have():
    for name in ("validation-1", "test-1", "shifted-1"):
        for training_seed in range(1, 30):
            first = training_seed * 100_000
            drawn = {first + side + n for side in (0, FIRST_MICRO_SEED) for n in range(1_000)}
            assert training_seed in HELD_OUT_SEEDS or not drawn & set(case_set(name).seeds)
    held_out = {seed // 100_000 for name in ("validation-1", "test-1", "shifted-1") for seed in case_set(name).seeds}
    assert held_out == set(HELD_OUT_SEEDS)
    assert SimulatedPatchSettings().seed not in HELD_OUT_SEEDS


def test_each_shifted_case_has_something_that_the_training_set_never_has():
    training = [settings for _, settings in case_set("training-1").cases]
    usual = CaseSettings()
    assert {(s.kernel, s.slice_spacing_mm, s.patient_mm, s.shift_voxels_ji, s.disease) for s in training} == {
        (usual.kernel, usual.slice_spacing_mm, usual.patient_mm, usual.shift_voxels_ji, usual.disease)
    }
    loudest, quietest = max(s.noise_hu for s in training), min(s.noise_hu for s in training)
    thickest = max(s.slice_mm for s in training)
    shifted = [settings for _, settings in case_set("shifted-1").cases]
    counts = {
        "kernel": sum(s.kernel is not None for s in shifted),
        "louder": sum(s.noise_hu > loudest for s in shifted),
        "quieter": sum(s.noise_hu < quietest for s in shifted),
        "thicker": sum(s.slice_mm > thickest for s in shifted),
        "overlap": sum(s.slice_spacing_mm is not None and s.slice_spacing_mm < s.slice_mm for s in shifted),
        "patient": sum(s.patient_mm[0] != s.patient_mm[1] for s in shifted),
        "shift": sum(s.shift_voxels_ji != (0, 0) for s in shifted),
        "disease": sum(s.disease == "diseased" for s in shifted),
    }
    assert min(counts.values()) >= 2, counts
    assert len(shifted) == 2 * len(SHIFTS) == 24
    for settings in shifted:
        assert (
            settings.kernel is not None
            or not quietest <= settings.noise_hu <= loudest
            or settings.slice_mm > thickest
            or settings.slice_spacing_mm is not None
            or settings.patient_mm[0] != settings.patient_mm[1]
            or settings.shift_voxels_ji != (0, 0)
            or settings.disease == "diseased"
        )


def test_the_training_set_goes_through_all_its_values_evenly():
    scanners = [settings for _, settings in case_set("training-1").cases]
    for field in SCANNER_VALUES:
        used = [getattr(settings, field) for settings in scanners]
        counts = [used.count(value) for value in set(used)]
        assert max(counts) - min(counts) <= 1


def test_the_test_set_is_that_of_the_published_tables():
    cases = case_set("test-1").cases
    assert len(cases) == 24
    assert cases[0] == (900_000, CaseSettings(0.55, 0.75, slice_mm=0.75, noise_hu=6.0, depth_mm=6.0))
    assert cases[1] == (900_001, CaseSettings(0.68, 1.15, slice_mm=1.25, noise_hu=12.0, depth_mm=6.0))
    assert cases[23] == (900_023, CaseSettings(0.55, 1.45, slice_mm=2.5, noise_hu=35.0, depth_mm=7.5))
    assert len({(s.pixel_mm, s.slice_mm) for _, s in cases}) == 9


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("training-1", "780c53063161ac056f48c8b92de3709755503cc63d46eb553dd7f74bda4e307d"),
        ("validation-1", "931e59299a5671b60a378f73572ba6f52938d80ba629d1cffefabb0848312ef0"),
        ("test-1", "865d10b22adaa892a48b8e7a7ea7beef9ebb4f14075c7e6913c7ab67bfe779bf"),
        ("shifted-1", "80d8ab8cccff0bda901bfa79c6e34c4a80cc0da445af9221cf99d6098a5fba74"),
    ],
)
def test_a_set_never_changes_under_its_name(name, sha256):
    """Another rule, value or default needs another version; a new setting that changes no case needs new sums here."""
    found = case_set(name)
    assert (found.name, found.version) == (name, int(name[-1]))
    assert found.sha256 == sha256
    assert case_set(name) == found


def test_the_first_cases_of_a_set_are_a_part_of_it():
    whole = case_set("shifted-1")
    assert whole.first(5).cases == whole.cases[:5]
    assert whole.first(24) == whole
    for count in (0, -1, 25):
        with pytest.raises(UsageError, match=r"^The set shifted-1 has 24 cases; [^.]*\.$"):
            whole.first(count)


@pytest.mark.parametrize("name", ["test-2", "test", "", "../test-1"])
def test_an_unknown_set_is_refused_with_the_known_ones(name):
    with pytest.raises(UsageError, match="training-1, validation-1, test-1, shifted-1"):
        case_set(name)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-1, 0), (1, -1), (10**9, 0)])
def test_no_cases_too_many_and_negative_seeds_are_refused(count, seed):
    with pytest.raises(UsageError, match="count"):
        consecutive_cases(count, seed, CaseSettings())


def test_own_cases_have_seeds_that_count_up():
    own = consecutive_cases(3, 7, CaseSettings())
    assert (own.name, own.seeds) == (None, (7, 8, 9))
