"""The panel's part for looking at a result: beside its scan, and with its uncertainty over it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import qt
import slicer

from CTMicroSRSlicer import wording
from CTMicroSRSlicer.comparison import Comparison
from CTMicroSRSlicer.overlay import hideUncertainty, overlayUncertainty
from CTMicroSRSlicer.parameters import CTMicroSRParameterNode, overlayOf, rememberResult
from CTMicroSRSlicer.placement import liesOn
from CTMicroSRSlicer.results import SuperResolution

MILLISECONDS_UNTIL_VIEWS_HAVE_THEIR_SIZE = 100


class LookPanel:
    """Wires the Compare button and the widgets of the uncertainty; ``refuse`` shows why they are not compared."""

    def __init__(self, ui: SimpleNamespace, scene: slicer.vtkMRMLScene, refuse: Callable[[str], None]) -> None:
        """``ui`` has compareButton, overlayCheckBox, opacitySlider and thresholdSlider."""
        self._ui, self._refuse = ui, refuse
        self._parameters: CTMicroSRParameterNode | None = None
        self.comparison = Comparison(scene, self._onShown)
        ui.compareButton.toggled.connect(self.onCompare)

    def close(self) -> None:
        """Leave the comparison for good."""
        self._parameters = None
        self.comparison.close()

    def show(self, parameters: CTMicroSRParameterNode | None) -> None:
        """What can be looked at; None while no panel is open."""
        self._parameters = parameters
        if parameters is None:
            return
        result, uncertainty = parameters.resultVolume, parameters.resultUncertainty
        self._onShown(self.comparison.isShown)
        canCompare = result is not None and parameters.comparedVolume is not None
        self._ui.compareButton.setEnabled(canCompare or self.comparison.isShown)
        for widget in (self._ui.overlayCheckBox, self._ui.opacitySlider, self._ui.thresholdSlider):
            widget.setEnabled(result is not None and uncertainty is not None)
        if result is not None and uncertainty is not None:
            overlayUncertainty(result, uncertainty, **overlayOf(parameters))

    def take(self, parameters: CTMicroSRParameterNode, result: SuperResolution) -> None:
        """Keep a new result; in the open panel show it beside its scan, if that is still where it was."""
        earlier = parameters.resultUncertainty
        rememberResult(parameters, result)
        if earlier is not None and earlier is not result.uncertainty:
            hideUncertainty(earlier)
        self._ui.compareButton.setChecked(False)
        if self._parameters is not None and not result.inputChange:
            self._ui.compareButton.setChecked(True)

    def onCompare(self, shown: bool) -> None:
        """Input and result side by side, or the layout from before."""
        parameters = self._parameters
        if not shown:
            self.comparison.leave()
        elif parameters is not None and parameters.resultVolume is not None and parameters.comparedVolume is not None:
            result, scan = parameters.resultVolume, parameters.comparedVolume
            if liesOn(result, scan):
                self.comparison.show(scan, result)
                qt.QTimer.singleShot(MILLISECONDS_UNTIL_VIEWS_HAVE_THEIR_SIZE, lambda: self.comparison.fit(result))
            else:
                self._refuse(wording.apartText(result.GetName(), scan.GetName()))
            self.show(parameters)

    def _onShown(self, shown: bool) -> None:
        """The button says whether they stand side by side, whatever began or ended that."""
        wasBlocked = self._ui.compareButton.blockSignals(True)
        self._ui.compareButton.setChecked(shown)
        self._ui.compareButton.blockSignals(wasBlocked)
