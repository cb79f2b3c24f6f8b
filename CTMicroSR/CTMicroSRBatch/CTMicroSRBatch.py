#!/usr/bin/env python-real
"""Slicer CLI module: super-resolve one volume, with the parameters and the result of the ``ctmicrosr`` command.

Slicer shows it as a module and runs it with ``slicer.cli.run``; outside Slicer:
``PythonSlicer CTMicroSRBatch.py in.nrrd out.nrrd``.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import sys
from pathlib import Path

# Of the command; 0 and nothing leave the choice to it. In CTMicroSRBatch.xml, and so in what Slicer calls, they have
# underscores: Slicer takes no XML whose flags have hyphens.
OPTIONS = (
    ("region", str, "lungs"),
    ("mask", str, ""),
    ("model", str, "compact-8x"),
    ("uncertainty", str, ""),
    ("passes", int, 20),
    ("seed", int, 0),
    ("consistency", str, "scan"),
    ("psf-fwhm-mm", float, 0.0),
    ("noise-hu", float, 0.0),
    ("device", str, "auto"),
    ("precision", str, "auto"),
    ("tile", int, 0),
    ("report", str, ""),
)


USUAL_SCAN_VOXELS = 512 * 512 * 200


class FilterProgress(io.TextIOBase):
    """Turns the command's JSON lines into the lines that Slicer reads of a CLI module."""

    def __init__(self, stream, runProgress):
        self._stream = stream
        self._runProgress = runProgress
        self._pending = ""

    def write(self, text):
        """Take text in pieces of any size."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def _line(self, line):
        try:
            event = json.loads(line)
        except ValueError:
            event = {}
        if event.get("event") == "progress":
            fraction, _seconds = self._runProgress.update(event["stage"], event["fraction"])
            self._stream.write(f"<filter-progress>{fraction:.4f}</filter-progress>\n")
            self._stream.write(f"<filter-comment>{event['stage']}</filter-comment>\n")
        elif event.get("event") == "done":
            self._stream.write("<filter-progress>1</filter-progress>\n")
            for warning in event["report"]["warnings"]:
                self._stream.write(f"Warning: {warning}\n")
        elif line and event.get("event") != "error":
            self._stream.write(f"{line}\n")
        self._stream.flush()


def commandArguments(arguments):
    """The command's arguments for those of this module."""
    parser = argparse.ArgumentParser(prog="CTMicroSRBatch", description=__doc__, allow_abbrev=False)
    parser.add_argument("inputVolume")
    parser.add_argument("outputVolume")
    for name, kind, default in OPTIONS:
        flags = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
        parser.add_argument(*flags, type=kind, default=default)
    options = parser.parse_args(arguments)
    command = ["superres", options.inputVolume, options.outputVolume, "--progress", "json", "--overwrite"]
    for name, _kind, _default in OPTIONS:
        value = getattr(options, name.replace("-", "_"))
        if value not in ("", 0, 0.0) or name == "seed":
            command += [f"--{name}", str(value)]
    return command


def wholeRun(command):
    """One bar for all stages of the command, whose scan is not read yet: as they are for a usual one."""
    from CTMicroSRLib.run_progress import LUNG_SHARE, RunProgress, guess_network_seconds, superres_seconds

    seconds = guess_network_seconds(LUNG_SHARE * USUAL_SCAN_VOXELS)
    lungs = "--mask" not in command and command[command.index("--region") + 1] == "lungs"
    return RunProgress(superres_seconds(USUAL_SCAN_VOXELS, seconds, lungs=lungs))


def findLibrary():
    """Make CTMicroSRLib importable: it lies with Slicer's scripted modules, or in the checkout above this file."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "qt-scripted-modules", here.parents[1]):
        if (folder / "CTMicroSRLib" / "cli.py").is_file():
            sys.path.insert(0, str(folder))
            return
    if importlib.util.find_spec("CTMicroSRLib") is None:
        sys.exit("CTMicroSRBatch: CTMicroSRLib was not found; install the CTMicroSR extension again.")


def main(arguments):
    """Run; returns the exit status of the command."""
    command = commandArguments(arguments)
    findLibrary()
    from CTMicroSRLib import cli

    # Warnings are in the report and printed from there; Slicer would show those on standard error as errors.
    logging.getLogger().addHandler(logging.NullHandler())
    with contextlib.redirect_stdout(FilterProgress(sys.stdout, wholeRun(command))):
        return cli.main(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
