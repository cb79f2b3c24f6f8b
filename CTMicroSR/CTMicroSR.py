"""Super-resolve a chest CT in Slicer: the module, and a panel that only wires. What it does is in CTMicroSRSlicer."""

import logging
import sys

import qt
import slicer
import vtk
from CTMicroSRSlicer import CTMicroSRError, RefusedInputError, about, diagnostics, inputs, startup, wording
from CTMicroSRSlicer.logic import SuperResolutionLogic
from CTMicroSRSlicer.lookpanel import LookPanel
from CTMicroSRSlicer.modelchooser import ModelChooser
from CTMicroSRSlicer.nodewatch import NodeWatch
from CTMicroSRSlicer.parameters import CTMicroSRParameterNode, Region, requestKey, requestOf
from CTMicroSRSlicer.scanwatch import ScanWatch
from CTMicroSRSlicer.sentences import oneSentence
from CTMicroSRSlicer.slicerhost import SlicerHost
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

MILLISECONDS_BEFORE_ESTIMATE = 700
PROGRESS_STEPS = 1000


class CTMicroSR(ScriptedLoadableModule):
    """What Slicer shows of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("CT Micro Super-Resolution")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Filtering")]
        self.parent.dependencies = ["Colors", "Markups", "Segmentations", "SubjectHierarchy", "Volumes"]
        self.parent.contributors = ["The CTMicroSR contributors"]
        self.parent.helpText = about.helpText()
        self.parent.acknowledgementText = about.acknowledgementText()
        slicer.app.connect("startupCompleted()", startup.onStarted)


class CTMicroSRLogic(SuperResolutionLogic, ScriptedLoadableModuleLogic):
    """Scripting: ``CTMicroSRLogic().superResolve(volumeNode, region="lungs", uncertainty=True)``."""

    def __init__(self, **collaborators):
        ScriptedLoadableModuleLogic.__init__(self)
        SuperResolutionLogic.__init__(self, **collaborators)

    def getParameterNode(self):
        """The panel's choices in the scene."""
        return CTMicroSRParameterNode(super().getParameterNode())


class CTMicroSRWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel. It only sets widgets and listens to them; values are read from the parameter node."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.look = None
        self._parameterNode = None
        self._guiTags = []
        self._estimated = None
        self._refused = None
        self._tellsResult = False
        self._hasEstimate = False
        self._cancelling = False
        self._message = ""

    def setup(self):
        """Build the panel; nothing is installed, computed or written here."""
        ScriptedLoadableModuleWidget.setup(self)
        self.uiWidget = slicer.util.loadUI(self.resourcePath("UI/CTMicroSR.ui"))
        self.layout.addWidget(self.uiWidget)
        self.ui = slicer.util.childWidgetVariables(self.uiWidget)
        self.uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = CTMicroSRLogic()
        self.modelChooser = ModelChooser(self.ui, SlicerHost(), self.showMessage)
        self.look = LookPanel(self.ui, slicer.mrmlScene, self.showRefusal)
        self.scanWatch = ScanWatch(slicer.mrmlScene, self.onScanAdded)
        self.nodeWatch = NodeWatch(self.onParametersChanged)
        self.estimateTimer = qt.QTimer()
        self.estimateTimer.setSingleShot(True)
        self.estimateTimer.setInterval(MILLISECONDS_BEFORE_ESTIMATE)
        self.estimateTimer.timeout.connect(self.onEstimate)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.ui.applyButton.clicked.connect(self.onApply)
        self.ui.diagnosticsButton.clicked.connect(self.onCopyDiagnostics)
        self.ui.roiSelector.nodeAddedByUser.connect(self.onRoiAdded)
        slicer.app.connect("aboutToQuit()", self.logic.close)
        self.initializeParameterNode()

    def cleanup(self):
        """The module is reloaded or Slicer ends."""
        self.estimateTimer.stop()
        self.ui = None  # a run that ends now finds no panel
        self.logic.close()
        self.scanWatch.close()
        self.look.close()
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self):
        """The panel becomes visible."""
        self.initializeParameterNode()

    def exit(self):
        """Another module is chosen; a run goes on."""
        self.estimateTimer.stop()
        self.logic.stopEstimate()
        self.setParameterNode(None)

    def onReload(self):
        """Reload CTMicroSRSlicer too."""
        for name in [name for name in sys.modules if name.split(".")[0] in ("CTMicroSRSlicer", "CTMicroSRLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller=None, event=None):
        """The scene goes; a run is cancelled by the logic."""
        self.logic.stopEstimate()
        self.look.comparison.leave()
        self.setParameterNode(None)
        self.showMessage("")

    def onSceneEndClose(self, caller=None, event=None):
        """A new scene is there."""
        if self.ui is not None and self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneStartImport(self, caller=None, event=None):
        """Nodes come that the widgets can't show yet, and must not be lost by it."""
        self.setParameterNode(None)

    def onSceneEndImport(self, caller=None, event=None):
        """They are there, a moment later also in the widgets' lists."""
        qt.QTimer.singleShot(0, self.onSceneEndClose)

    def initializeParameterNode(self):
        """Bind the panel to the scene's parameter node."""
        self.setParameterNode(self.logic.getParameterNode())
        if self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = inputs.firstScan(slicer.mrmlScene)

    def onScanAdded(self, volumeNode):
        """A scan was loaded; it is taken where none is chosen."""
        if self._parameterNode is not None and self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = volumeNode

    def setParameterNode(self, parameterNode):
        """Unbind from the old parameter node and bind to a new one, if any."""
        if self._parameterNode is not None:
            for tag in self._guiTags:
                self._parameterNode.disconnectGui(tag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
            self.nodeWatch.watch()
            self.look.show(None)
        self._guiTags, self._estimated = [], None
        self._parameterNode = parameterNode
        if parameterNode is not None:
            self._guiTags = [
                parameterNode.connectGui(self.ui),
                parameterNode.connectParametersToGui({"model": self.modelChooser}),
            ]
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
            self.onParametersChanged()

    def onParametersChanged(self, caller=None, event=None):
        """Show what follows from the choices; what a run needs is found out a moment later."""
        parameters = self._parameterNode
        if parameters is None:
            return
        isRoi = parameters.region == Region.ROI
        self.nodeWatch.watch(parameters.inputVolume, parameters.roi if isRoi else None)
        self.ui.roiLabel.setVisible(isRoi)
        self.ui.roiSelector.setVisible(isRoi)
        self.ui.passesSpinBox.setEnabled(parameters.uncertainty)
        self.look.show(parameters)
        if parameters.resultVolume is None and self._tellsResult:
            self.showMessage("")
        self.showRunning()
        if self.logic.isRunning:
            return
        key = requestKey(parameters)
        if self._refused not in (None, key):
            self.showMessage("")  # what was refused is no longer what would be done
        if key != self._estimated:
            self._estimated = key
            self._hasEstimate = False
            self.logic.stopEstimate()
            self.ui.estimateLabel.setText("")
            self.estimateTimer.start()

    def showRunning(self):
        """The button and the progress bar."""
        running = self.logic.isRunning
        hasInput = self._parameterNode is not None and self._parameterNode.inputVolume is not None
        self.ui.applyButton.setText(wording.applyText(running=running))
        self.ui.applyButton.setEnabled((running and not self._cancelling) or (not running and hasInput))
        self.ui.progressBar.setVisible(running)

    def onEstimate(self):
        """Find out what a run would need."""
        if self._parameterNode is None or self.logic.isRunning or self._parameterNode.inputVolume is None:
            return
        self.ui.estimateLabel.setText(wording.estimatingText())
        try:
            self.logic.estimate(requestOf(self._parameterNode), self.onEstimated)
        except CTMicroSRError as error:
            self.onEstimated(None, error)

    def onEstimated(self, estimate, error):
        """Say it, or why there is no such run."""
        self._hasEstimate = True
        self.ui.estimateLabel.setText(wording.estimateText(estimate) if error is None else oneSentence(error))

    def onApply(self, checked=False):
        """Super-resolve, or cancel."""
        if self.logic.isRunning:
            self._cancelling = True
            self.showMessage(wording.cancellingText())
            self.logic.cancel()
        elif self._parameterNode is not None:
            self.estimateTimer.stop()
            if not self._hasEstimate:
                self._estimated = None  # it is found out after the run
                self.ui.estimateLabel.setText("")
            self.showMessage(wording.startingText())
            self.ui.progressBar.setValue(0)
            try:
                self.logic.start(requestOf(self._parameterNode), self.onProgress, self.onResult, interactive=True)
            except Exception as error:
                self.onResult(None, error)
        self.showRunning()

    def onProgress(self, progress):
        """How far the whole run is, its stage and the time left."""
        self.ui.progressBar.setValue(round(PROGRESS_STEPS * progress.fraction))
        if not self._cancelling:
            self.showMessage(wording.stageText(progress))

    def onResult(self, result, error):
        """The run has ended: with nodes or with one sentence."""
        self._cancelling = False
        if self.ui is None:
            return
        if error is None:
            self.look.take(self.logic.getParameterNode(), result)
            self.showMessage(wording.resultText(result))
            self._tellsResult = True
        else:
            if not isinstance(error, CTMicroSRError):
                logging.exception("CTMicroSR", exc_info=error)
            self.showRefusal(oneSentence(error))
            if isinstance(error, RefusedInputError):
                self._estimated = None  # it can be told before the next run now
        self.onParametersChanged()
        self.showRunning()

    def onRoiAdded(self, roiNode):
        """A new ROI starts where there is something to see."""
        if self._parameterNode is not None and self._parameterNode.inputVolume is not None:
            inputs.placeRoi(roiNode, self._parameterNode.inputVolume)

    def onCopyDiagnostics(self, checked=False):
        """For a report of a problem."""
        slicer.app.clipboard().setText(diagnostics.diagnostics(self._message))

    def showRefusal(self, text):
        """Why something is not done; it goes when that may no longer hold."""
        self.showMessage(text)
        if self._parameterNode is not None:
            self._refused = requestKey(self._parameterNode)

    def showMessage(self, text):
        """The one line below the button."""
        self._message, self._refused, self._tellsResult = text, None, False
        self.ui.statusLabel.setText(text)


class CTMicroSRTest(ScriptedLoadableModuleTest):
    """Run from the module's Reload and Test, and by ctest: a small specimen through the real child process."""

    def runTest(self):
        """All of it."""
        from CTMicroSRSlicer import selftest

        slicer.mrmlScene.Clear()
        selftest.run(CTMicroSRLogic())
        self.delayDisplay("CTMicroSR passed its test")
