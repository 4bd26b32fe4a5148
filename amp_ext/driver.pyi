"""Made by `amp_ext.step` alone."""

from collections.abc import Callable
from typing import Any

class Driver:
    on_value: Callable[[Any], object] | None
    """Called with what the item returns, before anything else can run."""
