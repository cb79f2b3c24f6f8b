"""The micro-CT of a specimen: own grey values, little blur, noise, rings, and the sample holder around it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import RefusedInputError, UsageError
from CTMicroSRLib.point_spread import FWHM_PER_SIGMA
from CTMicroSRLib.simulation.description import Specimen
from CTMicroSRLib.volume import Volume

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

GREY_PER_HU = (4.5, 6.0)
"""Range of the gain: with :data:`GREY_OF_AIR` soft tissue lies at 5,200 to 7,800 and dense bone below 15,000."""

GREY_OF_AIR = (500.0, 1500.0)
"""Range of the grey value of air, -1000 HU."""

RING_KNOTS_MM = 1.5
"""Distance along z over which a ring comes and goes."""


@dataclass(frozen=True)
class MicroScannerSettings:
    """A micro-CT scanner; it sees the specimen at the specimen's own voxels.

    Attributes:
        psf_fwhm_mm: width of the Gaussian point spread in all three directions.
        noise_grey: standard deviation of the noise, which is white but for the point spread.
        ring_grey: standard deviation of the rings, over all radii; 0 for none.
        wall_mm: thickness of the sample holder's wall, a cylinder along z with air outside; 0 for no holder.
        wall_hu: what the wall is made of (a polymer).

    Raises:
        UsageError: a value out of its range.
    """

    psf_fwhm_mm: float = 0.1
    noise_grey: float = 250.0
    ring_grey: float = 60.0
    wall_mm: float = 0.8
    wall_hu: float = 60.0

    def __post_init__(self) -> None:
        values = (self.psf_fwhm_mm, self.noise_grey, self.ring_grey, self.wall_mm)
        if not all(0 <= value < math.inf for value in values):
            raise UsageError(
                "A micro-CT's point spread, noise, rings and wall must not be negative; give zero or more."
            )
        if not -1000.0 <= self.wall_hu <= 3000.0:
            raise UsageError(f"A wall of {self.wall_hu} HU is not possible; choose -1000 to 3000 HU.")


def scan_micro(specimen: Specimen, settings: MicroScannerSettings, seed: int) -> Volume:
    """The specimen as a micro-CT shows it; the same seed gives the same voxels.

    Gain and offset are drawn per scan from :data:`GREY_PER_HU` and :data:`GREY_OF_AIR`; the metadata tell them, and
    :func:`micro_to_hu` undoes them.

    Returns:
        uint16 grey values on the specimen's grid.

    Raises:
        UsageError: the holder's wall leaves no room inside.
    """
    rng = np.random.default_rng([seed, 0x4D494352])
    grey_per_hu, grey_of_air = float(rng.uniform(*GREY_PER_HU)), float(rng.uniform(*GREY_OF_AIR))
    fine = specimen.volume
    spacing_mm = fine.geometry.spacing_mm
    across, along = _taps(settings.psf_fwhm_mm / spacing_mm[0]), _taps(settings.psf_fwhm_mm / spacing_mm[2])
    # White before the point spread, so much that what the point spread leaves is what was asked for.
    drawn = np.float32(settings.noise_grey / float(np.sum(across**2) * np.sqrt(np.sum(along**2))))
    radius_mm = _radius_mm(rng, fine)
    inside, wall = _holder(radius_mm, fine, settings)
    rings = _rings(rng, fine, settings, float(np.sqrt(np.sum(across**2))))
    voxel = np.rint(radius_mm / spacing_mm[0]).astype(np.intp)

    def planes() -> Iterator[Float32]:
        for k, plane in enumerate(fine.array_kji):
            held = (np.asarray(plane, np.float32) + np.float32(1000.0)) * inside + wall
            grey = held * np.float32(grey_per_hu) + np.float32(grey_of_air)
            if settings.ring_grey:
                grey += rings[k][voxel]
            if settings.noise_grey:
                grey += drawn * rng.standard_normal(grey.shape, dtype=np.float32)
            yield _blurred(_blurred(grey, across, 0), across, 1)

    array = np.empty(fine.array_kji.shape, np.uint16)
    for k, plane in enumerate(_blurred_along_z(planes(), along)):
        array[k] = np.clip(np.rint(plane), 0, 65535)
    metadata = {"Modality": "micro-CT", "GreyPerHU": repr(grey_per_hu), "GreyOfAir": repr(grey_of_air)}
    return Volume(array, fine.geometry, metadata)


def micro_to_hu(micro: Volume) -> Float32:
    """Grey values of a simulated micro-CT in HU, shape ``(k, j, i)``.

    Raises:
        RefusedInputError: the scan does not tell its gain and offset.
    """
    try:
        grey_per_hu, grey_of_air = (float(micro.metadata[key]) for key in ("GreyPerHU", "GreyOfAir"))
    except (KeyError, ValueError):
        raise RefusedInputError(
            "The scan does not tell the grey value of air and the gain; give a simulated micro-CT."
        ) from None
    hu = (np.asarray(micro.array_kji, np.float32) - np.float32(grey_of_air)) / np.float32(grey_per_hu)
    return np.asarray(hu - np.float32(1000.0))


def _radius_mm(rng: np.random.Generator, fine: Volume) -> Float32:
    """Distance of a slice's voxels from the rotation axis, which lies up to 2 voxels beside the block's centre."""
    columns, rows, _ = fine.geometry.size_ijk
    voxel_mm = fine.geometry.spacing_mm[0]
    y, x = (((n - 1) / 2.0 + rng.uniform(-2.0, 2.0)) * voxel_mm for n in (rows, columns))
    return np.asarray(
        np.hypot(np.arange(rows)[:, None] * voxel_mm - y, np.arange(columns)[None, :] * voxel_mm - x), dtype=np.float32
    )


def _holder(radius_mm: Float32, fine: Volume, settings: MicroScannerSettings) -> tuple[Float32, Float32]:
    """Share of each voxel that lies inside the holder, and what its wall adds in HU above air."""
    if not settings.wall_mm:
        return np.ones_like(radius_mm), np.zeros_like(radius_mm)
    voxel_mm = fine.geometry.spacing_mm[0]
    # Four voxels of air remain outside at the block's nearest faces.
    outer_mm = min(fine.geometry.size_ijk[:2]) * voxel_mm / 2.0 - 4.0 * voxel_mm
    inner_mm = outer_mm - settings.wall_mm
    if inner_mm <= 0:
        raise UsageError(f"A wall of {settings.wall_mm} mm leaves no room for the specimen; make it thinner.")
    within_outer, within_inner = (
        np.clip((edge_mm - radius_mm) / voxel_mm + 0.5, 0.0, 1.0).astype(np.float32) for edge_mm in (outer_mm, inner_mm)
    )
    return within_inner, (within_outer - within_inner) * np.float32(settings.wall_hu + 1000.0)


def _rings(rng: np.random.Generator, fine: Volume, settings: MicroScannerSettings, kept: float) -> Float32:
    """Ring heights in grey values, ``(k, radius in voxels)``: detector columns with a wrong gain that drifts along z.

    Most columns are good and a few are bad, so heights are Laplace distributed. ``kept`` is the share of their
    standard deviation that the point spread leaves.
    """
    columns, rows, slices = fine.geometry.size_ijk
    radii = math.ceil(math.hypot(rows, columns) / 2.0) + 4
    step_mm = fine.geometry.spacing_mm[2]
    knots = 2 + math.floor(slices * step_mm / RING_KNOTS_MM)
    heights = rng.laplace(scale=settings.ring_grey / (math.sqrt(2.0) * kept), size=(knots, radii))
    at = np.arange(slices) * step_mm / RING_KNOTS_MM
    before = at.astype(np.intp)
    share = (at - before)[:, None]
    # The divisor keeps the standard deviation between the knots.
    between = (heights[before] * (1.0 - share) + heights[before + 1] * share) / np.hypot(1.0 - share, share)
    return np.asarray(between, dtype=np.float32)


def _taps(fwhm_voxels: float) -> Float64:
    """Weights of a Gaussian at whole voxels, odd in number, sum 1."""
    sigma = fwhm_voxels / FWHM_PER_SIGMA
    reach = math.ceil(3.5 * sigma) if sigma > 0.2 else 0
    offsets = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-0.5 * (offsets / max(sigma, 1e-9)) ** 2)
    return np.asarray(weights / weights.sum())


def _blurred(image: Float32, taps: Float64, axis: int) -> Float32:
    """A slice convolved along one axis; its edge goes on."""
    reach = len(taps) // 2
    if not reach:
        return image
    pad = [(reach, reach) if n == axis else (0, 0) for n in range(2)]
    padded = np.moveaxis(np.pad(image, pad, mode="edge"), axis, 0)
    size = image.shape[axis]
    total = np.float32(taps[reach]) * padded[reach : reach + size]
    for n in range(reach):
        total += np.float32(taps[n]) * (padded[n : n + size] + padded[2 * reach - n : 2 * reach - n + size])
    return np.asarray(np.moveaxis(total, 0, axis))


def _blurred_along_z(planes: Iterator[Float32], taps: Float64) -> Iterator[Float32]:
    """Slices convolved along z, one at a time, with few of them in memory; the first and last go on."""
    reach = len(taps) // 2
    window: list[Float32] = []
    for plane in planes:
        window.extend([plane] * (reach + 1 if not window else 1))
        if len(window) == 2 * reach + 1:
            yield _combined(window, taps)
            window.pop(0)
    for _ in range(reach):
        window.append(window[-1])
        if len(window) == 2 * reach + 1:
            yield _combined(window, taps)
            window.pop(0)


def _combined(planes: list[Float32], taps: Float64) -> Float32:
    total = np.zeros_like(planes[0])
    for weight, plane in zip(taps, planes, strict=True):
        total += np.float32(weight) * plane
    return total
