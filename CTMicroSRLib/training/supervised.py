"""Supervised training of a generator on simulated pairs, with the scan's blur and noise as inputs."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from CTMicroSRLib.card import Plane
from CTMicroSRLib.errors import ModelError
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.networks import build_network
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.simulation.kernels import Kernel
from CTMicroSRLib.simulation.noise import coloured_noise
from CTMicroSRLib.simulation.scanner import ScannerSettings
from CTMicroSRLib.training.pairs import Pairs, PairSettings, make_pairs

logger = logging.getLogger(__name__)

CLINICAL_WINDOW = IntensityWindow(-1000.0, 2500.0)
PLANES = (
    Plane("psf_fwhm_voxels", mean=1.8, std=0.7, low=0.65, high=4.0),
    Plane("log_noise_hu", mean=2.7, std=0.9, low=math.log(2.0), high=math.log(70.0)),
)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": functional.l1_loss, "l2": functional.mse_loss}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults made the shipped model.

    The blur and noise handed to the network are off by up to ``misjudged_psf`` and ``misjudged_noise``, so that
    it can live with estimates.
    """

    architecture: str = "compact"
    parameters: dict[str, object] = field(default_factory=lambda: {"planes": len(PLANES)})
    pairs: PairSettings = field(default_factory=PairSettings)
    steps: int = 9_000
    stop_at: int | None = None
    loss: Literal["l1", "l2"] = "l1"
    batch: int = 8
    learning_rate: float = 1e-3
    warm_up_steps: int = 300
    average_decay: float = 0.999
    noise_hu: tuple[float, float] = (3.0, 60.0)
    misjudged_psf: float = 0.12
    misjudged_noise: float = 0.2
    seed: int = 1
    checkpoint_steps: int = 500


@dataclass(frozen=True)
class Batch:
    """Network input ``(b, 1 + planes, P, P)`` and target ``(b, 1, P * scale, P * scale)``, normalised."""

    tile: Tensor
    target: Tensor


