"""Numbers that a user passes: refused by name and value where they cannot be."""

from __future__ import annotations

import operator


def count(name: str, value: int | None) -> int:
    """A non-negative number; None counts as 0."""
    return 0 if value is None else natural(name, value)


def natural(name: str, value: int) -> int:
    """A whole number that is not negative."""
    number = whole(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return number


def seconds(name: str, value: float | None) -> float | None:
    """A number of seconds, or None for no limit."""
    if value is not None and not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} must be a number of seconds or None, got {value!r}")
    return None if value is None else float(value)


def whole(name: str, value: int) -> int:
    """An int, or what says that it is one (NumPy's do)."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
