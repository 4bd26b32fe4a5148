"""The worker's side of a journal: the twin of `amp_ext.journal` in Python.

`_wire/journal.py` has the format, and the rules JOURNAL-1 to JOURNAL-5.
"""

from __future__ import annotations

from collections.abc import Sequence

from .._wire.frames import Kind, Segment
from .._wire.journal import _COUNT, _COUNT_SHIFT, _FIRST, _HEAD, _LENGTH, _aligned
from .encoder import PayloadBuilder


class Journal:
    """The worker's side of a journal."""

    def __init__(self, memory: memoryview) -> None:
        """Write to `memory`, a multiple of eight bytes, until `close`."""
        self._memory = memory
        self._words = memory.cast("B").cast("Q")
        self._size = len(memory)
        self._end = self._at = _FIRST  # where the closed entries end, and where all entries end
        self._count = self._items = 0  # of the open entry: items that are in memory, and all
        self._fits = True
        self._payload: PayloadBuilder | None = None  # None: no entry is open
        self._place = (0, 0)

    def begin(self, chunk_id: int, offset: int) -> None:
        """Open an entry for the results of chunk `chunk_id` from item `offset` on."""
        if self._payload is not None:
            raise RuntimeError("an entry is open")
        self._payload = PayloadBuilder()
        self._place = (chunk_id, offset)
        self._count = self._items = 0
        start = _aligned(self._end)
        self._fits = start + _HEAD < self._size
        if self._fits:
            self._write_head(start, 0, chunk_id, offset, 0, Kind.RESULTS)
            self._at = start + _HEAD

    def append(self, item: object) -> bool:
        """Add a result to the open entry; False if the journal has no room for it (JOURNAL-4).

        An exception raised while the result is pickled leaves the entry as it was.
        """
        data = self._open_payload().add(item)
        self._items += 1
        at, end = self._at, self._at + len(data)
        self._fits = self._fits and at < end <= self._size
        if self._fits:
            self._memory[at:end] = data
            self._at = end
            self._count += 1
            self._words[0] = end | self._count << _COUNT_SHIFT  # JOURNAL-1
        return self._fits

    def take(self) -> tuple[int, int, int, Sequence[Segment]]:
        """Close the entry; returns chunk, first item, number of items, and the payload to send.

        MemoryError if there is no memory for the payload; the entry is closed even then.
        """
        payload, self._payload = self._open_payload(), None
        if self._count:
            word = _aligned(self._end) // 8
            self._words[word + _COUNT] = self._count  # JOURNAL-2
            self._words[word + _LENGTH] = self._at - 8 * word - _HEAD
            self._end = self._at
        return *self._place, self._items, payload.segments()

    def place(self) -> tuple[int, int, int]:
        """Chunk, first item and number of items of the entry that is or was open last."""
        return *self._place, self._items

    def put(
        self, kind: int, chunk_id: int, offset: int, count: int, payload: Sequence[Segment]
    ) -> bool:
        """Add a whole entry; False if it does not fit, or if an entry is open (JOURNAL-4)."""
        start, length = _aligned(self._end), sum(map(len, payload))
        at = start + _HEAD
        if self._payload is not None or not length or at + length > self._size:
            return False
        self._write_head(start, length, chunk_id, offset, count, kind)
        for segment in payload:
            self._memory[at : at + len(segment)] = segment
            at += len(segment)
        self._end = self._at = at
        self._words[0] = at  # JOURNAL-1
        return True

    def reset(self) -> None:
        """Empty the journal, unless an entry is open (JOURNAL-3)."""
        if self._payload is None and self._end > _FIRST:
            self._words[0] = 0
            self._end = _FIRST

    def close(self) -> None:
        """Release the memory. Results that are added later, or meanwhile, are dropped."""
        self._payload = None
        self._fits = False
        self._words.release()
        self._memory.release()

    def _open_payload(self) -> PayloadBuilder:
        if self._payload is None:
            raise RuntimeError("no entry is open")
        return self._payload

    def _write_head(self, start: int, *words: int) -> None:
        for at, word in enumerate(words, start // 8):
            self._words[at] = word
