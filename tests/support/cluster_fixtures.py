"""Fixtures for pools over a dask cluster, whose scheduler and workers are programs of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed")

import clusters
from aiomultiprocess import Pool
from aiomultiprocess._cluster import cluster

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "pool"))  # its tests run here too


@pytest.fixture(scope="session")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clusters.Dask]:
    """A cluster of two workers, which no test harms."""
    with clusters.Dask(tmp_path_factory.mktemp("dask")) as running:
        yield running.add("left", "right")


class FewHosts(cluster.Cluster):
    """A cluster of which a pool sees so many hosts: a pool of one worker is on one."""

    most = 1

    def _found(self, address: str) -> None:
        if len(self._wanted) < self.most or address in self._wanted:
            super()._found(address)


@pytest.fixture
def dask_pool(dask: clusters.Dask, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What makes a pool of n workers in all, over one host or both."""
    from aiomultiprocess._cluster import engine

    class DaskPool(Pool):
        def __init__(self, processes: int | None = None, *args: Any, **kwargs: Any) -> None:
            number = processes or 2
            FewHosts.most = 2 - number % 2
            monkeypatch.setattr(engine, "Cluster", FewHosts)
            per_host = number // FewHosts.most
            super().__init__(per_host, *args, backend="dask", address=dask.address, **kwargs)

    return DaskPool
