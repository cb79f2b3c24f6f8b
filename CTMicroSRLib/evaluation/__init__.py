"""Measuring methods against the truth."""
