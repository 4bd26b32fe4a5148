"""The format of a journal: the finished results of a worker in shared memory.

A worker runs items that finish at once in bursts, and sends the results of a burst together. If an
item kills the process, the results of those before it must not be lost. So the worker encodes each
result and copies it into shared memory when its item has finished, before any code of another item
runs; that copy outlives the process. The parent reads the journal when the worker has died, after
it has handled all that the worker had published, or when an item blocks the worker, so that what
it has finished cannot be sent (_parent/recovery.py).

    word | entry | entry | … | open entry

An entry holds what a frame would: five words (LENGTH, CHUNK_ID, OFFSET, COUNT, KIND) and a payload.
Results that are sent together share one entry, whose payload is that of their frame; the entry is
*open* while results are added to it. The first word of the journal says in its lower half up to
which byte the journal is valid, and in its upper half how many items the open entry has.

JOURNAL-1  One aligned store of the first word makes bytes valid, after they were written. A killed
    process loses no store that it has made, so only the order of the stores matters (see PAGE-1).
    The twin in Python may need two stores on 32 bits. A process killed between them leaves a count
    that does not fit the bytes: the results of that entry are lost, and are never taken wrongly.
JOURNAL-2  An open entry has LENGTH 0. It extends to the end of the journal, and the first word has
    its count. Storing COUNT, then LENGTH, closes it, and changes at no moment what it says.
JOURNAL-3  The worker empties the journal only when all that is in it was published
    (_worker/engine.py, WORKER-6). A result may be both here and in the channel, but never in
    neither; the reader ignores results that were reported before (QUEUE-1).
JOURNAL-4  A result for which there is no room is not in the journal. `append` and `put` report
    that, and the worker publishes the result before it runs other code.
JOURNAL-5  The reader does not trust the content: it takes a copy, and looks at no byte beyond it.
JOURNAL-6  A fifth of the memory is a journal of its own, for values of streams that are not sent
    yet (_worker/streams.py). Its entries have as OFFSET how many values of the stream were before
    them, and none is read twice: the reader takes an entry only if it has so many.
JOURNAL-7  What travels to another machine is a shorter memory, of which `parts_of` and `read` make
    the same (`shortened`), or a `snapshot`, of which `memory_of` makes such a memory there. One
    that is not valid travels whole, and is found to be invalid there.

`read` is the parent's side. `Journal` is the worker's, in _pure/journal.py and amp_ext/journal.pyx.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from .frames import CorruptHeaderError

_LENGTH, _CHUNK_ID, _OFFSET, _COUNT, _KIND = range(5)
_WORDS: Final = 5
_HEAD: Final = 8 * _WORDS
_FIRST: Final = 8  # where the first entry begins
_COUNT_SHIFT: Final = 32
_ORDER: Final = sys.byteorder


class Entry(NamedTuple):
    """One entry, with the fields of a frame."""

    kind: int
    chunk_id: int
    offset: int
    items: int
    payload: memoryview


def parts_of(memory: memoryview) -> tuple[memoryview, memoryview]:
    """The part of the memory that is for results, and the one for values (JOURNAL-6)."""
    at = len(memory) * 4 // 5 & ~7
    return memory[:at], memory[at:]


def shortened(memory: memoryview) -> bytes:
    """A copy without what is not valid in its parts (JOURNAL-7)."""
    results, values = parts_of(memory)
    ends = [_end_of(part) for part in (results, values)]
    if ends[0] > len(results) or ends[1] > len(values):
        return bytes(memory)
    size = max(_size_for(ends[0]), 5 * ends[1])
    if size >= len(memory):
        return bytes(memory)
    copy = bytearray(size)
    for part, whole, end in zip(parts_of(memoryview(copy)), (results, values), ends, strict=True):
        part[:end] = whole[:end]
    return bytes(copy)


def snapshot(memory: memoryview) -> bytes | None:
    """A copy of what a living worker has in its journal; None if it has just changed that.

    Valid bytes change only after a `reset`, so that a copy which mixes two states differs from the
    one after it.
    """
    copies = [bytes(memory[: max(_FIRST, _end_of(memory))]) for _ in range(2)]
    return copies[0] if copies[0] == copies[1] and len(copies[0]) > _FIRST else None


def memory_of(results: bytes) -> bytes:
    """A memory of which `parts_of` makes these results, and no values (JOURNAL-7)."""
    return results.ljust(_size_for(len(results)), b"\0")


def _size_for(end: int) -> int:
    """How large a memory is, as `parts_of` divides it, of which the results reach to `end`."""
    return 5 * (end // 4 + 8)  # with room for rounding


def _end_of(memory: memoryview) -> int:
    return int.from_bytes(memory[:_FIRST], _ORDER) & 0xFFFFFFFF


def read(memory: memoryview) -> Iterator[Entry]:
    """Yield the entries of a journal that nothing changes; CorruptHeaderError at an invalid one."""
    # JOURNAL-5
    word = int.from_bytes(memory[:_FIRST], _ORDER)
    end, count = word & 0xFFFFFFFF, word >> _COUNT_SHIFT
    if end > len(memory):
        raise CorruptHeaderError(f"a journal of {end} bytes in {len(memory)}")
    with memoryview(bytes(memory[:end])) as data:
        at = _FIRST
        while at < end:
            entry = _entry(data, at, count)
            yield entry
            at = _aligned(at + _HEAD + len(entry.payload))


def _entry(data: memoryview, at: int, count_if_open: int) -> Entry:
    rest = len(data) - at - _HEAD
    if rest <= 0:
        raise CorruptHeaderError(f"an entry without a payload, {len(data) - at} bytes in all")
    with data[at : at + _HEAD] as head, head.cast("Q") as words:
        length, chunk_id, offset, count, kind = words
    if not length:
        length, count = rest, count_if_open  # JOURNAL-2
    if length > rest:
        raise CorruptHeaderError(f"an entry of {length} bytes where {rest} are")
    at += _HEAD
    return Entry(kind, chunk_id, offset, count, data[at : at + length])


def _aligned(at: int) -> int:
    return -(-at // 8) * 8
