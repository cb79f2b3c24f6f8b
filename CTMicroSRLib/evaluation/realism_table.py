"""The comparison of real scans with simulated ones as a table: Markdown for people, JSON with everything."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from CTMicroSRLib.evaluation.realism_measures import CLASS_NAMES, PERCENTILES, Measures

_QUARTILES = ((50, "median"), (25, "lower quartile"), (75, "upper quartile"))

TITLES: dict[str, tuple[str, str]] = {
    "mode_hu": ("Lung: most frequent HU", "{:.0f}"),
    **{f"percentile_{n}_hu": (f"Lung: {n} % percentile, HU", "{:.0f}") for n in PERCENTILES},
    "spread_hu": ("Lung: interquartile range / 1.349 less noise, HU", "{:.1f}"),
    "soft_tissue_noise_hu": ("Noise in soft tissue, HU", "{:.1f}"),
    "lung_noise_hu": ("Noise in the lung, HU", "{:.1f}"),
    "outside_air_noise_hu": ("Noise in outside air, HU", "{:.1f}"),
    "soft_tissue_peak": ("Noise spectrum, soft tissue: peak, 1/mm", "{:.3f}"),
    "soft_tissue_centroid": ("Noise spectrum, soft tissue: centroid, 1/mm", "{:.3f}"),
    "outside_air_peak": ("Noise spectrum, outside air: peak, 1/mm", "{:.3f}"),
    "outside_air_centroid": ("Noise spectrum, outside air: centroid, 1/mm", "{:.3f}"),
    "parenchyma_peak": ("Spectrum of plain parenchyma: peak, 1/mm", "{:.3f}"),
    "parenchyma_centroid": ("Spectrum of plain parenchyma: centroid, 1/mm", "{:.3f}"),
    **{
        f"local_std_hu_{n}": (f"Standard deviation in 5 mm of parenchyma: {name}, HU", "{:.1f}")
        for n, name in _QUARTILES
    },
    **{f"texture_hu_{n}": (f"The same less noise: {name}, HU", "{:.1f}") for n, name in _QUARTILES},
    "plain_share": ("Share of 5 mm windows without vessel or airway", "{:.2f}"),
    "regional_spread_hu": ("Spread of those windows' means, HU", "{:.1f}"),
    **{f"vessels_{n}": (f"Vessels of {n} mm per cm² of lung", "{:.3f}") for n in CLASS_NAMES},
    "vessels_area": ("Share of lung area that is vessel", "{:.4f}"),
    **{f"faint_vessels_{n}": (f"Vessels of {n} mm per cm², quarter threshold", "{:.3f}") for n in CLASS_NAMES},
    "faint_vessels_area": ("Share of lung area, quarter threshold", "{:.4f}"),
    **{f"vessel_rise_mm_{n}": (f"Vessel edges, 10-90 % rise: {name}, mm", "{:.2f}") for n, name in _QUARTILES},
    "vessel_peak_hu": ("Vessels of 2.5 to 10 mm: HU in the middle", "{:.0f}"),
    "lumina": ("Airway lumina per cm² of lung", "{:.4f}"),
    "lumina_mm": ("Airway lumina: median diameter, mm", "{:.2f}"),
    **{f"airway_rise_mm_{n}": (f"Airway lumen edges, 10-90 % rise: {name}, mm", "{:.2f}") for n, name in _QUARTILES},
    "airway_peak_hu": ("Airway walls: brightest HU", "{:.0f}"),
}
"""Title (with unit) and format of each number, in the table's order."""

GIVEN = ("soft_tissue_noise_hu",)
"""Numbers that the simulation is told, and so not judged by."""

NOTE = """\
Each scan is measured beside simulated blocks scanned with the scan's own pixel, slices, blur and noise, all estimated
from the scan. "Within" says in how many cases the simulated value lies between the lowest and the highest real one;
another real scan would do so in about half of the rows where there are three. The simulation is no patient and has no
anatomy as a whole: no hilum, and no outside air.
"""


@dataclass(frozen=True)
class Row:
    """A measure of each scan, real and simulated, and whether the simulated lies between the real ones."""

    key: str
    title: str
    real: dict[str, float]
    simulated: dict[str, float]
    low: float
    high: float
    within: dict[str, bool]


@dataclass(frozen=True)
class Comparison:
    """Rows by measure; the measures of ``real`` scans and of their simulation; what was compared."""

    rows: list[Row]
    real: dict[str, Measures]
    simulated: dict[str, Measures]
    protocol: dict[str, Any]


def compare(real: Mapping[str, Measures], simulated: Mapping[str, Measures], protocol: Mapping[str, Any]) -> Comparison:
    """Set real scans beside their matched simulations.

    Args:
        real: measures by the scan's name.
        simulated: measures of the blocks that were scanned as that scan was.
        protocol: what was compared and how, for the record.

    Returns:
        The comparison; a value that could not be measured is NaN and not judged.
    """
    rows = []
    for key, (title, _) in TITLES.items():
        values = {name: measures.numbers.get(key, math.nan) for name, measures in real.items()}
        matched = {name: measures.numbers.get(key, math.nan) for name, measures in simulated.items()}
        known = [value for value in values.values() if math.isfinite(value)]
        low, high = (min(known), max(known)) if known else (math.nan, math.nan)
        judged = {} if key in GIVEN else {n: low <= v <= high for n, v in matched.items() if math.isfinite(v)}
        rows.append(Row(key, title, values, matched, low, high, judged if known else {}))
    return Comparison(rows, dict(real), dict(simulated), dict(protocol))


def markdown(comparison: Comparison) -> str:
    """The comparison for people: one row a measure, real and simulated side by side."""
    names = list(comparison.real)
    titles = [
        "measure",
        *(f"{name}: {kind}" for name in names for kind in ("real", "simulated")),
        "real range",
        "within",
    ]
    lines = ["# Real scans and simulated ones", "", NOTE, _line(titles), _line(["---"] * len(titles))]
    for row in comparison.rows:
        form = TITLES[row.key][1]
        cells = [_number(values.get(n, math.nan), form) for n in names for values in (row.real, row.simulated)]
        span = f"{_number(row.low, form)} to {_number(row.high, form)}" if math.isfinite(row.low) else "–"
        share = f"{sum(row.within.values())} of {len(row.within)}" if row.within else "–"
        lines.append(_line([row.title, *cells, span, share]))
    judged = [within for row in comparison.rows for within in row.within.values()]
    lines += ["", f"Within: {sum(judged)} of {len(judged)} values.", ""]
    for name, text in comparison.protocol.get("settings", {}).items():
        lines.append(f"- {name}: " + ", ".join(f"{k} {v}" for k, v in text.items() if v is not None))
    cases, seed = comparison.protocol.get("cases"), comparison.protocol.get("seed")
    if cases is not None:
        lines.append(f"- {cases} simulated blocks for each scan, seeds from {seed}")
    return "\n".join(lines) + "\n"


def to_json(comparison: Comparison) -> str:
    """All numbers and curves; a value that could not be measured is null."""
    return json.dumps(_plain(asdict(comparison)), indent=2, allow_nan=False) + "\n"


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``realism.md`` and ``realism.json`` into a folder that exists."""
    texts = {"realism.md": markdown(comparison), "realism.json": to_json(comparison)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _number(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "–"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
