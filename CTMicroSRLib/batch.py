"""Many scans: each in a process of its own, several at once, on this machine or on a Dask cluster; resumable."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from CTMicroSRLib import __version__
from CTMicroSRLib.batch_scan import ScanOutcome, ScanTask
from CTMicroSRLib.errors import CancelledError, RefusedInputError, UsageError
from CTMicroSRLib.folder_lock import only_one
from CTMicroSRLib.progress import Progress
from CTMicroSRLib.whole_files import write_file

SUMMARY = "batch.json"
IMAGE_SUFFIXES = (".nii.gz", ".nrrd", ".nhdr", ".nii", ".mha", ".mhd", ".dcm")
FORMATS = (".nrrd", ".mha", ".nii", ".nii.gz")


@dataclass(frozen=True)
class BatchSettings:
    """What is the same for all scans of a batch.

    Attributes:
        arguments: of ``ctmicrosr superres`` beside the files, as pairs of option and value.
        model_sha256: of the model's weights, which a batch does not go on with others.
        uncertainty: write the standard deviations too.
        figure: draw figures too.
        suffix: of the volumes.
        tries: how often a scan is tried whose process crashed, or for which memory or disk was wanting.
    """

    arguments: tuple[tuple[str, str], ...] = ()
    model_sha256: str = ""
    uncertainty: bool = False
    figure: bool = False
    suffix: str = ".nrrd"
    tries: int = 2

    def __post_init__(self) -> None:
        if self.suffix not in FORMATS:
            raise UsageError(f"Volumes are not written as {self.suffix!r}; choose one of {', '.join(FORMATS)}.")
        if self.tries < 1:
            raise UsageError(f"{self.tries} tries of a scan are too few; give 1 or more.")


@dataclass(frozen=True)
class BatchScan:
    """A scan of a batch and the files it becomes."""

    input: Path
    outputs: Mapping[str, Path]

    def task(self, settings: BatchSettings, threads: int | None) -> ScanTask:
        """How to call ``ctmicrosr superres`` for it."""
        named = [("--" + option, str(path)) for option, path in self.outputs.items() if option != "output"]
        options = [word for pair in (*settings.arguments, *named) for word in pair]
        arguments = (str(self.input), str(self.outputs["output"]), *options, "--overwrite")
        return ScanTask(str(self.input), arguments, settings.tries, threads)


class Workers(Protocol):
    """Where scans are run."""

    threads: int | None
    """Threads of each scan's process; None leaves that to the process."""

    def run(self, tasks: Sequence[ScanTask], progress: Progress, finished: Callable[[ScanOutcome], None]) -> None:
        """Run all scans, telling of each as it ends.

        Raises:
            CancelledError, KeyboardInterrupt: the scans that ran have been ended.
            ResourceError: the workers are not to be had.
        """


