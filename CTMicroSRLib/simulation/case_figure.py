"""A picture of a simulated case: the specimen's truth, its labels, its micro-CT and its clinical CT at one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import ResourceError
from CTMicroSRLib.intensity import LUNG_WINDOW_HU
from CTMicroSRLib.simulation.cases import Case
from CTMicroSRLib.simulation.description import Label

ZOOM_SHARE = 0.4

Float32 = NDArray[np.float32]


def draw_case(case: Case, path: Path) -> None:
    """Draw the middle slice, whole and zoomed to where it varies most.

    Args:
        case: what to draw.
        path: picture to write (.png).

    Raises:
        ResourceError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("The figure needs matplotlib; install it (pip install 'ctmicrosr[figures]').") from None
    k = case.scan.truth.array_kji.shape[0] // 2
    z_mm = case.scan.truth.geometry.physical_point_mm((0.0, 0.0, float(k)))[2]
    micro_k = round((z_mm - case.micro.geometry.origin_mm[2]) / case.micro.geometry.spacing_mm[2])
    micro_k = min(max(micro_k, 0), case.micro.array_kji.shape[0] - 1)
    window: dict[str, Any] = {"cmap": "gray", "vmin": LUNG_WINDOW_HU[0], "vmax": LUNG_WINDOW_HU[1]}
    micro = case.micro.array_kji[micro_k]
    grey = {"cmap": "gray", "vmin": 0.0, "vmax": float(np.percentile(micro, 99.5))}
    labels = {"cmap": "tab20", "vmin": 0, "vmax": max(Label)}
    thickness = f"{case.settings.slice_mm:g} mm"
    panels = (
        (f"truth, {thickness} slice", case.scan.truth.array_kji[k], window),
        ("labels of one plane", case.tissue.array_kji[micro_k], labels),
        ("micro-CT of one plane", micro, grey),
        (f"clinical CT, {thickness} slice", case.scan.clinical.array_kji[k], window),
    )
    figure = Figure(figsize=(4.0 * len(panels), 8.6), dpi=80)
    FigureCanvasAgg(figure)
    scale = case.settings.scale
    size = max(2, round(ZOOM_SHARE * case.scan.clinical.array_kji.shape[1]))
    crop = busiest_crop(np.asarray(case.scan.truth.array_kji[k], dtype=np.float32), scale, size)
    coarse = tuple(slice(part.start // scale, part.stop // scale) for part in crop)
    for n, (title, image, style) in enumerate(panels):
        zoomed = image[coarse] if image.shape == case.scan.clinical.array_kji.shape[1:] else image[crop]
        for row, shown in enumerate((image, zoomed)):
            axes = figure.add_subplot(2, len(panels), 1 + n + row * len(panels))
            axes.imshow(shown, interpolation="nearest", **style)
            axes.set_title(title if row == 0 else "", fontsize=11)
            axes.set_axis_off()
    text = f"Simulated specimen, seed {case.seed}: not a patient, not micro-CT of one."
    figure.text(0.5, 0.005, text, ha="center", color="0.4", fontsize=9)
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path)


def busiest_crop(truth_ji: Float32, scale: int, size_voxels: int) -> tuple[slice, slice]:
    """The square of ``size_voxels`` coarse voxels, on the coarse grid, where lung and its structures vary most.

    Args:
        truth_ji: HU.
        scale: fine voxels per coarse one.
        size_voxels: edge in coarse voxels; less where the image is smaller.
    """
    low, high = LUNG_WINDOW_HU
    rows, columns = (n // scale for n in truth_ji.shape)
    size = min(size_voxels, rows, columns)
    blocks = truth_ji[: rows * scale, : columns * scale].clip(low, high).reshape(rows, scale, columns, scale)
    busy = blocks.std(axis=(1, 3))
    sums = np.pad(busy, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    boxes = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    row, column = np.unravel_index(int(np.argmax(boxes)), boxes.shape)
    return slice(int(row) * scale, int(row + size) * scale), slice(int(column) * scale, int(column + size) * scale)
