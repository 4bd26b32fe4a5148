"""How many items a source of tasks gives at once: about what its next frames have room for.

STEP-1  The size of the next items is unknown. If a frame had no room for all that were given, at
    most twice as many as it carried are given next, and at least `FIRST_STEP`. With each chunk that
    is not full, the number grows by a factor of at most `STEP_GROWTH`, up to what `FRAMES_AHEAD`
    frames would have room for if all items were as large as those of the chunk.
STEP-2  An unbounded input cannot take items back, so it starts with `FIRST_STEP` items.
STEP-3  A bounded input takes items back, at a cost: it starts with `MOST_AT_ONCE`. When `ALIKE`
    frames in a row were full with about as many items, it gives just as many as these carried. To
    give eight and take back seven for each frame makes a map of items of 64 KB slower by 8 %. Items
    of mixed sizes need fewer frames if more are given than the last frame carried.
"""

from __future__ import annotations

from .chunk import CHUNK_BYTES

MOST_AT_ONCE = 8192
FIRST_STEP = 8  # STEP-1, STEP-2
FRAMES_AHEAD = 8  # with two, workers ran dry between them
STEP_GROWTH = 8
ALIKE = 6  # simulated: with two, items of 10 to 200 KB need 11 % more frames; with six, 2.5 %


class Step:
    """The number of `items` that one source may give next, and how many it has `given` last."""

    __slots__ = ("_alike", "_bounded", "_full", "given", "items")

    def __init__(self, *, bounded: bool) -> None:
        self.items = MOST_AT_ONCE if bounded else FIRST_STEP
        self.given = 0  # 0: no more is to be learned of those
        self._bounded = bounded
        self._full = 0  # how many items the last full frame carried
        self._alike = 0  # how many full frames in a row carried about as many

    def note_chunk(self, count: int, size: int) -> None:
        """Learn from a chunk of `count` items in `size` bytes how large items are."""
        if size >= CHUNK_BYTES and self._bounded:
            self._note_full(count)
        else:
            self._alike = 0
            fitting = FRAMES_AHEAD * CHUNK_BYTES * count // max(size, 1)
            self.items = max(self.items, min(self.items * STEP_GROWTH, fitting, MOST_AT_ONCE))
        if count == self.given:
            self.given = 0

    def _note_full(self, count: int) -> None:
        """STEP-3."""
        if abs(count - self._full) <= self._full // 8:
            self._alike += 1
            self._full = max(count, self._full)
        else:
            self._alike = 0
            self._full = count
        if self._alike >= ALIKE:
            self.items = self._full
            self.given = 0  # what is put back now tells no more
        else:
            self.items = self._at_most_twice(count)

    def note_rest(self, count: int) -> None:
        """Learn that `count` of those that were given last are put back.

        A frame had no room for them, or one before them cannot be pickled. Items that come back
        from a worker that has died or retires tell nothing.
        """
        if self.given:
            self.items = self._at_most_twice(self.given - count)
        self.given = 0

    def _at_most_twice(self, sent: int) -> int:
        return min(max(FIRST_STEP, 2 * sent), MOST_AT_ONCE)
