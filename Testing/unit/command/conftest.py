"""Scans for the command on good input."""

from __future__ import annotations

import pytest
from command_scans import chest, lung_piece
from written_files import write_scan


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan.nrrd", lung_piece())


@pytest.fixture
def chest_scan(tmp_path):
    return write_scan(tmp_path / "chest.nrrd", chest()[0], (4.0, 4.0, 10.0))
