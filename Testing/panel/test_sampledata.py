"""The samples that the module offers in Slicer's Sample Data."""

from __future__ import annotations

import hashlib
import sys
from types import ModuleType, SimpleNamespace
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest


def register(monkeypatch, *, category: bool):
    """SampleData.SampleDataLogic of Slicer 5.12, or 5.10 without categories; a source needs an address."""
    import scriptedmodule

    scriptedmodule.install()
    from CTMicroSRSlicer import sampledata

    sources, titles = [], []

    def source(*, category, sampleName, thumbnailFileName, uris, fileNames, nodeNames, checksums):
        assert isinstance(uris, str)
        sources.append(SimpleNamespace(**locals()))

    logic = SimpleNamespace(registerCustomSampleDataSource=source)
    if category:
        logic.registerCustomSampleDataCategory = lambda name, title: titles.append((name, title))
    module = ModuleType("SampleData")
    module.SampleDataLogic = logic
    monkeypatch.setitem(sys.modules, "SampleData", module)
    sampledata.register()
    return sources, titles


@pytest.mark.parametrize("category", [True, False])
def test_a_shipped_specimen_and_slicers_chest_are_offered(monkeypatch, category, scene):
    sources, titles = register(monkeypatch, category=category)
    assert [source.sampleName for source in sources] == ["SimulatedSpecimen", "CTMicroSRChest"]
    assert len(titles) == category
    for source in sources:
        with open(source.thumbnailFileName, "rb") as file:
            assert file.read(4) == b"\x89PNG"


def test_the_specimen_is_the_file_of_its_checksum(monkeypatch, scene):
    sources, _titles = register(monkeypatch, category=True)
    with open(url2pathname(urlparse(sources[0].uris).path), "rb") as file:
        assert f"SHA256:{hashlib.sha256(file.read()).hexdigest()}" == sources[0].checksums
    assert sources[0].uris.startswith("file:")
    assert sources[1].uris.endswith(sources[1].checksums.removeprefix("SHA256:"))
