"""A picture of what a generator makes of some patches while it is trained."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from CTMicroSRLib.card import Plane
from CTMicroSRLib.networks.generator import Generator
from CTMicroSRLib.training.method import Batch

ROWS = 4
"""Patches in a picture, at most."""


@torch.no_grad()
def sample_picture(generator: Generator, batch: Batch, planes: Sequence[Plane]) -> NDArray[np.uint8]:
    """One row for each patch: clinical (each voxel a square), the generator's result, and the truth where it is known.

    All at one grey scale, the range of the clinical patches, so that pictures of the same batch compare.

    Args:
        generator: in evaluation mode, on the batch's device.
        batch: its first patches are shown.
        planes: the constant planes that the generator's input has after the image.

    Returns:
        ``(rows * P * scale, columns * P * scale)``.
    """
    result = generator(generator_input(batch, planes)[:ROWS]).float()
    clinical = batch.clinical[:ROWS].float()
    squares = clinical.repeat_interleave(generator.scale, dim=2).repeat_interleave(generator.scale, dim=3)
    columns = [squares, result] + ([] if batch.truth is None else [batch.truth[:ROWS].float()])
    picture = torch.cat([torch.cat(list(column[:, 0]), dim=0) for column in columns], dim=1)
    low, high = clinical.min(), clinical.max()
    grey = (picture - low) / (high - low).clamp(min=1e-6)
    # NaN becomes black.
    return np.asarray((grey.nan_to_num(0.0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy())


def generator_input(batch: Batch, planes: Sequence[Plane]) -> Tensor:
    """Clinical patches and constant planes, ``(b, 1 + planes, P, P)``; a plane's mean where the scan is unknown."""
    if not planes:
        return batch.clinical
    scans = list(zip(batch.psf_fwhm_voxels.tolist(), batch.noise_hu.tolist(), strict=True))
    values = [[_plane_value(plane, *scan) for plane in planes] for scan in scans]
    constant = batch.clinical.new_tensor(values)[:, :, None, None]
    return torch.cat([batch.clinical, constant.expand(-1, -1, *batch.clinical.shape[2:])], dim=1)


def png(picture: NDArray[np.uint8]) -> bytes:
    """A grey picture as the content of a PNG file."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return content.getvalue()


def _plane_value(plane: Plane, psf_fwhm_voxels: float, noise_hu: float) -> float:
    known = psf_fwhm_voxels if plane.quantity == "psf_fwhm_voxels" else noise_hu
    return 0.0 if math.isnan(known) else plane.value(psf_fwhm_voxels, noise_hu)
