"""How a method is trained: what all methods have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Precision = Literal["32-true", "bf16-mixed"]
Schedule = Literal["linear", "halving", "cosine", "constant"]


@dataclass(frozen=True)
class TrainerSettings:
    """What the trainer does for every method; the papers' values are in the methods' presets.

    Attributes:
        steps: training steps.
        batch: patches of each domain in a step, over all processes together.
        seed: of the weights, the batches, dropout and the image pool.
        precision: ``32-true``, or ``bf16-mixed``: bfloat16 where autocast finds it safe, weights in float32.
        schedule: of every optimiser over its span: ``linear`` is constant and then falls to 0 (P1), ``halving`` halves
            at shares of the span (P2, ESRGAN, CinCGAN), ``cosine`` is half a cosine down to 0, or ``constant``.
        warm_up_share: share of the span over which the rate rises from next to nothing, times the schedule; 0: none.
        constant_share: share of the span before ``linear`` falls.
        halving_shares: shares of the span at which ``halving`` halves.
        average_decay: decay a step of the weights' exponential average, which is what a run ends with; 0: no average.
        gradient_clip: largest norm of an optimiser's gradient; None: not clipped.
        pool_size: earlier images that a discriminator sees (Shrivastava et al., CVPR 2017), over all processes
            together: a whole number for each of the batch's patches, at least one; 0: none.
        mix_ratio: share of the clinical patches that are shrunk micro patches (the data's option; P1's code has 0.25).
        checkpoint_steps: steps from checkpoint to checkpoint.
        log_steps: steps from record to record of the log.
        image_steps: steps from sample picture to sample picture.
    """

    steps: int = 2_000
    batch: int = 4
    seed: int = 1
    precision: Precision = "32-true"
    schedule: Schedule = "linear"
    warm_up_share: float = 0.0
    constant_share: float = 0.5
    halving_shares: tuple[float, ...] = (0.5,)
    average_decay: float = 0.999
    gradient_clip: float | None = None
    pool_size: int = 50
    mix_ratio: float = 0.0
    checkpoint_steps: int = 500
    log_steps: int = 20
    image_steps: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_steps", "log_steps", "image_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("seed", "pool_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}")
        for name in ("warm_up_share", "constant_share", "mix_ratio"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be from 0 to 1")
        if not all(0.0 <= share <= 1.0 for share in self.halving_shares):
            raise ValueError("halving_shares must be from 0 to 1")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError("average_decay must be from 0 to less than 1")
        if self.gradient_clip is not None and not 0.0 < self.gradient_clip < float("inf"):
            raise ValueError("gradient_clip must be greater than 0, or none")
