"""CinCGAN (Yuan et al., CVPR Workshops 2018): a denoiser on the coarse grid, then EDSR.

The paper's blocks: 7x7, two 3x3, six residual blocks of 64 channels, two 3x3, 7x7, with LeakyReLU 0.2. A public
implementation has batch norms in the residual blocks; they are left out, because a batch's statistics depend on how
many processes share it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.clean_then_enlarge import CleanThenEnlarge
from CTMicroSRLib.networks.edsr import Edsr

SLOPE = 0.2


class LeakyBlock(nn.Module):
    """x + lrelu(conv(lrelu(conv(x)))), 3x3, zero-padded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same size."""
        inner = functional.leaky_relu(self.first(features), SLOPE)
        return features + functional.leaky_relu(self.second(inner), SLOPE)


class Translator(nn.Module):
    """An image to one of another domain: G1 and G2 on the same grid, G3 with ``halvings``.

    Args:
        channels: width (64).
        blocks: residual blocks (6).
        halvings: 3x3 convolutions of stride 2 before the blocks; there are at least two convolutions, as in the paper.
            They sit on every second voxel, not between two, which training has to make up for.
        skip: add the image to the result, so that training starts near it; the paper does not. Without halvings only.
    """

    def __init__(self, *, channels: int = 64, blocks: int = 6, halvings: int = 0, skip: bool = False) -> None:
        super().__init__()
        if skip and halvings:
            raise ValueError("an image can't be added to a smaller one")
        self.skip = skip
        count = max(2, halvings)
        strides = [1] * (count - halvings) + [2] * halvings
        self.head = nn.Conv2d(1, channels, 7, padding=3)
        self.before = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride, padding=1) for stride in strides)
        self.blocks = nn.ModuleList(LeakyBlock(channels) for _ in range(blocks))
        self.after = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.tail = nn.Conv2d(channels, 1, 7, padding=3)
        self.reach = 3 + 2 + 2 * blocks + 2 + 3
        """Voxels that it looks to each side where it does not halve."""

    def forward(self, image: Tensor) -> Tensor:
        """``(b, 1, rows / 2^halvings, columns / 2^halvings)`` of ``(b, 1, rows, columns)``."""
        features = functional.leaky_relu(self.head(image), SLOPE)
        for layer in self.before:
            features = functional.leaky_relu(layer(features), SLOPE)
        for block in self.blocks:
            features = block(features)
        for layer in self.after:
            features = functional.leaky_relu(layer(features), SLOPE)
        result: Tensor = self.tail(features)
        return image + result if self.skip else result


class CinCGenerator(CleanThenEnlarge):
    """Clinical CT to micro-CT: G1 cleans on the coarse grid, EDSR enlarges.

    Args:
        channels: width of G1 (64).
        blocks: residual blocks of G1 (6).
        edsr_channels: width of EDSR (256).
        edsr_blocks: residual blocks of EDSR (32).
        scale: fine voxels per coarse voxel, a power of two.
        skip: G1 adds its input to its result (not in the paper).
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        blocks: int = 6,
        edsr_channels: int = 256,
        edsr_blocks: int = 32,
        scale: int = 8,
        skip: bool = False,
    ) -> None:
        clean = Translator(channels=channels, blocks=blocks, skip=skip)
        enlarge = Edsr(channels=edsr_channels, blocks=edsr_blocks, scale=scale)
        super().__init__(clean, enlarge, scale, clean.reach + enlarge.reach)
