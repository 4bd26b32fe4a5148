"""System calls that a sandbox or an old kernel refuses: a way round, or an error that names them.

A seccomp filter takes them away in a process of its own, from parent and workers (sandbox.py).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import conftest
import core_targets as targets
import sandbox
from aiomultiprocess._processes.descriptors import Descriptor
from aiomultiprocess._processes.exit import Exit
from aiomultiprocess._processes.spawn import process_class
from sandboxed import ERRORS
from support import Script, pool_script, run_script, wait_for_exit

pytestmark = pytest.mark.skipif(not sandbox.SUPPORTED, reason="seccomp, on machines in the table")

F_ADD_SEALS, F_GET_SEALS = 1033, 1034
WORKS = "3 4 -15"  # three exit codes, each of which was found out

#: Calls that both backends can avoid, and the arguments with which they are refused.
OPTIONAL: dict[str, tuple[str, dict[int, int], bool]] = {
    "pidfd_open": ("pidfd_open", {}, False),
    "waitid(P_PIDFD)": ("waitid", {0: sandbox.P_PIDFD}, False),
    "waitid": ("waitid", {}, False),
    "eventfd": ("eventfd2", {}, False),
    "fallocate": ("fallocate", {}, False),
    "ftruncate": ("ftruncate", {}, False),
    "madvise": ("madvise", {}, False),
    "prctl": ("prctl", {}, False),
    "getrlimit": ("prlimit64", {}, False),
    "setsockopt": ("setsockopt", {}, False),
    "getsockopt": ("getsockopt", {}, False),
    "getsockname": ("getsockname", {}, False),
    "sendmsg": ("sendmsg", {}, False),
    "recvmsg": ("recvmsg", {}, False),
    "readv": ("readv", {}, False),
    "close_range": ("close_range", {}, False),
    "sched_getaffinity": ("sched_getaffinity", {}, False),
    "sysinfo": ("sysinfo", {}, False),
    "pselect6": ("pselect6", {}, False),
    "threads by clone3": ("clone3", {}, False),
}
#: Without these there is no ring, and the pipe serves.
OF_THE_RING: dict[str, tuple[str, dict[int, int], bool]] = {
    "memfd_create": ("memfd_create", {}, False),
    "fcntl(F_ADD_SEALS)": ("fcntl", {1: F_ADD_SEALS}, False),
    "fcntl(F_GET_SEALS)": ("fcntl", {1: F_GET_SEALS}, False),
}
#: Without these there is no backend.
NEEDED: dict[str, tuple[str, dict[int, int], bool]] = {
    "mmap": ("mmap", {3: sandbox.MAP_SHARED}, True),
}
#: Calls for which the start method matters; the others run under the quickest one.
OF_PROCESSES = ("pidfd_open", "waitid(P_PIDFD)", "waitid", "threads by clone3")


def said_without(
    folder: Path,
    refused: tuple[str, dict[int, int], bool],
    backend: str | None,
    method: str = "fork",
    use: str = "all",
) -> list[str]:
    """What the program printed, for each of `ERRORS`."""
    call, arguments, masked = refused
    source = f"""
        import sandboxed
        from aiomultiprocess import set_start_method

        if __name__ == "__main__":
            set_start_method({method!r})
            sandboxed.try_all({call!r}, {arguments!r}, {masked!r}, {backend!r}, {use!r})
    """
    script = run_script(folder, source, "-Wignore", within=60)
    assert script.err == ""
    lines = script.out.splitlines()
    assert len(lines) == len(ERRORS), script.out
    return [line.partition(" ")[2] for line in lines]


@pytest.mark.row("G53")
@pytest.mark.parametrize("name", OPTIONAL)
def test_a_call_that_can_be_avoided_may_be_refused(name: str, backend: str, tmp_path: Path) -> None:
    assert said_without(tmp_path, OPTIONAL[name], backend) == [f"{backend} {WORKS}"] * 3


@pytest.mark.row("G53")
@pytest.mark.parametrize("name", OF_PROCESSES)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_end_as_they_should_under_every_start_method(
    name: str, method: str, backend: str, tmp_path: Path
) -> None:
    said = said_without(tmp_path, OPTIONAL[name], backend, method)
    assert said == [f"{backend} {WORKS}"] * 3


@pytest.mark.row("H236")
@pytest.mark.parametrize("call", ["sendmsg", "recvmsg"])
def test_a_shared_object_that_cannot_be_passed_says_why(
    call: str, backend: str, tmp_path: Path
) -> None:
    said = said_without(tmp_path, (call, {}, False), backend, "spawn", use="share")
    for line, error in zip(said, ERRORS, strict=True):
        assert line.startswith("PicklingError: an argument of a call of sandboxed.size_of_shared")
        assert f"refuses to pass the memory of a shared object ([Errno {error}]" in line
        assert "pass the object itself, without share()" in line


@pytest.mark.row("G53")
@pytest.mark.parametrize("name", OF_THE_RING)
def test_without_memory_of_a_fixed_size_the_pipe_serves(name: str, tmp_path: Path) -> None:
    assert said_without(tmp_path, OF_THE_RING[name], None) == [f"pipe {WORKS}"] * 3


@pytest.mark.row("G53")
@pytest.mark.skipif("shm" not in conftest.BACKENDS, reason="what shm says of it")
@pytest.mark.parametrize("name", OF_THE_RING)
def test_a_ring_that_was_asked_for_says_which_call_was_refused(name: str, tmp_path: Path) -> None:
    said = said_without(tmp_path, OF_THE_RING[name], "shm")
    for line, error in zip(said, ERRORS, strict=True):
        assert line.startswith("RuntimeError: the backend 'shm', requested by the argument,")
        assert f"[Errno {error}] {os.strerror(error)}: '{name}'" in line
        assert "Request 'pipe'" in line


@pytest.mark.row("G53")
@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("asked", [None, *conftest.BACKENDS])
def test_a_call_that_both_backends_need_is_named_where_it_is_refused(
    name: str, asked: str | None, tmp_path: Path
) -> None:
    said = said_without(tmp_path, NEEDED[name], asked)
    tried = conftest.BACKENDS if asked is None else [asked]
    for line, error in zip(said, ERRORS, strict=True):
        assert line.startswith("RuntimeError: ")
        assert line.count(f"[Errno {error}] {os.strerror(error)}: '{name}'") == len(tried)
        assert [f"{backend}: " in line for backend in tried] == [True] * len(tried)


PROGRAM = """
import errno, sandbox
{refusals}
import asyncio, sandboxed
from aiomultiprocess import Pool

