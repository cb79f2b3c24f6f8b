"""One case through every method: the same two crops, windows and sizes, with the truth beside them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import ResourceError
from CTMicroSRLib.evaluation.metrics import psnr_db
from CTMicroSRLib.evaluation.results import Shown
from CTMicroSRLib.intensity import LUNG_WINDOW_HU
from CTMicroSRLib.simulation.case_figure import busiest_crop
from CTMicroSRLib.whole_files import write_file

CROP_MM = 14.0
LEAST_CROP_VOXELS = 16
MOST_COLUMNS = 7
PANEL_INCHES = 2.3
TITLE_WIDTH = 30
"""Characters of a title's line."""

MOST_IMAGES = 18
"""More are thinned out to one for each model and bicubic alone."""

PARENCHYMA_HU = (-960.0, -650.0)
"""Mean of a crop that is taken for plain parenchyma."""

Float32 = NDArray[np.float32]
Crop = tuple[slice, slice]


def draw_crops(shown: Shown, path: Path) -> None:
    """Draw the clinical scan, every method and the truth, in the lung window, at two places.

    Above where the truth varies most (vessels and bronchi), below in the plainest parenchyma. A title has the method
    and the PSNR (peak 3500 HU) of the crop.

    Args:
        shown: one slice through every method.
        path: picture to write (.png).

    Raises:
        ResourceError: matplotlib is not installed, or the disk is full; what was there before is still there.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("The figure needs matplotlib; install it (pip install 'ctmicrosr[figures]').") from None
    scale = shown.truth_ji.shape[0] // shown.clinical_ji.shape[0]
    size = max(LEAST_CROP_VOXELS, round(CROP_MM / shown.pixel_mm))
    images = readable(shown.images_ji)
    rows = -(-(len(images) + 2) // MOST_COLUMNS)
    columns = -(-(len(images) + 2) // rows)
    figure = Figure(figsize=(PANEL_INCHES * columns, (PANEL_INCHES + 0.42) * 2 * rows + 0.9), dpi=110)
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1)
    upper, lower = parts
    places = (
        (upper, "Vessels and bronchi", busiest_crop(shown.truth_ji, scale, size)),
        (lower, "Parenchyma", plainest_crop(shown.truth_ji, scale, size)),
    )
    for part, title, crop in places:
        part.suptitle(
            title, x=0.01, ha="left", fontsize=11, fontweight="bold"
        )  # above "input", whose title is one line
        _draw_place(part, shown, images, crop, (rows, columns))
    if shown.notice:
        figure.text(0.5, 0.003, shown.notice, ha="center", color="0.4", fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_file(path, content.getvalue())


def readable(images: dict[str, Float32]) -> dict[str, Float32]:
    """The images to draw: all while they are few, else bicubic and one for each model, consistent if there is."""
    if len(images) <= MOST_IMAGES:
        return images
    consistent = {name.split(", ")[0] for name in images if ", scan" in name}
    kept: dict[str, Float32] = {}
    for name, image in images.items():
        label, _, variant = name.partition(", ")
        if label in ("B-spline", "Lanczos") or (label == "bicubic" and variant.startswith("scan")):
            continue
        if label == "bicubic" or variant.startswith("scan") or label not in consistent:
            kept[name] = image
    return kept


def plainest_crop(truth_ji: Float32, scale: int, size_voxels: int) -> Crop:
    """The square of ``size_voxels`` coarse voxels, on the coarse grid, that varies least among those of lung's mean.

    Args:
        truth_ji: HU.
        scale: fine voxels per coarse one.
        size_voxels: edge in coarse voxels; less where the image is smaller.

    Returns:
        Rows and columns; where no square has lung's mean, the one whose mean is nearest to it.
    """
    rows, columns = (n // scale for n in truth_ji.shape)
    size = min(size_voxels, rows, columns)
    blocks = truth_ji[: rows * scale, : columns * scale].clip(*LUNG_WINDOW_HU).astype(np.float64)
    parts = blocks.reshape(rows, scale, columns, scale)
    mean = _box_means(parts.mean(axis=(1, 3)), size)
    variance = _box_means((parts**2).mean(axis=(1, 3)), size) - mean**2
    low, high = PARENCHYMA_HU
    lung = (mean >= low) & (mean <= high)
    score = np.where(lung, variance, np.inf) if lung.any() else np.abs(mean - (low + high) / 2.0)
    row, column = (int(n) for n in np.unravel_index(int(np.argmin(score)), score.shape))
    return slice(row * scale, (row + size) * scale), slice(column * scale, (column + size) * scale)


def _box_means(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    total: NDArray[np.float64] = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return total / size**2


def _draw_place(part: Any, shown: Shown, images: dict[str, Float32], crop: Crop, grid: tuple[int, int]) -> None:  # noqa: ANN401
    """All panels of one place, clinical scan first and truth last."""
    scale = shown.truth_ji.shape[0] // shown.clinical_ji.shape[0]
    coarse = tuple(slice(axis.start // scale, axis.stop // scale) for axis in crop)
    truth = shown.truth_ji[crop]
    panels = [("input", shown.clinical_ji[coarse])]
    panels += [
        (f"{_wrapped(name)}\n{psnr_db(image[crop], truth):.2f} dB", image[crop]) for name, image in images.items()
    ]
    panels.append(("truth", truth))
    axes = part.subplots(*grid, squeeze=False).ravel()
    part.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=1.0 - 0.22 / grid[0], wspace=0.05, hspace=0.28)
    for n, panel in enumerate(axes):
        panel.set_axis_off()
        if n < len(panels):
            title, image = panels[n]
            panel.imshow(image, cmap="gray", vmin=LUNG_WINDOW_HU[0], vmax=LUNG_WINDOW_HU[1], interpolation="nearest")
            panel.set_title(title, fontsize=8, pad=3)


def _wrapped(name: str) -> str:
    """A title in lines that fit above a panel."""
    lines = [""]
    for word in name.split(" "):
        if len(lines[-1]) + len(word) >= TITLE_WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
