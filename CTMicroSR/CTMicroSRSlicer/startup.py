"""What CTMicroSR does when Slicer has started, whether or not its panel is ever opened."""

from __future__ import annotations

import slicer

from CTMicroSRSlicer import dicomexport, sampledata
from CTMicroSRSlicer.comparison import registerLayout
from CTMicroSRSlicer.runfolder import removeAbandoned


def onStarted() -> None:
    """Tidy up after a Slicer that was killed, and register the layout, the DICOM export and the samples."""
    removeAbandoned(slicer.app.temporaryPath)
    registerLayout()
    dicomexport.register()
    sampledata.register()
