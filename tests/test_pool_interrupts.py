"""Ctrl-C in the middle of a call: the program may go on with its loop, and so does the pool.

A notebook does that. Each test has a loop of its own, which an interrupt stops.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool

pytestmark = pytest.mark.usefixtures("backend")


class Interrupted:
    """Is interrupted once while it is pickled; a 2 in the worker."""

    def __init__(self) -> None:
        self.interrupts = iter([KeyboardInterrupt])

    def __reduce__(self) -> tuple[Any, ...]:
        for interrupt in self.interrupts:
            raise interrupt
        return int, (2,)


@pytest.mark.parametrize("what", ["an idle worker", "a line", "a map"])
def test_an_interrupt_while_an_argument_is_pickled_loses_no_other_task(what: str) -> None:
    async def start() -> Pool:
        pool = Pool(1, childconcurrency=1)
        assert await pool.apply(workload.two) == 2
        return pool

    async def call() -> Any:
        item = Interrupted()
        if what == "a map":
            return await pool.map(workload.double, [1, 2, item, 4])
        if what == "a line":
            before = [pool.apply(workload.double, (n,)) for n in range(20)]
            return await asyncio.gather(*before, pool.apply(workload.double, (item,)))
        return await pool.apply(workload.double, (item,))

    async def finish() -> Any:
        assert await pool.apply(workload.double, (7,)) == 14
        pool.close()
        await pool.join()

    with asyncio.Runner() as runner:
        pool = runner.run(start())
        loop = runner.get_loop()
        calling = loop.create_task(call())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(calling)
        loop.run_until_complete(finish())
        if what == "a map":
            assert loop.run_until_complete(calling) == [2, 4, 4, 8]
        elif what == "a line":
            assert loop.run_until_complete(calling) == [2 * n for n in (*range(20), 2)]
        else:  # the interrupt was the call's own, whose caller got it
            assert isinstance(calling.exception(), KeyboardInterrupt)
