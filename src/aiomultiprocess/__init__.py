"""AsyncIO version of the standard multiprocessing module.

This module holds the public names and nothing else. It imports each at its first use (PEP 562),
because every worker imports this package first, and needs almost none of these names.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .__version__ import __version__

if TYPE_CHECKING:
    from . import core as core
    from . import executor as executor
    from . import pool as pool
    from . import scheduler as scheduler
    from . import shared as shared
    from . import types as types
    from ._parent.stats import PoolStats, WorkerStats
    from ._parent.stream import Stream
    from ._worker.current import WorkerInfo, current_worker
    from .core import Process, Worker, set_context, set_start_method
    from .executor import PoolExecutor
    from .pool import Call, Pool, PoolResult
    from .scheduler import RoundRobin, Scheduler
    from .shared import Shared, share
    from .types import (
        PoolTerminatedError,
        Progress,
        ProxyException,
        QueueID,
        TaskID,
        TaskTimeoutError,
        WorkerLostError,
    )

__author__ = "Amethyst Reese and aiomultiprocess contributors"

__all__ = [
    "Call",
    "Pool",
    "PoolExecutor",
    "PoolResult",
    "PoolStats",
    "PoolTerminatedError",
    "Process",
    "Progress",
    "ProxyException",
    "QueueID",
    "RoundRobin",
    "Scheduler",
    "Shared",
    "Stream",
    "TaskID",
    "TaskTimeoutError",
    "Worker",
    "WorkerInfo",
    "WorkerLostError",
    "WorkerStats",
    "__author__",
    "__version__",
    "current_worker",
    "set_context",
    "set_start_method",
    "share",
]

_HOMES = {
    "Call": "pool",
    "Pool": "pool",
    "PoolExecutor": "executor",
    "PoolResult": "pool",
    "PoolStats": "_parent.stats",
    "PoolTerminatedError": "types",
    "Process": "core",
    "Progress": "types",
    "ProxyException": "types",
    "QueueID": "types",
    "RoundRobin": "scheduler",
    "Scheduler": "scheduler",
    "Shared": "shared",
    "Stream": "_parent.stream",
    "TaskID": "types",
    "TaskTimeoutError": "types",
    "Worker": "core",
    "WorkerInfo": "_worker.current",
    "WorkerLostError": "types",
    "WorkerStats": "_parent.stats",
    "current_worker": "_worker.current",
    "set_context": "core",
    "set_start_method": "core",
    "share": "shared",
}

# 0.9.1 imported these eagerly, so programs write `aiomultiprocess.core.…` after one plain import.
_SUBMODULES = frozenset({"core", "executor", "pool", "scheduler", "shared", "types"})


def __getattr__(name: str) -> object:
    if name not in _SUBMODULES and name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return _import(name)
    except AttributeError as error:
        # Python would take an AttributeError from here to mean that the name does not exist
        raise ImportError(
            f"{__name__}.{name} cannot be imported, because of an AttributeError: {error}",
            name=__name__,
        ) from error


def _import(name: str) -> object:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # the next look-up finds it without __getattr__
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
