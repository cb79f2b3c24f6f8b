"""The generator from micro-CT to clinical CT of SR-CycleGAN (P1, Fig 3b: G2), 12,936,769 parameters.

Layer by layer as in the authors' published code: CycleGAN's generator on the fine grid, then one 3x3 convolution of
stride 2 for every doubling of the other generator, twice as wide each but the first, and a 7x7 convolution with tanh.
A convolution of stride 2 sits on every second voxel and not between two, so that coarse voxel n starts out as a picture
of fine voxel 8n instead of its block's middle, 8n + 3.5: the losses have to teach it that half coarse voxel.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.networks.encoded_blocks import EncodedBlocks, NormalisedLayer, halving, reflecting
from CTMicroSRLib.networks.norms import Norm


class MicroToClinicalGenerator(nn.Module):
    """See the module. It trains the other generator and is not exported.

    Args:
        channels: width on the fine grid; the residual blocks are four times as wide, the last layer 2^doublings times.
        blocks: residual blocks (9).
        doublings: halvings at the end: the fine grid has 2 to that power voxels for every coarse one (3).
        norm: ``instance`` as trained by the authors, or ``none``.
    """

    def __init__(self, *, channels: int = 64, blocks: int = 9, doublings: int = 3, norm: Norm = "instance") -> None:
        super().__init__()
        self.body = EncodedBlocks(channels, blocks, norm)
        widths = [channels << n for n in range(doublings + 1)]
        self.down = nn.ModuleList(NormalisedLayer(halving(narrow, wide), norm) for narrow, wide in pairwise(widths))
        self.tail = reflecting(widths[-1], 1, 7)

    def forward(self, micro: Tensor) -> Tensor:
        """Coarse image ``(b, 1, rows, columns)`` of a fine one; rows and columns at least 4.

        The fine image's rows and columns are multiples of 4 and of 2^doublings.
        """
        features = self.body.after(self.body.before(micro))
        for layer in self.down:
            features = functional.relu(layer(features), inplace=True)
        return torch.tanh(self.tail(features).float())
