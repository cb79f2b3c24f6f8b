"""Super-resolving volumes of the scene: from Python without a panel, and for the panel without blocking it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import slicer
import vtk

from CTMicroSRLib.errors import CancelledError, CTMicroSRError, UsageError
from CTMicroSRSlicer import inputs, results
from CTMicroSRSlicer.childrun import ChildRun, Launcher, Outcome, Progress, Step
from CTMicroSRSlicer.commands import RunFiles, RunSettings
from CTMicroSRSlicer.estimate import Estimate
from CTMicroSRSlicer.foundlungs import FoundLungs
from CTMicroSRSlicer.install import Dependencies
from CTMicroSRSlicer.request import Request, estimateSteps, runProgress, runSteps
from CTMicroSRSlicer.results import SuperResolution
from CTMicroSRSlicer.runfolder import RunFolder, removeAbandoned
from CTMicroSRSlicer.sentences import inSlicersWords, oneSentence
from CTMicroSRSlicer.sentscan import SentScan

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_EVENTS = 0.01
SCAN_GONE = "The input was removed from the scene while super-resolving; nothing was added."
REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "CTMicroSR-requirements.txt"

OnProgress = Callable[[Progress], None]
OnResult = Callable[[SuperResolution | None, CTMicroSRError | None], None]
MakeSteps = Callable[[Request, RunFiles, FoundLungs], list[Step]]
OnEstimate = Callable[[Estimate | None, CTMicroSRError | None], None]


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
        self._foundLungs = FoundLungs()

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
        sent = SentScan.of(request.inputNode)
        tags: list[int] = []

        def finish(outcome: Outcome) -> None:
            for tag in tags:
                scene.RemoveObserver(tag)
            onResult(*self._addResults(request, files, sent, outcome))

        whole = runProgress(request, self._networkSeconds(request))

        def report(progress: Progress) -> None:
            onProgress(Progress(progress.stage, *whole.update(progress.stage, progress.fraction, progress.secondsLeft)))

        run = ChildRun(steps, folder, self._launcher, python, report, finish)
        tags += _cancelWithScan(run, request.inputNode)
        self._run = run
        self._begin(run)

    def estimate(self, request: Request, onEstimate: OnEstimate) -> None:
        """Find out what a run would need; a later call replaces one that is not finished.

        Raises:
            CTMicroSRError: the request is refused at once.
        """
        self.stopEstimate()
        request = request.checked()
        mask_kji = self._foundLungs.of(request.inputNode) if request.settings.isBox else None
        if mask_kji is not None:
            inputs.checkBoxMeetsLungs(mask_kji, request.settings.region)
        missing = self.missingPackages()
        if missing:
            raise UsageError(f"Needs {', '.join(missing)}; a click on Super-resolve asks to install them.")
        python = self._findPython()
        folder, files, steps = self._prepare(request, estimateSteps)

        def finish(outcome: Outcome) -> None:
            if self._estimating is run and outcome.error is None:
                estimate = Estimate.fromFacts(outcome.results[-1]["facts"], request.settings)
                if estimate.seconds:
                    self._timed = (request.inputNode.GetID(), request.settings, estimate.seconds)
                onEstimate(estimate, None)
            elif self._estimating is run:
                onEstimate(None, _inSlicersWords(outcome.error, files, request))

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
        removeAbandoned(slicer.app.temporaryPath)
        folder = RunFolder(slicer.app.temporaryPath)
        files = RunFiles(folder.path)
        try:
            steps = makeSteps(request, files, self._foundLungs)
            inputs.writeVolume(request.inputNode, files.input)
        except BaseException:
            folder.remove()
            raise
        return folder, files, steps

    def _addResults(
        self, request: Request, files: RunFiles, sent: SentScan, outcome: Outcome
    ) -> tuple[SuperResolution | None, CTMicroSRError | None]:
        if outcome.error is not None:
            return None, _inSlicersWords(outcome.error, files, request)
        scan = request.inputNode
        if scan.GetScene() is None:
            return None, CancelledError(SCAN_GONE)
        report = dict(outcome.results[-1]["report"])
        lungWarnings = [text for event in outcome.results for text in event.get("warnings", ())]
        report["input"] = {**report["input"], "path": None, "name": scan.GetName()}
        report["output"] = {**report["output"], "path": None, "uncertainty": None}
        try:
            change = sent.change(scan, files.input)
            warnings = [*lungWarnings, *report["warnings"]]
            report["warnings"] = [change] if change else []
            report["warnings"] += [inSlicersWords(text, files, scan.GetName()) for text in warnings]
            found = results.addResults(
                scan,
                files,
                report,
                lungSegmentation=request.settings.lungSegmentation,
                outputNode=request.outputNode,
                uncertaintyNode=request.uncertaintyNode,
                inputChange=change,
            )
        except CTMicroSRError as error:
            return None, error
        except Exception as error:
            logger.exception("CTMicroSR: the result could not be added")
            return None, CTMicroSRError(oneSentence(error))
        return found, None


def _cancelWithScan(run: ChildRun, scan: slicer.vtkMRMLScalarVolumeNode) -> list[int]:
    """End the run with its scan; returns the tags of what the scan's scene is observed for."""
    scene = scan.GetScene()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onRemoved(_scene: slicer.vtkMRMLScene, _event: str, node: slicer.vtkMRMLNode) -> None:
        if node is scan:
            run.cancel(SCAN_GONE)

    def onClose(*_: object) -> None:
        run.cancel("The scene was closed while super-resolving; nothing was kept.")

    return [scene.AddObserver(scene.StartCloseEvent, onClose), scene.AddObserver(scene.NodeRemovedEvent, onRemoved)]


def _inSlicersWords(error: CTMicroSRError, files: RunFiles, request: Request) -> CTMicroSRError:
    return type(error)(inSlicersWords(str(error), files, request.inputNode.GetName()))


def _ignore(_progress: Progress) -> None:
    """Nobody listens."""
