"""Scans and exit statuses for the tests of what the command refuses."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

GIVEN = ("--psf-fwhm-mm", "1.1", "--noise-hu", "20")


WRONG_USE, REFUSED, RESOURCE, MODEL = 2, 3, 4, 5


def write_scan(path, array_kji, spacing_mm=(0.7, 0.8, 1.5), *, compress=False, metadata=()):
    image = sitk.GetImageFromArray(array_kji)
    image.SetSpacing([*spacing_mm, 1.0][: image.GetDimension()])
    for key, value in dict(metadata).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path), compress)
    return path


def lung_piece(shape_kji=(3, 20, 24), dtype=np.int16):
    array_kji = np.random.default_rng(3).normal(-860.0, 20.0, shape_kji)
    array_kji[:, 7:10, :] += 850.0
    return np.rint(array_kji).astype(dtype)


def tree(folder):
    """Every file below a folder with its content."""
    return {f.relative_to(folder): f.read_bytes() if f.is_file() else None for f in folder.rglob("*")}
