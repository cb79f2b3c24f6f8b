"""CycleGAN's generator with residual blocks (Zhu et al., ICCV 2017), on the interpolated image.

The baseline of P1 and P2, and the generator of the Bayesian CycleGAN (P3): the clinical image is interpolated onto the
fine grid first, and a network that keeps the grid does the rest. It works on ``scale^2`` fine voxels for every coarse
one, 64 channels wide: fifty times the work of SR-CycleGAN's generator, and 17 MB of features for every 32x32 coarse
voxels at 8x, so that whole slices of 512x512 do not fit into common memory before the norms are frozen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from CTMicroSRLib.interpolation import phase_kernels
from CTMicroSRLib.networks.context import aligned, whole_halo
from CTMicroSRLib.networks.encoded_blocks import STRIDE, EncodedBlocks, EncodedGenerator, reflecting
from CTMicroSRLib.networks.fine_grid import onto_fine_grid
from CTMicroSRLib.networks.norms import Norm


class ResnetGenerator(EncodedGenerator):
    """See the module.

    Args:
        channels: width on the fine grid; the residual blocks are four times as wide.
        blocks: residual blocks (9; CycleGAN's rule for patches up to 128 voxels is 6).
        scale: fine voxels per coarse voxel; 1 for a network from a grid to itself, without interpolation.
        norm: ``instance`` as CycleGAN trains, ``frozen`` for exact tiles, or ``none``.
        dropout_rate: by channel after each block's first ReLU (CycleGAN's place, where it drops single values), in the
            last ``dropout_blocks`` blocks.
        dropout_blocks: how many of the last blocks have dropout.
    """

    interpolation_kernels: Tensor

    def __init__(
        self,
        *,
        channels: int = 64,
        blocks: int = 9,
        scale: int = 8,
        norm: Norm = "instance",
        dropout_rate: float = 0.0,
        dropout_blocks: int = 0,
    ) -> None:
        super().__init__(channels, blocks, norm, dropout_rate, dropout_blocks)
        if scale < 1 or (scale > 2 and scale % STRIDE):
            raise ValueError(f"scale is {scale}")
        self.scale = scale
        self.align = max(1, STRIDE // scale)
        self.smallest = EncodedBlocks.smallest(scale)
        self.tail = reflecting(channels, 1, 7)
        reach: float = self.body.reach + 3
        if scale > 1:  # the cubic kernel's two coarse voxels on the far side of the outermost fine voxel
            reach = 1 + math.ceil((reach - 0.5) / scale + 0.5)
        self.halo = whole_halo(reach, self.align)
        if scale > 1:
            self.register_buffer("interpolation_kernels", torch.from_numpy(phase_kernels(scale)), persistent=False)

    def interpolate(self, coarse: Tensor) -> Tensor:
        """The coarse image ``(b, 1, rows, columns)`` on the fine grid, by cubic interpolation."""
        return coarse if self.scale == 1 else onto_fine_grid(coarse, self.interpolation_kernels, self.scale)

    def on_fine_grid(self, image: Tensor) -> Tensor:
        """The network on an image that is on the fine grid already: no interpolation. In training dropout is drawn."""
        masks = self._training_masks(image) if self.training and self.dropout_rate > 0 else None
        rows, columns = image.shape[-2:]
        features = self.body.before(aligned(image, STRIDE), self.dropout_blocks)
        return self.leave(self.body.after(features, masks, self.dropout_blocks))[..., :rows, :columns]

    def enter(self, tile: Tensor) -> Tensor:
        """The tile on the fine grid."""
        return self.interpolate(aligned(tile[:, :1], self.align)).to(self.tail.weight.dtype)

    def leave(self, features: Tensor) -> Tensor:
        """7x7 convolution and tanh."""
        return torch.tanh(self.tail(features).float())
