"""One peer in a process of its own: `runner.py PEER`, started by sessions.py with its interpreter.

It reads one command a line from stdin and writes one answer a line to its stdout, both JSON. What
libraries print goes to stderr. Its event loop runs all the time, so that a pool that polls polls.
When stdin ends it closes its pool and goes.

Workers import this module as their parent's main module: it does not import what only Peer needs.
"""

import asyncio
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from peers import PEERS

if TYPE_CHECKING:
    from adapters import Peer
    from workloads import Workload

Attempt = Callable[[int, int], Awaitable[float]]


class Runner:
    """A peer with its pool, as the last workload needed it."""

    def __init__(self, name: str) -> None:
        from workloads import WORKLOADS

        module, _, adapter = PEERS[name].adapter.partition(".")
        self._peer: Peer = getattr(importlib.import_module(module), adapter)()
        self._workloads = WORKLOADS
        self._open: tuple[int, int] | None = None  # workers and concurrency

    async def measure(self, workload: str, size: int, chunk: int) -> dict[str, float]:
        """Do a workload once, in a pool as it wants it."""
        what = self._workloads[workload]
        if not await self._prepare(what):
            await self._peer.touch(what.workers)  # it may have been stopped since
        figures = await what.measure(self._peer, size, chunk)
        if what.spoils:
            await self.close()
        return figures

    async def calibrate(self, workload: str, size: int, seconds: float) -> dict[str, int]:
        """The size, `size` at most, that takes about so many seconds, and the best chunk size."""
        what = self._workloads[workload]
        chunk = max(1, size // (4 * what.workers))
        if what.fixed and not what.chunked:
            return {"size": size, "chunk": chunk}
        await self._prepare(what)

        async def attempt(size: int, chunk: int) -> float:
            return (await what.measure(self._peer, size, chunk))["seconds"]

        if not what.fixed:
            size = await self._find_size(what, attempt, size, seconds)
        if what.chunked and self._peer.chunked:
            chunk = await self._find_chunk(what, attempt, size)
        return {"size": size, "chunk": chunk}

    async def _find_size(
        self, what: "Workload", attempt: Attempt, most: int, seconds: float
    ) -> int:
        size = min(most, what.tiny)
        await attempt(size, 1)  # whatever is slow the first time
        while True:
            took = await attempt(size, max(1, size // (4 * what.workers)))
            if size == most or took > seconds / 2:
                break
            size = min(most, size * min(16, max(2, int(seconds / took))))
        size = min(most, max(what.least, int(size * seconds / took)))
        return size - size % what.multiple if size > what.multiple else size

    async def _find_chunk(self, what: "Workload", attempt: Attempt, size: int) -> int:
        """From one chunk for each worker down to chunks of one item, while that does not hurt much.

        One unlucky measurement does not decide: the two best are tried once more.
        """
        share = -(-size // what.workers)
        if share == 1:
            return 1
        took: dict[int, float] = {}
        candidates = {share, share // 4, share // 32, share // 256, 64, 8, 1}
        for chunk in sorted(candidates & set(range(1, share + 1)), reverse=True):
            took[chunk] = await attempt(size, chunk)
            if took[chunk] > 1.6 * min(took.values()):
                break
        for chunk in sorted(took, key=lambda chunk: took[chunk])[:2]:
            took[chunk] = min(took[chunk], await attempt(size, chunk))
        return min(took, key=lambda chunk: took[chunk])

    async def _prepare(self, what: "Workload") -> bool:
        """Have the pool that is wanted open; True if it was made now."""
        wanted = (what.workers, what.concurrency)
        if self._open == wanted and not what.opens:
            return False
        await self.close()
        self._open = wanted
        if not what.opens:
            await self._peer.open(*wanted)
            await self._peer.warm_up(what.workers)
        return True

    async def close(self) -> None:
        if self._open is not None:
            self._open = None
            await self._peer.close()


def introduction(name: str) -> dict[str, str]:
    distribution = PEERS[name].distribution
    if distribution is None:
        return {"version": f"Python {platform.python_version()}"}
    return {"version": importlib.metadata.version(distribution)}


async def main(name: str, answers: BinaryIO) -> None:
    runner = Runner(name)
    commands = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(commands)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    verbs: dict[str, Callable[..., Awaitable[Mapping[str, float]]]] = {
        "measure": runner.measure,
        "calibrate": runner.calibrate,
    }
    answer: Mapping[str, Any] = introduction(name)
    while True:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        line = await commands.readline()
        if not line:
            return await runner.close()
        command = json.loads(line)
        try:
            answer = await verbs[command.pop("do")](**command)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is what it answers
            answer = {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    private = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asyncio.run(main(sys.argv[1], private))
