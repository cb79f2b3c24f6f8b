"""The panel's models: the combo box, bound to the parameter ``model``, the card, and importing and removing.

Slicer's own connector for combo boxes needs the choices when the class is written; models come and go later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import qt
from slicer.parameterNodeWrapper import GuiConnector

from CTMicroSRLib.errors import CTMicroSRError, ResourceError
from CTMicroSRLib.models import DEFAULT_MODEL, import_model, list_models, remove_model
from CTMicroSRSlicer import wording
from CTMicroSRSlicer.sentences import oneSentence


class Dialogs(Protocol):
    """Asks the user."""

    def confirm(self, text: str) -> bool:
        """Whether they say yes."""

    def chooseFolder(self, title: str) -> str:
        """A folder that is there, or nothing."""


class ModelChooser(GuiConnector):
    """Lists the models, shows the card of the chosen one, imports and removes."""

    @staticmethod
    def canRepresent(widget: object, datatype: object) -> bool:
        """Never found by type; it is given to ``connectParametersToGui``."""
        return False

    @staticmethod
    def create(widget: object, datatype: object) -> None:
        """See canRepresent."""

    def __init__(self, ui: SimpleNamespace, dialogs: Dialogs, say: Callable[[str], None]) -> None:
        """``ui`` has modelSelector, cardLabel, importModelButton and removeModelButton; ``say`` shows a sentence."""
        super().__init__()
        self._comboBox, self._cardLabel, self._removeButton = ui.modelSelector, ui.cardLabel, ui.removeModelButton
        self.dialogs, self._say = dialogs, say
        self._name = DEFAULT_MODEL
        self.refresh()
        ui.importModelButton.clicked.connect(self.onImport)
        ui.removeModelButton.clicked.connect(self.onRemove)

    def refresh(self) -> None:
        """List the models that are installed now; the choice stays."""
        self._models = {model.card.name: model for model in list_models()[0]}
        wasBlocked = self._comboBox.blockSignals(True)
        self._comboBox.clear()
        for name in self._models:
            self._comboBox.addItem(name)
        self.write(self._name)
        self._comboBox.blockSignals(wasBlocked)

    def _connect(self) -> None:
        self.refresh()  # some may have come or gone by the command
        self._comboBox.currentTextChanged.connect(self._onChosen)

    def _disconnect(self) -> None:
        self._comboBox.currentTextChanged.disconnect(self._onChosen)

    def widget(self) -> qt.QComboBox:
        """The combo box."""
        return self._comboBox

    def read(self) -> str:
        """The chosen model's name."""
        return self._name

    def write(self, value: str) -> None:
        """Choose a model; one that is not installed, as in a scene from elsewhere, stays visible by its name."""
        self._name = value
        if self._comboBox.findText(value) < 0:
            self._comboBox.addItem(value)
        self._comboBox.setCurrentIndex(self._comboBox.findText(value))
        self._showCard()

    def onImport(self, checked: bool = False) -> None:
        """Verify and copy the model in a folder that the user chooses, and choose it."""
        folder = self.dialogs.chooseFolder(wording.importTitle())
        if not folder:
            return
        with self._saying():
            model = import_model(Path(folder))
            self.refresh()
            self._choose(model.card.name)
            self._say(wording.importedText(model))

    def onRemove(self, checked: bool = False) -> None:
        """Delete the chosen model, if the user says yes and it was imported, and choose the shipped one."""
        name = self._name
        if not self.dialogs.confirm(wording.removeQuestion(name)):
            return
        with self._saying():
            try:
                remove_model(name)
                self._choose(DEFAULT_MODEL)
            finally:
                self.refresh()
            self._say(wording.removedText(name))

    @contextmanager
    def _saying(self) -> Iterator[None]:
        """Say in one sentence why it failed."""
        try:
            yield
        except CTMicroSRError as error:
            self._say(oneSentence(error))
        except OSError as error:
            self._say(oneSentence(ResourceError(wording.refusedFileText(error))))

    def _choose(self, name: str) -> None:
        self.write(name)
        self.changed()

    def _onChosen(self, name: str) -> None:
        self._name = name
        self._showCard()
        self.changed()

    def _showCard(self) -> None:
        model = self._models.get(self._name)
        card = None if model is None else model.card
        self._cardLabel.setText(wording.cardText(card))
        self._cardLabel.setToolTip(wording.cardDetails(card))
        self._removeButton.setEnabled(model is not None and not model.shipped)