def train(
    run: Path,
    settings: TrainingSettings,
    *,
    pairs_folder: Path | None = None,
    initial: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train, with a checkpoint every ``checkpoint_steps``; returns the averaged weights' file.

    The pairs are made in ``pairs_folder`` (default: inside the run), or opened where they are already. A new run starts
    from the weights of ``initial`` (safetensors of the same architecture) where that is given.

    ``run`` receives ``settings.json``, ``log.jsonl``, ``checkpoint.safetensors`` (to resume from) and
    ``weights.safetensors`` (exponential average of the weights).

    Raises:
        ModelError: the loss is no longer finite (the last good checkpoint stays), or ``initial`` does not fit.
    """
    run.mkdir(parents=True, exist_ok=True)
    (run / "settings.json").write_text(json.dumps(asdict(settings), indent=2))
    pairs = make_pairs(pairs_folder or run / "pairs", settings.pairs)
    torch.manual_seed(settings.seed)
    network = build_network(settings.architecture, settings.parameters).train()
    if initial is not None:
        _load_initial(network, initial)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = build_network(settings.architecture, settings.parameters).eval()
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    first = _resume(run, network, average, optimiser) if resume else 0
    last = min(settings.steps, settings.stop_at or settings.steps)
    log = (run / "log.jsonl").open("a" if resume else "w")
    started = time.monotonic()
    losses: list[float] = []
    batches = training_batches(pairs, settings, first)
    for step in tqdm(range(first, last), initial=first, total=settings.steps, desc="training"):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, settings)
        batch = next(batches)
        loss = LOSSES[settings.loss](network(batch.tile), batch.target)
        if not torch.isfinite(loss):
            raise ModelError(f"The loss stopped being finite at step {step}; resume with a lower learning rate.")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if not torch.isfinite(torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)):
            raise ModelError(f"The gradient stopped being finite at step {step}; resume with a lower learning rate.")
        optimiser.step()
        _average(average, network, min(settings.average_decay, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if (step + 1) % settings.checkpoint_steps == 0 or step + 1 == last:
            record = {
                "step": step + 1,
                "loss": float(np.mean(losses)),
                "seconds": time.monotonic() - started,
            }
            log.write(json.dumps(record) + "\n")
            log.flush()
            losses.clear()
            _checkpoint(run, step + 1, network, average, optimiser)
    log.close()
    return run / "weights.safetensors"


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the highest rate."""
    if step < settings.warm_up_steps:
        return settings.learning_rate * (step + 1) / settings.warm_up_steps
    progress = (step - settings.warm_up_steps) / max(1, settings.steps - settings.warm_up_steps)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


def training_batches(pairs: Pairs, settings: TrainingSettings, first_step: int) -> Iterator[Batch]:
    """Endless batches; the batch of a step depends on the seed and the step alone."""
    step = first_step
    while True:
        rng = np.random.default_rng([settings.seed, step, 0x42415443])
        chosen = np.sort(rng.choice(len(pairs), settings.batch, replace=False))
        yield make_batch(pairs, chosen, rng, settings)
        step += 1


def make_batch(pairs: Pairs, chosen: NDArray[np.int64], rng: np.random.Generator, settings: TrainingSettings) -> Batch:
    """Add noise to the chosen pairs, turn and mirror them, and attach the scan's blur and noise."""
    tiles, targets = [], []
    for n in chosen:
        pixel_mm, psf_mm, _, ratio = pairs.scanner[n].tolist()
        noise_hu = float(np.exp(rng.uniform(*np.log(settings.noise_hu))))
        mtf50 = Kernel.gaussian(psf_mm).mtf50_per_mm
        scanner = ScannerSettings(Kernel(mtf50, ratio * mtf50), noise_hu=noise_hu, scale=settings.pairs.scale)
        noise = coloured_noise(rng, scanner, pixel_mm, pairs.clean[n].shape)
        coarse, fine = pairs.clean[n] + noise, np.asarray(pairs.truth[n], dtype=np.float32)
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        coarse, fine = (_turn(image, turns, mirror) for image in (coarse, fine))
        told_psf = psf_mm / pixel_mm * (1.0 + rng.uniform(-1, 1) * settings.misjudged_psf)
        told_noise = noise_hu * (1.0 + rng.uniform(-1, 1) * settings.misjudged_noise)
        tiles.append(network_input(torch.from_numpy(np.rint(coarse)), told_psf, told_noise))
        targets.append(CLINICAL_WINDOW.normalise(torch.from_numpy(fine))[None])
    return Batch(torch.stack(tiles).to(memory_format=torch.channels_last), torch.stack(targets))


def network_input(coarse_hu: Tensor, psf_fwhm_voxels: float, noise_hu: float) -> Tensor:
    """Normalised image and constant planes, ``(1 + planes, rows, columns)``."""
    planes = [torch.full_like(coarse_hu, plane.value(psf_fwhm_voxels, noise_hu)) for plane in PLANES]
    return torch.stack([CLINICAL_WINDOW.normalise(coarse_hu), *planes])


def _turn(image: NDArray[np.float32], turns: int, mirror: bool) -> NDArray[np.float32]:
    turned = np.rot90(image, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirror else turned, dtype=np.float32)


def _load_initial(network: Generator, path: Path) -> None:
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ModelError(
            f"The weights {path} can't start this training ({cause}); give those of the same model."
        ) from None


@torch.no_grad()
def _average(average: Generator, network: Generator, decay: float) -> None:
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, 1.0 - decay)


def _checkpoint(run: Path, step: int, network: Generator, average: Generator, optimiser: torch.optim.Adam) -> None:
    tensors = {f"network.{key}": value.contiguous() for key, value in network.state_dict().items()}
    tensors["random"] = torch.get_rng_state()  # draws the dropout masks
    tensors |= {f"average.{key}": value.contiguous() for key, value in average.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value.contiguous() for key, value in state.items()}
    for name, content in (
        ("checkpoint", tensors),
        ("weights", {key: value.contiguous() for key, value in average.state_dict().items()}),
    ):
        part = run / f"{name}.part"
        save_file(content, part, metadata={"step": str(step)})
        part.replace(run / f"{name}.safetensors")


def _resume(run: Path, network: Generator, average: Generator, optimiser: torch.optim.Adam) -> int:
    from safetensors import safe_open

    path = run / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        step = int(file.metadata()["step"])
    for prefix, target in (("network.", network), ("average.", average)):
        target.load_state_dict(
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    if "random" in tensors:
        torch.set_rng_state(tensors["random"])
    return step
