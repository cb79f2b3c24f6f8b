"""A launcher without processes: it does what the child process does when a test says so, in milliseconds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import slicer
from CTMicroSRSlicer import inputs

from CTMicroSRLib.volume import Region

WORKER_ARGUMENTS = 5
"""Python, the worker, the library, the file that keeps it running, the parent; then comes the command."""


class FakeEngine:
    """Enlarges by repeating voxels. ``finish`` ends the command that was started last, or all of a run."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.keepRunning = Path()
        self._isRunning = False

    def start(self, arguments, environment, onLine, onFinished):
        self.commands.append(list(arguments)[WORKER_ARGUMENTS:])
        self.keepRunning = Path(arguments[3])
        self._onLine, self._onFinished, self._isRunning = onLine, onFinished, True
        return self

    def later(self, seconds, function) -> None:
        """Nothing needs to be killed."""

    def kill(self) -> None:
        """See later."""

    def wait(self, seconds) -> bool:
        return True

    def finish(self) -> None:
        """End every command of the run as it would end."""
        while self._isRunning:
            self.finishStep()

    def finishStep(self) -> None:
        command = self.commands[-1]
        event = {"segment": self._segment, "info": self._info, "superres": self._superres}[command[0]](command)
        self.end(0, {"event": "done", **event})

    def refuse(self, status: int, message: str) -> None:
        """End the command with the engine's own sentence."""
        self.end(status, {"event": "error", "status": status, "message": message})

    def end(self, status: int, event: dict | None = None) -> None:
        self._isRunning = False
        if event is not None:
            self._onLine(json.dumps(event))
        self._onFinished(status)

    def _segment(self, command):
        scan = _read(command[1])
        array = slicer.util.arrayFromVolume(scan)
        mask = slicer.vtkMRMLLabelMapVolumeNode()
        mask.CopyOrientation(scan)
        slicer.util.updateVolumeFromArray(mask, ((array > -960) & (array < -600)).astype(np.uint8))
        inputs.writeVolume(mask, Path(command[2]))
        return {}

    def _info(self, command):
        i, j, k = _region(command, _read(command[1])).size_ijk
        return {
            "facts": {
                "region": _option(command, "--region"),
                "cells": 1,
                "output_size_ijk": [8 * i, 8 * j, k],
                "output_gb": 128 * math.prod((i, j, k)) / 1e9,
                "memory_gb": 0.4,
                "memory_free_gb": 20.0,
                "seconds": 1.0,
                "device": "cpu",
            }
        }

    def _superres(self, command):
        scan = _read(command[1])
        region = _region(command, scan)
        array = slicer.util.arrayFromVolume(scan)[region.slices_kji]
        geometry = inputs.geometryOf(scan)
        fine = geometry.crop(region).refine((8, 8, 1))
        _write(np.repeat(np.repeat(array, 8, axis=1), 8, axis=2), fine, command[2])
        if "--uncertainty" in command:
            deviation = np.full(fine.size_ijk[::-1], 20, dtype=np.int16)
            _write(deviation, fine, _option(command, "--uncertainty"))
        return {"report": _report(geometry, fine, region)}


def _option(command, name):
    return command[command.index(name) + 1]


def _region(command, scan):
    size = scan.GetImageData().GetDimensions()
    text = _option(command, "--region")
    return Region.parse(text if ":" in text else ",".join(f"0:{n}" for n in size))


def _read(path):
    return inputs.readVolume(Path(path), slicer.vtkMRMLScalarVolumeNode())


def _write(array_kji, geometry, path) -> None:
    node = slicer.vtkMRMLScalarVolumeNode()
    flip = np.diag((-1.0, -1.0, 1.0))
    ijkToRas = np.eye(4)
    ijkToRas[:3, :3] = flip @ np.reshape(geometry.directions, (3, 3)) @ np.diag(geometry.spacing_mm)
    ijkToRas[:3, 3] = flip @ geometry.origin_mm
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(array_kji))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijkToRas))
    inputs.writeVolume(node, Path(path))


def _report(geometry, fine, region):
    return {
        "input": {"spacing_mm": geometry.spacing_mm},
        "output": {"spacing_mm": fine.spacing_mm},
        "model": {"name": "m", "sha256": "0" * 64},
        "region": ",".join(f"{part.start}:{part.stop}" for part in region.slices_kji[::-1]),
        "seed": 0,
        "seconds": {"total": 1.0},
        "consistency": {"mode": "scan", "residual_rms_hu": 1.0, "noise_hu": 15.0},
        "software": {"ctmicrosr": "0"},
        "notice": "Research use, not for diagnosis.",
        "warnings": [],
    }
