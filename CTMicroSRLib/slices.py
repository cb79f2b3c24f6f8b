"""Computing one slice: interpolate, run the network's tiles, stitch, post-process, make consistent, round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from CTMicroSRLib.consistency import ConsistencySettings, Remaining, Residual, ScannerConsistency, measure
from CTMicroSRLib.devices import exact_float32, synchronize
from CTMicroSRLib.networks.generator import Border
from CTMicroSRLib.plan import Plan, SlicePlan
from CTMicroSRLib.postprocessing import match_histograms_by_cell, median_filter
from CTMicroSRLib.session import ScanConditions
from CTMicroSRLib.tiles import CELL_VOXELS, Rectangle, needed_cells, tile_of
from CTMicroSRLib.uncertainty import calibrated
from CTMicroSRLib.volume import AIR_HU

if TYPE_CHECKING:
    from CTMicroSRLib.superresolve import Prepared

Int16 = NDArray[np.int16]

ROUNDED_ROWS = 32


@dataclass(frozen=True)
class SliceOutcome:
    """A finished slice of the region, int16 HU, and its standard deviation where asked for."""

    result_hu: Int16
    deviation_hu: Int16 | None


class SliceEngine:
    """Computes slices of one run; what is the same for all of them is made once."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.plan, self.model, self.options = prepared.plan, prepared.model, prepared.options
        if self.model.card.postprocess.histogram_cells:
            self.plan = _with_whole_cells(self.plan)
        spacing_i, spacing_j, _ = prepared.volume.geometry.spacing_mm
        acquisition = prepared.acquisition
        self.conditions = ScanConditions(
            psf_fwhm_voxels=acquisition.psf_fwhm_mm / ((spacing_i + spacing_j) / 2.0),
            noise_hu=acquisition.noise_hu,
        )
        settings = ConsistencySettings(
            mode=self.options.consistency,  # type: ignore[arg-type]
            psf_fwhm_mm=acquisition.psf_fwhm_mm,
            noise_hu=acquisition.noise_hu,
        )
        window = self.plan.window
        self.consistency = ScannerConsistency(
            (window.size_ijk[1], window.size_ijk[0]),
            self.plan.scale,
            (spacing_j, spacing_i),
            settings,
            self.model.device,
        )
        self.averaged = self.model.card.result == "mean"
        self.sampling = self.options.uncertainty or self.averaged
        shape = (window.size_ijk[1] * self.plan.scale, window.size_ijk[0] * self.plan.scale)
        # One fine slice for the whole run: fresh memory for each would cost as much as filling it.
        self.fine = torch.empty(shape, device=self.model.device)
        self.deviation = torch.empty_like(self.fine) if self.options.uncertainty else None
        self._residuals: list[Residual] = []
        self._resolved_voxels, self._unexplained_voxels = 0, 0
        self._rectangles = 0
        self._network_voxels = 0

    @torch.inference_mode()
    @exact_float32()
    def compute(self, k: int, slice_plan: SlicePlan, check: Callable[[], None]) -> SliceOutcome:
        """Compute slice ``k`` of the input; ``check`` is called between tiles and may raise."""
        watch = self.prepared.stopwatch
        coarse = self._coarse(k)
        window = self.plan.window
        inside = coarse[slice(*window.j), slice(*window.i)]
        fine, deviation = self.fine, self.deviation
        with watch.stage("interpolate"):
            self.consistency.interpolate.write(inside, fine)
            if deviation is not None:
                deviation.zero_()
        # A network that looks at the whole slice runs once, whatever the rectangles.
        runs = 1 if self.model.network.whole_slice_only else None
        for rectangle in slice_plan.rectangles[:runs]:
            check()
            self._run_rectangle(coarse, rectangle, slice_plan.weights_ji, fine, deviation)
        if self.model.card.postprocess.needed:
            with watch.stage("postprocess"):
                self._postprocess(inside, slice_plan.weights_ji, fine)
        with watch.stage("consistency"):
            remaining = self.consistency.apply(fine, inside)
            self._note_residual(remaining, slice_plan.weights_ji)
        with watch.stage("round"):
            return SliceOutcome(self._rounded(fine), None if deviation is None else self._rounded(deviation))

    def measured(self) -> dict[str, Any]:
        """Residual, tiles and passes of the slices so far, for the report."""
        squares, largest, count, beyond_noise = zip(*self._residuals, strict=True)
        return {
            "residual": {
                "residual_rms_hu": round(float(np.sqrt(sum(squares) / max(1, sum(count)))), 3),
                "residual_max_hu": round(float(max(largest)), 3),
                "beyond_noise_share": round(sum(beyond_noise) / max(1, sum(count)), 6),
            },
            "unexplained_share": self._unexplained_voxels / max(1, self._resolved_voxels),
            "tiles": {"rectangles": self._rectangles, "voxels": self._network_voxels},
            "uncertainty": {"passes": self.options.passes} if self.sampling else None,
        }

    def _note_residual(self, remaining: Remaining, weights_ji: NDArray[np.float32] | None) -> None:
        explained = self._crop(remaining.explained, 1)
        residual_hu = self._crop(remaining.residual_hu, 1)[explained]
        self._residuals.append(measure(residual_hu, self.consistency.settings.noise_hu))
        resolved = torch.ones_like(explained)
        if weights_ji is not None:
            region = self.plan.region
            inside = np.ascontiguousarray(weights_ji[slice(*region.j), slice(*region.i)] >= 0.5)
            resolved = torch.from_numpy(inside).to(explained.device)
        self._resolved_voxels += int(resolved.sum())
        self._unexplained_voxels += int((resolved & ~explained).sum())

    def _coarse(self, k: int) -> Tensor:
        array = np.asarray(self.prepared.volume.array_kji[k], dtype=np.float32)
        return torch.from_numpy(np.maximum(array, np.float32(AIR_HU))).to(self.model.device)

    def _run_rectangle(
        self,
        coarse: Tensor,
        core: Rectangle,
        weights_ji: NDArray[np.float32] | None,
        fine: Tensor,
        deviation: Tensor | None,
    ) -> None:
        """Run the network on a rectangle and put its part of the window into ``fine``."""
        watch, scale, window = self.prepared.stopwatch, self.plan.scale, self.plan.window
        whole = Rectangle((0, coarse.shape[0]), (0, coarse.shape[1]))
        if self.model.network.whole_slice_only:
            core = whole
        tile = tile_of(core, (coarse.shape[0], coarse.shape[1]), self.plan.halo)
        border = Border(tile.left, tile.right, tile.top, tile.bottom)
        patch = coarse[slice(*tile.rows), slice(*tile.columns)]
        with watch.stage("network"):
            image, spread = self._network(patch, border)
            synchronize(self.model.device)
        rows = (max(core.rows[0], window.j[0]), min(core.rows[1], window.j[1]))
        columns = (max(core.columns[0], window.i[0]), min(core.columns[1], window.i[1]))
        start = (0 if tile.top else core.rows[0], 0 if tile.left else core.columns[0])
        with watch.stage("stitch"):
            source = _fine_part(rows, columns, start, scale)
            target = _fine_part(rows, columns, (window.j[0], window.i[0]), scale)
            weights = _fine_weights(weights_ji, rows, columns, scale, coarse.device)
            if weights is None:
                fine[target] = image[source]
            else:
                fine[target].lerp_(image[source], weights)
            if deviation is not None and spread is not None:
                kept = spread[source]
                deviation[target] = kept if weights is None else kept * (weights >= 0.5)
        self._rectangles += 1
        self._network_voxels += core.area

    def _network(self, patch: Tensor, border: Border) -> tuple[Tensor, Tensor | None]:
        if not self.sampling:
            return self.model.run(patch, border, self.conditions), None
        statistics = self.model.run_passes(
            patch, border, self.conditions, passes=self.options.passes, seed=self.options.seed
        )
        image = statistics.mean if self.averaged else statistics.plain
        return image, calibrated(statistics.standard_deviation, self.model.card.calibration)

    def _postprocess(self, inside: Tensor, weights_ji: NDArray[np.float32] | None, fine: Tensor) -> None:
        """What the card asks for, in place, as far as the network's result counts.

        The standard deviation stays as it is: it is the network's, of the value before.
        """
        wanted, window = self.model.card.postprocess, self.plan.window
        array = fine.cpu().numpy()
        if wanted.histogram_cells:
            cells = None if weights_ji is None else needed_cells(weights_ji)
            start = (window.j[0], window.i[0])
            array = match_histograms_by_cell(array, inside.cpu().numpy(), self.plan.scale, start_ji=start, cells=cells)
        if wanted.median_voxels > 1:
            array = median_filter(array, wanted.median_voxels)
        weights = _fine_weights(weights_ji, window.j, window.i, self.plan.scale, fine.device)
        processed = torch.from_numpy(array).to(fine.device)
        if weights is None:
            fine.copy_(processed)
        else:
            fine.lerp_(processed, weights)

    def _crop(self, image: Tensor, scale: int) -> Tensor:
        """The region's part of an image of the window."""
        region, window = self.plan.region, self.plan.window
        return image[_fine_part(region.j, region.i, (window.j[0], window.i[0]), scale)]

    def _rounded(self, image: Tensor) -> Int16:
        limits = torch.iinfo(torch.int16)
        cropped = self._crop(image, self.plan.scale)
        rounded = torch.empty(cropped.shape, dtype=torch.int16, device=image.device)
        # Some rows at a time, so that they stay in the cache from one step to the next.
        for rows, target in zip(cropped.split(ROUNDED_ROWS), rounded.split(ROUNDED_ROWS), strict=True):
            target.copy_(rows.round_().clamp_(limits.min, limits.max))
        array: Int16 = rounded.cpu().numpy()
        return array


