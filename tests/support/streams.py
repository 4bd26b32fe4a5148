"""Generators that tests of streams run in workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import overtime
import workload


async def count_up(stop: int, *, start: int = 0) -> AsyncIterator[int]:
    for n in range(start, stop):
        yield n


def count_plainly(stop: int) -> Iterator[int]:
    yield from range(stop)


async def count_and_fail(stop: int) -> AsyncIterator[int]:
    for n in range(stop):
        yield n
    raise LookupError(f"after {stop}")


async def count_produced(path: str) -> AsyncIterator[int]:
    """Endless; the file has one byte for each value that was produced, then an x at the end."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        n = 0
        while True:
            os.write(file, b".")
            yield n
            n += 1
    finally:
        await asyncio.sleep(0)
        os.write(file, b"x")
        os.close(file)


def produce_plainly(path: str) -> Iterator[int]:
    """The same as a plain generator."""
    with Path(path).open("ab", buffering=0) as file:
        try:
            n = 0
            while True:
                file.write(b".")
                yield n
                n += 1
        finally:
            file.write(b"x")


async def count_and_die(stop: int) -> AsyncIterator[int]:
    for n in range(stop):
        yield n
    await asyncio.sleep(0.05)  # the values leave
    os.kill(os.getpid(), signal.SIGKILL)


async def same_list(count: int) -> AsyncIterator[list[int]]:
    """One list, which grows between the values."""
    values: list[int] = []
    for n in range(count):
        values.append(n)
        yield values


async def unpicklable_third() -> AsyncIterator[Any]:
    yield 1
    yield 2
    yield lambda: 3
    yield 4


class Unloadable:
    """Pickles here, and fails to unpickle."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ArithmeticError("not here")


async def unloadable_third() -> AsyncIterator[Any]:
    yield 1
    yield 2
    yield Unloadable()
    yield 4


async def fail_while_closing() -> AsyncIterator[int]:
    try:
        yield 1
        await asyncio.sleep(3600)
    finally:
        raise OSError("while closing")


def no_generator() -> list[int]:
    return [1, 2]


async def large(count: int, size: int) -> AsyncIterator[bytes]:
    for n in range(count):
        yield bytes([n % 256]) * size


async def slow(count: int) -> AsyncIterator[int]:
    for n in range(count):
        await asyncio.sleep(0.001)
        yield n


async def compute() -> AsyncIterator[int]:
    """Endless, and never suspends by itself."""
    n = 0
    while True:
        yield n
        n += 1


def compute_plainly() -> Iterator[int]:
    yield from itertools.count()


async def nap(seconds: list[float], path: str | None = None) -> AsyncIterator[float]:
    """Each value takes so long; the file is there when the generator is closed."""
    try:
        for each in seconds:
            await asyncio.sleep(each)
            yield each
    finally:
        if path is not None:
            workload.note(path, "closed")


async def hold_the_gil_after(count: int) -> AsyncIterator[int]:
    for n in range(count):
        yield n
    await overtime.hold_the_gil()


def block_after(count: int) -> Iterator[int]:
    yield from range(count)
    overtime.block(1000)


async def block_while_closing() -> AsyncIterator[int]:
    try:
        for n in itertools.count():
            yield n
    finally:
        await asyncio.sleep(0)
        overtime.block(1000)


async def go_on_when_cancelled() -> AsyncIterator[int]:
    yield 0
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        for n in itertools.count(1):
            await asyncio.sleep(0.001)
            yield n


async def poll(path: str) -> AsyncIterator[int]:
    """Take each interruption of a wait as no news; the file is there when it was closed."""
    n = 0
    try:
        while True:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.01)
            yield n
            n += 1
    finally:
        await asyncio.sleep(0)
        Path(path).touch()  # noqa: ASYNC240


async def end_when_cancelled() -> AsyncIterator[int]:
    yield 0
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


async def count_and_die_at_once(stop: int) -> AsyncIterator[int]:
    """No value has had a turn of the loop to leave."""
    for n in range(stop):
        yield n
    os.kill(os.getpid(), signal.SIGKILL)


def count_plainly_and_die_at_once(stop: int) -> Iterator[int]:
    yield from range(stop)
    os.kill(os.getpid(), signal.SIGKILL)


async def count_in_turns(stop: int, path: str) -> AsyncIterator[int]:
    """Notes each value when the next is asked for, so that it had been yielded."""
    for n in range(stop):
        yield n
        workload.note(path, n)
        await asyncio.sleep(0)


async def fork_within() -> AsyncIterator[int]:
    """The copy goes on to the next values, and must do no harm."""
    yield 0
    pid = os.fork()
    yield 1
    yield 2
    if pid:
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends at once
    yield 3
