"""The Python packages that the child process needs: what is there, one question, and failures with their cure.

torch is never imported here, since that could freeze Slicer or keep a broken installation from being repaired.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from CTMicroSRLib.errors import CancelledError, ResourceError

TORCH_VERSION = ">=2.4"
SIZES_MB = {"torch": 2500, "safetensors": 1, "tqdm": 1, "psutil": 1}
"""Disk space that a package takes once installed, generously: torch for the CPU alone is a third of this."""

LONG_FOLDER_CHARACTERS = 90
"""torch holds paths of up to about 170 characters and Windows refuses more than 260."""

OFFLINE_CURE = (
    "without internet, install the wheels of torch, safetensors, tqdm and psutil with PythonSlicer -m pip install "
    "--no-index --find-links FOLDER"
)


@dataclass(frozen=True)
class Missing:
    """A package that is missing, too old or broken (``half``: files of an installation that stopped half-way)."""

    requirement: str
    half: bool = False

    @property
    def name(self) -> str:
        """The package's name."""
        return packageName(self.requirement)


class Host(Protocol):
    """What installing needs from Slicer."""

    def mayInstall(self) -> bool:
        """False where nothing must be installed: in Slicer's testing mode."""

    def confirm(self, text: str) -> bool:
        """Ask the user."""

    def installTorch(self, versionRequirement: str) -> None:
        """Install torch through the PyTorch extension; ImportError where that is missing."""

    def install(self, requirements: list[str]) -> None:
        """Install other packages."""


@dataclass(frozen=True)
class Dependencies:
    """Checks for the packages and installs them.

    ``requirementsFile`` lists all but torch, which the PyTorch extension chooses for the computer's graphics card.
    """

    requirementsFile: Path
    host: Host
    environment: Mapping[str, str] | None = None
    windows: bool = os.name == "nt"

    def requirements(self) -> list[str]:
        """All requirements, torch first."""
        lines = self.requirementsFile.read_text(encoding="utf-8").splitlines()
        return ["torch" + TORCH_VERSION, *(line.strip() for line in lines if line.strip() and not line.startswith("#"))]

    def missing(self) -> list[Missing]:
        """What is missing, without importing any of it."""
        found = (checkPackage(requirement) for requirement in self.requirements())
        return [problem for problem in found if problem is not None]

    def ensure(self, *, interactive: bool) -> None:
        """Make sure that everything is there; asks once when ``interactive``, and raises otherwise.

        Raises:
            CancelledError: the user did not want it.
            ResourceError: it is missing and can't be installed; the sentence says why and what to do.
        """
        missing = self.missing()
        if not missing:
            return
        half = [problem.name for problem in missing if problem.half]
        if half:
            raise ResourceError(
                f"{', '.join(half)} is only half installed; start Slicer again, run slicer.util.pip_uninstall("
                f"'{' '.join(half)}') in the Python console, and click Super-resolve again."
            )
        names = ", ".join(problem.name for problem in missing)
        if not interactive or not self.host.mayInstall():
            raise ResourceError(
                f"Python packages are missing ({names}); click Super-resolve in the CTMicroSR module once to install "
                f"them, "
                f"or {OFFLINE_CURE}."
            )
        if not self.host.confirm(question(missing)):
            raise CancelledError(f"Nothing was installed; super-resolving needs {names}.")
        self._install(missing)

    def _install(self, missing: list[Missing]) -> None:
        try:
            if any(problem.name == "torch" for problem in missing):
                self.host.installTorch(TORCH_VERSION)
            others = [problem.requirement for problem in missing if problem.name != "torch"]
            if others:
                self.host.install(others)
        except ImportError as error:
            raise ResourceError(nameFailure(f"ImportError: {error}", **self._facts())) from error
        except CancelledError:
            raise
        except Exception as error:
            raise ResourceError(nameFailure(_textOf(error), **self._facts())) from error
        importlib.invalidate_caches()
        left = self.missing()
        if left:
            names = ", ".join(problem.name for problem in left)
            raise ResourceError(f"{names} could not be installed; the Python console says why, and {OFFLINE_CURE}.")

    def _facts(self) -> dict[str, object]:
        folder = sysconfig.get_paths()["purelib"]
        variables = os.environ if self.environment is None else self.environment
        proxy = next((variables[name] for name in ("HTTPS_PROXY", "https_proxy") if variables.get(name)), "")
        return {
            "diskFreeGb": _diskFreeGb(folder),
            "folder": folder,
            "windows": self.windows,
            "proxy": proxy,
        }


def question(missing: list[Missing]) -> str:
    """The one question before anything is installed."""
    lines = "\n".join(f"  {problem.requirement} (about {SIZES_MB.get(problem.name, 10)} MB)" for problem in missing)
    total = sum(SIZES_MB.get(problem.name, 10) for problem in missing)
    return (
        "Super-resolving needs Python packages that Slicer does not have yet:\n\n"
        f"{lines}\n\n"
        f"They take up to {total / 1000:.1f} GB of disk, come from the Python Package Index and download.pytorch.org, "
        f"and "
        "change Slicer's Python environment. No image leaves this computer. Install them now?"
    )


def checkPackage(requirement: str) -> Missing | None:
    """None where the package is there in a version that will do."""
    name = packageName(requirement)
    try:
        version = importlib.metadata.version(name)
        files = importlib.metadata.files(name)
    except importlib.metadata.PackageNotFoundError:
        # a folder without metadata is what an interrupted installation leaves; it imports as a namespace package
        spec = importlib.util.find_spec(name)
        return Missing(requirement, half=spec is not None)
    spec = importlib.util.find_spec(name)
    if files is None or spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return Missing(requirement, half=True)
    return None if _isAtLeast(version, requirement) else Missing(requirement)


