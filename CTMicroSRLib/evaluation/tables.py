"""Writing an evaluation's table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.evaluation.simulated import Table

COLUMNS = {
    "psnr_db": ("PSNR dB", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "ssim_lung_window": ("SSIM, lung window", "{:.4f}"),
    "mae_hu": ("mean error HU", "{:.1f}"),
}


def write_table(table: Table, path: Path) -> None:
    """Write ``.json`` (all) or ``.md`` (for people).

    Raises:
        UsageError: another suffix.
    """
    if path.suffix == ".json":
        path.write_text(json.dumps(asdict(table), indent=2) + "\n", encoding="utf-8")
    elif path.suffix == ".md":
        path.write_text(markdown(table), encoding="utf-8")
    else:
        raise UsageError(f"A table can be .json or .md, not {path.suffix!r}; change the output's name.")


def markdown(table: Table) -> str:
    """The table as Markdown, with coverage and protocol in a line each."""
    titles = ["method", *(title for title, _ in COLUMNS.values())]
    lines = [_line(titles), _line(["---"] * len(titles))]
    for row in table.rows:
        lines.append(_line([row.method, *(form.format(getattr(row, key)) for key, (_, form) in COLUMNS.items())]))
    for name, levels in table.coverage.items():
        shown = ", ".join(f"{level} interval {share:.1%}" for level, share in levels.items())
        lines.append(f"\nCoverage of the uncertainty of {name}: {shown}.")
    seeds = table.protocol["seeds"]
    lines.append(f"\n{table.protocol['cases']} simulated specimens, seeds {seeds}; {table.protocol['machine']}.")
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