if __name__ == "__main__":
    print(asyncio.run(sandboxed.use_all({backend!r})))
"""


@pytest.mark.row("G53")
@pytest.mark.parametrize(
    "refusals",
    [
        pytest.param(["'epoll_create1', errno.EPERM"], id="no epoll"),
        pytest.param(["'epoll_create1', errno.ENOSYS"], id="a kernel without epoll"),
        pytest.param(
            [
                "'memfd_create', errno.EPERM",
                "'eventfd2', errno.EPERM",
                "'pidfd_open', errno.EPERM",
                "'fallocate', errno.EOPNOTSUPP",
                "'clone3', errno.EPERM",
                "'waitid', errno.EPERM",
            ],
            id="many at once",
        ),
    ],
)
def test_a_program_that_starts_without_these_calls_works(
    refusals: list[str], tmp_path: Path
) -> None:
    lines = "\n".join(f"sandbox.refuse({refusal})" for refusal in refusals)
    script = run_script(tmp_path, PROGRAM.format(refusals=lines, backend=None))
    expected = "pipe" if "memfd_create" in lines else conftest.BACKENDS[0]
    assert (script.out, script.err) == (f"{expected} {WORKS}\n", "")


@pytest.mark.row("G53")
def test_a_kernel_that_wants_memory_without_the_right_to_run_it_gets_that(
    backend: str, tmp_path: Path
) -> None:
    """vm.memfd_noexec=2: EACCES, unless MFD_NOEXEC_SEAL (8) is among the flags."""
    flags = 1 | 2  # MFD_CLOEXEC, MFD_ALLOW_SEALING, and nothing else
    refusals = f"sandbox.refuse('memfd_create', errno.EACCES, {{1: {flags}}})"
    script = run_script(tmp_path, PROGRAM.format(refusals=refusals, backend=backend))
    assert (script.out, script.err) == (f"{backend} {WORKS}\n", "")


@pytest.mark.row("G53")
def test_a_kernel_that_knows_no_such_memory_is_asked_again(backend: str, tmp_path: Path) -> None:
    """Before Linux 6.3 a memfd with MFD_NOEXEC_SEAL is EINVAL."""
    refusals = "sandbox.refuse('memfd_create', errno.EINVAL, {1: 8}, masked=True)"
    script = run_script(tmp_path, PROGRAM.format(refusals=refusals, backend=backend))
    assert (script.out, script.err) == (f"{backend} {WORKS}\n", "")


@pytest.mark.row("G53")
def test_the_number_of_workers_is_known_without_the_affinity(tmp_path: Path) -> None:
    source = """
        import errno, os, sandbox
        sandbox.refuse("sched_getaffinity", errno.EPERM)
        from aiomultiprocess import Pool

        if __name__ == "__main__":
            print(Pool().process_count >= 1)
    """
    script = run_script(tmp_path, source)
    assert (script.out, script.err) == ("True\n", "")


# -- no threads ------------------------------------------------------------------------------------


@pytest.mark.row("G53")
@pytest.mark.usefixtures("backend")
async def test_without_threads_workers_still_end_with_their_parent(tmp_path: Path) -> None:
    body = """
