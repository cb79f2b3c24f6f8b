"""What a method is to the trainer: its networks, its losses and its step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor, nn

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.networks.generator import Generator

Domain = Literal["clinical", "micro", "truth"]
Losses: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Patches of one step on one process, normalised to [-1, 1], float32.

    Attributes:
        clinical: coarse patches ``(b, 1, P, P)``.
        micro: fine patches ``(b, 1, P * scale, P * scale)`` of other specimens.
        truth: what the clinical patches are scans of, ``(b, 1, P * scale, P * scale)``; only simulation has it.
        psf_fwhm_voxels: ``(b,)`` width of the scan's point spread in coarse voxels; NaN where unknown.
        noise_hu: ``(b,)`` standard deviation of the scan's noise; NaN where unknown.
    """

    clinical: Tensor
    micro: Tensor
    truth: Tensor | None
    psf_fwhm_voxels: Tensor
    noise_hu: Tensor


@dataclass(frozen=True)
class OptimiserSettings:
    """Adam for some of a method's networks.

    Attributes:
        networks: names of the method's attributes whose parameters it moves.
        learning_rate: the highest rate; the trainer's schedule scales it.
        betas: Adam's.
        weight_decay: Adam's.
        span: share of the training, from and to, over which its schedule runs; outside it rests.
    """

    networks: tuple[str, ...]
    learning_rate: float
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    span: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Companion:
    """A network that a run exports beside its generator.

    Attributes:
        network: name of the method's attribute.
        architecture: what it is rebuilt from, as :meth:`Method.architecture`.
        inputs: makes what it sees from micro patches ``(b, 1, P * scale, P * scale)``.
        purpose: for its card.
    """

    network: str
    architecture: tuple[str, dict[str, Any]]
    inputs: Callable[[Tensor], Tensor]
    purpose: str


class Update(Protocol):
    """What the trainer offers a step.

    Attributes:
        progress: share of the training that is done, 0 to 1.
    """

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""

    def __call__(self, optimiser: str, losses: Losses) -> None:
        """Add up the losses (weighted already), go back through them, and move that optimiser's networks once.

        Gradients of these networks are cleared before and averaged over all processes; the values are logged under
        their names. Nothing else is moved.
        """

    def pool(self, name: str, images: Tensor) -> Tensor:
        """Earlier images in place of some of these (Shrivastava et al., CVPR 2017), without gradient."""


class Method(nn.Module, ABC):
    """One system of a paper. Its networks are its attributes; the trainer moves and saves all of them.

    Attributes:
        needs: domains that a batch must have.
        scale: fine voxels per coarse voxel.
    """

    needs: frozenset[Domain]
    scale: int

    @abstractmethod
    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """The optimisers by name."""

    @abstractmethod
    def step(self, batch: Batch, update: Update) -> None:
        """One training step: forward passes and one call of ``update`` for every optimiser that moves."""

    @abstractmethod
    def generator(self) -> Generator:
        """The network that super-resolves, one of the attributes: it is averaged and exported."""

    @abstractmethod
    def architecture(self) -> tuple[str, dict[str, Any]]:
        """Name and parameters that :func:`~CTMicroSRLib.networks.build_network` rebuilds the generator from."""

    def check_patch(self, patch_voxels: int, batch: int = 2) -> None:
        """Refuse patches that the networks can't work on, before any are cut.

        Args:
            patch_voxels: a clinical patch's edge.
            batch: patches of a step on one process.

        Raises:
            UsageError: they are too small, or no multiple of what the networks need.
        """
        least = self.generator().smallest
        if patch_voxels < least:
            raise UsageError(
                f"Patches of {patch_voxels} x {patch_voxels} voxels are too small for this method's network; choose "
                f"--patch {least} or more."
            )

    def companions(self) -> Mapping[str, Companion]:
        """Further networks to export, by the name of their folder in the run."""
        return {}

    def card_fields(self) -> dict[str, Any]:
        """More of the model card: ``planes``, or ``result`` where the mean of the passes is the result."""
        return {}


def check_whole_strides(edge: int, stride: int) -> None:
    """Refuse an image that a network halves and doubles again to another size.

    Args:
        edge: of the image, in its own voxels.
        stride: what it must be a multiple of.

    Raises:
        UsageError: it is none.
    """
    if edge % stride:
        raise UsageError(
            f"Patches of {edge} x {edge} voxels are no multiples of the {stride} that this method's networks need; "
            "choose another patch size."
        )


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """No gradients for these networks' parameters inside; what flows through them still has its own."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
