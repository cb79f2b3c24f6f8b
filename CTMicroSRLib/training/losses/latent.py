"""Losses on a variational autoencoder's latent code (UNIT: Liu et al., NIPS 2017)."""

from __future__ import annotations

from torch import Tensor


def kl_to_unit_normal(mean: Tensor) -> Tensor:
    """Divergence of N(mean, 1) from N(0, 1), up to the factor 1/2, as UNIT's code weighs it: mean of h^2."""
    return mean.square().mean()
