"""Real scans beside simulated ones: ``python -m CTMicroSRLib.evaluation.realism SCAN... --output FOLDER``."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.acquisition import estimate_acquisition
from CTMicroSRLib.errors import UsageError, user_error
from CTMicroSRLib.evaluation.realism_figure import draw_comparison
from CTMicroSRLib.evaluation.realism_measures import Measures, Part, measure
from CTMicroSRLib.evaluation.realism_table import Comparison, compare, markdown, write_comparison
from CTMicroSRLib.files import read_volume
from CTMicroSRLib.lungs import segment_lungs
from CTMicroSRLib.progress import Progress, SilentProgress, check_cancelled
from CTMicroSRLib.signals import cancel_on_signals
from CTMicroSRLib.simulation.cases import CaseSettings, make_case
from CTMicroSRLib.simulation.description import OUTSIDE_LUNG
from CTMicroSRLib.terminal import BarProgress, make_progress
from CTMicroSRLib.volume import Volume

BLOCK_MM = 44.0
LEAST_DEPTH_MM = 7.0
LEAST_SLICES = 4
LEAST_LUNG_SHARE = 0.3
"""A block with less lung is left out."""

RIM_MM = 3.0
LUNG_BELOW_HU = -400.0
"""What parts lung from tissue in real scans, see :class:`~CTMicroSRLib.lungs.LungSettings`."""


OUTPUTS = ("realism.md", "realism.json", "realism.png")

Float32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class MeasuredScan:
    """A real scan's measures and the settings that a simulated scan is made alike with."""

    measures: Measures
    settings: CaseSettings


def measure_scan(volume: Volume, progress: Progress | None = None) -> MeasuredScan:
    """Measure the lungs of a real chest CT.

    Args:
        volume: a CT in HU that shows some of the body around the lungs.
        progress: told of every stage.

    Raises:
        RefusedInputError: no lung is in view.
        CancelledError: ``progress`` said so.
    """
    progress = progress or SilentProgress()
    acquisition = estimate_acquisition(volume, progress=progress)
    lungs = segment_lungs(volume, progress=progress)
    measures = measure([Part(volume, lungs.array_kji)], acquisition.noise_hu, progress=progress)
    return MeasuredScan(measures, matched_settings(volume, acquisition.psf_fwhm_mm, measures))


def matched_settings(volume: Volume, psf_fwhm_mm: float, measures: Measures) -> CaseSettings:
    """Settings of a simulated scan that was acquired as a real one was.

    The noise is that inside the lungs, which is less than in soft tissue. Slices are taken to be as thick as they
    are apart, as scans don't tell, and the blocks without nodules, emphysema, ground glass and thickened bronchi,
    of which the real scans show next to none.

    Args:
        volume: the scan.
        psf_fwhm_mm: its in-plane point spread.
        measures: its measures.
    """
    spacing_mm = volume.geometry.spacing_mm
    pixel_mm = math.sqrt(spacing_mm[0] * spacing_mm[1])
    noise = [measures.numbers[key] for key in ("lung_noise_hu", "soft_tissue_noise_hu")]
    slices = max(LEAST_SLICES, math.ceil(LEAST_DEPTH_MM / spacing_mm[2]))
    return CaseSettings(
        pixel_mm=round(pixel_mm, 4),
        psf_fwhm_mm=round(psf_fwhm_mm, 3),
        slice_mm=round(spacing_mm[2], 4),
        noise_hu=round(next(value for value in noise if math.isfinite(value)), 2),
        size_voxels=8 * round(BLOCK_MM / pixel_mm / 8),
        depth_mm=round(spacing_mm[2], 4) * slices,
        disease="healthy",
    )


def simulate_alike(settings: CaseSettings, cases: int, seed: int, progress: Progress | None = None) -> Measures:
    """Make and scan simulated blocks and measure them all together.

    Args:
        settings: pixel, slices, blur and noise.
        cases: number of blocks.
        seed: seed of the first block; the others count up from it.
        progress: told of every block.

    Raises:
        UsageError: no positive number of blocks.
        CancelledError: ``progress`` said so.
    """
    if cases < 1 or seed < 0:
        raise UsageError("Give at least 1 simulated block and a seed of 0 or more.")
    progress = progress or SilentProgress()
    parts: list[Part] = []
    noise: Float32 = np.zeros((0, 1, 1), np.float32)
    for n in range(cases):
        check_cancelled(progress)
        progress.update("simulating", n, cases)
        case = make_case(settings, seed + n)
        part = Part(case.clinical, lung_of_block(case.clinical, getattr(case, "labels", None)))
        if part.lung_kji.mean() >= LEAST_LUNG_SHARE:
            parts.append(part)
        if n == 0:
            # The same scan without noise leaves noise alone.
            clean = make_case(replace(settings, noise_hu=0.0), seed).clinical.array_kji
            noise = case.clinical.array_kji.astype(np.float32) - clean.astype(np.float32)
    progress.update("simulating", cases, cases)
    return measure(parts, settings.noise_hu, noise, progress=progress)


