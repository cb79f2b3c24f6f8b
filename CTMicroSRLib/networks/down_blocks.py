"""The generator with down- and up-blocks that SR-CycleGAN was made from (P1, Figs 3 and 9, Table 2).

CycleGAN's generator on the coarse grid, as wide as the fine one is in CycleGAN, and one more transposed convolution for
every doubling: P1's "CycleGAN with upblocks" without, and "SR-CycleGAN with downblocks" with the MMSR loss. As in the
published code there are two down-blocks (P1's text says three) and 11,387,137 parameters.

A transposed convolution of stride 2 puts a coarse voxel on the first of its fine voxels and not between them: with
symmetric kernels everything lies (1 - 1/scale) / 2 of a coarse voxel beside its place, which training has to take back.
The downsample loss and the SSIM of the clinical patch ask for that; without them nothing does.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.context import aligned, whole_halo
from CTMicroSRLib.networks.encoded_blocks import (
    STRIDE,
    EncodedBlocks,
    EncodedGenerator,
    NormalisedLayer,
    doubling,
    reflecting,
)
from CTMicroSRLib.networks.norms import Norm


class DownBlocksGenerator(EncodedGenerator):
    """See the module.

    Args:
        channels: width on the coarse grid; the residual blocks are four times as wide.
        blocks: residual blocks (9).
        doublings: transposed convolutions at the end; the scale is 2 to that power (3).
        norm: ``instance`` as trained by the authors, ``frozen`` for exact tiles, or ``none``.
        dropout_rate: by channel after each block's first ReLU, in the last ``dropout_blocks`` blocks.
        dropout_blocks: how many of the last blocks have dropout.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        blocks: int = 9,
        doublings: int = 3,
        norm: Norm = "instance",
        dropout_rate: float = 0.0,
        dropout_blocks: int = 0,
    ) -> None:
        super().__init__(channels, blocks, norm, dropout_rate, dropout_blocks)
        self.scale = 2**doublings
        self.smallest = EncodedBlocks.smallest()
        widths = [channels >> n for n in range(doublings + 1)]
        self.up = nn.ModuleList(NormalisedLayer(doubling(wide, narrow), norm) for wide, narrow in pairwise(widths))
        self.tail = reflecting(widths[-1], 1, 7)
        above = sum(0.5**n for n in range(1, doublings + 1)) + 3.0 * 0.5**doublings
        self.halo = whole_halo(self.body.reach + above, STRIDE)

    def enter(self, tile: Tensor) -> Tensor:
        """The tile itself: the blocks work on the coarse grid."""
        return aligned(tile[:, :1].to(self.tail.weight.dtype), STRIDE)

    def leave(self, features: Tensor) -> Tensor:
        """Transposed convolutions, 7x7 convolution and tanh."""
        for layer in self.up:
            features = functional.relu(layer(features), inplace=True)
        return torch.tanh(self.tail(features).float())
