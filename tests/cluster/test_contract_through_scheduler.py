"""The contract of pools, over hosts whose streams go through the scheduler.

By default that is what depends on the stream most; AIOMULTIPROCESS_TEST_SCALE=full runs all that
test_contract.py has.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_contract import OUT

from conftest import FULL
from over_hosts import gather

CORE = ("test_pool_death", "test_pool_end", "test_pool_large")

globals().update(gather({name: out for name, out in OUT.items() if FULL or name in CORE}))


@pytest.fixture(autouse=True)
def _through_scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    dask = pytest.importorskip("dask")
    from aiomultiprocess._cluster.routes import Routes

    monkeypatch.setattr(Routes, "_open_straight", None)  # who takes it fails
    with dask.config.set({"distributed.client.direct-to-workers": False}):
        yield
