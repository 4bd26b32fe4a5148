"""The journal of a worker: what it has finished, and its parent may not have heard of.

A worker runs quick items in bursts and sends their results together. If one of them kills the
process, those that had finished before must not be lost with it. So each result is encoded and
copied into shared memory when its item has finished, before any other item's code runs, and that
copy outlives the process. The parent reads it only after the worker has died, when it has heard all
that the worker had published (retry.py, RETRY-7).

    word | entry | entry | … | entry that is open

An entry is about the same as a frame: five words (LENGTH, IDENT, OFFSET, COUNT, KIND) and a
payload. Results that will be sent together are one entry, which is open while they are added; its
payload is that of the frame. The journal's first word says how far all this is to be
believed, and in its upper half how many items are in the entry that is open.

JOURNAL-1  What is written counts by one aligned store of the first word, after the bytes it tells
    of. A process that is killed loses no store that it has made; so only their order matters (see
    PAGE-1).
JOURNAL-2  An open entry has LENGTH 0: it goes on to the end, and its count is in the first word. It
    is closed by storing COUNT, then LENGTH, and says the same at every moment.
JOURNAL-3  The journal is emptied only when all that is in it was published (_worker/engine.py,
    WORKER-6). A result may be here and in the channel, but is never in neither; who reads it
    ignores what was reported
    (QUEUE-1).
JOURNAL-4  What does not fit is not here. `append` and `put` say so, and the worker publishes it
    before it lets anything else run.
JOURNAL-5  The reader trusts nothing: it takes a copy, and looks at no byte beyond it.

`Journal` is the worker's side, `amp_ext.journal` is the same in Cython; `read` is the parent's.
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
    """What one entry says, in the terms of a frame."""

    kind: int
    chunk_id: int
    offset: int
    items: int
    payload: memoryview


def read(memory: memoryview) -> Iterator[Entry]:
    """The entries that a dead worker has left; CorruptHeaderError where they make no sense
    (JOURNAL-5)."""
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
