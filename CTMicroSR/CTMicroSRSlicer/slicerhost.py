"""Asking the user, and installing packages, with what this version of Slicer offers."""

from __future__ import annotations

import importlib.util
import inspect

import qt
import slicer


class SlicerHost:
    """Dialogs and installers of Slicer itself; see ``install.Host`` and ``modelchooser.Dialogs``."""

    def mayInstall(self) -> bool:
        """See Host. In testing mode Slicer answers every question with yes, so nothing is asked there."""
        return not slicer.app.testingEnabled()

    def confirm(self, text: str) -> bool:
        """See Host."""
        return bool(slicer.util.confirmOkCancelDisplay(text, windowTitle="CTMicroSR"))

    def chooseFolder(self, title: str) -> str:
        """See Dialogs."""
        return str(qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title) or "")

    def installTorch(self, versionRequirement: str) -> None:
        """See Host. Only keywords that the installed PyTorch extension has are used."""
        import PyTorchUtils

        install = PyTorchUtils.PyTorchUtilsLogic().installTorch
        known = inspect.signature(install).parameters
        wanted = {"askConfirmation": False, "torchVersionRequirement": versionRequirement}
        install(**{name: value for name, value in wanted.items() if name in known})

    def install(self, requirements: list[str]) -> None:
        """See Host."""
        if importlib.util.find_spec("slicer.packaging") is not None:
            import slicer.packaging

            slicer.packaging.pip_ensure(requirements, prompt_install=False, requester="CTMicroSR")
        else:
            slicer.util.pip_install(" ".join(requirements))
