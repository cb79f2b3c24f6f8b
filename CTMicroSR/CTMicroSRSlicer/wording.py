"""What the panel says, in the user's language."""

from __future__ import annotations

from slicer.i18n import tr as _

from CTMicroSRLib.card import ModelCard
from CTMicroSRLib.models import InstalledModel
from CTMicroSRSlicer.childrun import Progress
from CTMicroSRSlicer.estimate import Estimate, duration
from CTMicroSRSlicer.results import SuperResolution


def applyText(*, running: bool) -> str:
    """On the button."""
    return _("Cancel") if running else _("Super-resolve")


def estimateText(estimate: Estimate) -> str:
    """The one line that says what will happen."""
    i, j, k = estimate.sizeIjk
    text = _("{cells} cells to {i} x {j} x {k} voxels, {output}; needs {memory} of {free} free memory").format(
        cells=f"{estimate.cells:,}",
        i=i,
        j=j,
        k=k,
        output=sizeText(estimate.outputGb),
        memory=sizeText(estimate.memoryGb),
        free=sizeText(estimate.memoryFreeGb),
    )
    if estimate.seconds is not None:
        text += _("; about {time} on {device}").format(time=duration(estimate.seconds), device=estimate.device)
    return text + "." if estimate.fits else text + _(". That is more than is free: choose a smaller ROI.")


def sizeText(gigabytes: float) -> str:
    """As many digits as say something, and never 0."""
    if gigabytes < 0.995:
        return _("{size} MB").format(size=max(1, round(1000 * gigabytes)))
    return _("{size} GB").format(size=f"{gigabytes:.1f}" if gigabytes < 9.95 else round(gigabytes))


def estimatingText() -> str:
    """While that line is found out."""
    return _("Finding out what this needs...")


def stageText(progress: Progress) -> str:
    """The stage of the engine, and the time left of the whole run."""
    stage = progress.stage.split(":")[0]
    known = {
        "reading": _("Reading the scan"),
        "loading the model": _("Loading the model"),
        "lungs": _("Finding the lungs"),
        "noise": _("Measuring the noise"),
        "edges": _("Measuring the blur"),
        "super-resolving": _("Super-resolving"),
        "writing": _("Loading the result"),
    }
    text = known.get(stage, stage)
    if progress.secondsLeft:
        return _("{stage}, {time} left").format(stage=text, time=duration(progress.secondsLeft))
    return text


def startingText() -> str:
    """Until the child process says something."""
    return _("Starting...")


def cancellingText() -> str:
    """Until the child process has ended."""
    return _("Cancelling...")


def resultText(result: SuperResolution) -> str:
    """What came out, with what it should be read with: first of all that its scan is no longer what it was."""
    consistency = result.report["consistency"]
    said = _(
        "{name} is there after {time}. Scanned again it differs from the input by {residual} HU; the scan's noise is "
        "{noise} HU."
    ).format(
        name=result.volume.GetName(),
        time=duration(result.report["seconds"]["total"]),
        residual=f"{consistency['residual_rms_hu']:.1f}",
        noise=f"{consistency['noise_hu']:.1f}",
    )
    others = [text for text in result.report["warnings"] if text != result.inputChange]
    return " ".join(text for text in (result.inputChange, said, *others) if text)


def apartText(resultName: str, scanName: str) -> str:
    """Where a result and its scan can't be compared."""
    return _(
        "{result} and {scan} no longer lie at the same place and are not compared; put back the one that was moved."
    ).format(result=resultName, scan=scanName)


def cardText(card: ModelCard | None) -> str:
    """A model's card in a sentence or two."""
    if card is None:
        return _("This model is not installed.")
    data = card.training_data.split(". ")[0]
    return _("{title} Trained on: {data}").format(title=_sentence(card.title), data=_sentence(data))


def cardDetails(card: ModelCard | None) -> str:
    """All of a model's card that is for people."""
    if card is None:
        return ""
    return _("{title}\n\nMethod: {method}\n\nTrained on: {data}\n\nLicence: {licence}\nSHA-256: {sha256}").format(
        title=card.title, method=card.method, data=card.training_data, licence=card.licence, sha256=card.sha256
    )


def importTitle() -> str:
    """Of the dialog that asks for a folder."""
    return _("Import a model: choose its folder, with card.json and model.safetensors")


def importedText(model: InstalledModel) -> str:
    """After a model was imported."""
    return _("{name} was verified and imported to {folder}.").format(name=model.card.name, folder=model.folder)


def removeQuestion(name: str) -> str:
    """Before a model is deleted."""
    return _("Remove the model {name} from this computer? To have it again it must be imported again.").format(
        name=name
    )


def removedText(name: str) -> str:
    """After that."""
    return _("{name} was removed.").format(name=name)


def refusedFileText(error: OSError) -> str:
    """What the system would not do with a file."""
    return _("The system refused {file} ({reason}); check its permissions, and that no other program uses it.").format(
        file=error.filename or _("a file"), reason=error.strerror or error
    )


def _sentence(text: str) -> str:
    return text if not text or text.endswith(".") else f"{text}."
