"""`make compare`: every method on the same simulated patches, each for the same time on one core, then one table.

Steps are chosen so that every method trains about as long; `steps.json` in the output holds them, and given to
`--steps` it makes the same comparison again, step by step, on any machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("comparison")

PROBE_STEPS = 24
"""A whole, very short training: the stages of a method differ in the time of a step."""

MARGIN = 0.95
"""A share of the time is left for sample pictures and checkpoints."""


@dataclass(frozen=True)
class Entry:
    """A row: a method, its preset and what else differs."""

    method: str
    changes: tuple[str, ...] = ()
    preset: str = "small"


ENTRIES = {
    "sr-cyclegan": Entry("sr-cyclegan"),
    "sr-cyclegan-no-mmsr": Entry(
        "sr-cyclegan",
        ("ssim_clinical=0", "ssim_micro=0", "downsample=0", "upsample=0"),
    ),
    "sr-unit": Entry("sr-unit"),
    "cyclegan": Entry("cyclegan"),
    "unit": Entry("unit"),
    "two-stage": Entry("two-stage"),
    "bayesian-cyclegan": Entry("bayesian-cyclegan"),
    "cincgan": Entry("cincgan"),
    "pseudo-sr": Entry("pseudo-sr"),
    "srgan": Entry("srgan"),
    "srgan-unpaired": Entry("srgan", ("pairing=unpaired",)),
    "esrgan": Entry("esrgan"),
    "esrgan-unpaired": Entry("esrgan", ("pairing=unpaired",)),
    "unet": Entry("unet"),
    "compact": Entry("compact"),
}


def train_command(name: str, run: Path, patches: Path, *more: str) -> list[str]:
    """The command that trains a row."""
    entry = ENTRIES[name]
    changes = [word for change in entry.changes for word in ("--set", change)]
    return [
        *(sys.executable, "-m", "CTMicroSRLib", "train", entry.method, "--preset", entry.preset, *changes),
        *("--patches", str(patches), "--output", str(run), "--name", name, "--threads", "1", "--seed", "1"),
        *("--progress", "none", *more),
    ]


def run(command: list[str], log: Path) -> None:
    """Run a command on one thread and keep what it says."""
    with log.open("a", encoding="utf-8") as file:
        file.write(" ".join(command) + "\n")
        file.flush()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT, env=environment)


def seconds_per_step(run_folder: Path) -> float:
    """Of all steps but the first, which also warms up."""
    lines = [json.loads(line) for line in (run_folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = lines[0], lines[-1]
    return float((last["seconds"] - first["seconds"]) / (last["step"] - first["step"]))


def probe(name: str, output: Path, patches: Path) -> float:
    """Seconds of a step of a row's method, measured while as many others run as will in the training."""
    folder = output / "probes" / name
    more = ("--steps", str(PROBE_STEPS), "--set", "trainer.log_steps=1", "--set", f"trainer.image_steps={PROBE_STEPS}")
    run(train_command(name, folder, patches, *more), output / "probes.log")
    return seconds_per_step(folder)


def train_row(name: str, output: Path, patches: Path, steps: int) -> dict[str, float]:
    """Train one row and say how long it took."""
    started = time.monotonic()
    run(train_command(name, output / "runs" / name, patches, "--steps", str(steps)), output / f"{name}.log")
    seconds = time.monotonic() - started
    logger.info("%s: %d steps in %.0f s", name, steps, seconds)
    return {"steps": steps, "seconds": round(seconds, 1)}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--patches", type=Path, required=True, help="patches of `ctmicrosr train`")
    parser.add_argument("--minutes", type=float, default=7.0, help="training time of each row")
    parser.add_argument("--steps", type=Path, help="steps.json of an earlier comparison")
    parser.add_argument("--workers", type=int, default=2, help="rows that train at once, a core each")
    parser.add_argument("--only", nargs="+", choices=tuple(ENTRIES), default=list(ENTRIES))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "probes").mkdir(exist_ok=True)
    with ThreadPoolExecutor(options.workers) as pool:
        if options.steps is not None:
            steps = json.loads(options.steps.read_text(encoding="utf-8"))
        else:
            times = list(pool.map(lambda name: probe(name, options.output, options.patches), options.only))
            steps = {n: int(MARGIN * 60 * options.minutes / t) for n, t in zip(options.only, times, strict=True)}
            (options.output / "steps.json").write_text(json.dumps(steps, indent=2), encoding="utf-8")
        logger.info("steps: %s", steps)
        rows = pool.map(lambda n: train_row(n, options.output, options.patches, steps[n]), options.only)
        found = dict(zip(options.only, rows, strict=True))
    (options.output / "training.json").write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
