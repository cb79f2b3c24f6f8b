"""One bar for a whole run: its stages, and the share of the time that each is expected to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NETWORK_STAGE = "super-resolving"
SECONDS_PER_NETWORK_VOXEL = 6e-5
LUNG_SHARE = 0.25
PASSES_PER_PASS = 0.25
"""A pass of the uncertainty costs this part of one without it."""
FIRST_SECONDS = {"lungs: shrink": 0.5, "reading": 1.0, "loading the model": 6.0, "writing": 0.5}
"""Until an interpreter, torch and a model are there; measured on 2 cores, as are all numbers here."""
SECONDS_PER_MILLION_VOXELS = {
    "lungs: shrink": 0.09,
    "lungs: trachea": 0.04,
    "lungs: grow": 0.08,
    "lungs: draw": 0.02,
    "reading": 0.08,
    "noise": 0.04,
    "edges": 0.06,
}
LUNG_STAGES = ("lungs: shrink", "lungs: trachea", "lungs: grow", "lungs: draw")


def lung_seconds(scan_voxels: int) -> dict[str, float]:
    """The stages of ``segment`` in their order, each with its expected seconds."""
    return {stage: _seconds(stage, scan_voxels) for stage in LUNG_STAGES}


def superres_seconds(scan_voxels: int, network_seconds: float, *, lungs: bool = False) -> dict[str, float]:
    """The stages of ``superres`` in their order, each with its expected seconds.

    Args:
        scan_voxels: voxels of the scan.
        network_seconds: what the network is expected to take, above 0.
        lungs: whether it finds the lungs itself.
    """
    before = ("reading", "loading the model", *(LUNG_STAGES if lungs else ()), "noise", "edges")
    stages = {stage: _seconds(stage, scan_voxels) for stage in before}
    return {**stages, NETWORK_STAGE: network_seconds, "writing": _seconds("writing", scan_voxels)}


def guess_network_seconds(network_voxels: float, passes: int = 0) -> float:
    """What the network may take where nobody has measured it; ``passes`` are those of the uncertainty."""
    return SECONDS_PER_NETWORK_VOXEL * network_voxels * (1.0 + PASSES_PER_PASS * passes)


def _seconds(stage: str, scan_voxels: int) -> float:
    return FIRST_SECONDS.get(stage, 0.0) + SECONDS_PER_MILLION_VOXELS.get(stage, 0.0) * scan_voxels / 1e6


@dataclass
class RunProgress:
    """Turns the progress of one stage after another, also of several commands, into that of the whole run.

    Attributes:
        expected_seconds: the run's stages in their order, each with the seconds it is expected to take.
        is_timed: whether the network's seconds were measured; where they are a guess, the time left is not told before
            the network runs.
    """

    expected_seconds: Mapping[str, float]
    is_timed: bool = False
    _fraction: float = field(default=0.0, init=False)

    def update(self, stage: str, fraction: float, seconds_left: float | None = None) -> tuple[float, float | None]:
        """A stage has come so far; returns the part of the run that is done, 0 to 1, and its seconds left.

        The part never becomes smaller. A stage that is not expected leaves it where it is.

        Args:
            stage: as the engine calls it.
            fraction: the part of the stage that is done, 0 to 1.
            seconds_left: how long this stage still takes by its own speed; None where that is not known.
        """
        stages = list(self.expected_seconds)
        if stage not in stages:
            return self._fraction, None
        here = stages.index(stage)
        before, after = (
            sum(self.expected_seconds[name] for name in part) for part in (stages[:here], stages[here + 1 :])
        )
        expected = self.expected_seconds[stage]
        done = (before + fraction * expected) / (before + expected + after)
        self._fraction = max(self._fraction, min(1.0, done))
        if not self.is_timed and here < stages.index(NETWORK_STAGE):
            return self._fraction, None
        return self._fraction, self._left(stage, fraction, seconds_left, expected) + after

    def _left(self, stage: str, fraction: float, seconds_left: float | None, expected: float) -> float:
        """The stage's seconds left: as expected at its beginning, by its own speed at its end."""
        if seconds_left is None:
            return (1.0 - fraction) * expected
        if stage == NETWORK_STAGE and not self.is_timed:
            return seconds_left
        return (1.0 - fraction) ** 2 * expected + fraction * seconds_left
