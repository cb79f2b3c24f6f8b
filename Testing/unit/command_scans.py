"""Scans for the tests of the command on good input, and what they look at."""

from __future__ import annotations

import itertools
import json

import numpy as np
import SimpleITK as sitk

OBLIQUE = tuple(
    (
        np.array([[0.0, -1.0, 0.0], [0.8, 0.0, -0.6], [0.6, 0.0, 0.8]])
        @ np.array([[np.cos(0.3), -np.sin(0.3), 0.0], [np.sin(0.3), np.cos(0.3), 0.0], [0.0, 0.0, 1.0]])
    ).ravel()
)


def lung_piece(shape_kji=(3, 20, 24)):
    """Lung with a vessel, as blurred as a scanner would show it, and noise."""
    array_kji = np.random.default_rng(3).normal(-860.0, 20.0, shape_kji)
    array_kji += 850.0 * np.exp(-0.5 * ((np.arange(shape_kji[1]) - 8.3) / 1.5) ** 2)[:, None]
    return np.rint(array_kji).astype(np.int16)


def chest(shape_kji=(6, 64, 80), spacing_mm=(4.0, 4.0, 10.0)):
    """Body with two lungs, in a scanner's air."""
    _, j, i = np.indices(shape_kji)
    x, y = (i - (shape_kji[2] - 1) / 2) * spacing_mm[0], (j - (shape_kji[1] - 1) / 2) * spacing_mm[1]
    array_kji = np.where((x / 148) ** 2 + (y / 108) ** 2 < 1, 40.0, -1000.0)
    lungs = ((abs(x) - 68) / 48) ** 2 + (y / 76) ** 2 < 1
    array_kji[lungs] = -860.0
    array_kji += np.random.default_rng(2).normal(0.0, 10.0, shape_kji)
    return np.rint(array_kji).astype(np.int16), lungs


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def outer_corners_mm(image, first_ijk=(0, 0, 0), size_ijk=None):
    """Physical positions of the eight outer corners of a box of voxels, by SimpleITK alone."""
    size_ijk = image.GetSize() if size_ijk is None else size_ijk
    ends = [(first - 0.5, first + size - 0.5) for first, size in zip(first_ijk, size_ijk, strict=True)]
    return np.array([image.TransformContinuousIndexToPhysicalPoint(corner) for corner in itertools.product(*ends)])
