"""Scans and exit statuses for the tests of what the command refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest

from CTMicroSRLib.errors import RefusedInputError
from CTMicroSRLib.files import read_volume

WRONG_USE, REFUSED, RESOURCE, MODEL = 2, 3, 4, 5


def lung_piece(shape_kji=(3, 20, 24), dtype=np.int16):
    array_kji = np.random.default_rng(3).normal(-860.0, 20.0, shape_kji)
    array_kji[:, 7:10, :] += 850.0
    return np.rint(array_kji).astype(dtype)


def refuse_reading(path, capfd, match):
    """A scan is refused by one sentence with a cause and a next step, and nothing else is on the terminal."""
    with pytest.raises(RefusedInputError, match=match) as caught:
        read_volume(path)
    assert re.fullmatch(r"[^\n]*[;:][^\n]*\.", str(caught.value))
    assert capfd.readouterr() == ("", "")
