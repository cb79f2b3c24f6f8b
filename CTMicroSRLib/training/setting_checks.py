"""Checks that the methods' settings share. Each raises a ValueError that names the setting, for one to correct."""

from __future__ import annotations

from collections.abc import Iterable

INFINITE = float("inf")


def check_at_least(settings: object, least: int, *names: str) -> None:
    """Refuse whole numbers below ``least``."""
    for name in names:
        if getattr(settings, name) < least:
            raise ValueError(f"{name} must be at least {least}")


def check_not_negative(settings: object, *names: str) -> None:
    """Refuse what is negative or not finite."""
    for name in names:
        if not 0 <= getattr(settings, name) < INFINITE:
            raise ValueError(f"{name} must not be negative")


def check_weights(settings: object) -> None:
    """Refuse a setting that is negative or not finite and whose name ends in ``_weight``."""
    check_not_negative(settings, *(name for name in vars(settings) if name.endswith("_weight")))


def check_above_zero(settings: object, *names: str) -> None:
    """Refuse what is 0, negative or not finite."""
    for name in names:
        if not 0 < getattr(settings, name) < INFINITE:
            raise ValueError(f"{name} must be above 0")


def check_share(settings: object, name: str) -> None:
    """Refuse what is not from 0 to 1."""
    if not 0 <= getattr(settings, name) <= 1:
        raise ValueError(f"{name} must be from 0 to 1")


def check_choice(settings: object, name: str, choices: Iterable[object]) -> None:
    """Refuse what is none of the choices."""
    known = tuple(choices)
    value = getattr(settings, name)
    if value not in known:
        raise ValueError(f"{name} is {value}, and must be one of {', '.join(map(str, known))}")
