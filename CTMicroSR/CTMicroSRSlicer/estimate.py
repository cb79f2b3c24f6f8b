"""What a run needs: the panel's line, from the engine's ``info``, and whether it fits. No Qt, no Slicer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from CTMicroSRLib.errors import ResourceError
from CTMicroSRLib.volume import Geometry, Region
from CTMicroSRSlicer.commands import RunSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADROOM = 0.9


@dataclass(frozen=True)
class Estimate:
    """What the engine's ``info`` says of a run, with what Slicer adds by loading the result."""

    region: str
    cells: int
    sizeIjk: tuple[int, int, int]
    outputGb: float
    memoryGb: float
    memoryFreeGb: float
    seconds: float | None
    device: str

    @staticmethod
    def fromFacts(facts: dict[str, Any], settings: RunSettings) -> Estimate:
        """From ``ctmicrosr info --json``.

        Slicer holds the result in memory while the child process still may be at its peak; the uncertainty is another
        volume of the same size.
        """
        i, j, k = facts["output_size_ijk"]
        outputGb = float(facts["output_gb"]) * (2 if settings.uncertainty else 1)
        return Estimate(
            region=facts["region"],
            cells=int(facts["cells"]),
            sizeIjk=(i, j, k),
            outputGb=outputGb,
            memoryGb=max(float(facts["memory_gb"]), outputGb),
            memoryFreeGb=float(facts["memory_free_gb"]),
            seconds=facts["seconds"],
            device=facts["device"],
        )

    @property
    def fits(self) -> bool:
        """Whether it fits in the memory that is free."""
        return self.memoryGb <= HEADROOM * self.memoryFreeGb


def checkFits(
    geometry: Geometry, settings: RunSettings, mask_kji: NDArray[np.bool_] | None = None, freeBytes: int | None = None
) -> None:
    """Refuse a run whose result would not fit; takes no time, and no torch.

    Args:
        geometry: the scan's.
        settings: of the run.
        mask_kji: the lungs, where the region is ``lungs``.
        freeBytes: memory that is free; None asks the system.

    Raises:
        ResourceError: it needs more memory than is free.
        UsageError, RefusedInputError, ModelError: there is no such run.
    """
    from CTMicroSRLib.cost import estimate_cost
    from CTMicroSRLib.models import find_model
    from CTMicroSRLib.plan import make_plan

    card = find_model(settings.model).card
    choice = Region.parse(settings.region) if settings.isBox else settings.region
    mask = mask_kji if settings.region == "lungs" else None
    plan = make_plan(geometry, choice, mask, scale=card.scale, halo=card.halo, tile=settings.tile)
    cost = estimate_cost(plan, None, volumes=2 if settings.uncertainty else 1)
    needed, free = max(cost.memory_bytes, cost.output_bytes), _freeBytes() if freeBytes is None else freeBytes
    if needed > HEADROOM * free:
        raise ResourceError(
            f"This needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; choose a smaller ROI, or "
            f"close "
            "other programs."
        )


def _freeBytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
