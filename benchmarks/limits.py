"""The limits: what no pool can beat, measured in the same run as the peers.

They have a peer's interface, and run only the workloads that mean something for them.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from time import perf_counter
from typing import Any

from adapters import Items, Peer
from items import Function


class OneProcess(Peer):
    """The same coroutines in this process and loop, awaited one after the other, no transport.

    As many at once as the workers of a pool would run, if the items wait.
    """

    coroutines = True
    chunked = False

    async def open(self, workers: int, concurrency: int) -> None:
        self._at_once = workers * concurrency

    async def close(self) -> None:
        pass

    async def map(self, function: Function, items: Items, chunk: int) -> Items:
        results: list[Any] = [None] * len(items)
        todo = iter(enumerate(items))

        async def run(todo: Iterator[tuple[int, Any]]) -> None:
            if asyncio.iscoroutinefunction(function):
                for at, item in todo:
                    results[at] = await function(item)
            else:
                for at, item in todo:
                    results[at] = function(item)

        await asyncio.gather(*(run(todo) for _ in range(self._at_once)))
        return results

    async def starmap(self, function: Function, items: Items, chunk: int) -> Items:
        return [await function(*item) for item in items]

    async def apply(self, function: Function, argument: Any) -> Any:
        return await function(argument)

    async def gather(self, function: Function, arguments: Items) -> Items:
        return await asyncio.gather(*(function(argument) for argument in arguments))


class PingPong(Peer):
    """Two asyncio loops in two processes that ring each other's eventfd, and do nothing else."""

    async def open(self, workers: int, concurrency: int) -> None:
        self._there, self._here = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        fds = (self._there, self._here)
        command = [sys.executable, __file__, *map(str, fds)]
        self._process = subprocess.Popen(  # noqa: ASYNC220 - nothing else is to be done meanwhile
            command, stdin=subprocess.PIPE, pass_fds=fds
        )

    async def warm_up(self, workers: int) -> None:
        await self.round_trips(print, 1)

    touch = warm_up

    async def close(self) -> None:
        self._process.communicate()
        os.close(self._there)
        os.close(self._here)

    async def map(self, function: Function, items: Items, chunk: int) -> Items:
        raise NotImplementedError

    async def round_trips(self, function: Function, count: int) -> list[float]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        times = [perf_counter()]

        def rung() -> None:
            os.eventfd_read(self._here)
            times.append(perf_counter())
            if len(times) <= count:
                os.eventfd_write(self._there, 1)
            else:
                done.set_result(None)

        loop.add_reader(self._here, rung)
        os.eventfd_write(self._there, 1)
        await done
        loop.remove_reader(self._here)
        return [after - before for before, after in pairwise(times)]


class Memcpy(Peer):
    """The same bytes copied once, into memory that is there."""

    async def open(self, workers: int, concurrency: int) -> None:
        self._target = bytearray()

    async def warm_up(self, workers: int) -> None:
        pass

    touch = warm_up

    async def close(self) -> None:
        pass

    async def map(self, function: Function, items: Items, chunk: int) -> Items:
        views = [memoryview(item).cast("B") for item in items]
        if len(self._target) < len(views[0]):
            self._target = bytearray(len(views[0]))
        target = memoryview(self._target)
        for view in views:
            target[: len(view)] = view
        return items

    async def make_room(self, size: int) -> None:
        self._target = bytearray(b"x") * size  # not zeros, which may be no pages at all

    async def share(self, value: Any) -> Any:
        memoryview(self._target)[:] = memoryview(value).cast("B")


class FreshCopy(Memcpy):
    """The same bytes copied once, into memory that is new, as results need it in the end.

    To be given a page by the kernel takes many times what it takes to fill it.
    """

    async def map(self, function: Function, items: Items, chunk: int) -> Items:
        views: list[Any] = [memoryview(item) for item in items]
        return [memoryview(bytearray(view.cast("B"))).cast(view.format) for view in views]

    async def make_room(self, size: int) -> None:
        pass

    async def share(self, value: Any) -> Any:
        bytearray(memoryview(value).cast("B"))


def answer(here: int, there: int) -> None:
    """The other side of PingPong, until its stdin is closed."""

    def rung() -> None:
        os.eventfd_read(here)
        os.eventfd_write(there, 1)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        closed = loop.create_future()
        loop.add_reader(here, rung)
        loop.add_reader(0, closed.set_result, None)
        await closed
        loop.remove_reader(0)

    asyncio.run(serve())


if __name__ == "__main__":
    answer(*map(int, sys.argv[1:]))
