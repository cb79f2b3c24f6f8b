"""`make benchmark-simulation`: how long a default specimen and both of its scans take, and its memory."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from itertools import pairwise

from CTMicroSRLib.simulation.micro_scanner import MicroScannerSettings, scan_micro
from CTMicroSRLib.simulation.scanner import ScannerSettings, scan_specimen
from CTMicroSRLib.simulation.specimen import SpecimenSettings, make_specimen

SEED = 1


def main() -> None:
    """Print seconds and peak memory as JSON."""
    settings = SpecimenSettings()
    marks = [time.perf_counter()]
    specimen = make_specimen(settings, SEED)
    marks.append(time.perf_counter())
    scan_specimen(specimen, ScannerSettings(), SEED)
    marks.append(time.perf_counter())
    scan_micro(specimen, MicroScannerSettings(), SEED)
    marks.append(time.perf_counter())
    seconds = [round(b - a, 1) for a, b in pairwise(marks)]
    found = {
        "block_mm": settings.size_mm,
        "voxels_kji": settings.grid.shape_kji,
        "seed": SEED,
        "specimen_s": seconds[0],
        "clinical_ct_s": seconds[1],
        "micro_ct_s": seconds[2],
        "total_s": round(marks[-1] - marks[0], 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
