"""Import `amp_ext`, or its twins in Python where it is not built.

No other module imports `amp_ext`. It is used as a whole or not at all: the shared-memory ring, the
codec, the starter of items, the journal and the watchdog thread. The twins in `_pure` write the
same bytes, so that a parent and a worker of different builds understand each other. The ring has no
twin; instead of the native watchdog thread, `_worker/watchdog.py` starts a Python thread, and what
`_processes/freed_memory.py` asks of malloc has narrower limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The compiled modules have the same signatures; a type checker reads the Python ones.
    from amp_ext import buffer_builder as buffer_builder
    from amp_ext import link as link
    from amp_ext import ring as ring
    from amp_ext import segment as segment

    from ._pure.buffer_builder import BufferBuilder
    from ._pure.codec import (
        contain_interrupts,
        decode_items,
        dumps,
        encode_items,
        loads,
        receive_references,
        register,
        register_references,
    )
    from ._pure.driver import BlockingFlag
    from ._pure.journal import Journal
    from ._pure.starter import DONE, FULL, RAISED, SUSPENDED, Starter
    from ._pure.turns import TurnClock

    EXTENSION_ERROR: ImportError | None
    _watchdog: Any
else:
    try:
        from amp_ext import buffer_builder, link, ring
        from amp_ext import watchdog as _watchdog
        from amp_ext.buffer_builder import BufferBuilder
        from amp_ext.codec import (
            contain_interrupts,
            decode_items,
            dumps,
            encode_items,
            loads,
            receive_references,
            register,
            register_references,
        )
        from amp_ext.driver import BlockingFlag
        from amp_ext.journal import Journal
        from amp_ext.starter import DONE, FULL, RAISED, SUSPENDED, Starter, TurnClock, share

        from ._pure import tasks

        share(tasks)
        EXTENSION_ERROR = None
    except ImportError as error:  # not built, or built for another Python; see select.py
        from ._pure.buffer_builder import BufferBuilder
        from ._pure.codec import (
            contain_interrupts,
            decode_items,
            dumps,
            encode_items,
            loads,
            receive_references,
            register,
            register_references,
        )
        from ._pure.driver import BlockingFlag
        from ._pure.journal import Journal
        from ._pure.starter import DONE, FULL, RAISED, SUSPENDED, Starter
        from ._pure.turns import TurnClock

        buffer_builder = link = ring = _watchdog = None
        EXTENSION_ERROR = error.with_traceback(None)

__all__ = [
    "DONE",
    "EXTENSION_ERROR",
    "FULL",
    "RAISED",
    "SUSPENDED",
    "BlockingFlag",
    "BufferBuilder",
    "Journal",
    "Starter",
    "TurnClock",
    "contain_interrupts",
    "decode_items",
    "dumps",
    "encode_items",
    "keep_freed",
    "loads",
    "native_watchdog",
    "receive_references",
    "register",
    "register_references",
    "segment_module",
]


def native_watchdog() -> Callable[[int, int, float], None] | None:
    """`amp_ext.watchdog.start`; None where the extension is not built."""
    return None if _watchdog is None else _watchdog.start


def keep_freed(most: int) -> bool:
    """`amp_ext.heap.keep_freed`; False where the extension is not built."""
    if EXTENSION_ERROR is not None:
        return False
    from amp_ext import heap  # here: workers do without

    return bool(heap.keep_freed(most))


def segment_module() -> Any:
    """`amp_ext.segment`, imported for the first large buffer; None where it is not built."""
    if EXTENSION_ERROR is not None:
        return None
    from amp_ext import segment

    return segment
