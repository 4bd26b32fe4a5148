"""The contract of pools, over hosts: tests of tests/pool, with the workers in a dask cluster.

They are the same functions, whose `Pool` makes a pool over the cluster. What cannot be the same
there is left out, by name and with the reason.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

import pytest

from cluster_fixtures import dask, dask_pool  # noqa: F401

OUT: dict[str, dict[str, str]] = {
    "test_pool_api": {},
    "test_pool_results": {},
    "test_pool_errors": {},
    "test_pool_death": {},
    "test_pool_retries": {},
    "test_pool_end": {},
    "test_pool_corners": {},
    "test_pool_large": {},
    "test_pool_journal": {},
    "test_as_completed": {},
    "test_calls": {},
    "test_cancelled_maps": {},
    "test_context_variables": {},
    "test_current_worker": {},
    "test_exception_handlers": {},
    "test_late_inputs": {},
    "test_lifespan": {},
    "test_memory_limits": {},
    "test_priority": {},
    "test_progress": {},
    "test_return_exceptions": {},
    "test_serializers": {},
    "test_shutdown": {},
    "test_stats": {},
    "test_streams": {},
    "test_threads": {},
    "test_time_limits": {},
    "test_worker_logs": {},
}


def gather() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, out in OUT.items():
        module = importlib.import_module(name)
        for test, function in vars(module).items():
            if test.startswith("test_") and inspect.isfunction(function) and test not in out:
                found[f"test_{name.removeprefix('test_')}__{test.removeprefix('test_')}"] = function
    return found


globals().update(gather())


@pytest.fixture(autouse=True)
def _over_hosts(
    request: pytest.FixtureRequest, dask_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[request.function.__module__], "Pool", dask_pool)
