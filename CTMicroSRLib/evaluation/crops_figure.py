"""One case through every method: the same crops, windows and sizes, with the truth beside them."""

from __future__ import annotations

from pathlib import Path

from CTMicroSRLib.errors import ResourceError
from CTMicroSRLib.evaluation.simulated import Shown
from CTMicroSRLib.intensity import LUNG_WINDOW_HU
from CTMicroSRLib.simulation.case_figure import busiest_crop

CROP_MM = 14.0
COLUMNS = 5


def draw_crops(shown: Shown, path: Path) -> None:
    """Draw the clinical scan, every method and the truth, in the lung window, cropped to where the truth varies most.

    Args:
        shown: one slice through every method.
        path: picture to write (.png).

    Raises:
        ResourceError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("The figure needs matplotlib; install it (pip install 'ctmicrosr[figures]').") from None
    scale = shown.truth_ji.shape[0] // shown.clinical_ji.shape[0]
    crop = busiest_crop(shown.truth_ji, scale, max(4, round(CROP_MM / shown.pixel_mm)))
    coarse = tuple(slice(part.start // scale, part.stop // scale) for part in crop)
    panels = {"clinical CT": shown.clinical_ji[coarse]}
    panels |= {name: image[crop] for name, image in shown.images_ji.items()} | {"truth": shown.truth_ji[crop]}
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.0 * COLUMNS, 3.25 * rows), dpi=110)
    FigureCanvasAgg(figure)
    for n, (title, image) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, COLUMNS, n + 1)
        axes.imshow(image, cmap="gray", vmin=LUNG_WINDOW_HU[0], vmax=LUNG_WINDOW_HU[1], interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    figure.text(
        0.5, 0.005, "Simulated specimen: not a patient, not micro-CT of one.", ha="center", color="0.4", fontsize=8
    )
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path)
