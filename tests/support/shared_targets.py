"""What workers run in test_shared_objects.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

import workload
from aiomultiprocess import Pool, Shared, current_worker, set_start_method, share

initial: list[Any] = []


class Slow:
    """Takes a second to load, as a string."""

    def __reduce__(self) -> Any:
        return _slowly, ()


def _slowly() -> str:
    time.sleep(1)
    return "slow"


def value_of(shared: Shared[Any]) -> Any:
    return shared.value


def ignore(*_: object) -> None:
    """An initializer."""


def total(array: Any) -> float:
    return float(array.sum())


def at(shared: Shared[Any], index: int) -> float:
    return float(shared.value[index])


async def at_later(shared: Shared[Any], port: int, index: int) -> float:
    await workload.meet(port, index)
    return float(shared.value[index])


def released_at(shared: Shared[Any], index: int) -> float:
    """Release it twice, as a task may."""
    with shared:
        shared.release()
        found = float(shared.value[index])
    return found + float(shared.value[index])


def at_or_meet(shared: Shared[Any] | None, port: int) -> float:
    """The first number; without an object, call in and wait, with the worker's loop held up."""
    if shared is None:
        workload.meet_blocking(port)
        return -1
    return float(shared.value[0])


def at_or_die(path: str, shared: Shared[Any], index: int) -> float:
    """The first of all calls dies."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        os.abort()
    return float(shared.value[index])


def facts(shared: Shared[Any]) -> tuple[int, int, bool]:
    """The process, the address of the value, and whether it can be written."""
    return os.getpid(), id(shared.value), shared.value.flags.writeable


def write(shared: Shared[Any]) -> None:
    shared.value[0] = 1


def give_back(shared: Shared[Any]) -> Shared[Any]:
    return shared


def keep(shared: Shared[Any]) -> None:
    initial[:] = [shared]


def kept_at(index: int) -> float:
    return float(initial[0].value[index])


def allow_descriptors(allowed: bool) -> None:
    """Whether this worker may open any more."""
    import resource  # not on Windows

    global _soft
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not allowed:
        _soft = soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (_soft if allowed else 0, hard))


_soft = 0


def _send_result(sender: Any, func: Any, args: tuple[Any, ...]) -> None:
    try:
        result = func(*args)
        sender.send(asyncio.run(result) if asyncio.iscoroutine(result) else result)
    except BaseException as error:  # noqa: BLE001 - the result says what went wrong
        sender.send(repr(error))


def in_a_fork(func: Any, *args: Any) -> Any:
    """What a function returns in a process that this one forks."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if not pid:
        _send_result(sender, func, args)
        os._exit(0)
    result = receiver.recv()
    os.waitpid(pid, 0)
    return result


def in_a_forked_process(func: Any, *args: Any) -> Any:
    """The same in a process of multiprocessing."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, func, args))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def keep_all(*shared: Shared[Any]) -> None:
    """An initializer, for as many threads as there are objects."""
    initial[:] = [*shared, threading.Barrier(len(shared))]


def kept_at_once(index: int) -> float:
    """The first number of a kept object, in a thread, when all threads have come so far."""
    initial[-1].wait(20)
    return float(initial[index].value[0])


def kept_released_at(index: int) -> float:
    return released_at(initial[0], index)


def keep_a_part(shared: Shared[Any]) -> None:
    initial[:] = [shared.value[10:20]]


def sum_of_the_part(_: object = None) -> float:
    return float(initial[0].sum())


@contextlib.asynccontextmanager
async def yield_value() -> AsyncIterator[Any]:
    yield float(initial[0].value[1])


def state(_: object = None) -> Any:
    return current_worker().state


def share_here(_: object = None) -> None:
    share(1)


def pickle_it(shared: Shared[Any]) -> bytes:
    return pickle.dumps(shared)


async def at_in_a_pool(shared: Shared[Any], index: int) -> float:
    async with Pool(1) as pool:
        return await pool.apply(at, (shared, index))


async def held_by_a_forked_worker(shared: Shared[Any]) -> Any:
    """What a forked worker of a pool of this worker holds, and finds when it is given an object."""
    set_start_method("fork")
    async with Pool(1) as pool:
        return await pool.apply(held), await pool.apply(at, (shared, 3))


async def values(shared: Shared[Any], count: int) -> AsyncIterator[float]:
    for index in range(count):
        yield float(shared.value[index])


def numbers(shared: Shared[Any], count: int) -> Iterator[float]:
    for index in range(count):
        yield float(shared.value[index])


def held(_: object = None) -> tuple[int, int]:
    """How many descriptors and mappings of shared objects this process has."""
    gc.collect()
    return memories()


def memories() -> tuple[int, int]:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += "aiomultiprocess-shared" in os.readlink(f"/proc/self/fd/{name}")
    with open("/proc/self/maps") as maps:
        return found, maps.read().count("aiomultiprocess-shared")


def table(size: int = 100_000) -> Any:
    return np.arange(size, dtype="f8")


async def pass_on_what_was_kept(_: object = None) -> list[str]:
    """Give what this worker has kept to a pool of its own, by several calls; their errors."""
    async with Pool(1) as pool:
        await pool.apply(len, ("abc",))
        calls = [pool.apply(at, (initial[0], 0)) for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert await pool.apply(len, ("abc",)) == 3
        pool.close()
        await pool.join()
        return [str(result) for result in results]


def kept(_: object = None) -> Any:
    return initial[0]
