"""All yardsticks of one image of a simulated case, and their summary over the cases of a method.

What the truth and the description say is read once per case (:class:`Reference`); every method's image is then measured
at the same places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.evaluation.airway_walls import (
    AirwayMeasurement,
    AirwayPlaces,
    find_airways,
    measure_airways,
    summarise_airways,
)
from CTMicroSRLib.evaluation.detection import (
    DetectionPlaces,
    Detections,
    find_targets,
    measure_targets,
    summarise_detections,
)
from CTMicroSRLib.evaluation.edges import EdgePlaces, EdgeRise, find_vessel_edges, measure_vessel_edges
from CTMicroSRLib.evaluation.false_structures import (
    FalseStructures,
    PlainParenchyma,
    false_structures,
    plain_parenchyma,
)
from CTMicroSRLib.evaluation.fourier_ring import LocalResolution, local_resolution
from CTMicroSRLib.evaluation.masked import masked_quality
from CTMicroSRLib.evaluation.metrics import Quality
from CTMicroSRLib.evaluation.nodules import (
    NodulePlaces,
    NoduleVolumes,
    find_nodules,
    measure_nodules,
    summarise_nodules,
)
from CTMicroSRLib.evaluation.printed_grid import PrintedGrid, printed_grid
from CTMicroSRLib.evaluation.shift import Shift, shift_of
from CTMicroSRLib.evaluation.spectra import GridPeak, PatchSettings, grid_peak, power_ratio
from CTMicroSRLib.evaluation.structures import structures_of
from CTMicroSRLib.evaluation.tissue_bias import TissueBias, bias_by_tissue, pool_bias
from CTMicroSRLib.simulation.cases import Case
from CTMicroSRLib.simulation.description import OUTSIDE_LUNG, Label

Bools = NDArray[np.bool_]

NOT_LUNG = (*OUTSIDE_LUNG, Label.PLEURA)
LEAST_LUNG_SHARE = 0.05
FINE_BAND_PER_MM = (0.8, 2.5)
"""Beyond what a clinical pixel of 0.6 mm can hold, up to where the truth's vessels and walls still have power."""

BIAS_ERODE_VOXELS = 2
LEAST_PERIODS = 24
"""Smaller images are not searched for a grid."""


@dataclass(frozen=True)
class Reference:
    """What the truth of a case says: places to measure at, and the lung."""

    case: Case
    lung_kji: Bools
    edges: EdgePlaces
    airways: AirwayPlaces
    targets: DetectionPlaces
    nodules: NodulePlaces
    plain: PlainParenchyma


@dataclass(frozen=True)
class Readings:
    """One image's measures; ``lung`` and ``resolution`` are None where a case shows next to no lung.

    ``grid`` is the grid's power over that of its neighbours, which for an image without any power there (all
    interpolations) says nothing; ``printed`` is the grid itself in HU, in plain parenchyma.
    """

    lung: Quality | None
    edges: EdgeRise
    airways: AirwayMeasurement
    detections: Detections
    nodules: NoduleVolumes
    bias: tuple[TissueBias, ...]
    grid: GridPeak | None
    printed: PrintedGrid
    shift: Shift
    resolution: LocalResolution | None
    fine_power: float
    false: FalseStructures


def prepare_reference(case: Case) -> Reference:
    """Find the places of a case at which every method is measured."""
    truth, labels, settings = case.scan.truth, case.scan.labels, case.settings
    structures = structures_of(case.description, truth.geometry, settings.slice_mm, case.tissue)
    return Reference(
        case=case,
        lung_kji=~np.isin(np.asarray(labels.array_kji), NOT_LUNG),
        edges=find_vessel_edges(structures),
        airways=find_airways(structures),
        targets=find_targets(structures),
        nodules=find_nodules(case.description, truth.geometry, settings.slice_mm, case.tissue),
        plain=plain_parenchyma(truth.array_kji, labels.array_kji, truth.geometry.spacing_mm[0]),
    )