def lung_of_block(clinical: Volume, labels: Volume | None) -> Bools:
    """Lung, vessels included, of a simulated clinical scan, shape (k, j, i).

    Args:
        clinical: the scan.
        labels: :class:`Label` on any grid with the same directions; None tells lung by its HU.
    """
    if labels is None:
        return _lung_by_hu(clinical)
    at = []
    for axis in range(3):
        first, step = clinical.geometry.origin_mm[axis], clinical.geometry.spacing_mm[axis]
        position = first + step * np.arange(clinical.geometry.size_ijk[axis]) - labels.geometry.origin_mm[axis]
        index = np.rint(position / labels.geometry.spacing_mm[axis]).astype(int)
        at.append(index.clip(0, labels.geometry.size_ijk[axis] - 1))
    i, j, k = at
    wall = np.isin(np.asarray(labels.array_kji)[np.ix_(k, j, i)], OUTSIDE_LUNG)
    return _without_rim(wall, clinical)


def _without_rim(wall_kji: Bools, clinical: Volume) -> Bools:
    """What is not wall, nor as dense as lung never is and next to wall: there the slice holds both."""
    from scipy.ndimage import binary_dilation

    rounds = math.ceil(RIM_MM / clinical.geometry.spacing_mm[0])
    dense = np.asarray(clinical.array_kji) > LUNG_BELOW_HU
    rim = binary_dilation(wall_kji, np.ones((1, 3, 3)), iterations=rounds, mask=dense | wall_kji)
    return np.asarray(~(rim | wall_kji))


def _lung_by_hu(clinical: Volume) -> Bools:
    """Everything but tissue thicker than 8 mm that reaches a block's side."""
    from scipy import ndimage

    pixel_mm = clinical.geometry.spacing_mm[0]
    radius = math.ceil(4.0 / pixel_mm)
    j, i = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = j**2 + i**2 <= radius**2
    lung = np.ones(clinical.array_kji.shape, dtype=bool)
    for plane, out in zip(np.asarray(clinical.array_kji, np.float32), lung, strict=True):
        padded = np.pad(plane > LUNG_BELOW_HU, radius, mode="edge")
        thick = ndimage.binary_opening(padded, disc)[radius:-radius, radius:-radius]
        labels, _ = ndimage.label(thick)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        out[np.isin(labels, border[border > 0])] = False
    return lung


def compare_scans(paths: Sequence[Path], cases: int, seed: int, progress: Progress | None = None) -> Comparison:
    """Measure real scans and simulated blocks scanned alike.

    Raises:
        UsageError: two scans of one name, or no positive number of blocks.
        RefusedInputError: a scan that can't be read or shows no lung.
    """
    names = [path.name.split(".")[0] for path in paths]
    if len(set(names)) < len(names):
        raise UsageError("Two scans have the same name; give each another.")
    real, simulated, settings = {}, {}, {}
    for name, path in zip(names, paths, strict=True):
        scan = measure_scan(read_volume(path), progress)
        real[name], settings[name] = scan.measures, asdict(scan.settings)
        simulated[name] = simulate_alike(scan.settings, cases, seed, progress)
    return compare(real, simulated, {"settings": settings, "cases": cases, "seed": seed})


def run(options: argparse.Namespace) -> None:
    """Compare, and write the table and the figure."""
    folder: Path = options.output
    existing = [name for name in OUTPUTS if (folder / name).exists()]
    if existing and not options.overwrite:
        raise UsageError(f"{folder / existing[0]} exists already; choose another folder or add --overwrite.")
    if options.cases < 1 or options.seed < 0:
        raise UsageError("Give at least 1 simulated block and a seed of 0 or more.")
    folder.mkdir(parents=True, exist_ok=True)
    progress = make_progress(options.progress)
    try:
        comparison = compare_scans(options.scans, options.cases, options.seed, progress)
    finally:
        if isinstance(progress, BarProgress):
            progress.close()
    write_comparison(comparison, folder)
    draw_comparison(comparison, folder / OUTPUTS[2])
    sys.stdout.write(markdown(comparison))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}; see '{self.prog} --help'.")


def build_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = _Parser(prog="realism", description="Measure real chest CTs beside simulated ones.", allow_abbrev=False)
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help=f"gets {', '.join(OUTPUTS)}")
    parser.add_argument("--cases", type=int, default=8, metavar="N", help="simulated blocks for each scan (8)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first block (0)")
    parser.add_argument("--progress", choices=("auto", "none"), default="auto")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, see :mod:`CTMicroSRLib.errors`."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        with cancel_on_signals():
            run(build_parser().parse_args(arguments))
    except (Exception, KeyboardInterrupt) as error:
        known = user_error(error)
        if "--debug" in (sys.argv if arguments is None else arguments):
            traceback.print_exc()
        sys.stderr.write(f"realism: {' '.join(str(known).split())}\n")
        return known.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
