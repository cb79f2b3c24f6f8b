"""What CinCGAN and pseudo-SR share: a network cleans the image on the coarse grid, another enlarges what it made."""

from __future__ import annotations

from torch import Tensor, nn

from CTMicroSRLib.networks.context import PaddingGenerator, whole_halo


class CleanThenEnlarge(PaddingGenerator):
    """See the module.

    Args:
        clean: from ``(b, 1, rows, columns)`` to the same size.
        enlarge: from there to ``(b, 1, rows * scale, columns * scale)``.
        scale: fine voxels per coarse voxel.
        reach: coarse voxels that the two together look to each side.
    """

    def __init__(self, clean: nn.Module, enlarge: nn.Module, scale: int, reach: float) -> None:
        super().__init__()
        self.scale = scale
        self.clean = clean
        self.enlarge = enlarge
        self.halo = whole_halo(reach, 1)

    def fine_image(self, tile: Tensor) -> Tensor:
        """Cleaned and enlarged, float32."""
        image = tile[:, :1].to(next(self.clean.parameters()).dtype)
        result: Tensor = self.enlarge(self.clean(image)).float()
        return result
