"""What the workers of each backend are: the supervisor asks, when its pool is made."""

from __future__ import annotations

from .worker import PoolWorker


def worker_class(backend: str) -> type[PoolWorker]:
    """The class of a backend's workers, see POOLWORKER-5."""
    if backend == "inline":
        from .inline import InlineWorker  # here: few programs need it

        return InlineWorker
    return PoolWorker
