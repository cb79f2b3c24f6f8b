"""Named sets of cases: seeds and settings for training, validation and test, with nothing shared between them.

No two sets share a seed, nor a pixel, point spread, slice thickness or noise; so they share no scanner setting either.
The values of validation and test lie between those of training, in every one of the four. Seeds are

    ``training`` 100000 and on, ``validation`` 700000, ``shifted`` 800000, ``test`` 900000.

Simulated training patches (:mod:`CTMicroSRLib.training.simulated_patches`) have the seeds ``seed * 100000`` and on, so
seeds 7, 8 and 9 are :data:`HELD_OUT_SEEDS`. They draw pixel, point spread and thickness from continuous ranges that
hold the values of all sets here: to draw one of these exactly has probability zero.

A name ends with its version, and a set of a name never changes: another rule gets another version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, TypeVar

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.simulation.cases import CaseSettings

SEEDS_PER_SET = 100_000
HELD_OUT_SEEDS = (7, 8, 9)
"""Training seeds (of which each stands for a hundred thousand specimens) that validation, shifted and test set own."""

SLICES_PER_CASE = 3
LEAST_DEPTH_MM = 6.0
"""Of the test set: airways and vessels are measured where they cross slices, so thin slices come in greater number."""

TRAINING_CASES, VALIDATION_CASES, TEST_CASES = 120, 12, 24

Value = TypeVar("Value")


@dataclass(frozen=True)
class CaseSet:
    """Seeds and settings of cases; ``name`` is None for cases of a user's own."""

    name: str | None
    version: int
    cases: tuple[tuple[int, CaseSettings], ...]

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the cases."""
        return tuple(seed for seed, _ in self.cases)

    @property
    def sha256(self) -> str:
        """Sum over all seeds and settings, which tells whether two sets are the same."""
        listed = json.dumps([[seed, asdict(settings)] for seed, settings in self.cases], sort_keys=True)
        return hashlib.sha256(listed.encode()).hexdigest()

    def first(self, count: int) -> CaseSet:
        """The first cases of the set.

        Raises:
            UsageError: no positive count, or more cases than the set has.
        """
        if not 1 <= count <= len(self):
            raise UsageError(f"The set {self.name} has {len(self)} cases; choose a count of 1 to {len(self)}.")
        return replace(self, cases=self.cases[:count])


def consecutive_cases(count: int, seed: int, settings: CaseSettings) -> CaseSet:
    """Cases of one scanner with the seeds ``seed`` and on.

    Raises:
        UsageError: a count that is not positive or above :data:`SEEDS_PER_SET`, or a negative seed.
    """
    if not 1 <= count <= SEEDS_PER_SET or seed < 0:
        raise UsageError(f"Give a count of 1 to {SEEDS_PER_SET} and a seed of 0 or more.")
    return CaseSet(None, 0, tuple((n, settings) for n in range(seed, seed + count)))


def case_set(name: str) -> CaseSet:
    """The set of a name such as ``test-1``.

    Raises:
        UsageError: there is no such set.
    """
    if name not in SETS:
        raise UsageError(f"There is no set {name!r} of simulated cases; choose from: {', '.join(SETS)}.")
    plan = SETS[name]
    return CaseSet(name, plan.version, tuple((plan.first_seed + n, plan.settings(n)) for n in range(plan.count)))


def _pace(values: Sequence[Value], step: int, n: int) -> Value:
    """The ``n``-th value of a list that is gone through ``step`` values at a time, round and round."""
    return values[(step * n) % len(values)]


def _training(n: int) -> CaseSettings:
    """A lattice around the values of the other sets.

    The lists' lengths have no common divisor and each is gone through at its own pace: every combination comes up
    once in 4,620 cases, and the first few are mixed already.
    """
    return CaseSettings(
        psf_fwhm_mm=_pace([0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0], 4, n),
        pixel_mm=_pace([0.5, 0.65, 0.8, 0.9], 3, n),
        slice_mm=_pace([0.5, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0], 3, n),
        noise_hu=_pace([3.0, 4.0, 5.0, 8.0, 10.0, 15.0, 25.0, 30.0, 40.0, 50.0, 60.0], 4, n),
    )


def _validation(n: int) -> CaseSettings:
    """As in training, at values in between; all combinations in 420 cases."""
    slice_mm = _pace([0.9, 1.75, 3.5], 2, n)
    return CaseSettings(
        psf_fwhm_mm=_pace([0.85, 1.05, 1.25, 1.55, 1.85], 2, n),
        pixel_mm=_pace([0.53, 0.59, 0.64, 0.71, 0.77, 0.84, 0.88], 3, n),
        slice_mm=slice_mm,
        noise_hu=_pace([4.5, 9.0, 17.0, 28.0], 3, n),
        depth_mm=SLICES_PER_CASE * slice_mm,
    )


def _test(n: int) -> CaseSettings:
    """Values in between again."""
    psf_fwhm_mm, slice_mm = _pace(list(product((0.75, 0.95, 1.15, 1.45, 1.75), (0.75, 1.25, 2.5))), 7, n)
    return CaseSettings(
        psf_fwhm_mm=psf_fwhm_mm,
        slice_mm=slice_mm,
        pixel_mm=_pace((0.55, 0.68, 0.82), 1, n + n // 3),
        noise_hu=_pace((6.0, 12.0, 20.0, 35.0), 1, n),
        depth_mm=max(SLICES_PER_CASE * slice_mm, LEAST_DEPTH_MM),
    )


_OVERLAPPING = {"slice_mm": 2.2, "slice_spacing_mm": 1.1, "depth_mm": 6.6}
_BROAD_PATIENT = {"patient_mm": (420.0, 260.0)}
_SHIFTED_GRID = {"shift_voxels_ji": (3, 5)}

SHIFTS: tuple[dict[str, Any], ...] = (
    {"kernel": "smooth"},
    {"noise_hu": 70.0},
    {"disease": "diseased"},
    {"slice_mm": 5.0, "depth_mm": 15.0},
    {"kernel": "bone"},
    _OVERLAPPING,
    _BROAD_PATIENT,
    {"noise_hu": 2.0},
    {"kernel": "soft"},
    _SHIFTED_GRID,
    {"kernel": "detail"},
    {"kernel": "bone", "noise_hu": 70.0, "disease": "diseased", **_OVERLAPPING, **_BROAD_PATIENT, **_SHIFTED_GRID},
)
"""What the shifted set changes, one after the other and in the end all together: kernels that are not Gaussian, doses
above and below training's, thick and overlapping slices, a broad patient (whose noise has a direction), a grid that
starts within a pixel, and blocks with nodules, emphysema, ground glass and thick walls, all of them.

