"""Scans and exit statuses for the tests of what the command refuses."""

from __future__ import annotations

import numpy as np

WRONG_USE, REFUSED, RESOURCE, MODEL = 2, 3, 4, 5


def lung_piece(shape_kji=(3, 20, 24), dtype=np.int16):
    array_kji = np.random.default_rng(3).normal(-860.0, 20.0, shape_kji)
    array_kji[:, 7:10, :] += 850.0
    return np.rint(array_kji).astype(dtype)
