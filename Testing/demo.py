"""`make demo`: super-resolve a real chest CT and a simulated specimen, and draw both.

The real scan is the chest CT that the slicerio package carries (128 x 128 x 34 voxels of 3.05 x 3.05 x 10 mm):
coarse, but on every machine without a download. The simulated one comes with its truth.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from CTMicroSRLib.figure import draw_result
from CTMicroSRLib.files import read_any_volume, read_volume, write_volume
from CTMicroSRLib.jobs import Job, run_job
from CTMicroSRLib.options import Options
from CTMicroSRLib.report import Report
from CTMicroSRLib.simulation.cases import CaseSettings, make_case
from CTMicroSRLib.terminal import make_progress
from CTMicroSRLib.volume import Region

SPECIMEN_SEED = 900_101

logger = logging.getLogger("demo")


@dataclass(frozen=True)
class Files:
    """What the demo writes for one scan."""

    result: Path
    uncertainty: Path
    report: Path
    figure: Path


def files(folder: Path, name: str) -> Files:
    """Names of a scan's files."""
    return Files(*(folder / f"{name}{end}" for end in ("-sr.nrrd", "-uncertainty.nrrd", "-report.json", "-figure.png")))


def real_scan(folder: Path) -> tuple[Files, Report]:
    """Super-resolve the lungs of the real scan."""
    out = files(folder, "chest")
    with resources.as_file(resources.files("slicerio") / "data" / "CTChest4.nrrd") as scan:
        job = Job(
            input=scan,
            output=out.result,
            options=Options(uncertainty=True, passes=20, seed=1),
            uncertainty=out.uncertainty,
            report=out.report,
            figure=out.figure,
            overwrite=True,
        )
        return out, run_job(job, make_progress("auto"))


def simulated_scan(folder: Path) -> tuple[Files, Report]:
    """Super-resolve a simulated specimen and set it beside its truth."""
    out = files(folder, "specimen")
    settings = CaseSettings(depth_mm=6.0, psf_fwhm_mm=1.0, noise_hu=12.0)
    case = make_case(settings, SPECIMEN_SEED)
    scan_path, truth_path = folder / "specimen-clinical.nrrd", folder / "specimen-truth.nrrd"
    write_volume(case.clinical, scan_path, overwrite=True)
    write_volume(case.truth, truth_path, overwrite=True)
    options = Options(
        region="whole",
        uncertainty=True,
        seed=1,
        psf_fwhm_mm=settings.psf_fwhm_mm,
        noise_hu=settings.noise_hu,
    )
    job = Job(scan_path, out.result, options, uncertainty=out.uncertainty, report=out.report, overwrite=True)
    report = run_job(job, make_progress("auto"))
    scan = read_volume(scan_path)
    draw_result(out.figure, scan, Region.whole(scan.geometry.size_ijk), out.result, out.uncertainty, truth=case.truth)
    error = read_any_volume(out.result).array_kji.astype(np.float64) - case.truth.array_kji
    logger.info("specimen: root-mean-square error %.1f HU against the truth", np.sqrt(np.mean(error**2)))
    return out, report


def main() -> int:
    """Run both and say where everything is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for run in (real_scan, simulated_scan):
        out, report = run(folder)
        consistency = report["consistency"]
        logger.info(
            "%s voxels in %.0f s; scanned again it differs from the input by %.1f HU (the scan's noise: %.1f HU)",
            " x ".join(str(n) for n in report["output"]["size_ijk"]),
            report["seconds"]["total"],
            consistency["residual_rms_hu"],
            consistency["noise_hu"],
        )
        for path in (out.result, out.uncertainty, out.report, out.figure):
            logger.info("  %s", path)
    logger.info("Done in %.0f s. %s", time.monotonic() - started, report["notice"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
