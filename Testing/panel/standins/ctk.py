"""Stand-in for Slicer's ``ctk`` module: the widgets of CTK that the panel has."""

from widgets import ctkCollapsibleButton, ctkSliderWidget  # noqa: F401
