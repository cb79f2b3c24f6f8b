"""Writing the folder of patches that :mod:`CTMicroSRLib.training.patches` opens: complete, or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from CTMicroSRLib.errors import ResourceError
from CTMicroSRLib.training.patches import FORMAT, MANIFEST, Float32, Int16, Int32, PatchSettings, Side, patch_layout


@dataclass(frozen=True)
class CasePatches:
    """What one scan or specimen gives.

    Attributes:
        patches: the patches one by one, stored values, in the order of ``places``.
        places: ``(n, 4)`` scan of the source, slice, row and column.
        source: what the manifest says of it.
        truth: of clinical patches of a simulation.
        scanner: ``(n, 2)``, of clinical patches of a simulation.
    """

    patches: Iterable[Int16]
    places: Int32
    source: Mapping[str, Any]
    truth: Int16 | None = None
    scanner: Float32 | None = None


class PatchWriter:
    """Writes the arrays of patches, case after case; see :func:`writing_patches`.

    Attributes:
        sources: what the manifest says of each case.
        checksums: CRC-32 of what was written of each array, as :func:`~CTMicroSRLib.training.patches.verify_patches`
            reads it.
    """

    def __init__(self, folder: Path, layout: Mapping[str, tuple[type[np.generic], tuple[int, ...]]]) -> None:
        self.sources: list[dict[str, Any]] = []
        self.checksums = dict.fromkeys(layout, 0)
        self._left = {name: shape[0] for name, (_, shape) in layout.items()}
        self._layout = layout
        self._files: dict[str, BinaryIO] = {}
        with _on_disk(folder):
            for name, (dtype, shape) in layout.items():
                self._files[name] = (folder / f"{name}.npy").open("wb")
                header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(self._files[name], header)
        self._folder = folder

    def add(self, side: Side, case: CasePatches) -> None:
        """Write all patches of a case.

        Raises:
            ResourceError: the disk is full or can't be written to.
        """
        number, count = len(self.sources), len(case.places)
        self.sources.append({"case": number, "domain": side, **case.source, "patches": count})
        for patch in case.patches:
            self._write(side, patch[None])
        self._write(f"{side}_case", np.full(count, number, np.int32))
        self._write(f"{side}_place", case.places)
        if case.truth is not None and case.scanner is not None:
            self._write("truth", case.truth)
            self._write("scanner", case.scanner)

    def close(self) -> None:
        """Close the files; what was written is safe on the disk."""
        with _on_disk(self._folder):
            for file in self._files.values():
                if not file.closed:
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()

    def abandon(self) -> None:
        """Close the files, whatever became of them."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def check_complete(self) -> None:
        """Raise ValueError unless every array has all its rows."""
        missing = {name: left for name, left in self._left.items() if left}
        if missing:
            raise ValueError(f"rows are missing: {missing}")

    def _write(self, name: str, rows: NDArray[Any]) -> None:
        dtype, shape = self._layout[name]
        if rows.shape[1:] != shape[1:] or len(rows) > self._left[name]:
            raise ValueError(f"{name} takes {self._left[name]} more rows of {shape[1:]}, not {rows.shape}")
        self._left[name] -= len(rows)
        content = np.ascontiguousarray(rows, dtype=dtype).tobytes()
        self.checksums[name] = zlib.crc32(content, self.checksums[name])
        with _on_disk(self._folder):
            self._files[name].write(content)


@contextmanager
def writing_patches(
    folder: Path,
    settings: PatchSettings,
    request: Mapping[str, Any],
    *,
    clinical: int,
    micro: int,
    simulated: bool = False,
) -> Iterator[PatchWriter]:
    """A writer of patches; the folder appears with all of them when the block ends, or not at all.

    Args:
        folder: where; it does not exist yet, or is empty.
        settings: of the patches.
        request: what they are made from, which :func:`patches_made_before` compares.
        clinical: number of clinical patches.
        micro: number of micro-CT patches.
        simulated: whether the clinical ones have a truth and a scanner.

    Raises:
        ResourceError: the disk is full, or can't be written to.
    """
    layout = patch_layout(settings, clinical, micro, paired=simulated)
    made = [path for path in (folder.parent, *folder.parent.parents) if not path.exists()]
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    writer = None
    done = False
    try:
        with _on_disk(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(folder)
            _check_space(folder, layout)
            part.mkdir()
        writer = PatchWriter(part, layout)
        yield writer
        writer.check_complete()
        writer.close()
        manifest = {
            "format": FORMAT,
            "what": "patches of clinical CT and of micro-CT, unpaired: no source is in both domains",
            "simulated": simulated,
            "paired": simulated,
            "settings": asdict(settings),
            "patches": {"clinical": clinical, "micro": micro},
            "request": request,
            "sources": writer.sources,
            "crc32": writer.checksums,
        }
        with _on_disk(folder):
            _write_text(part / MANIFEST, json.dumps(manifest, indent=1) + "\n")
            if folder.is_dir():
                folder.rmdir()
            part.rename(folder)
        done = True
    finally:
        if not done:
            if writer is not None:
                writer.abandon()
            shutil.rmtree(part, ignore_errors=True)
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()


def _check_space(folder: Path, layout: Mapping[str, tuple[type[np.generic], tuple[int, ...]]]) -> None:
    needed = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in layout.values())
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise ResourceError(
            f"The patches need {needed / 1e9:.2f} GB but {free / 1e9:.2f} GB is free on the disk of {folder}; "
            "free some space, or choose another disk or fewer patches."
        )


def _remove_stale(folder: Path) -> None:
    """Remove what a killed process left."""
    import psutil

    name = re.compile(rf"\.{re.escape(folder.name)}\.(\d+)\.part")
    for path in folder.parent.iterdir():
        match = name.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    """Tell a failed write in the user's words."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"The patches can't be written to {folder} ({error.strerror or error}); free some space or choose another "
            "folder."
        ) from None
