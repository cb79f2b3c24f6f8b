"""Rewrite the file lists of the CMakeLists.txt from the tree: ``python Testing/packaging/lists.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "CTMicroSR"


def filesBelow(folder: Path, base: Path, pattern: str = "*") -> list[str]:
    """Files below a folder as CMake names them; what tools leave behind does not count."""
    found = (path for path in folder.rglob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.relative_to(base).as_posix() for path in found)


def wanted() -> dict[tuple[Path, str], list[str]]:
    """What each list of each CMakeLists.txt must hold."""
    return {
        (REPOSITORY / "CMakeLists.txt", "LIBRARY_SCRIPTS"): filesBelow(REPOSITORY / "CTMicroSRLib", REPOSITORY, "*.py"),
        (REPOSITORY / "CMakeLists.txt", "LIBRARY_RESOURCES"): filesBelow(
            REPOSITORY / "Resources" / "Models", REPOSITORY
        ),
        (MODULE / "CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"): [
            "CTMicroSR.py",
            *filesBelow(MODULE / "CTMicroSRSlicer", MODULE, "*.py"),
        ],
        (MODULE / "CMakeLists.txt", "MODULE_PYTHON_RESOURCES"): filesBelow(MODULE / "Resources", MODULE),
    }


def listed(file: Path, name: str) -> list[str]:
    """What a list of a CMakeLists.txt holds."""
    return _listPattern(name).search(file.read_text(encoding="utf-8")).group(1).split()


def _listPattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=set\({name}\n)(.*?)(?=  \)\n)", re.DOTALL)


def main() -> None:
    """Rewrite every list."""
    for (file, name), files in wanted().items():
        text = "".join(f"  {path}\n" for path in files)
        before = file.read_text(encoding="utf-8")
        file.write_text(_listPattern(name).sub(lambda _, text=text: text, before, count=1), encoding="utf-8")
    sys.stdout.write("The lists are those of the tree.\n")


if __name__ == "__main__":
    main()
