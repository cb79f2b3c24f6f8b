"""Stand-ins for what the Slicer application adds to ``slicer-core``: ``slicer.app``, ``slicer.modules``, a scene.

Checked against Slicer 5.10.0 and 5.12.3: Base/QTGUI/qSlicerApplication.h, Base/QTCore/qSlicerCoreApplication.h
(``processEvents``, ``temporaryPath``, ``testingEnabled``, ``applicationLogic``), Base/QTGUI/qSlicerLayoutManager.h.
Everything below the application (nodes, logics, ``slicer.util``) is the real one of slicer-core.
"""

from __future__ import annotations

import os
import tempfile
from types import SimpleNamespace

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
from PySide6.QtWidgets import QApplication

application = QApplication.instance() or QApplication([])


class Application:
    """``slicer.app``."""

    applicationName = "Slicer"
    applicationVersion = "5.12.3"
    repositoryRevision = "stand-in"

    def __init__(self) -> None:
        self.temporaryPath = tempfile.gettempdir()
        self.testing = True
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.connections = []

    def processEvents(self) -> None:
        application.processEvents()

    def testingEnabled(self) -> bool:
        return self.testing

    def applicationLogic(self):
        return self.logic

    def connect(self, signal: str, function) -> None:
        """PythonQt's QObject.connect(signal, function)."""
        self.connections.append((signal, function))

    def clipboard(self):
        return application.clipboard()


def module(logic):
    """A loadable module: qSlicerAbstractCoreModule::logic()."""
    return SimpleNamespace(logic=lambda: logic)


def startApplication() -> None:
    """Make ``slicer`` look as it does inside the application, with an empty scene."""
    slicer.app = Application()
    slicer.modules = SimpleNamespace()
    newScene()


def addViews() -> None:
    """The layout and its slice views, as qMRMLLayoutManager and qMRMLSliceWidget make them when the layout changes."""
    scene = slicer.mrmlScene
    layoutLogic = slicer.vtkMRMLLayoutLogic()
    layoutLogic.SetMRMLScene(scene)
    layoutNode = layoutLogic.GetLayoutNode()
    sliceLogics = slicer.vtkCollection() if hasattr(slicer, "vtkCollection") else __import__("vtk").vtkCollection()
    slicer.app.logic.SetSliceLogics(sliceLogics)

    def addMissing(*_) -> None:
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
            node = scene.GetNthNodeByClass(index, "vtkMRMLSliceNode")
            if slicer.app.logic.GetSliceLogic(node) is None:
                logic = slicer.vtkMRMLSliceLogic()
                logic.SetMRMLApplicationLogic(slicer.app.logic)
                logic.SetMRMLScene(scene)
                logic.SetSliceNode(node)
                sliceLogics.AddItem(logic)

    tag = layoutNode.AddObserver("ModifiedEvent", addMissing)
    layoutNode.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    addMissing()
    slicer.app.layoutLogic = layoutLogic
    slicer.app.stopAddingViews = lambda: layoutNode.RemoveObserver(tag)


def removeViews() -> None:
    """Let go of the scene as qMRMLLayoutManager does: logics that outlive it are told of its end, and crash."""
    slicer.app.stopAddingViews()
    sliceLogics = slicer.app.logic.GetSliceLogics()
    for index in range(sliceLogics.GetNumberOfItems()):
        sliceLogics.GetItemAsObject(index).SetMRMLScene(None)
    sliceLogics.RemoveAllItems()
    slicer.app.layoutLogic.SetMRMLScene(None)
    slicer.app.layoutLogic = None


def newScene() -> None:
    """A scene with the nodes and logics that the application makes at its start."""
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    applicationLogic = slicer.app.logic
    applicationLogic.SetMRMLScene(scene)
    colors = slicer.vtkSlicerColorLogic()
    colors.SetMRMLApplicationLogic(applicationLogic)
    colors.SetMRMLScene(scene)
    colors.AddDefaultColorNodes()
    applicationLogic.SetModuleLogic("Colors", colors)
    applicationLogic.SetColorLogic(colors) if hasattr(applicationLogic, "SetColorLogic") else None
    volumes = slicer.vtkSlicerVolumesLogic()
    volumes.SetMRMLApplicationLogic(applicationLogic)
    volumes.SetMRMLScene(scene)
    applicationLogic.SetModuleLogic("Volumes", volumes)
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
    segmentations.SetMRMLApplicationLogic(applicationLogic)
    segmentations.SetMRMLScene(scene)
    applicationLogic.SetModuleLogic("Segmentations", segmentations)
    # the node of the Markups module's ROI is registered by its logic
    markups = slicer.vtkSlicerMarkupsLogic()
    markups.SetMRMLApplicationLogic(applicationLogic)
    markups.SetMRMLScene(scene)
    slicer.modules.colors = module(colors)
    slicer.modules.volumes = module(volumes)
    slicer.modules.segmentations = module(segmentations)
    slicer.modules.markups = module(markups)
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
