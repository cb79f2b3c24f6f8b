"""Stand-ins for ``slicer.ScriptedLoadableModule``, ``slicer.i18n`` and the parts of ``slicer.util`` that need PythonQt.

Checked against Slicer 5.10.0 and 5.12.3: Base/Python/slicer/ScriptedLoadableModule.py, i18n.py, and util.py (loadUI,
childWidgetVariables).
"""

from __future__ import annotations

import os
import sys
import unittest
from types import ModuleType, SimpleNamespace

import parameternodes
import slicer
import widgets
from PySide6.QtCore import QFile
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import QVBoxLayout, QWidget

MODULE_FILE = "CTMicroSR.py"


class ScriptedLoadableModule:
    def __init__(self, parent) -> None:
        self.parent = parent
        self.moduleName = self.__class__.__name__


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None) -> None:
        self.moduleName = self.__class__.__name__.removesuffix("Widget")
        self.parent = parent
        self.layout = parent.layout()

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(sys.modules[self.moduleName].__file__), "Resources", filename)

    def setup(self) -> None:
        """Nothing without developer mode."""

    def onReload(self) -> None:
        """slicer.util.reloadScriptedModule."""


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None) -> None:
        self.moduleName = self.__class__.__name__.removesuffix("Logic")

    def getParameterNode(self):
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetAttribute("ModuleName", self.moduleName)
            node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
            node = slicer.mrmlScene.AddNode(node)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message: str) -> None:
        """Shows a message for a moment."""


class ModulePanel(QWidget):
    """The parent of a module's widget (qSlicerScriptedLoadableModuleWidget)."""

    isEntered = True

    def __init__(self) -> None:
        super().__init__()
        QVBoxLayout(self)


def loadUI(path: str) -> QWidget:
    loader = QUiLoader()
    for custom in widgets.CUSTOM:
        loader.registerCustomWidget(custom)
    file = QFile(path)
    if not file.exists():
        raise RuntimeError(f"Could not load UI file: file not found {path}")
    file.open(QFile.OpenModeFlag.ReadOnly)
    widget = loader.load(file)
    if widget is None:
        raise RuntimeError(f"Could not load UI file: {path}")
    return widget


def childWidgetVariables(widget: QWidget) -> SimpleNamespace:
    return SimpleNamespace(
        **{child.objectName(): child for child in widget.findChildren(QWidget) if child.objectName()}
    )


def install() -> None:
    """Make ``import slicer.parameterNodeWrapper`` and the others find the stand-ins."""
    i18n = ModuleType("slicer.i18n")
    i18n.tr = lambda text: text
    i18n.translate = lambda context, text: text
    module = ModuleType("slicer.ScriptedLoadableModule")
    for item in (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    ):
        setattr(module, item.__name__, item)
    for name, standin in (
        ("i18n", i18n),
        ("ScriptedLoadableModule", module),
        ("parameterNodeWrapper", parameternodes),
    ):
        sys.modules[f"slicer.{name}"] = standin
        setattr(slicer, name, standin)
    slicer.util.loadUI = loadUI
    slicer.util.childWidgetVariables = childWidgetVariables
