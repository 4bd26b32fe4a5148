"""The journal of a worker: what it has finished, and its parent may not have heard of.

A worker runs quick items in bursts and sends their results together. If one of them kills the
process, those that had finished before must not be lost with it. So each result is encoded and
copied into shared memory when its item has finished, before any other item's code runs, and that
copy outlives the process. The parent reads it only after the worker has died, when it has heard all
that the worker had published (queues.py, Q5).

    word | entry | entry | … | entry that is open

An entry is about the same as a frame: five words (LENGTH, IDENT, OFFSET, COUNT, KIND) and a
payload. Results that will be sent together are one entry, which is open while they are added; its
payload is that of the frame. The journal's first word says how far all this is to be
believed, and in its upper half how many items are in the entry that is open.

D1  What is written counts by one aligned store of the first word, after the bytes it tells of. A
    process that is killed loses no store that it has made; so only their order matters (see G1).
D2  An open entry has LENGTH 0: it goes on to the end, and its count is in the first word. It is
    closed by storing COUNT, then LENGTH, and says the same at every moment.
D3  The journal is emptied only when all that is in it was published (child.py, W6). A result may be
    here and in the channel, but is never in neither; who reads it ignores what was reported (Q1).
D4  What does not fit is not here. `append` and `put` say so, and the worker publishes it before it
    lets anything else run.
D5  The reader trusts nothing: it takes a copy, and looks at no byte beyond it.

`Journal` is the worker's side, `amp_ext.journal` is the same in Cython; `read` is the parent's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from .encoder import Payload
from .frames import CorruptHeaderError, Kind, Segment

_LENGTH, _IDENT, _OFFSET, _COUNT, _KIND = range(5)
_WORDS: Final = 5
_HEAD: Final = 8 * _WORDS
_FIRST: Final = 8  # where the first entry begins
_COUNT_SHIFT: Final = 32
_ORDER: Final = sys.byteorder


class Entry(NamedTuple):
    """What one entry says, in the terms of a frame."""

    kind: int
    ident: int
    offset: int
    items: int
    payload: memoryview


class Journal:
    """The worker's side of a journal."""

    def __init__(self, memory: memoryview) -> None:
        """Write to `memory`, a multiple of eight bytes, until `close`."""
        self._memory = memory
        self._words = memory.cast("B").cast("Q")
        self._size = len(memory)
        self._end = self._at = _FIRST  # of the closed entries, and of all
        self._count = self._items = 0  # items of the open entry: those in it, and all
        self._fits = True
        self._payload: Payload | None = None  # None: no entry is open
        self._place = (0, 0)

    def begin(self, ident: int, offset: int) -> None:
        """Open an entry for the results of chunk `ident` from item `offset` on."""
        if self._payload is not None:
            raise RuntimeError("an entry is open")
        self._payload = Payload()
        self._place = (ident, offset)
        self._count = self._items = 0
        start = _aligned(self._end)
        self._fits = start + _HEAD < self._size
        if self._fits:
            self._write_head(start, 0, ident, offset, 0, Kind.RESULTS)
            self._at = start + _HEAD

    def append(self, item: object) -> bool:
        """Add a result to the open entry; False if it would not outlive this process (D4).

        What is raised while it is pickled leaves the entry as it was.
        """
        data = self._open_payload().add(item)
        self._items += 1
        at, end = self._at, self._at + len(data)
        self._fits = self._fits and at < end <= self._size
        if self._fits:
            self._memory[at:end] = data
            self._at = end
            self._count += 1
            self._words[0] = end | self._count << _COUNT_SHIFT  # D1
        return self._fits

    def take(self) -> tuple[int, int, int, Sequence[Segment]]:
        """Close the entry: chunk, first item, number of items, and the payload to be sent.

        Where there is no memory for the payload, MemoryError: the entry is closed all the same.
        """
        payload, self._payload = self._open_payload(), None
        if self._count:
            word = _aligned(self._end) // 8
            self._words[word + _COUNT] = self._count  # D2
            self._words[word + _LENGTH] = self._at - 8 * word - _HEAD
            self._end = self._at
        return *self._place, self._items, payload.segments()

    def place(self) -> tuple[int, int, int]:
        """Chunk, first item and number of items of the entry that is or was open last."""
        return *self._place, self._items

    def put(
        self, kind: int, ident: int, offset: int, count: int, payload: Sequence[Segment]
    ) -> bool:
        """Add a whole entry; False if it does not fit, or another is open (D4)."""
        start, length = _aligned(self._end), sum(map(len, payload))
        at = start + _HEAD
        if self._payload is not None or not length or at + length > self._size:
            return False
        self._write_head(start, length, ident, offset, count, kind)
        for segment in payload:
            self._memory[at : at + len(segment)] = segment
            at += len(segment)
        self._end = self._at = at
        self._words[0] = at  # D1
        return True

    def reset(self) -> None:
        """Empty the journal, unless an entry is open (D3)."""
        if self._payload is None and self._end > _FIRST:
            self._words[0] = 0
            self._end = _FIRST

    def close(self) -> None:
        """Release the memory. What is added after that, or meanwhile, goes nowhere."""
        self._payload = None
        self._fits = False
        self._words.release()
        self._memory.release()

    def _open_payload(self) -> Payload:
        if self._payload is None:
            raise RuntimeError("no entry is open")
        return self._payload

    def _write_head(self, start: int, *words: int) -> None:
        for at, word in enumerate(words, start // 8):
            self._words[at] = word


def read(memory: memoryview) -> Iterator[Entry]:
    """The entries that a dead worker has left; CorruptHeaderError where they make no sense (D5)."""
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
        length, ident, offset, count, kind = words
    if not length:
        length, count = rest, count_if_open  # D2
    if length > rest:
        raise CorruptHeaderError(f"an entry of {length} bytes where {rest} are")
    at += _HEAD
    return Entry(kind, ident, offset, count, data[at : at + length])


def _aligned(at: int) -> int:
    return -(-at // 8) * 8