None of it is in ``training``. The network's own pairs do have shaped kernels, any place of the grid, and diseases each
in a part of the blocks; unseen by them are the doses, the overlap and the patient, and slices of 5 mm are their limit.
"""

_SHIFTED_BASES = (
    CaseSettings(pixel_mm=0.61, psf_fwhm_mm=1.12, slice_mm=1.1, noise_hu=11.0, depth_mm=SLICES_PER_CASE * 1.1),
    CaseSettings(pixel_mm=0.74, psf_fwhm_mm=1.38, slice_mm=1.6, noise_hu=18.0, depth_mm=SLICES_PER_CASE * 1.6),
)


def _shifted(n: int) -> CaseSettings:
    """Each of :data:`SHIFTS` on the first scanner, then each on the second."""
    return replace(_SHIFTED_BASES[n // len(SHIFTS)], **SHIFTS[n % len(SHIFTS)])


@dataclass(frozen=True)
class _Plan:
    """How a set is made: ``settings`` gives the settings of the n-th case."""

    version: int
    first_seed: int
    count: int
    settings: Callable[[int], CaseSettings]


SETS: dict[str, _Plan] = {
    "training-1": _Plan(1, 1 * SEEDS_PER_SET, TRAINING_CASES, _training),
    "validation-1": _Plan(1, 7 * SEEDS_PER_SET, VALIDATION_CASES, _validation),
    "test-1": _Plan(1, 9 * SEEDS_PER_SET, TEST_CASES, _test),
    "shifted-1": _Plan(1, 8 * SEEDS_PER_SET, len(_SHIFTED_BASES) * len(SHIFTS), _shifted),
}
