"""Getting the Python packages: what is missing, the one question, and failures that name their cause and cure."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from CTMicroSRSlicer.install import Dependencies, Missing, checkPackage, nameFailure, question

from CTMicroSRLib.errors import CancelledError, ResourceError

REQUIREMENTS = Path(__file__).parents[2] / "CTMicroSR" / "Resources" / "CTMicroSR-requirements.txt"


class Host:
    """Slicer as far as installing goes; the packages are there once both installers have run."""

    def __init__(self, missing, *, answer=True, torch=None, others=None, mayInstall=True):
        self.missing, self.answer, self.allowed = list(missing), answer, mayInstall
        self.torchFailure, self.othersFailure = torch, others
        self.questions, self.installed = [], []

    def mayInstall(self):
        return self.allowed

    def confirm(self, text):
        self.questions.append(text)
        return self.answer

    def installTorch(self, versionRequirement):
        if self.torchFailure:
            raise self.torchFailure
        self._done(["torch" + versionRequirement])

    def install(self, requirements):
        if self.othersFailure:
            raise self.othersFailure
        self._done(requirements)

    def _done(self, requirements):
        self.installed += requirements
        self.missing = [problem for problem in self.missing if problem.requirement not in requirements]


@pytest.fixture
def dependencies(monkeypatch):
    def make(missing, **settings):
        host = Host(missing, **settings)
        monkeypatch.setattr(Dependencies, "missing", lambda self: list(host.missing))
        return Dependencies(REQUIREMENTS, host), host

    return make


NEEDED = [Missing("torch>=2.4"), Missing("safetensors>=0.4"), Missing("psutil>=5.9")]


def test_nothing_is_asked_when_nothing_is_missing(dependencies):
    made, host = dependencies([])
    made.ensure(interactive=True)
    assert (host.questions, host.installed) == ([], [])


def test_one_question_lists_everything_with_sizes_and_then_all_is_installed(dependencies):
    made, host = dependencies(NEEDED)
    made.ensure(interactive=True)
    assert len(host.questions) == 1
    for part in ("torch>=2.4", "safetensors>=0.4", "psutil>=5.9", "2500 MB", "GB", "No image leaves"):
        assert part in host.questions[0]
    assert host.installed == ["torch>=2.4", "safetensors>=0.4", "psutil>=5.9"]


def test_a_no_installs_nothing(dependencies):
    made, host = dependencies(NEEDED, answer=False)
    with pytest.raises(CancelledError, match="Nothing was installed"):
        made.ensure(interactive=True)
    assert host.installed == []


@pytest.mark.parametrize(("interactive", "mayInstall"), [(False, True), (True, False)])
def test_scripts_and_tests_are_never_asked(dependencies, interactive, mayInstall):
    made, host = dependencies(NEEDED, mayInstall=mayInstall)
    with pytest.raises(ResourceError, match="--no-index"):
        made.ensure(interactive=interactive)
    assert (host.questions, host.installed) == ([], [])


def test_a_half_installed_torch_is_recognised_and_not_installed_over(dependencies):
    made, host = dependencies([Missing("torch>=2.4", half=True)])
    with pytest.raises(ResourceError, match=r"half installed.*pip_uninstall\('torch'\)"):
        made.ensure(interactive=True)
    assert (host.questions, host.installed) == ([], [])


FAILURES = {
    "No module named 'PyTorchUtils'": "Extensions Manager",
    "OSError: [WinError 206] The filename or extension is too long: 'C:\\\\Users\\\\…'": "short folder",
    "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device": "disk space",
    "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'": "certificate",
    "ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407 Proxy'": "HTTPS_PROXY",
    "NewConnectionError: Failed to establish a new connection: [Errno 11001] getaddrinfo failed": "internet connection",
    "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)": "update the NVIDIA driver",
    "PermissionError: [WinError 5] Access is denied: '..\\\\torch\\\\lib\\\\c10.dll'": "start Slicer again",
    "ERROR: No matching distribution found for torch>=2.4": "no fitting torch",
    "A module that was compiled using NumPy 1.x: AttributeError: _ARRAY_API not found": "too old for Slicer's NumPy",
}


@pytest.mark.parametrize("text", FAILURES)
def test_each_known_failure_is_one_sentence_with_its_cure(text):
    sentence = nameFailure(text)
    assert FAILURES[text] in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_no_two_failures_have_the_same_sentence():
    assert len({nameFailure(text) for text in FAILURES}) == len(FAILURES)


def test_where_pip_says_nothing_the_computer_itself_is_looked_at():
    text = str(subprocess.CalledProcessError(1, ["pip", "install", "torch"]))
    assert "disk space" in nameFailure(text, diskFreeGb=2.0)
    long = "C:\\Users\\somebody\\AppData\\Local\\slicer.org\\Slicer 5.12.3\\lib\\Python\\Lib\\site-packages" + "x" * 20
    assert "260 characters" in nameFailure(text, folder=long, windows=True)
    assert "260 characters" not in nameFailure(text, folder=long, windows=False)
    assert "through the proxy http://proxy:3128" in nameFailure(text, proxy="http://proxy:3128")
    assert "--no-index" in nameFailure(text)


def test_the_cause_of_a_failure_is_found_below_what_pip_raises(dependencies):
    failure = subprocess.CalledProcessError(1, ["pip"])
    failure.__cause__ = OSError("[WinError 206] The filename or extension is too long")
    made, _host = dependencies(NEEDED, torch=failure)
    with pytest.raises(ResourceError, match="260 characters"):
        made.ensure(interactive=True)


def test_a_missing_pytorch_extension_is_named(dependencies):
    made, host = dependencies(NEEDED, torch=ModuleNotFoundError("No module named 'PyTorchUtils'"))
    with pytest.raises(ResourceError, match="PyTorch extension is missing"):
        made.ensure(interactive=True)
    assert host.installed == []


def test_an_installation_that_claims_success_is_checked(dependencies):
    made, host = dependencies(NEEDED)
    host._done = host.installed.extend
    with pytest.raises(ResourceError, match="could not be installed"):
        made.ensure(interactive=True)


@pytest.mark.parametrize(
    ("installed", "requirement", "good"),
    [("2.4.0+cu121", "torch>=2.4", True), ("2.10.1", "torch>=2.4", True), ("1.13.1", "torch>=2.4", False)],
)
def test_versions_are_compared_as_numbers(monkeypatch, installed, requirement, good):
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: installed)
    assert (checkPackage(requirement) is None) is good


def test_files_without_metadata_and_metadata_without_files_are_half_an_installation(monkeypatch, tmp_path):
    (tmp_path / "halftorch").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert checkPackage("halftorch>=2.4") == Missing("halftorch>=2.4", half=True)
    monkeypatch.setattr(importlib.metadata, "files", lambda _name: None)
    assert checkPackage("torch>=2.4") == Missing("torch>=2.4", half=True)


def test_what_is_installed_here_is_recognised():
    assert checkPackage("numpy>=1.26") is None
    assert checkPackage("no-such-package-at-all>=1") == Missing("no-such-package-at-all>=1")


def test_the_question_is_about_disk_and_network():
    assert "2.5 GB" in question(NEEDED)


def test_only_keywords_that_the_pytorch_extension_has_are_used(monkeypatch):
    from types import SimpleNamespace

    from CTMicroSRSlicer.slicerhost import SlicerHost

    calls = []

    class Old:
        def installTorch(self, askConfirmation=False):
            calls.append({"askConfirmation": askConfirmation})

    class New:
        def installTorch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None):
            calls.append({"askConfirmation": askConfirmation, "torchVersionRequirement": torchVersionRequirement})

    for version in (Old, New):
        monkeypatch.setitem(sys.modules, "PyTorchUtils", SimpleNamespace(PyTorchUtilsLogic=version))
        SlicerHost().installTorch(">=2.4")
    assert calls == [{"askConfirmation": False}, {"askConfirmation": False, "torchVersionRequirement": ">=2.4"}]


def test_in_testing_mode_nothing_is_installed():
    from CTMicroSRSlicer.slicerhost import SlicerHost

    # there Slicer answers every question with yes: Base/Python/slicer/util.py, confirmOkCancelDisplay
    assert not SlicerHost().mayInstall()


def test_checking_packages_and_memory_imports_none_of_them():
    code = (
        "import sys; sys.path.insert(0, 'CTMicroSR');"
        "from CTMicroSRSlicer.install import checkPackage, describeEnvironment;"
        "checkPackage('torch>=2.4'); describeEnvironment();"
        "from CTMicroSRLib.volume import Geometry;"
        "from CTMicroSRSlicer.commands import RunSettings;"
        "from CTMicroSRSlicer.estimate import checkFits;"
        "checkFits(Geometry((64, 64, 8), (0.6, 0.6, 1.0)), RunSettings(region='whole'));"
        "assert not {'torch', 'safetensors', 'SimpleITK'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
