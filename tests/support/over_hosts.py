"""Tests of tests/pool, with the workers of their pools in a dask cluster.

They are the same functions, whose `Pool` makes a pool over the cluster. A module in tests/cluster
says which it takes, and what cannot be the same there: by name, and with one of these reasons.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from conftest import ROOT

sys.path.insert(1, str(ROOT / "tests" / "pool"))  # its tests run here too

NO_CHILDREN = "it waits for a worker as for a child of this process"
ONE_QUEUE = "hosts come and go: a pool over them has one queue"
NO_START_METHOD = "hosts have a start method of their own"
ELSEWHERE = "the worker's output is not that of this process"
AT_ONCE = "it looks for processes before hosts can have started them"
FORGOTTEN = "a forgotten pool leaves the scheduler in more turns than the test waits for"
CLIENT = "a client of dask lives in the loop, with tasks of its own, and ends with it"
LATER = "it looks at what a host reports some milliseconds later"
OWN_POOL = "it makes its pool by itself"
WATCHED_THERE = "hosts watch their processes, and this sets how soon this process does"
NO_RESIZE = "hosts decide how many workers there are"


@pytest.fixture
def backend() -> str:
    """Only one: hosts choose theirs by themselves."""
    return "shm"


@pytest.fixture
def start_method() -> str:
    """Only one: hosts have a start method of their own."""
    return "spawn"


@pytest.fixture(autouse=True)
def _over_hosts(
    request: pytest.FixtureRequest, dask_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[request.function.__module__], "Pool", dask_pool)


def gather(out_of: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The tests of these modules but for those left out, and fixtures, by names of their own."""
    found: dict[str, Any] = {}
    for name, out in out_of.items():
        for each, thing in vars(importlib.import_module(name)).items():
            if type(thing).__name__ == "FixtureFunctionDefinition":
                found[each] = thing
            elif each.startswith("test_") and each not in out and not needs_queues(thing):
                found[f"test_{name.removeprefix('test_')}__{each.removeprefix('test_')}"] = thing
    found |= {each.__name__: each for each in (backend, start_method, _over_hosts)}
    return found


def needs_queues(test: Any) -> bool:
    """Whether a test makes a pool with a scheduler of its own, which has no meaning here."""
    names = test.__code__.co_names
    called = {*names, *(const for const in test.__code__.co_consts if isinstance(const, str))}
    constants = [const for const in test.__code__.co_consts if isinstance(const, tuple)]
    called |= {name for names_of_call in constants for name in names_of_call}
    return bool(called & {"scheduler", "queuecount"})
