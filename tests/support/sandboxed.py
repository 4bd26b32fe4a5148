"""What a program does where a sandbox refuses one system call: for test_sandboxes.py.

`try_all` forks a process for each errno, takes the call away there, and uses a pool, a Worker and a
Process. Forked, because a fresh interpreter for each would take most of the time; the processes of
the library are started as the test says, and inherit the filter.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
from collections.abc import Mapping

import sandbox
import workload
from aiomultiprocess import Pool, Process, Shared, Worker, WorkerLostError, share

LARGE = 6 << 20  # bytes: memory that the extension asks large pages for
ERRORS = (errno.EPERM, errno.ENOSYS, errno.EINVAL)


async def exit_with(code: int) -> None:
    os._exit(code)


async def make_large() -> bytes:
    return bytes(LARGE)


def size_of(buffer: object) -> int:
    return memoryview(buffer).nbytes  # type: ignore[arg-type]


def size_of_shared(shared: Shared[object]) -> int:
    return size_of(shared.value)


async def nap() -> None:
    await asyncio.sleep(0.001)


async def use_a_pool(backend: str | None) -> str:
    """The backend, and whether the exit code of a worker that ended itself was found out."""
    async with Pool(1, backend=backend) as pool:
        assert await pool.map(workload.double, range(100)) == [2 * n for n in range(100)]
        assert len(await pool.apply(make_large)) == LARGE
        assert await pool.apply(size_of, (bytearray(LARGE),)) == LARGE
        assert await pool.apply(size_of, (array.array("B", bytes(LARGE)),)) == LARGE
        await pool.apply(nap)
        try:
            await pool.apply(exit_with, (3,))
        except WorkerLostError as error:
            code = error.exitcode
        assert await pool.apply(workload.two) == 2
    return f"{pool.backend} {code}"


async def use_processes() -> str:
    """The exit codes of a process that ends itself, and of one that is terminated."""
    assert len(await Worker(target=make_large)) == LARGE
    ends, waits = Process(target=exit_with, args=(4,)), Process(target=asyncio.sleep, args=(60,))
    ends.start()
    waits.start()
    waits.terminate()
    await asyncio.gather(ends.join(), waits.join())
    return f"{ends.exitcode} {waits.exitcode}"


async def use_all(backend: str | None) -> str:
    return f"{await use_a_pool(backend)} {await use_processes()}"


async def use_share(backend: str | None) -> str:
    """What a task says of a shared object."""
    with share(array.array("B", bytes(LARGE))) as shared:
        async with Pool(1, backend=backend) as pool:
            return f"{await pool.apply(size_of_shared, (shared,))} bytes"


USES = {"all": use_all, "share": use_share}


def try_one(
    call: str, error: int, arguments: Mapping[int, int], masked: bool, backend: str | None, use: str
) -> None:
    sandbox.refuse(call, error, arguments, masked=masked)
    try:
        said = asyncio.run(USES[use](backend))
    except Exception as refused:  # noqa: BLE001 - the test looks at what it says
        said = f"{type(refused).__name__}: {refused}"
    print(errno.errorcode[error], said, flush=True)


def try_all(
    call: str,
    arguments: Mapping[int, int],
    masked: bool,
    backend: str | None,
    use: str = "all",
) -> None:
    """Print a line for each errno: what came of it."""
    for error in ERRORS:
        pid = os.fork()
        if pid == 0:
            try_one(call, error, arguments, masked, backend, use)
            os._exit(0)
        os.waitpid(pid, 0)
