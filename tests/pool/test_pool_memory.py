"""Pools whose processes have too little memory for one of their values: it fails alone.

The limits are the kernel's: RLIMIT_AS, in workers by an initializer, in parents in a script.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest

import scarcity
from aiomultiprocess import Pool
from scarcity import MIB
from support import outcomes, pool_script, run_script

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's"),
    pytest.mark.usefixtures("backend"),
]

#: What a worker may map besides what it has at its start, and what is too much for it.
ROOM = 96 * MIB
LARGE = 128 * MIB

KINDS = ["bytes", "text", "buffer", "pickle", "numbers", "many parts"]
limited_pool = functools.partial(
    Pool, 1, initializer=scarcity.limit_worker, initargs=(ROOM,), childconcurrency=4
)


async def check_refusals(found: list[Any], at: set[int], says: str) -> None:
    """Only the items at those places have failed, each by an error that names it."""
    assert {place for place, value in enumerate(found) if isinstance(value, Exception)} == at
    for place in at:
        with pytest.raises(MemoryError, match=says) as caught:
            raise found[place]
        assert f"item {place} of a call of " in str(caught.value)
        assert "pass it in parts" in str(caught.value).lower()


@pytest.mark.row("G51")
@pytest.mark.parametrize("kind", KINDS)
async def test_an_argument_too_large_for_its_worker_fails_alone(kind: str) -> None:
    large = scarcity.make(kind, LARGE)
    items = [1, "two", {"three": 4}, large, 5, large, [6]]
    async with limited_pool() as pool:
        pids = {process.pid for process in pool.processes}
        found = await outcomes(pool.map(scarcity.kind_of, items))
        await check_refusals(found, {3, 5}, r"kind_of could not be received by its worker")
        assert [found[at] for at in (0, 1, 2, 4, 6)] == ["int", "str", "dict", "int", "list"]
        with pytest.raises(MemoryError, match=r"an argument of a call of .*kind_of"):
            await pool.apply(scarcity.kind_of, (large,))
        assert await pool.map(scarcity.kind_of, [1] * 50) == ["int"] * 50
        assert {process.pid for process in pool.processes} == pids


@pytest.mark.row("G51")
@pytest.mark.parametrize("kind", ["bytes", "numbers"])
async def test_a_function_too_large_for_its_worker_fails_its_items_alone(kind: str) -> None:
    large = functools.partial(scarcity.kind_of_second, scarcity.make(kind, LARGE))
    async with limited_pool() as pool:
        pids = {process.pid for process in pool.processes}
        found = await outcomes(pool.map(large, [1, 2]))
        await check_refusals(found, {0, 1}, r"kind_of_second")
        assert await pool.map(scarcity.kind_of, [1, "two"]) == ["int", "str"]
        assert {process.pid for process in pool.processes} == pids


@pytest.mark.row("G49", "H238")
@pytest.mark.parametrize("kind", ["text", "numbers", "buffer"])
async def test_a_result_too_large_for_its_worker_fails_alone(kind: str) -> None:
    async with limited_pool() as pool:
        pids = {process.pid for process in pool.processes}
        found = await outcomes(
            pool.map(scarcity.most_of_memory, ["small", "small", kind, "small", kind, "small"])
        )
        assert [found[at] for at in (0, 1, 3, 5)] == ["small"] * 4
        for at in (2, 4):
            said = (
                rf"the result of item {at} of .*most_of_memory could not be sent .*Pass it in parts"
            )
            with pytest.raises(MemoryError, match=said):
                raise found[at]
        assert {process.pid for process in pool.processes} == pids


@pytest.mark.row("H238")
async def test_a_value_of_a_stream_too_large_for_its_worker_is_named() -> None:
    async with limited_pool() as pool:
        values = pool.stream(scarcity.texts)
        assert await anext(values) == "small"
        with pytest.raises(MemoryError, match=r"the result of .*texts could not be sent"):
            await anext(values)
        assert await pool.apply(scarcity.kind_of, (1,)) == "int"


CALLER = """
pool = Pool(1, childconcurrency=1)
async with pool:
    large = scarcity.make({kind!r}, 128 * scarcity.MIB)
    pids = [process.pid for process in pool.processes]
    await pool.apply(scarcity.kind_of, (1,))
    with scarcity.limited(48 * scarcity.MIB):
        found = await outcomes(pool.map(scarcity.kind_of, [1, "two", large, 3, large, "four"]))
    print([value if isinstance(value, str) else type(value).__name__ for value in found])
    print(found[2])
    assert await pool.map(scarcity.kind_of, [1, "two"]) == ["int", "str"]
    assert pids == [process.pid for process in pool.processes]
"""


@pytest.mark.row("G49")
@pytest.mark.parametrize("kind", ["text", "numbers", "buffer", "pickle"])
def test_an_argument_too_large_for_the_caller_itself_fails_alone(kind: str, tmp_path: Path) -> None:
    source = pool_script(
        CALLER.format(kind=kind), setup="import scarcity\nfrom support import outcomes"
    )
    script = run_script(tmp_path, source, within=60)
    assert script.process.returncode == 0, script.out + script.err
    assert script.out.splitlines()[0] == (
        "['int', 'str', 'MemoryError', 'int', 'MemoryError', 'str']"
    ), script.out
    assert "item 2 of a call of scarcity.kind_of cannot be sent to a worker" in script.out


RECEIVER = """
pool = Pool(1)
async with pool:
    pids = [process.pid for process in pool.processes]
    await pool.apply(scarcity.kind_of, (1,))
    with scarcity.limited(48 * scarcity.MIB):
        kinds = ["small", {kind!r}, "small", {kind!r}] + ["small"] * 20
        found = await outcomes(pool.map(scarcity.large_or_small, kinds))
    print([at for at, value in enumerate(found) if type(value) is MemoryError])
    print([at for at, value in enumerate(found) if value == "small"])
    print(found[1])
    assert await pool.map(scarcity.kind_of, [1, "two"]) == ["int", "str"]
    assert pids == [process.pid for process in pool.processes]
"""


@pytest.mark.row("G51")
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_too_large_for_the_parent_fails_alone(kind: str, tmp_path: Path) -> None:
    source = pool_script(
        RECEIVER.format(kind=kind), setup="import scarcity\nfrom support import outcomes"
    )
    script = run_script(tmp_path, source, within=60)
    assert script.process.returncode == 0, script.out + script.err
    failed, small, text = script.out.splitlines()
    assert failed == "[1, 3]"
    assert small == str([0, 2, *range(4, 24)])
    assert "the result of item 1 of a call of scarcity.large_or_small" in text
    assert "could not be received" in text


@pytest.mark.row("G51")
async def test_an_exception_too_large_for_the_parent_fails_its_item_alone(tmp_path: Path) -> None:
    body = """
async with Pool(1) as pool:
    await pool.apply(scarcity.kind_of, (1,))
    with scarcity.limited(48 * scarcity.MIB):
        found = await outcomes(pool.map(scarcity.raise_large, [0, 128 * scarcity.MIB, 0]))
    print([value if isinstance(value, int) else type(value).__name__ for value in found])
"""
    source = pool_script(body, setup="import scarcity\nfrom support import outcomes")
    script = run_script(tmp_path, source, within=60)
    assert script.process.returncode == 0, script.out + script.err
    assert script.out == "[0, 'MemoryError', 0]\n"
