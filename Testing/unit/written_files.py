"""Scans on disk for tests, and what lies in a folder."""

from __future__ import annotations

import SimpleITK as sitk

GIVEN = ("--psf-fwhm-mm", "1.1", "--noise-hu", "20")
"""Blur and noise, so that nothing is estimated."""


def write_scan(
    path,
    array,
    spacing_mm=(0.7, 0.8, 1.5),
    origin_mm=(-31.5, 12.25, 404.0),
    directions=None,
    *,
    compress=False,
    metadata=(),
):
    """An image file of any dimension, type and header."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([*spacing_mm, 1.0][: image.GetDimension()])
    image.SetOrigin([*origin_mm, 0.0][: image.GetDimension()])
    if directions is not None:
        image.SetDirection(directions)
    for key, value in dict(metadata).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path), compress)
    return path


def tree(folder):
    """Every file below a folder, with its content."""
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None for f in folder.rglob("*")}
