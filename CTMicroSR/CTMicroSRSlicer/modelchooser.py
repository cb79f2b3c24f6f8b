"""The combo box of installed models, bound to the parameter ``model``.

Slicer's own connector for combo boxes needs the choices when the class is written; models can be imported later.
"""

from __future__ import annotations

import qt
from slicer.parameterNodeWrapper import GuiConnector

from CTMicroSRLib.models import DEFAULT_MODEL, list_models
from CTMicroSRSlicer import wording


class ModelChooser(GuiConnector):
    """Lists the models and shows the card of the chosen one."""

    @staticmethod
    def canRepresent(widget: object, datatype: object) -> bool:
        """Never found by type; it is given to ``connectParametersToGui``."""
        return False

    @staticmethod
    def create(widget: object, datatype: object) -> None:
        """See canRepresent."""

    def __init__(self, comboBox: qt.QComboBox, cardLabel: qt.QLabel) -> None:
        super().__init__()
        self._comboBox, self._cardLabel = comboBox, cardLabel
        self._models = {model.card.name: model for model in list_models()[0]}
        self._name = DEFAULT_MODEL
        for name in self._models:
            comboBox.addItem(name)

    def _connect(self) -> None:
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

    def _onChosen(self, name: str) -> None:
        self._name = name
        self._showCard()
        self.changed()

    def _showCard(self) -> None:
        model = self._models.get(self._name)
        card = None if model is None else model.card
        self._cardLabel.setText(wording.cardText(card))
        self._cardLabel.setToolTip(wording.cardDetails(card))
