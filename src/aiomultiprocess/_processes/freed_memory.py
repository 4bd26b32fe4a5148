"""Freed memory that a process keeps for its next large items.

glibc returns freed blocks of 128 KiB or more, and the free end of its heap, to the kernel, and a
fresh page costs a fault for each 4 KiB: of a map whose results are 64 KB each, that is half of the
time. When a block of up to 32 MiB is freed, glibc on 64 bits raises these thresholds: from then on
blocks up to its size lie in the heap, of whose end up to twice that size stays free (mallopt(3),
M_MMAP_THRESHOLD). Programs that work with large data get there by themselves.

So this frees one block. That costs no memory, as nothing writes to it (unless PYTHONMALLOC=debug is
set). Where the environment or the program sets a threshold, by `MALLOC_TRIM_THRESHOLD_` or mallopt,
glibc raises none.

More than 64 MiB stay free only if mallopt says so, which `amp_ext/heap.h` does for the parent, if
glibc did raise its thresholds. At 62 MiB, whether the results of a map of 64 MiB in all were given
back depended on what small object lay behind them. A worker that is forked later keeps as much.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

WORKER_KEEPS = 32 << 20  # bytes
PARENT_KEEPS = 160 << 20  # it receives what all workers send
LARGEST = 62 << 20  # that one block gives; a worker does not need more
requested = 0  # the most so far; a forked process inherits it, and what glibc made of it


def keep_freed_memory(most: int, by_mallopt: Callable[[int], bool] | None = None) -> None:
    """Have malloc keep up to `most` bytes that were freed at the end of each heap.

    `by_mallopt` asks malloc for more than `LARGEST`; it returns whether that is so from now on.
    """
    global requested
    # once only: a block up to the threshold comes from the heap, where its used pages are cleared
    if most <= requested or sys.maxsize < 2**32:
        return
    requested = most
    if most <= LARGEST or by_mallopt is None or not by_mallopt(most):
        with contextlib.suppress(MemoryError):  # too little address space: malloc stays as it is
            bytes(min(most, LARGEST) // 2)