def _with_whole_cells(plan: Plan) -> Plan:
    """The plan with a window that ends where cells do, so that a region's cells are those of the whole slice.

    The network runs on whole cells in any case.
    """

    def outwards(span: tuple[int, int], size: int) -> tuple[int, int]:
        return span[0] // CELL_VOXELS * CELL_VOXELS, min(size, -(-span[1] // CELL_VOXELS) * CELL_VOXELS)

    columns, rows, _ = plan.input_geometry.size_ijk
    return replace(
        plan, window=replace(plan.window, i=outwards(plan.window.i, columns), j=outwards(plan.window.j, rows))
    )


def _fine_part(
    rows: tuple[int, int], columns: tuple[int, int], start: tuple[int, int], scale: int
) -> tuple[slice, slice]:
    """Fine index of coarse rows and columns in an image whose first coarse voxel is ``start``."""
    return (
        slice((rows[0] - start[0]) * scale, (rows[1] - start[0]) * scale),
        slice((columns[0] - start[1]) * scale, (columns[1] - start[1]) * scale),
    )


def _fine_weights(
    weights_ji: NDArray[np.float32] | None,
    rows: tuple[int, int],
    columns: tuple[int, int],
    scale: int,
    device: torch.device,
) -> Tensor | None:
    """Linearly interpolated weights of a part of the slice; None where all are 1.

    One voxel of the slice around the part is interpolated too, so that a tile's weights are the slice's.
    """
    if weights_ji is None:
        return None
    height, width = weights_ji.shape
    outer = (
        slice(max(0, rows[0] - 1), min(height, rows[1] + 1)),
        slice(max(0, columns[0] - 1), min(width, columns[1] + 1)),
    )
    part = weights_ji[outer]
    if part.min() >= 1.0:
        return None
    fine = functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(part)).to(device)[None, None],
        scale_factor=scale,
        mode="bilinear",
        align_corners=False,
    )[0, 0]
    return fine[_fine_part(rows, columns, (outer[0].start, outer[1].start), scale)]
