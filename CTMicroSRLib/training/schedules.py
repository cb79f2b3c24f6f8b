"""Learning rates over a training, as shares of the highest rate."""

from __future__ import annotations

import math

from CTMicroSRLib.training.settings import TrainerSettings


def schedule_factor(settings: TrainerSettings, progress: float, span: tuple[float, float] = (0.0, 1.0)) -> float:
    """What an optimiser's highest learning rate is multiplied by.

    Args:
        settings: which schedule.
        progress: share of the training that is done, 0 to 1.
        span: shares of the training from and to which the schedule runs; outside them the factor is 0.
    """
    first, last = span
    if not first <= progress < last:
        return 0.0
    share, step = (progress - first) / (last - first), 1.0 / (settings.steps * (last - first))
    factor = _without_warm_up(settings, share)
    return factor if settings.warm_up_share == 0.0 else factor * min(1.0, (share + step) / settings.warm_up_share)


def _without_warm_up(settings: TrainerSettings, share: float) -> float:
    """The schedule where ``share`` of its span is done."""
    if settings.schedule == "linear":
        constant = settings.constant_share
        return 1.0 if share <= constant else (1.0 - share) / (1.0 - constant)
    if settings.schedule == "halving":
        return 0.5 ** sum(share >= at for at in settings.halving_shares)
    if settings.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * share))
    return 1.0
