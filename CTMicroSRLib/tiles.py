"""Which parts of a slice the network runs on: 32x32 cells over the mask, merged into rectangles.

Cells lie on a fixed grid of the whole slice, so that a region is cut into the same cells as the whole.
A rectangle carries the halo the model's card gives and its result is used without blending; towards the
interpolated surroundings the result fades out over a few voxels outside the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CELL_VOXELS = 32
GROWN_VOXELS = 3
"""The network's result holds in full this far outside the mask, so that its edge is the network's."""

FADE_VOXELS = 8
"""Over this many voxels further out it fades into interpolation."""

CALL_COST_VOXELS = 600.0
"""What calling the network costs beside its work, in voxels of work: a guess that only decides which tiles merge."""

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Rectangle:
    """Coarse voxels ``rows[0]:rows[1]`` x ``columns[0]:columns[1]`` of a slice."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def area(self) -> int:
        """Number of coarse voxels."""
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@dataclass(frozen=True)
class Tile:
    """A rectangle with its halo clipped to the image, and which sides are the image's own border."""

    core: Rectangle
    rows: tuple[int, int]
    columns: tuple[int, int]
    left: bool
    right: bool
    top: bool
    bottom: bool


def fade_weights(mask_ji: Bool) -> Float32:
    """Weight of the network's result in one slice: 1 on the grown mask, 0 well outside, smooth between.

    Depends on the mask alone, not on the cells, so that the join follows the anatomy.
    """
    weights = np.zeros(mask_ji.shape, dtype=np.float32)
    used = [np.flatnonzero(mask_ji.any(axis=axis)) for axis in (1, 0)]
    if not len(used[0]):
        return weights
    margin = GROWN_VOXELS + 2 * FADE_VOXELS
    part = tuple(slice(max(0, int(at[0]) - margin), int(at[-1]) + 1 + margin) for at in used)
    reach = FADE_VOXELS // 2
    grown = _dilate(mask_ji[part], GROWN_VOXELS + FADE_VOXELS // 2)
    weights[part] = _box_mean(_box_mean(grown.astype(np.float32), reach // 2), reach - reach // 2)
    return weights


def needed_cells(weights_ji: Float32) -> Bool:
    """Cells of the slice in which the network's result has any weight.

    Weights are interpolated linearly onto the fine grid, so that one voxel beyond the last that is not zero counts too.
    """
    rows, columns = (-(-n // CELL_VOXELS) for n in weights_ji.shape)
    padded = np.zeros((rows * CELL_VOXELS, columns * CELL_VOXELS), dtype=bool)
    padded[: weights_ji.shape[0], : weights_ji.shape[1]] = _dilate(weights_ji > 0, 1)
    return np.asarray(padded.reshape(rows, CELL_VOXELS, columns, CELL_VOXELS).any(axis=(1, 3)))


def merge_cells(cells: Bool, shape_ji: tuple[int, int], halo: int, largest: int) -> list[Rectangle]:
    """Cover the cells by rectangles that together cost the network least.

    Rectangles do not overlap; they may contain cells that are not needed where running those too is cheaper
    than another halo. Starts from runs of cells in a row and merges greedily.

    Args:
        cells: needed cells of the slice.
        shape_ji: the slice's size in voxels (the last cells may be narrower).
        halo: context in voxels on each inner side.
        largest: edge of the largest rectangle in voxels.

    Returns:
        Rectangles in voxels, clipped to the slice, in reading order.
    """
    limit = max(1, largest // CELL_VOXELS)
    boxes = _row_runs(cells, limit)
    while True:
        best_saving, best = 0.0, None
        for a in range(len(boxes)):
            for b in range(a + 1, len(boxes)):
                merged = _bounding(boxes[a], boxes[b])
                if merged[1] - merged[0] > limit or merged[3] - merged[2] > limit:
                    continue
                inside = [box for box in boxes if _overlaps(box, merged)]
                if any(not _contains(merged, box) for box in inside):
                    continue
                saving = sum(_cost(box, halo) for box in inside) - _cost(merged, halo)
                if saving > best_saving:
                    best_saving, best = saving, merged
        if best is None:
            break
        boxes = [box for box in boxes if not _overlaps(box, best)] + [best]
    return [_rectangle(box, shape_ji) for box in sorted(boxes)]


def tile_of(core: Rectangle, shape_ji: tuple[int, int], halo: int) -> Tile:
    """The rectangle with ``halo`` voxels of context.

    A side that lies closer to the image's border than the halo is moved to the border, so that the network pads
    exactly where it would on the whole slice.
    """
    top, bottom = core.rows[0] - halo <= 0, core.rows[1] + halo >= shape_ji[0]
    left, right = core.columns[0] - halo <= 0, core.columns[1] + halo >= shape_ji[1]
    return Tile(
        core=core,
        rows=(0 if top else core.rows[0] - halo, shape_ji[0] if bottom else core.rows[1] + halo),
        columns=(0 if left else core.columns[0] - halo, shape_ji[1] if right else core.columns[1] + halo),
        left=left,
        right=right,
        top=top,
        bottom=bottom,
    )


_Box = tuple[int, int, int, int]  # first row, end row, first column, end column, in cells


def _row_runs(cells: Bool, limit: int) -> list[_Box]:
    boxes = []
    for row, line in enumerate(cells):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            boxes += [(row, row + 1, at, min(at + limit, stop)) for at in range(start, stop, limit)]
    return boxes


def _cost(box: _Box, halo: int) -> float:
    """Work of a rectangle: layers consume the halo evenly, so on average half of it is computed."""
    rows = (box[1] - box[0]) * CELL_VOXELS + halo
    columns = (box[3] - box[2]) * CELL_VOXELS + halo
    return rows * columns + CALL_COST_VOXELS


def _bounding(a: _Box, b: _Box) -> _Box:
    return (min(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), max(a[3], b[3]))


def _overlaps(a: _Box, b: _Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _contains(outer: _Box, inner: _Box) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1] and outer[2] <= inner[2] and inner[3] <= outer[3]


def _rectangle(box: _Box, shape_ji: tuple[int, int]) -> Rectangle:
    return Rectangle(
        rows=(box[0] * CELL_VOXELS, min(box[1] * CELL_VOXELS, shape_ji[0])),
        columns=(box[2] * CELL_VOXELS, min(box[3] * CELL_VOXELS, shape_ji[1])),
    )


def _dilate(mask: Bool, reach: int) -> Bool:
    """Dilation by a square of half-width ``reach``."""
    return _running_or(_running_or(np.pad(mask, reach), reach, 0), reach, 1)


def _running_or(mask: Bool, reach: int, axis: int) -> Bool:
    """Any of ``2 * reach + 1`` neighbours along an axis, by windows that double in width."""
    moved = np.moveaxis(mask, axis, 0)
    width, wanted = 1, 2 * reach + 1
    while width < wanted:
        step = min(width, wanted - width)
        moved = moved[:-step] | moved[step:]
        width += step
    return np.moveaxis(moved, 0, axis)


def _box_mean(image: Float32, reach: int) -> Float32:
    """Mean over a square; outside the image the edge goes on."""
    for axis in (0, 1):
        padding = [(reach, reach) if axis == a else (0, 0) for a in range(image.ndim)]
        moved = np.moveaxis(np.pad(image, padding, mode="edge"), axis, 0)
        size = len(moved) - 2 * reach
        total = moved[:size].copy()
        for shift in range(1, 2 * reach + 1):
            total += moved[shift : shift + size]
        image = np.moveaxis(total / np.float32(2 * reach + 1), 0, axis)
    return image
