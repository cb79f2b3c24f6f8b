"""The Slicer side of CTMicroSR: inputs and results in the scene, the child process, and what the panel shows.

``childrun``, ``commands`` and ``estimate`` know neither Slicer nor Qt. ``inputs``, ``results`` and ``comparison`` use
MRML only. ``launchers`` is where Qt comes in. Nothing here imports torch: that happens in the child process.
"""

import importlib.util
import sys
from pathlib import Path

_library = importlib.util.find_spec("CTMicroSRLib")
if _library is None or _library.origin is None:
    # a plain checkout, of which only CTMicroSR/ was added to Slicer's module paths: the library lies beside that folder
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from CTMicroSRLib.errors import CTMicroSRError, RefusedInputError  # noqa: E402 - it can be found only now

__all__ = ["CTMicroSRError", "RefusedInputError"]
