"""Branching trees of the lung: airways with their arteries, and veins.

Radii follow Murray's law (r0^3 = r1^3 + r2^3) and branching angles its minimum-work optimum
(Murray, J Gen Physiol 1926); branches are about three diameters long (Weibel 1963).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

LENGTH_TO_DIAMETER = 3.0
PIECES_PER_BRANCH = 3
WANDER_RADIANS = 0.13


@dataclass(frozen=True)
class Segments:
    """Straight tapering pieces of tubes.

    ``start_mm`` and ``end_mm`` have shape ``(n, 3)`` in (x, y, z) of the block; radii shape ``(n,)``.
    ``offset_direction`` is a unit vector at right angles to each piece that is carried along the
    tree, the side on which a companion vessel runs.
    """

    start_mm: Float
    end_mm: Float
    start_radius_mm: Float
    end_radius_mm: Float
    offset_direction: Float

    def __len__(self) -> int:
        return len(self.start_radius_mm)

    @staticmethod
    def join(parts: Sequence[Segments]) -> Segments:
        """One set of all the pieces of several."""
        if not parts:
            return Segments(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros((0, 3)))
        return Segments(
            np.concatenate([part.start_mm for part in parts]),
            np.concatenate([part.end_mm for part in parts]),
            np.concatenate([part.start_radius_mm for part in parts]),
            np.concatenate([part.end_radius_mm for part in parts]),
            np.concatenate([part.offset_direction for part in parts]),
        )

    def beside(self, gap_mm: Float, radius_scale: Float) -> Segments:
        """The companion tree: moved sideways by ``gap_mm``, radii multiplied by ``radius_scale``."""
        shift = self.offset_direction * gap_mm[:, None]
        return Segments(
            self.start_mm + shift,
            self.end_mm + shift,
            self.start_radius_mm * radius_scale,
            self.end_radius_mm * radius_scale,
            self.offset_direction,
        )


def grow_tree(
    rng: np.random.Generator,
    root_mm: Float,
    direction: Float,
    radius_mm: float,
    *,
    stop_radius_mm: float,
    extent_mm: Float,
    margin_mm: float = 3.0,
) -> Segments:
    """Grow one tree from a root until its branches are thin or leave the block.

    Args:
        rng: source of randomness.
        root_mm: where the trunk starts (x, y, z).
        direction: the trunk's direction, any length.
        radius_mm: the trunk's radius.
        stop_radius_mm: branches thinner than this are not drawn.
        extent_mm: the block is ``[0, extent_mm]``.
        margin_mm: branches further than this outside the block are cut.
    """
    pieces: list[tuple[Float, Float, float, float, Float]] = []
    heading = direction / np.linalg.norm(direction)
    todo = [(root_mm, heading, radius_mm, _perpendicular(rng, heading))]
    while todo:
        point, heading, radius, side = todo.pop()
        length = 2.0 * radius * LENGTH_TO_DIAMETER * rng.lognormal(0.0, 0.3)
        for _ in range(PIECES_PER_BRANCH):
            heading = _unit(heading + WANDER_RADIANS * rng.standard_normal(3))
            side = _unit(side - heading * (side @ heading))
            end = point + heading * (length / PIECES_PER_BRANCH)
            pieces.append((point, end, radius, radius, side))
            point = end
        outside = (point < -margin_mm).any() or (point > extent_mm + margin_mm).any()
        if outside or len(pieces) > 20_000:
            continue
        todo.extend(_children(rng, point, heading, radius, stop_radius_mm))
    starts, ends, first, last, sides = (np.asarray(column) for column in zip(*pieces, strict=True))
    return Segments(starts, ends, first, last, sides)


def _children(
    rng: np.random.Generator, point: Float, heading: Float, radius: float, stop_radius_mm: float
) -> list[tuple[Float, Float, float, Float]]:
    share = rng.uniform(0.15, 0.5)
    plane = _perpendicular(rng, heading)
    children = []
    for fraction, sign in ((share, 1.0), (1.0 - share, -1.0)):
        child, sibling = radius * fraction ** (1 / 3), radius * (1.0 - fraction) ** (1 / 3)
        if child < stop_radius_mm:
            continue
        cosine = (radius**4 + child**4 - sibling**4) / (2.0 * radius**2 * child**2)
        angle = np.arccos(np.clip(cosine, -1.0, 1.0)) * rng.uniform(0.8, 1.2)
        turned = _unit(np.cos(angle) * heading + sign * np.sin(angle) * plane)
        children.append((point, turned, child, _perpendicular(rng, turned)))
    return children


def _perpendicular(rng: np.random.Generator, direction: Float) -> Float:
    vector = rng.standard_normal(3)
    return _unit(vector - direction * (vector @ direction))


def _unit(vector: Float) -> Float:
    return np.asarray(vector / np.linalg.norm(vector))
