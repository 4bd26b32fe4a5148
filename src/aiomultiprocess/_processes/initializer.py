"""The call of an initializer in its process, which may be a worker."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ..types import shown


def call_initializer(initializer: Callable[..., object], initargs: Sequence[Any]) -> None:
    """Call it; TypeError if it returns a coroutine, of which nothing would have run.

    The parent has refused a coroutine function, but no lambda or object that calls one.
    """
    returned = initializer(*initargs)
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError(
            f"initializer must be a synchronous function, and returned {shown(returned)}, which "
            "nothing awaits: pass lifespan= to a Pool, or await it in the target of a Process"
        )
