"""A preload module of dask workers: hosts start processes by a fork server, which is cheaper.

Only the cluster that many tests share has it; the processes of others are started as usual.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver, resource_tracker
from typing import Any

from aiomultiprocess._cluster import processes


def dask_setup(worker: Any) -> None:
    """Called by dask."""
    multiprocessing.set_forkserver_preload(["aiomultiprocess._worker.main"])
    forkserver.ensure_running()
    resource_tracker.ensure_running()  # now: a test in which it starts would leave it behind
    processes.get_context = lambda _: multiprocessing.get_context("forkserver")  # type: ignore[attr-defined]
