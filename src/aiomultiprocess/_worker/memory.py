"""The memory limit of a worker (`maxmemoryperchild`).

`main` imports this module only in pools that have a limit.

MEMORY-1  Memory is what is resident and not shared with other processes or files: what many workers
    map counts for none of them. It is read at the end of each turn, and at its beginning if items
    wait: suspended ones may have grown since. A worker over its limit has started at least one
    item, so recycling makes progress.
MEMORY-2  A worker over its limit retires (engine.py, WORKER-11). One that is over it before its
    first item breaks the pool, because its replacement would be too.
"""

from __future__ import annotations

import mmap
from typing import Any

from .. import _accel
from .._wire import exceptions
from .engine import WorkerEngine

STATM = "/proc/self/statm"


def own_memory(statm: bytes, page: int) -> int:
    """The resident bytes that are not shared, from what the system says in pages."""
    _, resident, shared, *_ = map(int, statm.split())
    return (resident - shared) * page


class LimitedWorkerEngine(WorkerEngine):
    """A worker engine that retires when the process has more memory than `memory_limit` bytes."""

    memory_limit: int

    def _initialize(self, *args: Any) -> bytes | None:
        failure = super()._initialize(*args)
        self._statm = open(STATM, "rb", buffering=0)  # noqa: SIM115 - as long as the process
        memory = self._memory()
        if failure is not None or memory <= self.memory_limit or self.terminated:
            return failure
        error = ValueError(  # MEMORY-2
            f"maxmemoryperchild={self.memory_limit:_} is less than a worker has before its first "
            f"task, {memory:_} bytes: every worker would be replaced at once"
        )
        return exceptions.dump_exception(error, _accel.dumps)

    def _turn(self) -> None:
        if self._chunks:
            self._retire_if_over_limit()
        super()._turn()
        self._retire_if_over_limit()

    def _retire_if_over_limit(self) -> None:
        if self._in_burst or self._refuses or self._closing or not self._link.started:  # MEMORY-1
            return
        if self._memory() > self.memory_limit:
            self._retire("memory")

    def _memory(self) -> int:
        self._statm.seek(0)
        return own_memory(self._statm.read(200), mmap.PAGESIZE)
