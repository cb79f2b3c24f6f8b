"""Fixtures that several tiers share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans: ``CTMICROSR_TEST_DATA``, else ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("CTMICROSR_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "clinical").is_dir():
        pytest.skip(f"no real scans at {folder}; set CTMICROSR_TEST_DATA to their folder")
    return folder
