"""Stand-in for ``slicer.parameterNodeWrapper``: typed access to a vtkMRMLScriptedModuleNode, bound to widgets.

Checked against Slicer 5.10.0 and 5.12.3: Base/Python/slicer/parameterNodeWrapper/wrapper.py (properties, connectGui,
connectParametersToGui, disconnectGui, NodeModify around each write), guiConnectors.py (GuiConnector and which widget
takes which type: by exact class, combo boxes are filled by their connector), serializers.py (enum by name, nodes by
reference).
"""

from __future__ import annotations

import dataclasses
import enum
import typing

import slicer
import vtk
from PySide6.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QSpinBox
from widgets import ctkSliderWidget, qMRMLNodeComboBox


@dataclasses.dataclass
class Choice:
    choices: list


@dataclasses.dataclass
class WithinRange:
    minimum: float
    maximum: float


class GuiConnector:
    """guiConnectors.GuiConnector."""

    def __init__(self) -> None:
        self._callback = None

    def onChanged(self, callback) -> None:
        self._callback = callback
        if callback is None:
            self._disconnect()
        else:
            self._connect()

    def changed(self) -> None:
        if self._callback:
            self._callback()


class WidgetConnector(GuiConnector):
    """One connector for the widgets of this panel; ``choices`` are values and what the combo box shows of them."""

    def __init__(self, widget, kind, annotations) -> None:
        super().__init__()
        self._widget = widget
        ranges = [a for a in annotations if isinstance(a, WithinRange)]
        if type(widget) is QCheckBox and kind is bool:
            self._signal, self.read, self.write = widget.stateChanged, widget.isChecked, widget.setChecked
        elif (type(widget) is QSpinBox and kind is int) or (
            type(widget) in (ctkSliderWidget, QDoubleSpinBox) and kind is float
        ):
            if type(widget) is ctkSliderWidget and not ranges:
                raise RuntimeError("Cannot have a connection to ctkSliderWidget where the float types is unbounded.")
            widget.setRange(ranges[0].minimum, ranges[0].maximum)
            self._signal, self.read, self.write = widget.valueChanged, widget.value, widget.setValue
        elif type(widget) is QComboBox and (kind is str or issubclass(kind, enum.Enum)):
            choices = list(kind) if kind is not str else next(a for a in annotations if isinstance(a, Choice)).choices
            widget.clear()
            for choice in choices:
                widget.addItem(kind.label(choice) if kind is not str else choice)
            self._signal = widget.currentIndexChanged
            self.read = lambda: choices[widget.currentIndex()]
            self.write = lambda value: widget.setCurrentIndex(choices.index(value))
        elif type(widget) is qMRMLNodeComboBox and issubclass(kind, slicer.vtkMRMLNode):
            self._signal, self.read, self.write = widget.currentNodeChanged, widget.currentNode, widget.setCurrentNode
        else:
            raise RuntimeError(
                f"Unable to create GUI connector from datatype '{kind}' to widget type '{type(widget)}'."
            )

    def _connect(self) -> None:
        self._signal.connect(self._onSignal)

    def _disconnect(self) -> None:
        self._signal.disconnect(self._onSignal)

    def _onSignal(self, *_) -> None:
        self.changed()


class _Wrapper:
    def __init__(self, parameterNode) -> None:
        self.parameterNode = parameterNode
        self._guis, self._tags, self._updating = {}, {}, False
        for name, (kind, _annotations, default) in self.allParameters.items():
            if not issubclass(kind, slicer.vtkMRMLNode) and not parameterNode.GetParameter(name):
                setattr(self, name, default)

    def connectGui(self, ui) -> int:
        widgets = {w.property("SlicerParameterName"): w for w in vars(ui).values() if w.property("SlicerParameterName")}
        return self.connectParametersToGui(widgets)

    def connectParametersToGui(self, mapping) -> int:
        connectors = {}
        for name, widget in mapping.items():
            kind, annotations, _default = self.allParameters[name]
            connectors[name] = (
                widget if isinstance(widget, GuiConnector) else WidgetConnector(widget, kind, annotations)
            )
        tag = len(self._guis)
        self._guis[tag] = connectors
        for name, connector in connectors.items():
            connector.write(getattr(self, name))
            connector.onChanged(lambda name=name, connector=connector: self._fromGui(name, connector))
        self._tags[tag] = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._toGui())
        return tag

    def disconnectGui(self, tag) -> None:
        for connector in self._guis.pop(tag, {}).values():
            connector.onChanged(None)
        if tag in self._tags:
            self.RemoveObserver(self._tags.pop(tag))

    def _fromGui(self, name, connector) -> None:
        if not self._updating:
            with slicer.util.NodeModify(self):
                setattr(self, name, connector.read())

    def _toGui(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for connectors in self._guis.values():
                    for name, connector in connectors.items():
                        connector.write(getattr(self, name))
        finally:
            self._updating = False

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified):
        return self.parameterNode.EndModify(wasModified)

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag) -> None:
        self.parameterNode.RemoveObserver(tag)


def _property(name, kind, annotations):
    def read(self):
        if issubclass(kind, slicer.vtkMRMLNode):
            return self.parameterNode.GetNodeReference(name)
        text = self.parameterNode.GetParameter(name)
        if kind is bool:
            return text == "True"
        return kind[text] if issubclass(kind, enum.Enum) else kind(text)

    def write(self, value) -> None:
        if issubclass(kind, slicer.vtkMRMLNode):
            self.parameterNode.SetNodeReferenceID(name, None if value is None else value.GetID())
            return
        if not isinstance(value, kind):
            raise ValueError(f"Value is not an instance of {kind}: {value}")
        for annotation in annotations:
            if isinstance(annotation, Choice) and value not in annotation.choices:
                raise ValueError(f"Value {value} is not in the list of choices {annotation.choices}")
            if isinstance(annotation, WithinRange) and not annotation.minimum <= value <= annotation.maximum:
                raise ValueError(f"Value {value} is not within the range")
        self.parameterNode.SetParameter(name, value.name if isinstance(value, enum.Enum) else str(value))

    return property(read, write)


def parameterNodeWrapper(description):
    """wrapper.parameterNodeWrapper, as a decorator without arguments."""
    parameters = {}
    members = {"allParameters": parameters, "__doc__": description.__doc__}
    for name, hint in typing.get_type_hints(description, include_extras=True).items():
        kind, *annotations = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        parameters[name] = (kind, annotations, getattr(description, name, None))
        members[name] = _property(name, kind, annotations)
    return type(description.__name__, (_Wrapper,), members)
