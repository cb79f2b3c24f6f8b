"""The comparison of real scans with simulated ones as curves; no picture of a scan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from CTMicroSRLib.errors import ResourceError
from CTMicroSRLib.evaluation.realism_measures import Curve, Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from CTMicroSRLib.evaluation.realism_table import Comparison

PANELS: tuple[tuple[str, str, str, str], ...] = (
    ("histogram", "HU in the lung", "HU", "share per HU"),
    ("soft_tissue_spectrum", "Noise in soft tissue", "frequency, 1/mm", "power / variance, mm²"),
    ("outside_air_spectrum", "Noise in outside air", "frequency, 1/mm", "power / variance, mm²"),
    ("parenchyma_spectrum", "Plain parenchyma", "frequency, 1/mm", "power, HU² mm²"),
    ("local_std", "Standard deviation in 5 mm of parenchyma", "HU", "share per HU"),
    ("vessels", "Vessels at half threshold", "at least this wide, mm", "per cm² of lung"),
    ("faint_vessels", "Vessels at quarter threshold", "at least this wide, mm", "per cm² of lung"),
    ("vessel_rise", "10-90 % rise of vessel edges", "mm", "share per mm"),
    ("airway_rise", "10-90 % rise of airway lumen edges", "mm", "share per mm"),
)
"""Curve, title and axes of each panel."""

NORMALISED = ("soft_tissue_spectrum", "outside_air_spectrum")
LOGARITHMIC = ("vessels", "faint_vessels")


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Draw every curve: a colour for each scan, real solid, simulated dashed.

    Args:
        comparison: see :func:`CTMicroSRLib.evaluation.realism_table.compare`.
        path: picture to write (.png).

    Raises:
        ResourceError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("The figure needs matplotlib; install it (pip install 'ctmicrosr[figures]').") from None
    figure = Figure(figsize=(15.0, 12.0), dpi=90)
    FigureCanvasAgg(figure)
    for n, panel in enumerate(PANELS):
        axes = figure.add_subplot(3, 3, n + 1)
        for c, name in enumerate(comparison.real):
            _draw(axes, panel[0], comparison.real[name], f"C{c}", "-", name)
            if name in comparison.simulated:
                _draw(axes, panel[0], comparison.simulated[name], f"C{c}", "--", f"{name}, simulated")
        _label(axes, *panel)
    figure.axes[0].legend(fontsize=8)
    figure.text(0.5, 0.005, "Solid: real scan. Dashed: simulated blocks scanned alike.", ha="center", color="0.4")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path)


def _draw(axes: Axes, key: str, measures: Measures, colour: str, style: str, label: str) -> None:
    curve = measures.curves.get(key)
    if curve is None:
        return
    if key in NORMALISED:
        curve = _normalised(curve)
    axes.plot(curve.x, curve.y, style, color=colour, label=label, linewidth=1.4)


def _normalised(spectrum: Curve) -> Curve:
    """The spectrum over its integral over the plane."""
    step = (spectrum.x[-1] - spectrum.x[0]) / (len(spectrum.x) - 1)
    return Curve(spectrum.x, spectrum.y / (6.2832 * (spectrum.x * spectrum.y).sum() * step))


def _label(axes: Axes, key: str, title: str, x_name: str, y_name: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    if key == "histogram":
        axes.set_xlim(-1024.0, -400.0)
    elif key in LOGARITHMIC:
        # Nothing positive can't be drawn to a logarithmic scale; symlog goes through 0.
        axes.set_yscale("symlog", linthresh=1e-3)
    else:
        axes.set_xlim(left=0.0)
        axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