def read_image(image_kji: NDArray[Any], reference: Reference) -> Readings:
    """Measure one method's image (HU, on the truth's grid) on a case."""
    image = np.asarray(image_kji, dtype=np.float32)
    truth, labels = reference.case.scan.truth, reference.case.scan.labels
    voxel_mm, scale = truth.geometry.spacing_mm[0], reference.case.settings.scale
    enough = reference.lung_kji.mean() >= LEAST_LUNG_SHARE
    patches = PatchSettings(mask_share=0.9)
    return Readings(
        lung=masked_quality(image, truth.array_kji, reference.lung_kji) if enough else None,
        edges=measure_vessel_edges(image, reference.edges),
        airways=measure_airways(image, reference.airways),
        detections=measure_targets(image, reference.targets),
        nodules=measure_nodules(image, truth.array_kji, reference.nodules),
        bias=bias_by_tissue(image, truth.array_kji, labels.array_kji, erode_voxels=BIAS_ERODE_VOXELS),
        grid=grid_peak(image, scale) if min(image.shape[1:]) > LEAST_PERIODS * scale else None,
        printed=printed_grid(image, truth.array_kji, scale, reference.plain.plain_kji),
        shift=shift_of(image, truth.array_kji, scale, reference.lung_kji),
        resolution=local_resolution(image, truth.array_kji, voxel_mm, patches, reference.lung_kji) if enough else None,
        fine_power=_fine_power(image, reference, patches) if enough else math.nan,
        false=false_structures(image, reference.plain),
    )


def _fine_power(image: NDArray[np.float32], reference: Reference, patches: PatchSettings) -> float:
    """Power of an image in the fine band over the truth's."""
    truth = reference.case.scan.truth
    return power_ratio(image, truth.array_kji, truth.geometry.spacing_mm[0], patches, reference.lung_kji).in_band(
        *FINE_BAND_PER_MM
    )


def summarise(readings: Sequence[Readings]) -> dict[str, float]:
    """A method's numbers over its cases; NaN where no case could be measured."""
    lung = [r.lung for r in readings if r.lung is not None]
    grids = [r.grid for r in readings if r.grid is not None]
    shift = Shift.pool([r.shift for r in readings])
    numbers = {
        "lung_psnr_db": _mean([q.psnr_db for q in lung]),
        "lung_ssim": _mean([q.ssim for q in lung]),
        "lung_ssim_lung_window": _mean([q.ssim_lung_window for q in lung]),
        "lung_mae_hu": _mean([q.mae_hu for q in lung]),
        "edge_rise_mm": _median(np.concatenate([r.edges.rise_mm for r in readings])),
        "resolution_mm": 1.0 / _median([r.resolution.median_per_mm for r in readings if r.resolution is not None]),
        "fine_power_ratio": _median([r.fine_power for r in readings]),
        "grid_peak": max((max(g.along_j, g.along_i, g.lattice) for g in grids), default=math.nan),
        "grid_hu": PrintedGrid.pool([r.printed for r in readings]).rms_hu,
        "shift_fine_voxels": shift.length,
        "shift_row_fine_voxels": shift.row,
        "shift_column_fine_voxels": shift.column,
    }
    numbers |= _airway_numbers(readings) | _detection_numbers(readings) | _nodule_numbers(readings)
    for bias in pool_bias([r.bias for r in readings]):
        numbers[f"bias_{bias.label.name.lower()}_hu"] = bias.mean_error_hu
    pooled = FalseStructures.pool([r.false for r in readings])
    numbers["false_structures_per_cm2"] = pooled.false_per_cm2
    numbers["false_area_ratio"] = pooled.area_ratio
    return numbers


def _airway_numbers(readings: Sequence[Readings]) -> dict[str, float]:
    whole = summarise_airways([r.airways for r in readings])[-1]
    return {
        "airways": whole.count,
        "airways_measurable": whole.measurable_share,
        "lumen_area_error": whole.lumen_error,
        "lumen_area_absolute_error": whole.absolute_lumen_error,
        "wall_error_mm": whole.wall_error_mm,
        "wall_absolute_error_mm": whole.absolute_wall_error_mm,
    }


def _detection_numbers(readings: Sequence[Readings]) -> dict[str, float]:
    numbers = {}
    for row in summarise_detections([r.detections for r in readings]):
        low, high = row.diameter_mm
        size = f"{low:g}_{high:g}" if math.isfinite(high) else f"{low:g}_up"
        numbers[f"detected_{row.target}_{size}_mm"] = row.sensitivity
    return numbers


def _nodule_numbers(readings: Sequence[Readings]) -> dict[str, float]:
    nodules = summarise_nodules([r.nodules for r in readings])
    return {
        "nodules": nodules.measured,
        "nodule_volume_error": nodules.error_to_truth,
        "nodule_volume_absolute_error": nodules.absolute_error_to_truth,
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _median(values: Sequence[float] | NDArray[np.floating]) -> float:
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    return float(np.median(kept)) if len(kept) else math.nan
