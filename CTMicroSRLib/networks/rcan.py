"""RCAN (Zhang et al., ECCV 2018): residual groups of blocks whose channels are weighted by what the image holds.

The weights come from each channel's mean over the whole image, which no tile knows; frozen to its mean over typical
images it makes tiles exact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.edsr import Enlarger, reach_of_enlarger
from CTMicroSRLib.networks.norms import FrozenNorm, Norm


class ChannelPool(nn.Module):
    """Mean of each channel over the image."""

    def forward(self, features: Tensor) -> Tensor:
        """``(b, channels, 1, 1)``."""
        return features.mean(dim=(2, 3), keepdim=True)


class FrozenChannelPool(FrozenNorm):
    """Means of the channels measured once, whatever the image; the variance is not used."""

    def forward(self, features: Tensor) -> Tensor:
        """``(1, channels, 1, 1)``."""
        return self.mean.view(1, -1, 1, 1).to(features.dtype)


class ChannelAttention(nn.Module):
    """Features times a factor for each channel, made from the channels' means by two 1x1 convolutions.

    Args:
        channels: of the features.
        reduction: how many times fewer channels there are between the two convolutions.
        norm: ``frozen`` for means measured once.
    """

    def __init__(self, channels: int, reduction: int, norm: Norm) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.pool = FrozenChannelPool(channels) if norm == "frozen" else ChannelPool()
        self.first = nn.Conv2d(channels, narrow, 1)
        self.second = nn.Conv2d(narrow, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Weighted features."""
        return features * torch.sigmoid(self.second(functional.relu(self.first(self.pool(features)))))


class AttentionBlock(nn.Module):
    """x + attention(conv(relu(conv(x)))), 3x3, zero-padded."""

    def __init__(self, channels: int, reduction: int, norm: Norm) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = None if norm == "none" else ChannelAttention(channels, reduction, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same size."""
        branch: Tensor = self.second(functional.relu(self.first(features)))
        return features + (branch if self.attention is None else self.attention(branch))


class Group(nn.Module):
    """x + conv(blocks(x))."""

    def __init__(self, channels: int, blocks: int, reduction: int, norm: Norm) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(AttentionBlock(channels, reduction, norm) for _ in range(blocks)))
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same size."""
        result: Tensor = features + self.last(self.blocks(features))
        return result


class Rcan(nn.Module):
    """See the module.

    Args:
        channels: width (64 in the paper).
        groups: residual groups.
        blocks: attention blocks in each group (20).
        reduction: see :class:`ChannelAttention` (16).
        scale: 1 or a power of two.
        norm: ``instance`` pools over the image itself, ``frozen`` has means measured once, ``none`` has no attention.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        groups: int = 5,
        blocks: int = 20,
        reduction: int = 16,
        scale: int = 1,
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        if norm not in ("instance", "frozen", "none"):
            raise ValueError(f"norm is {norm!r}")
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        self.groups = nn.Sequential(*(Group(channels, blocks, reduction, norm) for _ in range(groups)))
        self.middle = nn.Conv2d(channels, channels, 3, padding=1)
        self.enlarger = Enlarger(channels, scale)
        self.tail = nn.Conv2d(channels, 1, 3, padding=1)
        self.reach = 1 + groups * (2 * blocks + 1) + 1 + reach_of_enlarger(scale)
        """Coarse voxels that it looks to each side, apart from its pools."""

    def forward(self, image: Tensor) -> Tensor:
        """``(b, 1, rows * scale, columns * scale)`` of ``(b, 1, rows, columns)``."""
        features = self.head(image)
        features = features + self.middle(self.groups(features))
        result: Tensor = self.tail(self.enlarger(features))
        return result
