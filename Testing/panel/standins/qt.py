"""Stand-in for Slicer's ``qt`` module (PythonQt): the same classes from Qt for Python.

In Slicer: Base/Python/qt/__init__.py, which takes all names of QtCore, QtGui, QtWidgets and QtUiTools. PythonQt has
properties where Qt for Python has getters, so the code under test only calls setters, slots and signals.
"""

from PySide6.QtCore import *  # noqa: F403
from PySide6.QtCore import QProcess, QProcessEnvironment, QTimer  # noqa: F401
from PySide6.QtGui import *  # noqa: F403
from PySide6.QtUiTools import QUiLoader  # noqa: F401
from PySide6.QtWidgets import *  # noqa: F403