def packageName(requirement: str) -> str:
    """The name in a requirement."""
    return re.split(r"[<>=!~ \[;]", requirement, maxsplit=1)[0]


def _isAtLeast(version: str, requirement: str) -> bool:
    minimum = re.search(r">=\s*([0-9.]+)", requirement)
    if minimum is None:
        return True
    return _numbers(version) >= _numbers(minimum.group(1))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def _diskFreeGb(folder: str) -> float:
    try:
        return shutil.disk_usage(folder).free / 1e9
    except OSError:
        return float("inf")


def _textOf(error: BaseException) -> str:
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None and len(parts) < 5:
        output = getattr(current, "output", None)
        parts.append(f"{type(current).__name__}: {current} {output if isinstance(output, str) else ''}")
        current = current.__cause__ or current.__context__
    return "\n".join(parts)


@dataclass(frozen=True)
class _Facts:
    diskFreeGb: float = float("inf")
    folder: str = ""
    windows: bool = False
    proxy: str = ""


Cause = Callable[[str, _Facts], bool]


def _says(*patterns: str) -> Cause:
    expression = re.compile("|".join(patterns), re.IGNORECASE)
    return lambda text, _facts: expression.search(text) is not None


# Most telling first: the text of pip often holds several of these.
_FAILURES: tuple[tuple[Cause, str], ...] = (
    (
        _says(r"No module named '?PyTorchUtils"),
        "The PyTorch extension is missing; install PyTorch in Slicer's Extensions Manager, start Slicer again, and "
        "click "
        "Super-resolve again.",
    ),
    (
        _says(r"WinError 206", r"file ?name or extension is too long", r"path too long"),
        "Windows refused a path longer than 260 characters; install Slicer in a short folder such as C:\\Slicer, or "
        "switch "
        "on long paths in Windows, and try again.",
    ),
    (
        _says(r"No space left", r"Errno 28", r"WinError 112", r"ENOSPC"),
        "There is not enough disk space for torch; free about 5 GB where Slicer is installed, and try again.",
    ),
    (
        _says(r"CERTIFICATE_VERIFY_FAILED", r"SSLError", r"SSLCertVerification"),
        "The network replaces security certificates; ask its administrator for the certificate, set PIP_CERT to its "
        "file, "
        "and start Slicer again.",
    ),
    (
        _says(r"ProxyError", r"407 Proxy", r"Cannot connect to proxy", r"Tunnel connection failed"),
        "The network's proxy refused the download; set HTTPS_PROXY to the proxy of your network and start Slicer "
        "again.",
    ),
    (
        _says(
            r"getaddrinfo failed",
            r"name resolution",
            r"NameResolutionError",
            r"NewConnectionError",
            r"Network is unreachable",
            r"ConnectTimeout",
            r"Read timed out",
            r"ConnectionResetError",
            r"URLError",
        ),
        f"The packages could not be downloaded; check the internet connection, or {OFFLINE_CURE}.",
    ),
    (
        _says(r"driver on your system is too old", r"driver version is insufficient", r"unsupported.*NVIDIA driver"),
        "The graphics driver is too old for this torch; update the NVIDIA driver, or install torch for the CPU in the "
        "PyTorch Util module.",
    ),
    (
        _says(r"WinError 5\b", r"WinError 32", r"Access is denied", r"Permission denied", r"Errno 13"),
        "Slicer's folder can't be written or torch is in use; start Slicer again, or install Slicer in a folder of "
        "your own, "
        "and try again.",
    ),
    (
        _says(r"No matching distribution", r"Could not find a version", r"not a supported wheel"),
        f"There is no fitting torch for this computer at the package index that was asked; check the connection, or "
        f"{OFFLINE_CURE}.",
    ),
    (
        _says(r"module compiled using NumPy 1", r"_ARRAY_API not found"),
        "The installed torch is too old for Slicer's NumPy; uninstall it in the PyTorch Util module and click "
        "Super-resolve "
        "again.",
    ),
)


def nameFailure(
    text: str, *, diskFreeGb: float = float("inf"), folder: str = "", windows: bool = False, proxy: str = ""
) -> str:
    """One sentence with the cause and the cure of a failed installation.

    Args:
        text: what the failure said, with its causes.
        diskFreeGb: free space where packages go.
        folder: where packages go.
        windows: whether this is Windows.
        proxy: the proxy that is set, if any.
    """
    facts = _Facts(diskFreeGb, folder, windows, proxy)
    for applies, sentence in _FAILURES:
        if applies(text, facts):
            return sentence
    # pip's output does not always reach here, so the computer itself is looked at
    if diskFreeGb < 5:
        return _FAILURES[2][1]
    if windows and len(folder) > LONG_FOLDER_CHARACTERS:
        return _FAILURES[1][1]
    last = " ".join(text.strip().splitlines()[0].split()) if text.strip() else "no message"
    hint = f" through the proxy {proxy}" if proxy else ""
    return (
        f"The packages could not be installed{hint} ({last[:200]}); the Python console says more, and {OFFLINE_CURE}."
    )


def describeEnvironment() -> dict[str, str]:
    """Versions and places of what the child process needs, for Copy diagnostics; imports none of it."""
    facts = {"python": sys.version.split()[0], "executable": sys.executable or ""}
    for name in ("torch", "numpy", "SimpleITK", "safetensors", "psutil", "tqdm"):
        problem = checkPackage(name)
        try:
            facts[name] = importlib.metadata.version(name) + (" (broken)" if problem else "")
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "half installed" if problem is not None and problem.half else "missing"
    folder = sysconfig.get_paths()["purelib"]
    facts["packages"] = folder
    facts["disk free"] = f"{_diskFreeGb(folder):.1f} GB"
    facts["proxy"] = "set" if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")) else "not set"
    return facts
