"""The discriminators of the papers' systems. All return logits (no sigmoid), float32 under autocast too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.networks.norms import InstanceNorm

DiscriminatorNorm = Literal["instance", "batch", "none"]

SLOPE = 0.2
WIDEST = 8
"""A discriminator's layers double their channels up to this many times the first layer's."""


class StridedDiscriminator(nn.Module):
    """4x4 convolutions with LeakyReLU 0.2, and a 4x4 convolution to one logit for every place (pix2pix's PatchGAN).

    Layer n has ``channels * min(2^n, 8)`` channels; the first has no norm. CinCGAN's two discriminators are these with
    other strides (1 on the coarse grid, 2 on the fine one).

    Args:
        channels: of the first layer.
        strides: of every layer before the last, whose stride is 1.
        norm: after all layers but the first and the last.
        inputs: channels of the image.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        strides: Sequence[int] = (1, 1, 1, 1),
        norm: DiscriminatorNorm = "instance",
        inputs: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = inputs
        for n, stride in enumerate(strides):
            wider = channels * min(2**n, WIDEST)
            layers.append(nn.Conv2d(width, wider, 4, stride, padding=1, bias=n == 0 or norm != "batch"))
            if n > 0:
                layers += _norm(norm, wider)
            layers.append(nn.LeakyReLU(SLOPE))
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.smallest = _smallest(strides)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(b, 1, rows', columns')`` of an image ``(b, inputs, rows, columns)``.

        Raises:
            UsageError: an image that is smaller than ``smallest`` along rows or columns.
        """
        self.check_edge(min(image.shape[-2:]))
        result: Tensor = self.layers(image)
        return result.float()

    def check_edge(self, edge: int) -> None:
        """Refuse images that are too small.

        Raises:
            UsageError: ``edge`` is less than ``smallest``.
        """
        if edge < self.smallest:
            raise UsageError(
                f"Patches of {edge} voxels are too small for this discriminator; make them {self.smallest} voxels or "
                "more."
            )


class PatchDiscriminator(StridedDiscriminator):
    """The 70x70 PatchGAN of CycleGAN and SR-CycleGAN (P1): 2,762,689 parameters, 2x2 logits for a 32x32 patch.

    Args:
        channels: of the first layer.
        layers: of stride 2; one of stride 1 and the last follow.
        norm: P1's text says batch norm, its parameter count and its code instance norm.
        inputs: channels of the image.
    """

    def __init__(
        self, *, channels: int = 64, layers: int = 3, norm: DiscriminatorNorm = "instance", inputs: int = 1
    ) -> None:
        super().__init__(channels=channels, strides=(2,) * layers + (1,), norm=norm, inputs=inputs)


class MultiScaleDiscriminator(nn.Module):
    """UNIT's discriminators of the image at full, half and quarter size (Liu et al., NIPS 2017; published code).

    Each has 4x4 convolutions of stride 2 with LeakyReLU 0.2, reflected at the border, without norm, and a 1x1
    convolution to logits. Images may be small: a layer whose input is a single row or column repeats it.

    Args:
        channels: of the first layer; each further one has twice as many.
        layers: convolutions of each discriminator.
        scales: how many sizes of the image are looked at.
    """

    def __init__(self, *, channels: int = 64, layers: int = 4, scales: int = 3) -> None:
        super().__init__()
        widths = [1, *(channels * 2**n for n in range(layers))]
        self.scales = nn.ModuleList(
            nn.ModuleList(
                [
                    *(nn.Conv2d(a, b, 4, stride=2) for a, b in pairwise(widths)),
                    nn.Conv2d(widths[-1], 1, 1),
                ]
            )
            for _ in range(scales)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits ``(b, 1, rows', columns')`` for every scale."""
        logits = []
        for index, discriminator in enumerate(self.scales):
            if index > 0:
                image = functional.avg_pool2d(image, 3, stride=2, padding=1, count_include_pad=False)
            features = image
            assert isinstance(discriminator, nn.ModuleList)
            for convolution in discriminator[:-1]:
                features = functional.leaky_relu(convolution(_surrounded(features)), SLOPE)
            logits.append(discriminator[-1](features).float())
        return logits


class PooledDiscriminator(nn.Module):
    """SRGAN's discriminator (Ledig et al., CVPR 2017) with pooling in place of its fixed input size.

    Eight 3x3 convolutions with LeakyReLU 0.2, every second of stride 2, 64 to 512 channels, norm after all but the
    first; mean over the image; two 1x1 convolutions.

    Attributes:
        smallest: rows and columns that a single image must have where there are batch norms.

    Args:
        channels: of the first two layers.
        norm: batch norm in the paper. It makes the answer depend on the other images of the batch, and on how a batch
            is shared between processes.
    """

    def __init__(self, *, channels: int = 64, norm: DiscriminatorNorm = "batch") -> None:
        super().__init__()
        self.smallest = 1 if norm != "batch" else 2**4 + 1
        layers: list[nn.Module] = []
        width = 1
        for n in range(8):
            wider = channels * 2 ** (n // 2)
            layers.append(nn.Conv2d(width, wider, 3, 1 + n % 2, padding=1, bias=n == 0 or norm != "batch"))
            if n > 0:
                layers += _norm(norm, wider)
            layers.append(nn.LeakyReLU(SLOPE))
            width = wider
        self.layers = nn.Sequential(*layers)
        self.first = nn.Conv2d(width, 2 * width, 1)
        self.last = nn.Conv2d(2 * width, 1, 1)

    def check_edge(self, edge: int, images: int) -> None:
        """Refuse a single image of which the halvings leave one value, which has no variance for a batch norm.

        Raises:
            UsageError: ``edge`` is less than ``smallest`` and ``images`` is 1.
        """
        if images == 1 and edge < self.smallest:
            raise UsageError(
                f"One patch of {edge} voxels at a time is too little for this discriminator's batch norm; choose a "
                f"batch of two or more for each process, or patches of {self.smallest} voxels or more."
            )

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(b, 1)``."""
        pooled = functional.adaptive_avg_pool2d(self.layers(image), 1)
        logits: Tensor = self.last(functional.leaky_relu(self.first(pooled), SLOPE))
        return logits.flatten(1).float()


def _norm(norm: DiscriminatorNorm, channels: int) -> list[nn.Module]:
    if norm == "instance":
        return [InstanceNorm()]
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm != "none":
        raise ValueError(f"norm is {norm!r}")
    return []


def _smallest(strides: Sequence[int]) -> int:
    """Rows and columns of which two reach the layer before the last, so that its norm has something to measure."""
    edge = 2
    for stride in reversed(strides):
        edge = (edge - 1) * stride + 2
    return edge


def _surrounded(features: Tensor) -> Tensor:
    """One more voxel on each side, reflected; a single row or column is repeated to the four that a kernel needs."""
    rows, columns = features.shape[-2:]
    if rows > 1 and columns > 1:
        return functional.pad(features, (1, 1, 1, 1), mode="reflect")
    right, below = (1 if size > 1 else 2 for size in (columns, rows))
    return functional.pad(features, (1, right, 1, below), mode="replicate")
