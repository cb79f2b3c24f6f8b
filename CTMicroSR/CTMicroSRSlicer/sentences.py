"""What the library says of its command and files, in the words of the panel: its controls and the volume's name."""

from __future__ import annotations

import re

from slicer.i18n import tr as _

from CTMicroSRLib.errors import CTMicroSRError
from CTMicroSRSlicer.commands import RunFiles


def oneSentence(error: BaseException) -> str:
    """What to tell the user of an exception."""
    if isinstance(error, CTMicroSRError):
        return inPanelWords(" ".join(str(error).split()))
    return f"Something unforeseen went wrong ({type(error).__name__}: {error}); use Copy diagnostics and report it."


def inPanelWords(text: str) -> str:
    """A sentence of the command without its options: with the panel's controls instead."""
    for said, shown in _phrases().items():
        text = text.replace(said, shown)
    controls = _controls()
    return re.sub(
        r"(?<!\w)--([a-z]+(?:-[a-z]+)*)", lambda match: controls.get(match[1], match[1].replace("-", " ")), text
    )


def ofVolume(text: str, files: RunFiles, name: str) -> str:
    """A sentence without the run's temporary files: with the name of the volume instead."""
    names = {files.input: name, files.lungs: _("the lung mask"), files.output: _("the result")}
    names[files.uncertainty] = _("the uncertainty")
    for file, shown in names.items():
        for path in {str(file), str(file.resolve())}:
            text = text.replace(path, shown)
    return text


def inSlicersWords(text: str, files: RunFiles, name: str) -> str:
    """What the child process said of a volume, for people who see Slicer only."""
    return inPanelWords(ofVolume(text, files, name))


def _phrases() -> dict[str, str]:
    """Where another name for an option is not enough."""
    return {
        ", choose --region, or give --mask": _(", or choose an ROI or Everything as Region"),
        "look at the mask, or give one with --mask": _("look at the lung mask, or choose an ROI as Region"),
        "give a mask that marks the lungs, or choose --region whole": _("choose an ROI or Everything as Region"),
        "choose --region whole": _("choose Everything as Region"),
        "choose --device cpu or auto": _("choose cpu or auto as Device"),
        "run it again with --debug and report it": _("use Copy diagnostics and report it"),
        "'ctmicrosr doctor' lists what is missing and how to install it": _("Copy diagnostics tells what is missing"),
        "import one with 'ctmicrosr models import FOLDER'": _("import one with Import model"),
        "see 'ctmicrosr models list'": _("choose another Model"),
        ", or write to a file, which needs no more than a slice": "",
    }


def _controls() -> dict[str, str]:
    """The panel's names for options of the command."""
    return {
        "region": _("Region"),
        "mask": _("Lung mask"),
        "model": _("Model"),
        "device": _("Device"),
        "precision": _("Precision"),
        "tile": _("Tile"),
        "passes": _("passes"),
        "seed": _("Seed"),
        "consistency": _("Consistency"),
        "psf-fwhm-mm": _("Blur"),
        "noise-hu": _("Noise"),
    }