class Batch:
    """Scans, the folder of their results, and what has become of them so far.

    The folder's ``batch.json`` says what became of every scan and is written anew after each, so that a batch that was
    killed goes on where it was.

    Raises:
        UsageError: a scan is given twice, or the folder can't be made, holds another batch, or other files of the
            results' names.
        RefusedInputError: there is nothing at a scan's path.
    """

    def __init__(
        self, inputs: Sequence[Path], folder: Path, settings: BatchSettings, *, resume: bool, overwrite: bool
    ) -> None:
        self.folder, self.settings = folder, settings
        self.scans = [
            BatchScan(path, _outputs(folder, name, settings)) for path, name in _names(_existing(inputs)).items()
        ]
        self._records: dict[str, dict[str, Any]] = {}
        if (folder / SUMMARY).exists() and not overwrite:
            self._go_on(resume)
        elif not overwrite:
            self._check_free()
        if not folder.parent.is_dir():
            raise UsageError(f"There is no folder {folder.parent} to make {folder.name} in; create it first.")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"The folder {folder} can't be made ({error.strerror}); choose another.") from None

    def run(self, workers: Workers, progress: Progress) -> list[ScanOutcome]:
        """Run the scans that are not done; returns what became of all, in their order.

        Raises:
            UsageError: another process runs a batch in the folder.
            CancelledError: what is done stays, and can be gone on from.
            ResourceError: the workers are not to be had, or the disk is full.
        """
        with only_one(self.folder, "batch"):
            return self._run_all(workers, progress)

    def _run_all(self, workers: Workers, progress: Progress) -> list[ScanOutcome]:
        waiting = [scan for scan in self.scans if not self._is_done(scan)]
        prints = {str(scan.input): fingerprint(scan.input) for scan in waiting}
        self._write()

        def finished(outcome: ScanOutcome) -> None:
            self._records[outcome.input] = _record(outcome, prints[outcome.input])
            self._write()

        tasks = [scan.task(self.settings, workers.threads) for scan in waiting]
        try:
            workers.run(tasks, progress, finished)
        except (CancelledError, KeyboardInterrupt):
            done = sum(self._is_done(scan) for scan in self.scans)
            raise CancelledError(
                f"Cancelled with {done} of {len(self.scans)} scans done; go on with --resume."
            ) from None
        return [_outcome(scan, self._records[str(scan.input)]) for scan in self.scans]

    def _go_on(self, resume: bool) -> None:
        if not resume:
            raise UsageError(f"{self.folder} holds a batch already; go on with it (--resume) or choose another folder.")
        path = self.folder / SUMMARY
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            before, records = dict(found["settings"]), {str(one["input"]): dict(one) for one in found["scans"]}
        except (ValueError, TypeError, KeyError, OSError):
            raise UsageError(
                f"{path} can't be read as that of a batch; start over (--overwrite) or choose another folder."
            ) from None
        now = self._settings()
        differs = next((name for name in {**before, **now} if before.get(name) != now.get(name)), None)
        if differs is not None:
            raise UsageError(
                f"The batch in {self.folder} was started with another {differs} ({before.get(differs)!r}, now "
                f"{now.get(differs)!r}); give the same to go on, or choose another folder."
            )
        self._records = records

    def _check_free(self) -> None:
        for scan in self.scans:
            for path in scan.outputs.values():
                if path.exists():
                    raise UsageError(
                        f"{path} exists already; choose another folder or allow overwriting (--overwrite)."
                    )

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a batch to go on, by the options' names."""
        settings = self.settings
        own = {"model_sha256": settings.model_sha256, "uncertainty": settings.uncertainty, "figure": settings.figure}
        own["format"] = settings.suffix
        return {**{name.removeprefix("--"): value for name, value in settings.arguments}, **own}

    def _is_done(self, scan: BatchScan) -> bool:
        record = self._records.get(str(scan.input), {})
        return (
            record.get("exit_status") == 0
            and record.get("fingerprint") == fingerprint(scan.input)
            and all(path.exists() for path in scan.outputs.values())
        )

    def _write(self) -> None:
        scans = [
            {"input": str(scan.input), **self._records.get(str(scan.input), {"state": "waiting"})}
            | {"files": {name: str(path) for name, path in scan.outputs.items()}}
            for scan in self.scans
        ]
        content = {"version": __version__, "settings": self._settings(), "scans": scans}
        text = json.dumps(content, indent=2) + "\n"
        write_file(self.folder / SUMMARY, text.encode(), advice="go on with --resume")


def fingerprint(path: Path) -> str:
    """Size and time of change of a file, or of the files of a folder: what tells that a scan is another than before."""
    files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    facts = [one.stat() for one in files]
    return f"{len(files)} {sum(fact.st_size for fact in facts)} {max((fact.st_mtime_ns for fact in facts), default=0)}"


def _existing(inputs: Sequence[Path]) -> list[Path]:
    paths = [path.resolve() for path in inputs]
    missing = next((given for given, path in zip(inputs, paths, strict=True) if not path.exists()), None)
    if missing is not None:
        raise RefusedInputError(f"There is nothing at {missing}; give the path of a scan.")
    twice = next((path for path, count in Counter(paths).items() if count > 1), None)
    if twice is not None:
        raise UsageError(f"The scan {twice} is given twice; give it once.")
    return paths


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for the results of every scan: its own, with those of the folders it lies in where others share it."""
    parts = {path: (*path.parts[1:-1], _without_suffix(path.name)) for path in paths}
    names: dict[Path, str] = {}
    for path in paths:
        depth = 1
        while depth < len(parts[path]) and sum(one[-depth:] == parts[path][-depth:] for one in parts.values()) > 1:
            depth += 1
        names[path] = "-".join(parts[path][-depth:])
    shared = next((name for name, count in Counter(names.values()).items() if count > 1), None)
    if shared is not None:
        raise UsageError(f"The results of two scans would be called {shared}; rename one of the scans.")
    return names


def _without_suffix(name: str) -> str:
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] or name


def _outputs(folder: Path, name: str, settings: BatchSettings) -> dict[str, Path]:
    """The files of a scan, by the options of ``ctmicrosr superres`` that name them."""
    place = folder.resolve()
    outputs = {"output": place / f"{name}-sr{settings.suffix}", "report": place / f"{name}-report.json"}
    if settings.uncertainty:
        outputs["uncertainty"] = place / f"{name}-uncertainty{settings.suffix}"
    if settings.figure:
        outputs["figure"] = place / f"{name}-figure.png"
    return outputs


def _record(outcome: ScanOutcome, scan_print: str) -> dict[str, Any]:
    return {
        "state": "done" if outcome.exit_status == 0 else "failed",
        "exit_status": outcome.exit_status,
        "seconds": outcome.seconds,
        "message": outcome.message,
        "warnings": list(outcome.warnings),
        "fingerprint": scan_print,
    }


def _outcome(scan: BatchScan, record: Mapping[str, Any]) -> ScanOutcome:
    return ScanOutcome(
        str(scan.input),
        int(record["exit_status"]),
        float(record["seconds"]),
        str(record["message"]),
        tuple(record["warnings"]),
    )
