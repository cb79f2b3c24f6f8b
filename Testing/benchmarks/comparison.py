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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from CTMicroSRLib.models import DEFAULT_MODEL

logger = logging.getLogger("comparison")

SPECIMENS, PATCH_VOXELS = 32, 24
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


def make_patches(output: Path) -> Path:
    """Simulate the patches that all rows train on; opened where they are already."""
    words = ("--specimens", str(SPECIMENS), "--patch", str(PATCH_VOXELS), "--seed", "1", "--stop-at", "0")
    command = [sys.executable, "-m", "CTMicroSRLib", "train", "compact", "--preset", "small", *words]
    run([*command, "--output", str(output / "data"), "--progress", "none"], output / "data.log")
    return output / "data" / "patches"


def choose_steps(names: Sequence[str], output: Path, patches: Path, minutes: float, workers: int) -> dict[str, int]:
    """As many steps for each row as fit into the time, from a very short training of each."""
    with ThreadPoolExecutor(workers) as pool:
        times = list(pool.map(lambda name: probe(name, output, patches), names))
    steps = {name: max(1, int(MARGIN * 60 * minutes / seconds)) for name, seconds in zip(names, times, strict=True)}
    (output / "steps.json").write_text(json.dumps(steps, indent=2) + "\n", encoding="utf-8")
    return steps


def evaluate(names: Sequence[str], output: Path, cases: int) -> None:
    """All rows, and the shipped model, on the test set."""
    runs = [str(output / "runs" / name) for name in names]
    words = ("--variants", "default", "--cases", str(cases), "--figure", str(output / "comparison.png"), "--overwrite")
    command = [sys.executable, "-m", "CTMicroSRLib", "evaluate", *runs, DEFAULT_MODEL, *words]
    subprocess.run([*command, "--output", str(output / "comparison")], check=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--patches", type=Path, help="patches of `ctmicrosr train` (default: simulated)")
    parser.add_argument("--minutes", type=float, default=7.0, help="training time of each row")
    parser.add_argument("--steps", type=Path, help="steps.json of an earlier comparison")
    parser.add_argument("--workers", type=int, default=2, help="rows that train at once, a core each")
    parser.add_argument("--only", nargs="+", choices=tuple(ENTRIES), default=list(ENTRIES))
    parser.add_argument("--cases", type=int, default=8, help="cases of the test set that the table is made of")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    output: Path = options.output
    (output / "probes").mkdir(parents=True, exist_ok=True)
    patches = options.patches or make_patches(output)
    if options.steps is None:
        steps = choose_steps(options.only, output, patches, options.minutes, options.workers)
    else:
        steps = json.loads(options.steps.read_text(encoding="utf-8"))
    logger.info("steps: %s", steps)
    with ThreadPoolExecutor(options.workers) as pool:
        rows = list(pool.map(lambda name: train_row(name, output, patches, steps[name]), options.only))
    found = dict(zip(options.only, rows, strict=True))
    (output / "training.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    evaluate(options.only, output, options.cases)


if __name__ == "__main__":
    main()
