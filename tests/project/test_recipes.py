"""The recipes of the how-to pages hold under cancellation, refusals, threads and fork."""

from __future__ import annotations

import asyncio
import importlib
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiomultiprocess import Pool, set_start_method
from conftest import FORK_WARNING
from support import Meeting, lines
from test_docs import PAGES
from test_examples import EXAMPLES, run

pytestmark = pytest.mark.usefixtures("backend")

# -- a session for each worker ---------------------------------------------------------------------

[RECIPE] = [
    block
    for block in re.findall(r"```python\n(.*?)```", PAGES["docs/how-to/resources.md"], re.DOTALL)
    if "holder" in block
]

# The recipe, word for word, with a connection whose opening awaits in the place of the session.
CONNECTIONS = (
    """
import asyncio
import contextlib
import os
import types

from workload import HOST, note

port, path = PORT, PATH


@contextlib.asynccontextmanager
async def connect():
    task = asyncio.current_task()
    note(path, f"opening {os.getpid()}")
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"{os.getpid()} session\\n".encode())
    answer = (await reader.readline()).decode().strip()
    try:
        if answer == "refused":
            raise ConnectionRefusedError(answer)
        yield writer
    finally:
        assert asyncio.current_task() is task  # as anyio and TaskGroup want it
        writer.close()
        await writer.wait_closed()
        note(path, f"closed {os.getpid()}")


aiohttp = types.SimpleNamespace(ClientSession=connect)

"""
    + RECIPE
    + """

async def use(_=None):
    session = await one_session()
    await asyncio.sleep(0)
    return os.getpid(), id(session), session.is_closing()
"""
)


class Sessions:
    """The recipe as a module that workers import, and what it noted."""

    def __init__(self, folder: Path, port: int) -> None:
        self.path = folder / "sessions"
        source = CONNECTIONS.replace("PORT", str(port)).replace("PATH", repr(str(self.path)))
        (folder / "recipe_of_a_page.py").write_text(source)
        self.use: Any = importlib.import_module("recipe_of_a_page").use

    def count(self, what: str) -> int:
        return sum(line.startswith(what) for line in lines(self.path))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("recipe_of_a_page", None)


@pytest.mark.row("G77")
@pytest.mark.parametrize("end", ["async with", "close"])
async def test_items_that_enter_together_share_one_session_that_is_closed_at_the_end(
    folder: Path, end: str
) -> None:
    async with Meeting() as meeting:
        sessions = Sessions(folder, meeting.port)
        async with Pool(2, childconcurrency=16) as pool:
            calls = [asyncio.ensure_future(pool.apply(sessions.use)) for _ in range(32)]
            await meeting.release_together(2)  # one for each worker, while its items wait
            found = await asyncio.gather(*calls)
            found += await pool.map(sessions.use, range(100))
            assert len({pid for pid, _, _ in found}) == len(set(found)) == 2
            assert not any(closing for _, _, closing in found)
            if end == "close":
                pool.close()
                await pool.join()
        assert (sessions.count("opening"), sessions.count("closed")) == (2, 2)


@pytest.mark.row("G77")
async def test_a_session_that_is_refused_is_opened_again_for_the_next_item(folder: Path) -> None:
    async with Meeting() as meeting:
        sessions = Sessions(folder, meeting.port)
        async with Pool(1) as pool:
            calls = [asyncio.ensure_future(pool.apply(sessions.use)) for _ in range(16)]
            (await meeting.next()).release("refused")
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(error, ConnectionRefusedError) for error in found)
            call = asyncio.ensure_future(pool.apply(sessions.use))
            (await meeting.next()).release()
            assert not (await call)[2]
        assert (sessions.count("opening"), sessions.count("closed")) == (2, 2)


@pytest.mark.row("G77")
async def test_an_item_that_is_cancelled_while_it_opens_the_session_leaves_it_to_others(
    folder: Path,
) -> None:
    async with Meeting() as meeting:
        sessions = Sessions(folder, meeting.port)
        async with Pool(1) as pool:
            calls = [asyncio.ensure_future(pool.apply(sessions.use)) for _ in range(16)]
            arrival = await meeting.next()
            calls[0].cancel()
            await asyncio.wait(calls[:1])
            arrival.release()
            assert len(set(await asyncio.gather(*calls[1:]))) == 1
        assert (sessions.count("opening"), sessions.count("closed")) == (1, 1)


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.row("G79")
def test_threads_share_one_pool_by_a_loop_in_a_thread(tmp_path: Path) -> None:
    assert run("threads.py", tmp_path) == ("", "")


@pytest.mark.row("H210")
def test_the_example_of_threads_ends_by_its_error_when_a_view_fails(tmp_path: Path) -> None:
    source = (EXAMPLES / "threads.py").read_text(encoding="utf-8")
    broken = source.replace("return number * number", 'raise LookupError("no such page")')
    (tmp_path / "threads.py").write_text(broken, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "threads.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("LookupError: no such page\n")


# -- random numbers under fork ---------------------------------------------------------------------


async def draw(port: int) -> tuple[int, float, float]:
    """Numbers of both global streams, in a worker that holds still until another draws too."""
    import workload

    await workload.meet(port)
    return int(np.random.randint(1 << 62)), random.random(), np.random.default_rng().random()


async def drawn_by_two_workers(**arguments: Any) -> list[tuple[int, float, float]]:
    np.random.random()  # now the parent has the stream that is copied
    set_start_method("fork")
    try:
        async with Meeting() as meeting, Pool(2, childconcurrency=1, **arguments) as pool:
            calls = [asyncio.ensure_future(pool.apply(draw, (meeting.port,))) for _ in range(2)]
            pids = {arrival.pid for arrival in await meeting.release_together(2)}
            assert len(pids) == 2
            return await asyncio.gather(*calls)
    finally:
        set_start_method()


@FORK_WARNING
@pytest.mark.row("G79")
async def test_numpys_global_stream_is_the_same_in_forked_workers_and_no_other_is() -> None:
    first, second = await drawn_by_two_workers()
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[2] != second[2]


@FORK_WARNING
@pytest.mark.row("G79")
async def test_the_initializer_of_the_page_gives_each_forked_worker_a_stream_of_its_own() -> None:
    assert "Pool(initializer=numpy.random.seed)" in PAGES["docs/how-to/numerical.md"]
    first, second = await drawn_by_two_workers(initializer=np.random.seed)
    assert first[0] != second[0]
