"""The journal itself, of both implementations: JOURNAL-1 to JOURNAL-5 (journal.py)."""

from __future__ import annotations

import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiomultiprocess import _accel
from aiomultiprocess._pure import codec, journal, tags
from aiomultiprocess._wire import journal as wire_journal
from aiomultiprocess._wire.frames import CorruptHeaderError, Kind
from codec_support import WithBuffer
from support import run_script

SIZE = 1024
FIRST, HEAD = 8, 40

KINDS: list[Any] = [journal.Journal]
if find_spec("amp_ext") is not None and find_spec("amp_ext.journal") is not None:
    from amp_ext.journal import Journal as Compiled

    KINDS.append(Compiled)

VALUES: list[Any] = [
    1,
    -129,
    1 << 40,
    1 << 70,
    None,
    True,
    0.5,
    "text",
    "ünïcode",
    {"key": 1},
    {"key": [2, 3]},
    (1, "two"),
    {4, 5},
    Path("pickled"),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__module__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def left(memory: bytes | bytearray) -> list[tuple[int, int, int, int, bytes]]:
    """The entries that are read, with copies of their payloads."""
    return [(*entry[:4], bytes(entry[4])) for entry in wire_journal.read(memoryview(memory))]


def results(memory: bytes | bytearray) -> list[tuple[int, int, Any]]:
    """All that is read: chunk, item, and value or bytes of the error."""
    found: list[tuple[int, int, Any]] = []
    for kind, chunk_id, offset, count, payload in left(memory):
        if kind == Kind.ERROR:
            found.append((chunk_id, offset, payload))
            continue
        values, failures = codec.decode_items(payload, count)
        assert failures is None
        found += [(chunk_id, offset + at, value) for at, value in enumerate(values)]
    return found


def fill(writer: Any, step: Callable[[tuple[int, int, Any]], object] = lambda _: None) -> None:
    """Two bursts, an error between them and one after; `step` is called before each is put."""
    for at, value in enumerate(VALUES):
        if at in (0, 7):
            writer.begin(at, 10)
        step((at // 7 * 7, 10 + at % 7, value))
        assert writer.append(value)
        if at in (6, 13):
            writer.take()
            step((100 + at, 3, b"error"))
            assert writer.put(Kind.ERROR, 100 + at, 3, 1, [b"er", b"ror"])


@pytest.mark.row("H118")
@pytest.mark.parametrize("results_first", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_a_shortened_journal_has_all_that_was_written_in_both_parts(
    kind: Any, results_first: bool, both: bool
) -> None:
    memory, expected = bytearray(10 * SIZE), []
    parts = wire_journal.parts_of(memoryview(memory))
    used = parts if both else parts[:1] if results_first else parts[1:]
    for part in used:
        expected = []
        fill(kind(part), expected.append)
    short = wire_journal.shortened(memoryview(memory))
    assert len(short) <= len(memory)
    for part, copied in zip(parts, wire_journal.parts_of(memoryview(short)), strict=True):
        assert results(bytes(copied)) == (expected if part in used else [])


def test_entries_are_read_as_they_were_written(kind: Any) -> None:
    memory, expected = bytearray(SIZE), []
    fill(kind(memoryview(memory)), expected.append)
    assert results(memory) == expected


def test_both_journals_write_the_same_bytes() -> None:
    memories = [bytearray(SIZE) for _ in KINDS]
    for kind, memory in zip(KINDS, memories, strict=True):
        fill(kind(memoryview(memory)))
    assert all(memory == memories[0] for memory in memories)


def test_an_entry_is_the_payload_that_is_sent(kind: Any) -> None:
    memory = bytearray(SIZE)
    writer = kind(memoryview(memory))
    writer.begin(7, 3)
    for value in VALUES:
        assert writer.append(value)
    before = left(memory)
    chunk_id, offset, count, payload = writer.take()
    assert left(memory) == before == [(Kind.RESULTS, chunk_id, offset, count, b"".join(payload))]
    assert (chunk_id, offset, count) == (7, 3, len(VALUES))


def test_a_writer_killed_at_any_line_leaves_all_that_it_had_added() -> None:
    """JOURNAL-1, JOURNAL-2: the memory at each line of the Python writer; Cython stores in the same
    order."""
    memory = bytearray(SIZE)
    put: list[tuple[int, int, Any]] = []
    seen: set[int] = set()
    source = inspect.getsourcefile(journal)

    def look(frame: Any, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != source:
            return None
        found = results(memory)
        assert found in (put, put[:-1])  # the last may be on its way
        seen.add(len(found))
        return look

    writer = journal.Journal(memoryview(memory))
    tracer = sys.gettrace()
    sys.settrace(look)
    try:
        fill(writer, put.append)
    finally:
        sys.settrace(tracer)
    assert seen == set(range(len(put) + 1))


def test_a_result_that_does_not_fit_is_sent_all_the_same_and_left_out_of_the_journal(
    kind: Any,
) -> None:
    memory = bytearray(128)
    writer = kind(memoryview(memory))
    writer.begin(1, 0)
    assert writer.append("a" * 50)
    assert not writer.append("b" * 50)
    assert not writer.append(1)  # or the entry had a hole
    assert results(memory) == [(1, 0, "a" * 50)]
    _, _, count, payload = writer.take()
    assert codec.decode_items(b"".join(payload), count)[0] == ["a" * 50, "b" * 50, 1]
    assert results(memory) == [(1, 0, "a" * 50)]
    assert not writer.put(Kind.ERROR, 1, 3, 1, [b"x" * 50])
    writer.begin(2, 0)  # there is no room for its head
    assert not writer.append(1)
    writer.take()
    assert results(memory) == [(1, 0, "a" * 50)]


def test_bytes_that_are_sent_from_where_they_are_are_not_copied(kind: Any) -> None:
    memory = bytearray(1 << 20)
    writer = kind(memoryview(memory))
    large = bytes(100_000)
    writer.begin(1, 0)
    assert not writer.append(large)
    assert any(part is large for part in writer.take()[3])
    assert left(memory) == []


@pytest.mark.parametrize("size", [10, tags.SEGMENT_MIN - 1])
def test_nothing_of_a_value_is_held_once_it_is_written(kind: Any, size: int) -> None:
    """A value may be large, so it must be freed even while no other item comes."""
    writer = kind(memoryview(bytearray(SIZE)))
    writer.begin(1, 0)
    value = WithBuffer(bytearray(size))
    known, buffer = weakref.ref(value), value.buffer
    writer.append(value)
    del value
    buffer.clear()  # BufferError if a view were left
    assert known() is None
    assert writer.take()[2] == 1


def test_a_value_that_cannot_be_pickled_leaves_nothing(kind: Any) -> None:
    memory = bytearray(SIZE)
    writer = kind(memoryview(memory))
    writer.begin(1, 0)
    assert writer.append({"key": 1})
    with pytest.raises(TypeError):
        writer.append({"other": [sys._getframe()]})
    assert writer.append({"key": 2})
    _, _, count, payload = writer.take()
    assert codec.decode_items(b"".join(payload), count)[0] == [{"key": 1}, {"key": 2}]
    assert [value for _, _, value in results(memory)] == [{"key": 1}, {"key": 2}]


def test_after_a_reset_a_journal_is_empty_unless_an_entry_is_open(kind: Any) -> None:
    memory = bytearray(SIZE)
    writer = kind(memoryview(memory))
    fill(writer)
    writer.reset()
    assert results(memory) == []
    writer.begin(5, 0)
    assert writer.append(1)
    assert not writer.put(Kind.ERROR, 1, 0, 1, [b"x"])
    writer.reset()
    assert results(memory) == [(5, 0, 1)]
    writer.take()
    writer.reset()
    writer.begin(6, 0)
    assert writer.append(2)
    assert results(memory) == [(6, 0, 2)]


def test_misuse_is_refused(kind: Any) -> None:
    writer = kind(memoryview(bytearray(SIZE)))
    for call in (writer.take, lambda: writer.append(1)):
        with pytest.raises(RuntimeError, match="no entry is open"):
            call()
    writer.begin(1, 0)
    with pytest.raises(RuntimeError, match="an entry is open"):
        writer.begin(1, 0)


@pytest.mark.row("H169")
def test_a_journal_that_is_collected_as_garbage_releases_its_memory(kind: Any) -> None:
    memory = bytearray(SIZE)
    writer = kind(memoryview(memory))
    garbage: list[Any] = [writer]
    garbage.append(garbage)
    del writer, garbage
    gc.collect()  # an error in it would fail the test: pytest sees what cannot be raised
    memory.append(0)  # a BufferError as long as it is exported


def test_a_closed_journal_holds_no_memory(kind: Any) -> None:
    memory = bytearray(SIZE)
    writer = kind(memoryview(memory))
    fill(writer)
    writer.close()
    memory.clear()  # BufferError if there were a view


@settings(max_examples=300)
@given(data=st.data())
def test_any_bytes_are_entries_or_an_error(data: st.DataObject) -> None:
    """JOURNAL-5. Whole words that are nearly right are worse than noise."""
    memory = bytearray(256)
    writer = journal.Journal(memoryview(memory))
    writer.begin(1, 2)
    for value in data.draw(st.lists(st.integers(0, 300), max_size=20)):
        writer.append(value)
    word = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
    for at in data.draw(st.lists(st.integers(0, 31), max_size=4)):
        memory[8 * at : 8 * at + 8] = data.draw(word).to_bytes(8, sys.byteorder)
    entries: Iterator[wire_journal.Entry] = wire_journal.read(memoryview(memory))
    size = 0
    try:
        for entry in entries:
            size += HEAD + len(entry.payload)
    except CorruptHeaderError:
        pass
    assert size <= len(memory) - FIRST


@given(st.data())
def test_a_shortened_memory_has_the_same_entries_in_both_parts(data: st.DataObject) -> None:
    size = 8 * data.draw(st.integers(SIZE // 8, SIZE // 2))
    memory = memoryview(bytearray(size))
    whole = wire_journal.parts_of(memory)
    for part in whole:
        writer = journal.Journal(part)
        for number in range(data.draw(st.integers(0, 4))):
            writer.begin(number, 0)
            writer.append(data.draw(st.sampled_from(VALUES)))
            if data.draw(st.booleans()):  # else it is open, and the last
                writer.take()
            else:
                break
    copy = wire_journal.shortened(memory)
    assert len(copy) <= size
    parts = wire_journal.parts_of(memoryview(copy))
    assert [left(part) for part in parts] == [left(part) for part in whole]  # type: ignore[arg-type]


@given(st.lists(st.sampled_from(VALUES), min_size=1, max_size=4))
def test_a_memory_of_a_snapshot_has_its_results_and_no_values(values: list[Any]) -> None:
    memory = memoryview(bytearray(SIZE))
    writer = journal.Journal(memory)
    writer.begin(3, 0)
    for value in values:
        writer.append(value)
    copy = wire_journal.snapshot(memory)
    assert copy is not None
    results, others = wire_journal.parts_of(memoryview(wire_journal.memory_of(copy)))
    assert left(results) == left(memory)  # type: ignore[arg-type]
    assert not left(others)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [0, 1])
def test_what_is_not_valid_is_not_made_valid_by_shortening_it(part: int) -> None:
    memory = memoryview(bytearray(SIZE))
    wire_journal.parts_of(memory)[part][:4] = (SIZE).to_bytes(4, sys.byteorder)
    parts = wire_journal.parts_of(memoryview(wire_journal.shortened(memory)))
    with pytest.raises(CorruptHeaderError):
        left(parts[part])  # type: ignore[arg-type]


def test_the_chosen_journal_is_the_best_available_one() -> None:
    assert _accel.Journal is KINDS[-1]


def test_workers_without_the_extension_keep_a_journal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOMULTIPROCESS_BACKEND", raising=False)
    source = """
import sys
sys.modules["amp_ext"] = None  # in the workers too, which import this module
import asyncio
import mishaps
from aiomultiprocess import Pool, WorkerLostError

async def run(pool, func, items):
    found = []
    results = aiter(pool.starmap(func, items))
    while True:
        try:
            found.append(await anext(results))
        except StopAsyncIteration:
            return found
        except Exception as error:
            found.append(error)

async def main():
    async with Pool(1, childconcurrency=16) as pool:
        assert await pool.apply(is_pure)
        await pool.starmap(mishaps.die_among, [([], "", "int", 0)] * 2000)
        for kind in ["int", "dict", "large", "huge", "pickle", "error", "mixed"]:
            items = [([70], "SIGKILL", kind, i) for i in range(100)]
            found = await run(pool, mishaps.die_among, items)
            lost = [i for i, value in enumerate(found) if isinstance(value, WorkerLostError)]
            assert lost == [70], (kind, lost)
        items = [([9], 16, "int", i) for i in range(16)]
        found = await run(pool, mishaps.die_among_suspended, items)
        assert found[:9] == [i * 1000 for i in range(9)], found

def is_pure():
    return sys.modules["amp_ext"] is None

if __name__ == "__main__":
    asyncio.run(main())
    print("all but the deadly ones")
"""
    script = run_script(tmp_path, source)
    assert "all but the deadly ones" in script.out, script.err
