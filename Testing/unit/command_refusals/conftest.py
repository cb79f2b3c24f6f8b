"""Running the command on what it is to refuse."""

from __future__ import annotations

import re

import pytest
from refused_scans import REFUSED, lung_piece
from written_files import GIVEN, tree, write_scan


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan.nrrd", lung_piece())


@pytest.fixture
def refused(ctmicrosr, tmp_path):
    """Run the command; check the status, the one line, and that no file came, went or changed."""

    def run(status, match, *arguments):
        before = tree(tmp_path)
        outcome = ctmicrosr(*arguments)
        assert (outcome.status, outcome.stdout) == (status, ""), outcome
        assert re.fullmatch(r"ctmicrosr: [^\n]*[^\n.]\.\n", outcome.stderr), outcome.stderr
        assert re.search(match, outcome.stderr), outcome.stderr
        assert tree(tmp_path) == before

    return run


@pytest.fixture
def refuses_scan(refused, command_model, tmp_path):
    """superres on a file that is to be refused."""

    def run(path, match, status=REFUSED, *arguments):
        region = () if "--region" in arguments else ("--region", "whole")
        common = ("--model", command_model, "--report", tmp_path / "r.json", *GIVEN)
        refused(status, match, "superres", path, tmp_path / "out.nrrd", *common, *region, *arguments)

    return run
