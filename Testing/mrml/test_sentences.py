"""What the panel says has no option of the command and no temporary file in it."""

from __future__ import annotations

import pytest
import slicer
from CTMicroSRSlicer.commands import RunFiles
from CTMicroSRSlicer.sentences import inPanelWords, inSlicersWords, oneSentence

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.lungs.segmentation import NO_LUNG


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "No lung found in this scan; check that it is a chest CT in Hounsfield units, choose --region, or give "
            "--mask.",
            "No lung found in this scan; check that it is a chest CT in Hounsfield units, or choose an ROI or "
            "Everything as Region.",
        ),
        (
            "not the scan's, give them (--noise-hu, --psf-fwhm-mm).",
            "not the scan's, give them (Noise, Blur).",
        ),
        ("choose --device cpu or auto.", "choose cpu or auto as Device."),
        ("choose a smaller --tile or region.", "choose a smaller Tile or region."),
        ("leave --new-option out.", "leave new option out."),
        ("an em--dash and 3 -- 4 stay.", "an em--dash and 3 -- 4 stay."),
    ],
)
def test_options_are_controls(said, shown):
    assert inPanelWords(said) == shown
    assert oneSentence(UsageError(said)) == shown


def test_the_librarys_own_sentence_is_known():
    assert "--" not in inPanelWords(NO_LUNG)


def test_temporary_files_are_the_volume(tmp_path):
    files = RunFiles(tmp_path / "CTMicroSR-1-2-x")
    text = f"{files.input}: The values (0 to 80) do not look like CT; {files.lungs} is empty, choose --region whole."
    assert inSlicersWords(text, files, "Müller 肺") == (
        "Müller 肺: The values (0 to 80) do not look like CT; the lung mask is empty, choose Everything as Region."
    )


def test_sizes_have_as_many_digits_as_say_something():
    from CTMicroSRSlicer.wording import sizeText

    sizes = [0.00000002, 0.003, 0.46, 0.9949, 0.999, 2.34, 24.4, 131.2]
    assert [sizeText(size) for size in sizes] == [
        "1 MB",
        "3 MB",
        "460 MB",
        "995 MB",
        "1.0 GB",
        "2.3 GB",
        "24 GB",
        "131 GB",
    ]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda logic, scan: logic.superResolve("specimen"), "'specimen' is not a node"),
        (lambda logic, scan: logic.superResolve(scan, region=scan), "chest is not an ROI"),
        (lambda logic, scan: logic.superResolve(scan, "whole", outputVolume="mine"), "'mine' is not a node"),
        (lambda logic, scan: logic.superResolve(scan, "whole", outputVolume=_segmentation()), "can't hold a result"),
    ],
)
def test_a_slip_in_the_console_is_one_sentence(logic, slab, call, sentence):
    with pytest.raises(UsageError, match=sentence) as refused:
        call(logic, slab)
    assert "\n" not in str(refused.value)


def _segmentation():
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "lungs")
