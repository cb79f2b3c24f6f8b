"""What goes into the Slicer extension, compared with the tree and with what the extensions index asks for."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "CTMicroSR"


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lists = _load("packaging_lists", Path(__file__).with_name("lists.py"))
batch = _load("CTMicroSRBatch", MODULE / "CTMicroSRBatch" / "CTMicroSRBatch.py")


@pytest.mark.parametrize("key", lists.wanted(), ids=lambda key: f"{key[0].parent.name}-{key[1]}")
def test_every_file_of_the_tree_is_listed_and_every_listed_file_is_there(key):
    assert sorted(lists.listed(*key)) == lists.wanted()[key], "run python Testing/packaging/lists.py"


def test_the_catalogue_entry_fits_the_index():
    text = (REPOSITORY / "CTMicroSR.json").read_bytes()
    assert b"\r" not in text
    entry = json.loads(text)
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.2.json#")
    known = {"$schema", "build_dependencies", "build_subdirectory", "category", "scm_revision", "scm_url", "tier"}
    assert set(entry) == known
    assert re.fullmatch(r"https://github\.com/[\w.-]+/Slicer[-_]?CTMicroSR", entry["scm_url"])


def test_cmake_and_catalogue_agree():
    cmake = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
    entry = json.loads((REPOSITORY / "CTMicroSR.json").read_text(encoding="utf-8"))
    assert re.search(r"project\((\w+)\)", cmake).group(1) == "CTMicroSR"
    depends = re.search(r'set\(EXTENSION_DEPENDS "([^"]*)"\)', cmake).group(1)
    assert depends.split() == entry["build_dependencies"]
    assert re.search(r'set\(EXTENSION_HOMEPAGE "([^"]*)"\)', cmake).group(1) == entry["scm_url"]
    # the index reads these from one line each, and opens the address
    for name in ("ICONURL", "SCREENSHOTURLS"):
        addresses = re.search(rf'set\(EXTENSION_{name} "([^"]*)"\)', cmake).group(1).split()
        for address in addresses:
            assert address.endswith(".png")
            assert (REPOSITORY / address.split("/main/", 1)[1]).is_file()


def test_a_licence_lies_in_the_root():
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")


def test_what_the_child_needs_is_what_the_package_needs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    file = MODULE / "Resources" / "CTMicroSR-requirements.txt"
    needed = {line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")}
    bundled_or_by_the_pytorch_extension = ("torch", "numpy", "SimpleITK")
    package = {
        dependency
        for dependency in project["dependencies"]
        if not dependency.startswith(bundled_or_by_the_pytorch_extension)
    }
    assert needed == package


def test_the_module_file_is_short_and_nothing_slicer_lacks_is_imported_at_file_scope():
    assert len((MODULE / "CTMicroSR.py").read_text(encoding="utf-8").splitlines()) < 300
    allowed = set(sys.stdlib_module_names) | {"CTMicroSRLib", "CTMicroSRSlicer", "ctk", "numpy", "qt", "slicer", "vtk"}
    for path in [MODULE / "CTMicroSR.py", *(MODULE / "CTMicroSRSlicer").glob("*.py")]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, path.name


def test_torch_is_never_imported_in_slicers_process():
    for path in [MODULE / "CTMicroSR.py", *(MODULE / "CTMicroSRSlicer").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "torch" not in {name.split(".")[0] for name in names}, path.name


def test_the_cli_modules_description_has_the_parameters_of_the_command():
    from CTMicroSRLib.cli import build_parser

    root = ElementTree.parse(MODULE / "CTMicroSRBatch" / "CTMicroSRBatch.xml").getroot()
    parameters = {
        item.findtext("name"): item
        for group in root.iter("parameters")
        for item in group
        if item.find("name") is not None
    }
    flags = {item.findtext("longflag") for item in parameters.values()} - {None}
    # SlicerExecutionModel's ModuleDescriptionParser refuses the whole file for any other flag or name.
    allowed = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
    assert [name for name in (flags | parameters.keys()) if not allowed.fullmatch(name)] == []
    flags = {flag.replace("_", "-") for flag in flags}
    assert flags == {name for name, _kind, _default in batch.OPTIONS}
    command = next(action for action in build_parser()._actions if action.choices).choices["superres"]
    options = {string.removeprefix("--"): action for action in command._actions for string in action.option_strings}
    assert set(options) - flags == {"debug", "figure", "h", "-h", "help", "overwrite", "progress"} - {"h"}
    for item in parameters.values():
        flag = item.findtext("longflag")
        if flag is None or item.find("default") is None:
            continue
        flag = flag.replace("_", "-")
        expected = options[flag].default
        assert item.findtext("default") == str(0 if expected is None else expected), flag
        if options[flag].choices:
            assert [element.text for element in item.findall("element")] == list(options[flag].choices)


def test_the_cli_module_is_started_by_slicers_python():
    first = (MODULE / "CTMicroSRBatch" / "CTMicroSRBatch.py").read_text(encoding="utf-8").splitlines()[0]
    assert first == "#!/usr/bin/env python-real"


def test_the_panels_widgets_get_the_scene():
    root = ElementTree.parse(MODULE / "Resources" / "UI" / "CTMicroSR.ui").getroot()
    choosers = {w.get("name") for w in root.iter("widget") if w.get("class") == "qMRMLNodeComboBox"}
    connected = {
        c.findtext("receiver")
        for c in root.iter("connection")
        if c.findtext("slot") == "setMRMLScene(vtkMRMLScene*)" and c.findtext("sender") == root.findtext("class")
    }
    assert choosers
    assert choosers == connected


def test_what_is_translated_is_plain_text():
    for path in [MODULE / "CTMicroSR.py", *(MODULE / "CTMicroSRSlicer").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("_", "translate"):
                assert all(isinstance(argument, ast.Constant) for argument in node.args), f"{path.name}:{node.lineno}"


def test_the_sample_is_the_one_whose_checksum_is_registered():
    import hashlib

    text = (MODULE / "CTMicroSRSlicer" / "sampledata.py").read_text(encoding="utf-8")
    checksum = re.search(r'SPECIMEN_SHA256 = "([0-9a-f]{64})"', text).group(1)
    file = MODULE / "Resources" / "SampleData" / "CTMicroSR-specimen.nrrd"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == checksum
