"""Writing an evaluation's table: Markdown and HTML for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.evaluation.candidates import Candidate
from CTMicroSRLib.evaluation.published import Published, published_for
from CTMicroSRLib.evaluation.results import Row, Table
from CTMicroSRLib.evaluation.variants import ALONE
from CTMicroSRLib.whole_files import write_file

SUFFIXES = (".md", ".html", ".csv", ".json")

Columns = Mapping[str, tuple[str, str]]

QUALITY: Columns = {
    "psnr_db": ("PSNR dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "ssim_lung_window": ("SSIM, lung window", "{:.4f}"),
    "mae_hu": ("mean error HU", "{:.1f}"),
    "lung_psnr_db": ("PSNR dB in lung", "{:.2f}"),
    "lung_ssim": ("SSIM in lung", "{:.4f}"),
    "shift_fine_voxels": ("shifted by fine voxels", "{:.1f}"),
}
STRUCTURES: Columns = {
    "edge_rise_mm": ("vessel edge rise mm", "{:.2f}"),
    "lumen_area_absolute_error": ("lumen area error", "{:.0%}"),
    "wall_absolute_error_mm": ("wall error mm", "{:.2f}"),
    "airways_measurable": ("airways measurable", "{:.0%}"),
    "detected_vessel_0_0.5_mm": ("vessels < 0.5 mm found", "{:.0%}"),
    "detected_vessel_0.5_1_mm": ("0.5-1 mm", "{:.0%}"),
    "detected_airway_0.5_1_mm": ("airways 0.5-1 mm found", "{:.0%}"),
    "detected_airway_1_2_mm": ("1-2 mm", "{:.0%}"),
    "nodule_volume_absolute_error": ("nodule volume error", "{:.0%}"),
}
TRUST: Columns = {
    "resolution_mm": ("resolution mm (FRC 0.5)", "{:.2f}"),
    "fine_power_ratio": ("fine power, share of truth's", "{:.2f}"),
    "grid_hu": ("printed grid HU (0: none)", "{:.1f}"),
    "false_structures_per_cm2": ("false structures per cm2", "{:.1f}"),
    "bias_parenchyma_hu": ("bias HU: parenchyma", "{:+.0f}"),
    "bias_airway_lumen_hu": ("lumen", "{:+.0f}"),
    "bias_airway_wall_hu": ("wall", "{:+.0f}"),
    "bias_artery_hu": ("artery", "{:+.0f}"),
    "bias_vein_hu": ("vein", "{:+.0f}"),
    "bias_nodule_hu": ("nodule", "{:+.0f}"),
}
PAPERS: Columns = {
    "paper_psnr_db": ("PSNR dB (peak 1 on [-1, 1])", "{:.2f}"),
    "paper_ssim": ("SSIM (one window)", "{:.4f}"),
    "m_hum": ("m-HuM (I2)", "{:.3f}"),
    "m_hum_mean_of_minima": ("m-HuM, mean of slices", "{:.3f}"),
    "m_hum_median_of_minima": ("m-HuM, median of slices", "{:.3f}"),
}
TO_INPUT: Columns = {
    "scan_residual_noise": ("scanned again, residual / noise", "{:.2f}"),
    "block_residual_hu": ("block means, residual HU", "{:.1f}"),
    "ause": ("uncertainty: AUSE", "{:.3f}"),
    "ause_of_chance": ("AUSE of chance", "{:.3f}"),
}
PARTS: tuple[tuple[str, Columns], ...] = (
    ("Image quality", QUALITY),
    ("The papers' own metrics", PAPERS),
    ("Against the input, and uncertainty", TO_INPUT),
    ("Structures against their description", STRUCTURES),
    ("Spectra, false structures and bias by tissue", TRUST),
)


FOLDER_TABLE = "evaluation"
"""Name of the tables, without suffix, where the output is a folder."""


def with_published(rows: Sequence[Row], candidates: Sequence[Candidate], protocol: str) -> list[Row]:
    """The rows, those of a candidate's network alone (what the papers ran) with what they say of its method."""
    of_start = {f"{candidate.label}, {ALONE}": published_for(candidate.card, protocol) for candidate in candidates}
    return [
        replace(row, published=next((of_start[start] for start in of_start if row.method.startswith(start)), {}))
        for row in rows
    ]


def table_paths(output: str) -> tuple[Path, ...]:
    """The files that an output names: one with a suffix; all kinds for a folder or a name without.

    A name that ends with a slash is a folder, which need not exist yet; the tables in it are called
    :data:`FOLDER_TABLE`.

    Raises:
        UsageError: another suffix than :data:`SUFFIXES`.
    """
    path = Path(output)
    if output.endswith(("/", os.sep)) or path.is_dir():
        path = path / FOLDER_TABLE
    elif path.suffix:
        check_table_path(path)
        return (path,)
    return tuple(path.with_name(path.name + suffix) for suffix in SUFFIXES)


