"""Stand-ins for the few Slicer and CTK widgets of the panel, as Qt for Python widgets.

Checked against Slicer 5.10.0 and 5.12.3 and CTK: Libs/MRML/Widgets/qMRMLNodeComboBox.h and qMRMLWidget.h, CTK's
Libs/Widgets/ctkCollapsibleButton.h and ctkSliderWidget.h. Properties that the .ui sets arrive as dynamic properties.
"""

from __future__ import annotations

import slicer
from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtWidgets import QComboBox, QDoubleSpinBox, QGroupBox, QHBoxLayout, QSlider, QWidget


class qMRMLWidget(QWidget):
    """Hands the scene to the widgets inside, which the .ui does with connections to mrmlSceneChanged."""

    def setMRMLScene(self, scene) -> None:
        for widget in self.findChildren(qMRMLNodeComboBox):
            widget.setMRMLScene(scene)


class qMRMLNodeComboBox(QComboBox):
    """Lists the scene's nodes of its ``nodeTypes``; follows the scene, but not while one is loaded."""

    currentNodeChanged = Signal(object)
    nodeAddedByUser = Signal(object)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._nodes = []
        self._scene = None
        self.currentIndexChanged.connect(lambda _index: self.currentNodeChanged.emit(self.currentNode()))

    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndImportEvent):
            scene.AddObserver(event, lambda *_: self._fill())
        self._fill()

    def currentNode(self):
        return self._nodes[self.currentIndex()] if 0 <= self.currentIndex() < len(self._nodes) else None

    def setCurrentNode(self, node) -> None:
        self._fill()
        self.setCurrentIndex(self._nodes.index(node) if node in self._nodes else 0)

    def addNode(self):
        """What the user's click on "Create new" does."""
        node = self._scene.AddNewNodeByClass(self.property("nodeTypes")[0], self.property("baseName") or "")
        self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def _fill(self) -> None:
        if self._scene.IsImporting():  # qMRMLSceneModel::onMRMLSceneNodeAdded; nodes of a scene come all at its end
            return
        current = self.currentNode()
        exact = not self.property("showChildNodeTypes")
        self._nodes = [None] + [
            node
            for name in self.property("nodeTypes") or ()
            for node in (
                self._scene.GetNthNodeByClass(n, name) for n in range(self._scene.GetNumberOfNodesByClass(name))
            )
            if not exact or node.GetClassName() == name
        ]
        self.blockSignals(True)
        self.clear()
        for node in self._nodes:
            self.addItem(node.GetName() if node is not None else self.property("noneDisplay") or "None")
        self.setCurrentIndex(self._nodes.index(current) if current in self._nodes else 0)
        self.blockSignals(False)
        if self.currentNode() is not current:
            self.currentNodeChanged.emit(self.currentNode())


class ctkCollapsibleButton(QGroupBox):
    """A titled box; ``collapsed`` hides what is inside."""

    def event(self, event) -> bool:
        if event.type() == QEvent.Type.DynamicPropertyChange and bytes(event.propertyName().data()) == b"text":
            self.setTitle(self.property("text"))
        return super().event(event)

    def showEvent(self, event) -> None:
        super().showEvent(event)
        if self.property("collapsed"):
            self.setCollapsed(True)

    def setCollapsed(self, collapsed: bool) -> None:
        self.setProperty("collapsed", collapsed)
        for child in self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(not collapsed)


class ctkSliderWidget(QWidget):
    """A slider with a spin box."""

    valueChanged = Signal(float)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider, self._box = QSlider(Qt.Orientation.Horizontal), QDoubleSpinBox()
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._slider.setRange(0, 1000)
        self._slider.valueChanged.connect(self._onSlider)
        self._box.valueChanged.connect(self._onBox)

    def event(self, event) -> bool:
        if event.type() == QEvent.Type.DynamicPropertyChange:
            name = bytes(event.propertyName().data()).decode()
            if name in ("singleStep", "decimals", "suffix"):
                getattr(self._box, f"set{name[0].upper()}{name[1:]}")(self.property(name))
        return super().event(event)

    def setRange(self, minimum: float, maximum: float) -> None:
        self._box.setRange(minimum, maximum)

    def value(self) -> float:
        return self._box.value()

    def setValue(self, value: float) -> None:
        self._box.setValue(value)

    def _onSlider(self, position: int) -> None:
        low, high = self._box.minimum(), self._box.maximum()
        self._box.setValue(low + (high - low) * position / 1000)

    def _onBox(self, value: float) -> None:
        low, high = self._box.minimum(), self._box.maximum()
        self._slider.blockSignals(True)
        self._slider.setValue(round(1000 * (value - low) / (high - low)))
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)


CUSTOM = (qMRMLWidget, qMRMLNodeComboBox, ctkCollapsibleButton, ctkSliderWidget)
for _class in CUSTOM[:2]:
    setattr(slicer, _class.__name__, _class)
