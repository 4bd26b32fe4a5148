"""Fixtures for pools over a dask cluster, whose scheduler and workers are programs of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from clusters import Dask


@pytest.fixture(scope="session")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """A cluster of two workers, which no test harms."""
    pytest.importorskip("distributed")
    from clusters import Dask

    with Dask(tmp_path_factory.mktemp("dask")) as running:
        yield running.add("left", "right", preload="fork_server")


@pytest.fixture
def dask_pool(dask: Dask, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What makes a pool of n workers in all, over one host (of an odd number) or both."""
    from aiomultiprocess import Pool
    from aiomultiprocess._cluster import cluster, engine

    class FewHosts(cluster.Cluster):
        """A cluster of which a pool sees so many hosts."""

        most = 1

        def _found(self, address: str) -> None:
            if len(self._wanted) < self.most or address in self._wanted:
                super()._found(address)

    class DaskPool(Pool):
        def __init__(self, processes: int | None = None, *args: Any, **kwargs: Any) -> None:
            self.number = processes or 2
            FewHosts.most = 2 - self.number % 2
            per_host = self.number // FewHosts.most
            kwargs.pop("backend", None)
            super().__init__(per_host, *args, backend="dask", address=dask.address, **kwargs)

        async def __aenter__(self) -> Pool:
            """Wait for the processes, unless they cannot be started and have broken the pool."""
            await super().__aenter__()
            engine = self._engine
            assert engine is not None
            while engine.state is engine.OPEN and len(self._started()) < self.number:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            return self

        def _started(self) -> list[Any]:
            return [process for process in self.processes if process.pid]

    monkeypatch.setattr(engine, "Cluster", FewHosts)
    return DaskPool
