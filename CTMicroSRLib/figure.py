"""A picture of a result: input, interpolation, result, truth and uncertainty at the same place and window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from CTMicroSRLib.errors import ResourceError
from CTMicroSRLib.intensity import LUNG_WINDOW_HU
from CTMicroSRLib.interpolators import bicubic
from CTMicroSRLib.volume import Region, Volume

ZOOM_VOXELS = 48
UNCERTAINTY_LIMIT_HU = 150.0
PANEL_PIXELS = 512
"""A panel's edge is about as many pixels on the picture."""

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Panel:
    """One picture of a row: its title, pixels, and whether it is an uncertainty (in colour)."""

    title: str
    image: Float32
    uncertainty: bool = False


@dataclass(frozen=True)
class View:
    """A square of coarse voxels in a slice of a region: ``rows``, ``columns`` and ``k`` of the region."""

    k: int
    rows: tuple[int, int]
    columns: tuple[int, int]


def draw_result(
    path: Path,
    scan: Volume,
    region: Region,
    result_path: Path,
    uncertainty_path: Path | None,
    truth: Volume | None = None,
) -> None:
    """Draw two views of a result: the region in the slice that shows most lung, and its part with most structure.

    Only the slices that are drawn are read from the files.

    Args:
        path: picture to write (.png).
        scan: the input.
        region: what was super-resolved.
        result_path: the written result.
        uncertainty_path: the written uncertainty, or None.
        truth: the fine truth where it is known (simulation).
    """
    coarse = np.asarray(scan.crop(region).array_kji)
    views = choose_views(coarse)
    readers = {"CTMicroSR": result_path} | ({"uncertainty": uncertainty_path} if uncertainty_path else {})
    rows = []
    for view in views:
        plane = np.asarray(coarse[view.k], dtype=np.float32)
        scale = _scale(result_path, plane.shape)
        part = (slice(*view.rows), slice(*view.columns))
        fine_part = (
            slice(view.rows[0] * scale, view.rows[1] * scale),
            slice(view.columns[0] * scale, view.columns[1] * scale),
        )
        panels = [
            Panel("clinical CT", plane[part]),
            Panel("bicubic", _shrunk(bicubic(plane, scale)[fine_part])),
        ]
        for title, file in readers.items():
            panels.append(Panel(title, _shrunk(_read_slice(file, view.k)[fine_part]), title == "uncertainty"))
        if truth is not None:
            panels.insert(3, Panel("truth", _shrunk(np.asarray(truth.array_kji[view.k], np.float32)[fine_part])))
        rows.append(panels)
    draw_rows(path, rows)


def choose_views(coarse_kji: NDArray[Any]) -> list[View]:
    """The slice with most lung structure, and in it the square with most."""
    window = np.clip(np.asarray(coarse_kji[:: max(1, len(coarse_kji) // 16)], np.float32), -1000.0, 0.0)
    step = max(1, len(coarse_kji) // 16)
    aerated = (window < -500.0).mean(axis=(1, 2))
    k = int(np.argmax(aerated)) * step
    plane = np.clip(np.asarray(coarse_kji[k], np.float32), -1000.0, 0.0)
    size = min(ZOOM_VOXELS, *plane.shape)
    best, at = -1.0, (0, 0)
    for row in range(0, plane.shape[0] - size + 1, max(1, size // 3)):
        for column in range(0, plane.shape[1] - size + 1, max(1, size // 3)):
            part = plane[row : row + size, column : column + size]
            air = float((part < -700.0).mean())
            vessels = float(((part > -650.0) & (part < -100.0)).mean())
            score = vessels if 0.6 < air < 0.97 else 0.1 * air * vessels
            if score > best:
                best, at = score, (row, column)
    rows, columns = plane.shape
    whole = View(k, (0, rows), (0, columns))
    zoom = View(k, (at[0], at[0] + size), (at[1], at[1] + size))
    return [whole, zoom] if size < max(rows, columns) else [whole]


def draw_rows(path: Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw rows of panels at the lung window.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError(
            "A figure needs matplotlib; install it (pip install 'ctmicrosr[figures]') or leave --figure out."
        ) from None
    count = max(len(row) for row in rows)
    figure = Figure(figsize=(4.2 * count, 4.4 * len(rows)), dpi=110)
    FigureCanvasAgg(figure)
    for r, row in enumerate(rows):
        for c, panel in enumerate(row):
            axes = figure.add_subplot(len(rows), count, r * count + c + 1)
            axes.set_axis_off()
            axes.set_title(panel.title, fontsize=12)
            if panel.uncertainty:
                shown = axes.imshow(panel.image, cmap="inferno", vmin=0.0, vmax=UNCERTAINTY_LIMIT_HU)
                bar = figure.colorbar(shown, ax=axes, fraction=0.045, pad=0.02)
                bar.set_label("standard deviation, HU")
            else:
                axes.imshow(
                    panel.image,
                    cmap="gray",
                    vmin=LUNG_WINDOW_HU[0],
                    vmax=LUNG_WINDOW_HU[1],
                    interpolation="nearest",
                )
    figure.text(
        0.5,
        0.005,
        "Window -1350 to 150 HU. Research use, not for diagnosis.",
        ha="center",
        fontsize=9,
        color="0.4",
    )
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    part = path.with_name(f".{path.name}.part.png")
    try:
        figure.savefig(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _shrunk(image: Float32) -> Float32:
    """Block means of an image that has more pixels than a panel; drawing a whole fine slice takes a gigabyte."""
    step = max(image.shape) // PANEL_PIXELS
    if step < 2:
        # a copy, so that the whole slice is not kept for a part of it
        return np.array(image)
    rows, columns = (n // step for n in image.shape)
    blocks = image[: rows * step, : columns * step].reshape(rows, step, columns, step)
    return np.asarray(np.mean(blocks, axis=(1, 3)), np.float32)


def _scale(result_path: Path, coarse_shape: tuple[int, ...]) -> int:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(result_path))
    reader.ReadImageInformation()
    return int(reader.GetSize()[0]) // coarse_shape[1]


def _read_slice(path: Path, k: int) -> Float32:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    columns, rows, _ = reader.GetSize()
    reader.SetExtractIndex([0, 0, k])
    reader.SetExtractSize([columns, rows, 1])
    return np.asarray(sitk.GetArrayFromImage(reader.Execute())[0], dtype=np.float32)
