"""EDSR (Lim et al., CVPR Workshops 2017): residual blocks without norm, scaled, then pixel shuffles."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.generator import doublings_of


class ScaledBlock(nn.Module):
    """x + factor * conv(relu(conv(x))), 3x3, zero-padded."""

    def __init__(self, channels: int, factor: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.factor = factor

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same size."""
        result: Tensor = features + self.factor * self.second(functional.relu(self.first(features)))
        return result


class Enlarger(nn.Sequential):
    """For every doubling a 3x3 convolution to four times the channels and a pixel shuffle; nothing for scale 1."""

    def __init__(self, channels: int, scale: int) -> None:
        count = _doublings(scale)
        stages = [(nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2)) for _ in range(count)]
        super().__init__(*(layer for stage in stages for layer in stage))


def reach_of_enlarger(scale: int) -> float:
    """Coarse voxels that :class:`Enlarger` and a 3x3 convolution after it look to each side."""
    return sum(0.5**n for n in range(_doublings(scale))) + 1 / scale


def _doublings(scale: int) -> int:
    return 0 if scale == 1 else doublings_of(scale)


class Edsr(nn.Module):
    """See the module.

    Args:
        channels: width (256 in the paper).
        blocks: residual blocks (32).
        scale: 1 or a power of two.
        residual_scale: factor of each block's branch (0.1).
    """

    def __init__(self, *, channels: int = 256, blocks: int = 32, scale: int = 4, residual_scale: float = 0.1) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ScaledBlock(channels, residual_scale) for _ in range(blocks)))
        self.middle = nn.Conv2d(channels, channels, 3, padding=1)
        self.enlarger = Enlarger(channels, scale)
        self.tail = nn.Conv2d(channels, 1, 3, padding=1)
        self.reach = 1 + 2 * blocks + 1 + reach_of_enlarger(scale)
        """Coarse voxels that it looks to each side."""

    def forward(self, image: Tensor) -> Tensor:
        """``(b, 1, rows * scale, columns * scale)`` of ``(b, 1, rows, columns)``."""
        features = self.head(image)
        features = features + self.middle(self.blocks(features))
        result: Tensor = self.tail(self.enlarger(features))
        return result
