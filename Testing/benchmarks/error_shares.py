"""How much could any method gain? Where the error lies, tissue by tissue, and what the best estimates would leave.

    python Testing/benchmarks/error_shares.py --cases 3

Markdown on standard output: the shares of the squared error, each with the PSNR if that place were perfect; then the
PSNR of the best linear estimate of each case, and of a method that knows every structure and only has the random
alveolar texture to estimate (:mod:`CTMicroSRLib.evaluation.linear_oracle`).
"""

from __future__ import annotations

import argparse
import logging
import sys

import numpy as np

from CTMicroSRLib.evaluation.candidates import find_candidates, loaded
from CTMicroSRLib.evaluation.error_shares import ErrorShares, Place, error_shares, places_of
from CTMicroSRLib.evaluation.linear_oracle import best_linear_estimate, texture_floor
from CTMicroSRLib.evaluation.variants import Scanner, model_variants
from CTMicroSRLib.interpolators import INTERPOLATORS
from CTMicroSRLib.models import DEFAULT_MODEL
from CTMicroSRLib.simulation.cases import Case, simulate_case
from CTMicroSRLib.simulation.sets import case_set

logger = logging.getLogger("error_shares")

TARGET_GAIN_DB = 4.0
"""What the project wants over the best interpolation."""

LINEAR = "best linear estimate"
FLOOR = "structures known, texture estimated"


def images_of(case: Case, model_name: str) -> dict[str, np.ndarray]:
    """The interpolations, the model's network alone, and the oracles."""
    settings, clinical = case.settings, case.scan.clinical
    coarse = np.asarray(clinical.array_kji, dtype=np.float32)
    images = {name: np.stack([of(plane, settings.scale) for plane in coarse]) for name, of in INTERPOLATORS.items()}
    (candidate,) = find_candidates([model_name])
    scanner = Scanner(settings.psf_fwhm_mm, settings.image_noise_hu)
    # The first of a model's variants is the network alone.
    _, result = next(model_variants(loaded(candidate.folder), candidate.label, clinical, scanner, "default"))
    images[candidate.label] = np.asarray(result.volume.array_kji, dtype=np.float32)
    images[LINEAR] = best_linear_estimate(coarse, case.scan.truth.array_kji, settings.scale)
    images[FLOOR] = texture_floor(case)
    return images


def shares_table(found: dict[str, ErrorShares], methods: list[str]) -> list[str]:
    """A line for each place that some voxel lies in."""
    voxels = found[methods[0]].voxel_shares
    heads = [f"{method}: {what}" for method in methods for what in ("share of error", "rms HU", "PSNR if perfect")]
    lines = [_line(["where", "voxels", *heads]), _line(["---"] * (2 + len(heads)))]
    for place in Place:
        if not voxels[place]:
            continue
        cells = [place.title, f"{voxels[place]:.1%}"]
        for method in methods:
            shares = found[method]
            cells += [f"{shares.shares[place]:.1%}", f"{shares.rms_hu[place]:.0f}", f"{shares.psnr_db({place}):.2f}"]
        lines.append(_line(cells))
    return lines


def psnr_table(found: dict[str, ErrorShares]) -> list[str]:
    """A line for each method and oracle."""
    lines = [_line(["estimate", "PSNR dB", "rms HU in plain parenchyma"]), _line(["---"] * 3)]
    return lines + [_line([m, f"{s.psnr_db():.2f}", f"{s.rms_hu[Place.PARENCHYMA]:.1f}"]) for m, s in found.items()]


def verdict(found: dict[str, ErrorShares], model: str) -> str:
    """What the numbers say of the project's target."""
    psnr = {method: shares.psnr_db() for method, shares in found.items()}
    best = max(INTERPOLATORS, key=lambda name: psnr[name])
    target = psnr[best] + TARGET_GAIN_DB
    floor, left = (10.0 ** ((psnr[model] - value) / 10.0) for value in (psnr[FLOOR], target))
    return (
        f"{model} gains {psnr[model] - psnr[best]:+.2f} dB over the best interpolation ({best}). The target of "
        f"{TARGET_GAIN_DB:+.0f} dB allows {left:.0%} of its squared error. Texture that the scans do not show is "
        f"{floor:.0%} of it: by itself it allows for {psnr[FLOOR] - psnr[best]:+.1f} dB. The best linear estimate "
        f"gains {psnr[LINEAR] - psnr[best]:+.2f} dB."
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="installed model, model folder or run")
    parser.add_argument("--set", default="test-1", help="named set of simulated cases")
    parser.add_argument("--cases", type=int, default=3, help="only the set's first N cases")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    (candidate,) = find_candidates([options.model])
    cases = case_set(options.set).first(options.cases)
    parts: dict[str, list[ErrorShares]] = {}
    for seed, settings in cases.cases:
        case = simulate_case(settings, seed)
        places = places_of(case)
        for method, image in images_of(case, options.model).items():
            parts.setdefault(method, []).append(error_shares(image, case.scan.truth.array_kji, places))
        psnr = ", ".join(f"{method} {shares[-1].psnr_db():.2f}" for method, shares in parts.items())
        logger.info("seed %d: PSNR dB: %s", seed, psnr)
    found = {method: ErrorShares.pool(shares) for method, shares in parts.items()}
    lines = [*shares_table(found, ["Lanczos", candidate.label]), "", *psnr_table(found), ""]
    lines += [verdict(found, candidate.label), "", f"First {len(cases)} cases of {options.set}."]
    sys.stdout.write("\n".join(lines) + "\n")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
