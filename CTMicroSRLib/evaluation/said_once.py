"""Warnings that an evaluation would repeat for every slice, method and model: each is said once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warnings_said_once() -> Iterator[None]:
    """Inside, a warning that was said already is not said again; after it, all are as before."""
    handlers = [*logging.getLogger().handlers, *([logging.lastResort] if logging.lastResort else [])]
    filters = [(handler, _New()) for handler in handlers]
    for handler, new in filters:
        handler.addFilter(new)
    try:
        yield
    finally:
        for handler, new in filters:
            handler.removeFilter(new)


class _New(logging.Filter):
    """Lets through what it has not seen, and whatever is no warning."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to say it."""
        key = (record.name, record.getMessage())
        if record.levelno != logging.WARNING:
            return True
        new = key not in self._seen
        self._seen.add(key)
        return new