async with Pool(2) as pool:
    pids = {process.pid for process in pool.processes}
    while set(await pool.map(workload.where, range(100))) != pids:
        pass
    print("pids", *pids, flush=True)
    await pool.apply(workload.wait_for_ever)
"""
    setup = "import errno, sandbox\nsandbox.refuse('clone3', errno.EPERM)\n"
    with Script(tmp_path, pool_script(body, setup=setup)) as script:
        pids = [int(pid) for pid in await script.line("pids")]
        script.process.kill()
        script.process.wait()
        await wait_for_exit(pids)


# -- descriptors -----------------------------------------------------------------------------------


@pytest.mark.row("G53")
def test_a_descriptor_that_no_loop_takes_is_left_to_a_thread() -> None:
    """As a pidfd of a sandbox may be: epoll refuses it with EPERM, as it does a file."""
    asyncio.run(wait_with_a_file_for_a_pidfd())


async def wait_with_a_file_for_a_pidfd() -> None:
    process: Any = process_class(multiprocessing.get_context("spawn"))(target=targets.sleep_long)
    process.start()
    end = Exit(process)
    end.close()
    end._pidfd = Descriptor(os.open(__file__, os.O_RDONLY | os.O_CLOEXEC))
    waiting = asyncio.ensure_future(end.wait())
    await asyncio.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    await waiting
    assert end.exitcode == -signal.SIGKILL
    process.close()


# -- the table in the documentation ----------------------------------------------------------------


@pytest.mark.row("G53")
def test_the_documentation_names_every_call_that_is_taken_away_here() -> None:
    table = (conftest.ROOT / "docs" / "sandboxes.md").read_text()
    missing = [
        name
        for name in (*OPTIONAL, *OF_THE_RING, *NEEDED)
        if f"`{name.removeprefix('threads by ')}`" not in table
    ]
    assert missing == []
