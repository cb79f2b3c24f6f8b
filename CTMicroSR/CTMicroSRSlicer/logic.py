"""Super-resolving volumes of the scene: from Python without a panel, and for the panel without blocking it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import slicer

from CTMicroSRLib.errors import CTMicroSRError, UsageError
from CTMicroSRLib.run_progress import (
    LUNG_SHARE,
    RunProgress,
    guess_network_seconds,
    lung_seconds,
    superres_seconds,
)
from CTMicroSRLib.volume import Region
from CTMicroSRSlicer import inputs, results
from CTMicroSRSlicer.childrun import ChildRun, Launcher, Outcome, Progress, RunFolder, Step
from CTMicroSRSlicer.commands import RunFiles, RunSettings, infoArguments, segmentArguments, superresArguments
from CTMicroSRSlicer.estimate import Estimate, checkFits
from CTMicroSRSlicer.install import Dependencies
from CTMicroSRSlicer.results import SuperResolution

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_EVENTS = 0.01
LOADING_SECONDS = 0.5
"""Keeps the end of the bar for the result's way into the scene, of which no event tells."""
REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "CTMicroSR-requirements.txt"

OnProgress = Callable[[Progress], None]
OnResult = Callable[[SuperResolution | None, CTMicroSRError | None], None]
MakeSteps = Callable[["Request", RunFiles], list[Step]]
OnEstimate = Callable[[Estimate | None, CTMicroSRError | None], None]


@dataclass(frozen=True)
class Request:
    """A volume and what to do with it. ``roiNode`` gives the box that ``settings.region`` then holds."""

    inputNode: slicer.vtkMRMLScalarVolumeNode
    settings: RunSettings = field(default_factory=RunSettings)
    roiNode: slicer.vtkMRMLMarkupsROINode | None = None
    outputNode: slicer.vtkMRMLScalarVolumeNode | None = None
    uncertaintyNode: slicer.vtkMRMLScalarVolumeNode | None = None

    def checked(self) -> Request:
        """The request with the ROI's voxels as region.

        Raises:
            UsageError, RefusedInputError: it can't be done.
        """
        inputs.checkInputVolume(self.inputNode)
        for node in (self.outputNode, self.uncertaintyNode):
            if node is not None and node is self.inputNode:
                raise UsageError("The result would replace its own input; choose another output, or a new volume.")
        if self.outputNode is not None and self.outputNode is self.uncertaintyNode:
            raise UsageError("Result and uncertainty would be the same volume; choose another one for one of them.")
        region = self.settings.region
        if self.roiNode is not None or region == "roi":
            region = inputs.regionOfRoi(self.inputNode, self.roiNode)
        elif self.settings.isBox:
            Region.parse(region).check_inside(self.inputNode.GetImageData().GetDimensions())
        return replace(self, settings=replace(self.settings, region=region))


NO_LUNGS = "No lung was found in this scan, so whether the ROI meets one was not checked."


def runSteps(request: Request, files: RunFiles) -> list[Step]:
    """The steps of a run: find the lungs, see whether the result fits, super-resolve."""
    settings, geometry = request.settings, inputs.geometryOf(request.inputNode)

    def check(_event: dict[str, Any]) -> None:
        mask_kji = inputs.readMask(files.lungs)
        if settings.isBox:
            inputs.checkBoxMeetsLungs(mask_kji, settings.region)
        checkFits(geometry, settings, mask_kji)

    if settings.region != "lungs":
        checkFits(geometry, settings)
    # A box is the user's own choice: a scan in which no lung is found, a specimen's say, only can't be checked with it.
    optional = settings.isBox and not settings.lungSegmentation
    lungs = [Step(segmentArguments(files), check, NO_LUNGS if optional else None)] if settings.needsLungs else []
    return [*lungs, Step(superresArguments(settings, files))]


def estimateSteps(request: Request, files: RunFiles) -> list[Step]:
    """The steps that say what a run would need."""
    lungs = [Step(segmentArguments(files))] if request.settings.region == "lungs" else []
    return [*lungs, Step(infoArguments(request.settings, files))]


def runProgress(request: Request, networkSeconds: float | None) -> RunProgress:
    """One bar for all steps of a run. ``networkSeconds`` is what the network takes, None if that was not measured."""
    settings, sizeIjk = request.settings, request.inputNode.GetImageData().GetDimensions()
    voxels = math.prod(sizeIjk)
    expected = networkSeconds
    if expected is None:
        inside = math.prod(Region.parse(settings.region).size_ijk) if settings.isBox else voxels
        passes = settings.passes if settings.uncertainty else 0
        expected = guess_network_seconds(LUNG_SHARE * voxels if settings.region == "lungs" else inside, passes)
    lungs = lung_seconds(voxels) if settings.needsLungs else {}
    stages = {**lungs, **superres_seconds(voxels, expected), "loading": LOADING_SECONDS}
    return RunProgress(stages, is_timed=networkSeconds is not None)


