"""What a scan is and what super-resolving it would cost: the facts of ``ctmicrosr info``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from CTMicroSRLib.cost import estimate_cost
from CTMicroSRLib.devices import free_memory_bytes
from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.files import read_mask, read_volume
from CTMicroSRLib.lungs import segment_lungs
from CTMicroSRLib.plan import RegionChoice, make_plan
from CTMicroSRLib.session import load_model
from CTMicroSRLib.superresolve import check_has_dropout


def scan_facts(
    path: Path,
    region: RegionChoice,
    mask_path: Path | None,
    model_name: str,
    *,
    device: str,
    precision: str,
    tile: int | None,
    passes: int | None,
) -> dict[str, Any]:
    """Facts by name, as JSON takes them.

    Args:
        path: the scan.
        region: as in Options.
        mask_path: where the network runs; None segments the lungs where the region is ``lungs``.
        model_name: name or folder.
        device: as in Options.
        precision: as in Options.
        tile: as in Options.
        passes: of the uncertainty; None for the result alone.

    Raises:
        UsageError, RefusedInputError, ResourceError, ModelError: as of a run.
    """
    if passes is not None and not 2 <= passes <= 1000:
        raise UsageError(f"{passes} passes are not possible; choose 2 to 1000.")
    volume = read_volume(path)
    model = load_model(model_name, device=device, precision=precision)
    if passes is not None:
        check_has_dropout(model)
    mask = None if mask_path is None else read_mask(mask_path, volume.geometry)
    if mask is None and region == "lungs":
        mask = segment_lungs(volume).array_kji.astype(bool)
    plan = make_plan(volume.geometry, region, mask, scale=model.card.scale, halo=model.card.halo, tile=tile)
    volumes = 1 if passes is None else 2
    cost = estimate_cost(plan, model, volumes=volumes, passes=passes)
    output = plan.output_geometry
    return {
        "input": str(path),
        "size_ijk": list(volume.geometry.size_ijk),
        "spacing_mm": list(volume.geometry.spacing_mm),
        "metadata": dict(volume.metadata),
        "model": model.card.name,
        "device": str(model.device),
        "precision": model.precision,
        "region": str(plan.region),
        "cells": cost.cells,
        "output_size_ijk": list(output.size_ijk),
        "output_spacing_mm": list(output.spacing_mm),
        "output_gb": round(cost.output_bytes / volumes / 1e9, 3),
        "disk_gb": round(cost.output_bytes / 1e9, 3),
        "memory_gb": round(cost.memory_bytes / 1e9, 2),
        "memory_free_gb": round(free_memory_bytes() / 1e9, 2),
        "seconds": None if cost.seconds is None else round(cost.seconds, 1),
    }
