"""What a run would cost: voxels, disk, memory, and time from a short measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from CTMicroSRLib.plan import Plan

if TYPE_CHECKING:
    from CTMicroSRLib.session import Model

PROBE_VOXELS = 96
FINE_SLICE_COPIES = 4
"""Float32 images of a fine slice that are alive at once: result, scan, tile, rounded."""
TRUNK_BYTES_PER_VOXEL = 2_500
"""Memory of the network's features by coarse voxel of a tile: an estimate from their channels, on the safe side."""
BASE_BYTES = 450_000_000
"""The interpreter with its libraries."""


@dataclass(frozen=True)
class Cost:
    """Cells and voxels the network runs on, size of the result, memory, and seconds (None: not measured)."""

    cells: int
    network_voxels: int
    output_voxels: int
    output_bytes: int
    memory_bytes: int
    seconds: float | None


def estimate_cost(plan: Plan, model: Model | None, *, volumes: int = 1, passes: int | None = None) -> Cost:
    """Estimate a run.

    Args:
        plan: the run.
        model: loaded model to time a tile with; None leaves the time out.
        volumes: output volumes (2 with uncertainty).
        passes: those of the uncertainty, which are timed with the result; None for the result alone.
    """
    voxels = plan.network_voxels()
    fine = int(np.prod(plan.output_geometry.size_ijk, dtype=np.int64))
    fine_slice = plan.window.size_ijk[0] * plan.window.size_ijk[1] * plan.scale**2
    tile = min(plan.largest_tile + 2 * plan.halo, max(plan.window.size_ijk[:2])) ** 2
    scan_bytes = 2 * int(np.prod(plan.input_geometry.size_ijk, dtype=np.int64))
    seconds = None if model is None else voxels * seconds_per_voxel(model, passes)
    return Cost(
        cells=round(voxels / 1024),
        network_voxels=voxels,
        output_voxels=fine,
        output_bytes=2 * fine * volumes,
        memory_bytes=BASE_BYTES + scan_bytes + 4 * FINE_SLICE_COPIES * fine_slice + tile * TRUNK_BYTES_PER_VOXEL,
        seconds=seconds,
    )


def seconds_per_voxel(model: Model, passes: int | None = None) -> float:
    """Seconds by coarse voxel: the faster of two runs over a small tile, after a first one to warm up.

    Args:
        model: the model.
        passes: also time the uncertainty's passes; None for the result alone.
    """
    import torch

    from CTMicroSRLib.devices import synchronize
    from CTMicroSRLib.networks.generator import WHOLE
    from CTMicroSRLib.session import ScanConditions

    tile = torch.full((PROBE_VOXELS, PROBE_VOXELS), -800.0)
    conditions = ScanConditions(1.8, 15.0)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        if passes is None:
            model.run(tile, WHOLE, conditions)
        else:
            model.run_passes(tile, WHOLE, conditions, passes=passes, seed=0)
        synchronize(model.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / PROBE_VOXELS**2