class SuperResolutionLogic:
    """Runs one super-resolution at a time in a child process and puts its results into the scene.

    >>> logic = CTMicroSRLogic()
    >>> result = logic.superResolve(volumeNode, region="lungs", uncertainty=True)
    >>> result.volume, result.uncertainty, result.report

    Collaborators can be replaced: ``launcher`` starts processes, ``dependencies`` knows the Python packages,
    ``findPython`` the interpreter.
    """

    def __init__(
        self,
        launcher: Launcher | None = None,
        dependencies: Dependencies | None = None,
        findPython: Callable[[], str] | None = None,
    ) -> None:
        if launcher is None or findPython is None:
            from CTMicroSRSlicer import launchers

            launcher, findPython = launcher or launchers.makeLauncher(), findPython or launchers.findPython
        if dependencies is None:
            from CTMicroSRSlicer.slicerhost import SlicerHost

            dependencies = Dependencies(REQUIREMENTS, SlicerHost())
        self._launcher, self._findPython, self._dependencies = launcher, findPython, dependencies
        self._run: ChildRun | None = None
        self._estimating: ChildRun | None = None
        self._started: list[ChildRun] = []
        self._timed: tuple[str, RunSettings, float] | None = None

    @property
    def isRunning(self) -> bool:
        """Whether a super-resolution is going on."""
        return self._run is not None and not self._run.isFinished

    def missingPackages(self) -> list[str]:
        """Names of the Python packages that a run still needs."""
        return [problem.name for problem in self._dependencies.missing()]

    def superResolve(
        self,
        inputVolume: slicer.vtkMRMLScalarVolumeNode,
        region: str | slicer.vtkMRMLMarkupsROINode = "lungs",
        *,
        uncertainty: bool = False,
        passes: int = 20,
        seed: int = 0,
        model: str = "compact-8x",
        consistency: str = "scan",
        psfFwhmMm: float | None = None,
        noiseHu: float | None = None,
        device: str = "auto",
        precision: str = "auto",
        tile: int | None = None,
        lungSegmentation: bool = False,
        outputVolume: slicer.vtkMRMLScalarVolumeNode | None = None,
        uncertaintyVolume: slicer.vtkMRMLScalarVolumeNode | None = None,
        onProgress: OnProgress | None = None,
        interactive: bool = False,
    ) -> SuperResolution:
        """Super-resolve a volume and wait for it; Slicer stays alive meanwhile.

        :param inputVolume: a chest CT in HU.
        :param region: ``lungs``, ``whole``, a markups ROI node, or ``I0:I1,J0:J1,K0:K1`` (voxels, half-open).
        :param uncertainty: also make the standard deviation in HU, from ``passes`` passes with ``seed``.
        :param model: name of an installed model, or a model folder.
        :param consistency: ``scan``, ``block`` or ``off``.
        :param psfFwhmMm: the scanner's in-plane blur; estimated from the scan if None.
        :param noiseHu: the scan's noise; estimated from the scan if None.
        :param device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        :param precision: ``auto``, ``fp32`` or ``bf16``.
        :param tile: edge of the largest tile in voxels, a multiple of 32.
        :param lungSegmentation: also add the lung mask as a segmentation.
        :param outputVolume: volume node to replace; a new one if None. ``uncertaintyVolume`` likewise.
        :param onProgress: hears the stage, the fraction of the whole run that is done, and its secondsLeft (or None).
        :param interactive: may ask whether to install missing packages; never shows a dialog otherwise.
        :return: nodes and report.
        :raises CTMicroSRError: one sentence that says what is wrong; the scene is as it was.
        """
        isName = isinstance(region, str) or region is None or not hasattr(region, "GetID")
        settings = RunSettings(
            region=str(region) if isName else "whole",
            model=str(model),
            uncertainty=uncertainty,
            passes=passes,
            seed=seed,
            consistency=consistency,
            psfFwhmMm=psfFwhmMm,
            noiseHu=noiseHu,
            device=device,
            precision=precision,
            tile=tile,
            lungSegmentation=lungSegmentation,
        )
        roiNode = None if isName else region
        request = Request(inputVolume, settings, roiNode, outputVolume, uncertaintyVolume)
        ended: list[tuple[SuperResolution | None, CTMicroSRError | None]] = []
        self.start(request, onProgress or _ignore, lambda *end: ended.append(end), interactive=interactive)
        try:
            while not ended:
                slicer.app.processEvents()
                time.sleep(SECONDS_BETWEEN_EVENTS)
        except BaseException:
            self.close()
            raise
        result, error = ended[0]
        if error is not None:
            raise error
        assert result is not None
        return result

    def start(self, request: Request, onProgress: OnProgress, onResult: OnResult, *, interactive: bool = False) -> None:
        """Start a super-resolution and return at once; ``onResult`` gets nodes or an error, exactly once.

        Raises:
            CTMicroSRError: it was not started, and ``onResult`` will not be called.
        """
        if self.isRunning:
            raise UsageError("A super-resolution is already running; wait for it or cancel it.")
        request = request.checked()
        self._dependencies.ensure(interactive=interactive)
        self.stopEstimate()
        scene = request.inputNode.GetScene()
        python = self._findPython()
        folder, files, steps = self._prepare(request, runSteps)

        def finish(outcome: Outcome) -> None:
            scene.RemoveObserver(tag)
            onResult(*self._addResults(request, files, outcome))

        whole = runProgress(request, self._networkSeconds(request))

        def report(progress: Progress) -> None:
            onProgress(Progress(progress.stage, *whole.update(progress.stage, progress.fraction, progress.secondsLeft)))

        run = ChildRun(steps, folder, self._launcher, python, report, finish)
        tag = scene.AddObserver(
            slicer.vtkMRMLScene.StartCloseEvent,
            lambda *_: run.cancel("The scene was closed while super-resolving; nothing was kept."),
        )
        self._run = run
        self._begin(run)

    def estimate(self, request: Request, onEstimate: OnEstimate) -> None:
        """Find out what a run would need; a later call replaces one that is not finished.

        Raises:
            CTMicroSRError: the request is refused at once.
        """
        self.stopEstimate()
        request = request.checked()
        missing = self.missingPackages()
        if missing:
            raise UsageError(f"Needs {', '.join(missing)}; a click on Super-resolve asks to install them.")
        python = self._findPython()
        folder, _files, steps = self._prepare(request, estimateSteps)

        def finish(outcome: Outcome) -> None:
            if self._estimating is run and outcome.error is None:
                estimate = Estimate.fromFacts(outcome.results[-1]["facts"], request.settings)
                if estimate.seconds:
                    self._timed = (request.inputNode.GetID(), request.settings, estimate.seconds)
                onEstimate(estimate, None)
            elif self._estimating is run:
                onEstimate(None, outcome.error)

        run = ChildRun(steps, folder, self._launcher, python, _ignore, finish)
        self._estimating = run
        self._begin(run)

    def stopEstimate(self) -> None:
        """Forget an estimate that is not finished."""
        running, self._estimating = self._estimating, None
        if running is not None:
            running.cancel()

    def cancel(self) -> None:
        """Cancel the run, if there is one; its ``onResult`` follows within a second or two."""
        if self._run is not None:
            self._run.cancel()

    def close(self) -> None:
        """End everything now, also what was cancelled and has not ended yet: the module or Slicer is about to go."""
        self._estimating = self._timed = None
        for run in self._started:
            run.close()
        self._started.clear()

    def _networkSeconds(self, request: Request) -> float | None:
        """What the last estimate said of just this run, if it did."""
        inputId, settings, seconds = self._timed or ("", None, 0.0)
        return seconds if (inputId, settings) == (request.inputNode.GetID(), request.settings) else None

    def _begin(self, run: ChildRun) -> None:
        self._started = [*(earlier for earlier in self._started if not earlier.isFinished), run]
        run.start()

    def _prepare(self, request: Request, makeSteps: MakeSteps) -> tuple[RunFolder, RunFiles, list[Step]]:
        """A temporary folder with the scan in it, and the steps; the folder is gone if any of it fails."""
        folder = RunFolder(slicer.app.temporaryPath)
        files = RunFiles(folder.path)
        try:
            steps = makeSteps(request, files)
            inputs.writeVolume(request.inputNode, files.input)
        except BaseException:
            folder.remove()
            raise
        return folder, files, steps

    def _addResults(
        self, request: Request, files: RunFiles, outcome: Outcome
    ) -> tuple[SuperResolution | None, CTMicroSRError | None]:
        if outcome.error is not None:
            return None, outcome.error
        report = dict(outcome.results[-1]["report"])
        lungWarnings = [text for event in outcome.results for text in event.get("warnings", ())]
        report["warnings"] = [*lungWarnings, *report["warnings"]]
        report["input"] = {**report["input"], "path": None, "name": request.inputNode.GetName()}
        report["output"] = {**report["output"], "path": None, "uncertainty": None}
        try:
            found = results.addResults(
                request.inputNode,
                files,
                report,
                lungSegmentation=request.settings.lungSegmentation,
                outputNode=request.outputNode,
                uncertaintyNode=request.uncertaintyNode,
            )
        except CTMicroSRError as error:
            return None, error
        except Exception as error:
            logger.exception("CTMicroSR: the result could not be added")
            return None, CTMicroSRError(inputs.oneSentence(error))
        return found, None


def _ignore(_progress: Progress) -> None:
    """Nobody listens."""