def check_table_path(path: Path) -> None:
    """Refuse a table's name before anything is measured.

    Raises:
        UsageError: another suffix than :data:`SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"A table can be {', '.join(SUFFIXES)}, not {path.suffix!r}; change the output's name.")


def write_table(table: Table, path: Path) -> None:
    """Write ``.md`` or ``.html`` (for people), ``.csv`` (all numbers) or ``.json`` (all, with the protocol).

    Whole or not at all: where it can't be written, what was there before stays.

    Raises:
        UsageError: another suffix, or a folder that can't be written to.
        ResourceError: the disk is full.
    """
    check_table_path(path)
    text = {".md": markdown, ".html": as_html, ".csv": as_csv, ".json": as_json}[path.suffix](table)
    write_file(path, text.encode())


def markdown(table: Table) -> str:
    """The table as Markdown in parts, with coverage and protocol in a line each."""
    lines: list[str] = []
    for title, columns, rows in _parts(table):
        titles = ["method", *(title for title, _ in columns.values())]
        lines += [f"### {title}", "", _line(titles), _line(["---"] * len(titles))]
        lines += [_line([row.method, *_cells(row, columns)]) for row in rows] + [""]
    return "\n".join([*lines, *_notes(table)]) + "\n"


def as_html(table: Table) -> str:
    """The table as one HTML page."""
    body: list[str] = []
    for title, columns, rows in _parts(table):
        heads = "".join(f"<th>{html.escape(t)}</th>" for t in ["method", *(t for t, _ in columns.values())])
        body.append(f"<h2>{html.escape(title)}</h2><table><tr>{heads}</tr>")
        for row in rows:
            cells = "".join(f"<td>{html.escape(c)}</td>" for c in [row.method, *_cells(row, columns)])
            body.append(f"<tr>{cells}</tr>")
        body.append("</table>")
    body += [f"<p>{html.escape(note)}</p>" for note in _notes(table)]
    style = "body{font-family:sans-serif}td,th{padding:.2em .6em;text-align:right}td:first-child{text-align:left}"
    head = f"<meta charset='utf-8'><title>CTMicroSR evaluation</title><style>{style}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>\n"


def as_csv(table: Table) -> str:
    """Every number of every method and the papers' beside them, empty where there is none."""
    keys = list(dict.fromkeys(key for row in table.rows for key in row.numbers))
    told = list(dict.fromkeys(key for row in table.rows for key in row.published if key in keys))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", *keys, *(f"{key}, the paper's (another data set)" for key in told)])
    for row in table.rows:
        papers = (row.published[key].value if key in row.published else "" for key in told)
        writer.writerow([row.method, *(row.numbers.get(key, "") for key in keys), *papers])
    return text.getvalue()


def as_json(table: Table) -> str:
    """All of the table; numbers that don't exist are null."""
    return json.dumps(as_plain(table), indent=2) + "\n"


def as_plain(table: Table) -> dict[str, Any]:
    """The table as what JSON holds: a row's numbers beside its method, None for what does not exist."""
    rows = [
        {"method": row.method}
        | {key: value if math.isfinite(value) else None for key, value in row.numbers.items()}
        | ({"published": [asdict(number) for number in row.published.values()]} if row.published else {})
        for row in table.rows
    ]
    return {"rows": rows, "coverage": table.coverage, "protocol": table.protocol}


def _parts(table: Table) -> list[tuple[str, Columns, list[Row]]]:
    """The parts that some method has numbers for, with those methods."""
    parts: list[tuple[str, Columns, list[Row]]] = []
    for title, columns in PARTS:
        rows = [row for row in table.rows if any(key in row.numbers for key in columns)]
        shown = {key: column for key, column in columns.items() if any(key in row.numbers for row in rows)}
        if rows:
            parts.append((title, shown, rows))
    return parts


def _cells(row: Row, columns: Columns) -> list[str]:
    return [_cell(row.numbers.get(key, math.nan), form, row.published.get(key)) for key, (_, form) in columns.items()]


def _cell(value: float, form: str, published: Published | None) -> str:
    """A number, and the paper's beside it."""
    own = "" if math.isnan(value) else form.format(value)
    if published is None:
        return own
    differs = "another data set" + (f", changed here: {published.changed}" if published.changed else "")
    return f"{own} (the paper's: {published.value:g}, {differs})".strip()


def _notes(table: Table) -> list[str]:
    notes = []
    for name, numbers in table.coverage.items():
        levels = ", ".join(f"{level} interval {share:.1%}" for level, share in numbers.items() if level.endswith("%"))
        notes.append(f"Coverage of the uncertainty of {name}: {levels}.")
        if "AUSE" in numbers:
            notes[-1] += (
                f" It ranks the errors with an AUSE of {numbers['AUSE']:.3f} (chance: {numbers['AUSE of chance']:.3f})."
            )
        notes.append("")
    shown = {key for _, columns in PARTS for key in columns}
    told = [number for row in table.rows for key, number in row.published.items() if key in shown]
    for source in dict.fromkeys((n.paper, n.table, n.protocol, n.note) for n in told):
        paper, number, of_protocol, note = source
        notes += [f"The paper's numbers of {paper}, table {number} ({of_protocol}): {note}.", ""]
    notes.append(_measured_on(table.protocol))
    return notes


def _measured_on(protocol: Mapping[str, Any]) -> str:
    """The protocol in a sentence."""
    if "text" in protocol:
        return f"{protocol['text']} Computed on {protocol['machine']}."
    return (
        f"{protocol['cases']} simulated specimens of {protocol.get('set', 'own cases')}, seeds {protocol['seeds']}; "
        f"{protocol['machine']}."
    )


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
