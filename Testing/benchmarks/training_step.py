"""`make benchmark-training`: a training step of SR-CycleGAN at the paper's setting, beside the paper's loop.

Batch 4, 32 x 32 to 256 x 256, full width, the same device and threads. Each side runs in processes of its own, in
turns; the fastest step of each counts, and the ratio is what to look at. On a CPU the two layers that make the
difference follow, each beside torch's own at the size of the residual blocks, 4 x 256 x 64 x 64.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from CTMicroSRLib.report import peak_memory_mb
from CTMicroSRLib.training.method import Batch

logger = logging.getLogger("training step")

BATCH, PATCH, SCALE = 4, 32, 8


def random_batch(device: str) -> Batch:
    """Patches of noise: what they show makes no difference to time."""
    generator = torch.Generator().manual_seed(0)
    clinical = torch.rand((BATCH, 1, PATCH, PATCH), generator=generator) * 2 - 1
    micro = torch.rand((BATCH, 1, PATCH * SCALE, PATCH * SCALE), generator=generator) * 2 - 1
    unknown = torch.full((BATCH,), float("nan"))
    return Batch(clinical.to(device), micro.to(device), None, unknown, unknown)


def paper_seconds(steps: int, device: str) -> list[float]:
    """Seconds of every step of the paper's loop."""
    from paper_loop import PaperLoop

    torch.manual_seed(0)
    loop, batch = PaperLoop(device), random_batch(device)
    return _timed(lambda: loop.step(batch.clinical, batch.micro), steps, device)


def trainer_seconds(steps: int, device: str, precision: str) -> list[float]:
    """Seconds of every step of the project's trainer."""
    from CTMicroSRLib.training.presets import run_settings
    from CTMicroSRLib.training.trainer import train

    # One more: the last step also draws the sample picture and writes the checkpoint.
    values = {"steps": steps + 1, "batch": BATCH, "log_steps": 1, "precision": precision}
    settings = run_settings("sr-cyclegan", "jmi2022", {f"trainer.{key}": value for key, value in values.items()})
    batch = random_batch("cpu")
    with tempfile.TemporaryDirectory() as folder:
        train(
            settings.kind,
            settings.method,
            settings.trainer,
            lambda _step, _process, _processes: batch,
            Path(folder) / "run",
            device=device,
        )
        lines = (Path(folder) / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return [after - before for before, after in zip([0.0, *seconds[:-2]], seconds[:-1], strict=True)]


def layer_seconds(repeats: int = 10) -> dict[str, tuple[float, float]]:
    """Seconds of a layer forward and back, as torch has it and ours, the fastest of ``repeats`` in turns."""
    from CTMicroSRLib.networks.norms import InstanceNorm
    from CTMicroSRLib.networks.winograd import WideConvolution

    torch.manual_seed(0)
    features = torch.randn(BATCH, 256, 64, 64).to(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(features)
    pairs: dict[str, tuple[torch.nn.Module, torch.nn.Module]] = {
        "3x3 convolution": (torch.nn.Conv2d(256, 256, 3, padding=1), WideConvolution(256, 256, 3, padding=1)),
        "instance norm": (torch.nn.InstanceNorm2d(256), InstanceNorm()),
    }
    found = {}
    for name, layers in pairs.items():
        turns = [
            [_timed(lambda x=x: x(features).backward(gradient), 1, "cpu")[0] for x in layers] for _ in range(repeats)
        ]
        found[name] = (min(turn[0] for turn in turns), min(turn[1] for turn in turns))
    return found


def _timed(step: object, steps: int, device: str) -> list[float]:
    assert callable(step)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def one_side(side: str, steps: int, device: str) -> None:
    """Measure in this process and print what came out as JSON."""
    seconds = paper_seconds(steps, device) if side == "paper" else trainer_seconds(steps, device, side)
    memory_mb = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else peak_memory_mb()
    sys.stdout.write(json.dumps({"seconds": min(seconds[1:]), "memory_mb": memory_mb}) + "\n")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=("paper", "32-true", "bf16-mixed"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.side:
        one_side(options.side, options.steps, options.device)
        return
    sides = ["paper", "32-true", *(["bf16-mixed"] if options.device == "cuda" else [])]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(options.turns):
        for side in sides:
            words = ["--side", side, "--steps", str(options.steps), "--device", options.device]
            answer = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
            found[side].append(json.loads(answer.stdout.splitlines()[-1]))
    best = {side: min(run["seconds"] for run in runs) for side, runs in found.items()}
    machine = platform.processor() or platform.machine()
    logger.info("%s, %s, %d threads", machine, options.device, torch.get_num_threads())
    for side, runs in found.items():
        memory_mb = max(run["memory_mb"] for run in runs)
        ratio = best["paper"] / best[side]
        logger.info("%-12s %.2f s a step, %.0f MB, %.2f x the paper's loop", side, best[side], memory_mb, ratio)
    if options.device == "cpu":
        for name, (stock, ours) in layer_seconds().items():
            logger.info("%s, forward and back: %.3f s, torch's %.3f s, %.1f x", name, ours, stock, stock / ours)


if __name__ == "__main__":
    main()
