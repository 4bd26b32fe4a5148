"""The log records of a worker, on their way to the parent: `Pool(logs=...)`.

    record, in any thread --> queue --LOG frames, with results--> parent (_parent/logs.py)

`main` imports this module in workers of pools that want it, and in no others.

LOGS-1  A record leaves this process as plain values: its message and the text of its exception are
    formatted here, and what cannot be pickled of its extra attributes travels as their `repr`.
LOGS-2  Frames are sent from the loop's thread, between items, so that a record that is logged while
    a frame is written (a `__del__` may do that) does not write into it.
LOGS-3  At most `MOST_BYTES` wait here. While they do, records are dropped; the parent gets their
    number, and logs it.
LOGS-4  Handlers that are there before the initializer runs, inherited by a fork or made by the main
    module, are dropped: what they would do is done by the parent's. Those of the initializer and of
    items stay.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .._wire.frames import MAX_COUNT, Kind

if TYPE_CHECKING:
    from .._transport.link import Link
    from .engine import WorkerEngine

MOST_BYTES: Final = 4 << 20  # of records that wait (LOGS-3)
FRAME_BYTES: Final = 64 << 10  # about what one frame carries
PLAIN: Final = (type(None), bool, int, float, str)

#: The levels of loggers by name, "" for the root: those that are set in the parent.
Levels = dict[str, int]


class LogSender(logging.Handler):
    """The handler of a worker's root logger: it sends each record to the parent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: Link, level: int) -> None:
        super().__init__(level)
        self._loop = loop
        self._link = link
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._waiting: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._scheduled = False
        self._ended = False
        self._engine: WorkerEngine | None = None

    def install(self, levels: Levels, disabled: int) -> None:
        """Take the place of all handlers (LOGS-4), with the levels of the parent."""
        root = logging.getLogger()
        logging.disable(disabled)
        for logger in (root, *root.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger):
                logger.handlers.clear()
                logger.propagate = True
        for name, level in levels.items():
            logging.getLogger(name or None).setLevel(level)
        root.addHandler(self)

    def attach(self, engine: WorkerEngine) -> None:
        """Send with the results of `engine`, once that serves its link."""
        self._engine = engine
        engine.before_publishing(self.send)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record (LOGS-3). `handle` holds the lock."""
        # by an exit hook, or in a process that an item forked
        if self._ended or os.getpid() != self._pid:
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
            return
        try:
            data = pickle.dumps(plain(record), pickle.HIGHEST_PROTOCOL)
        except Exception:  # noqa: BLE001 - as handlers of logging do
            self.handleError(record)
            return
        if self._size + len(data) > MOST_BYTES:
            self._dropped += 1
            return
        self._waiting.append(data)
        self._size += len(data)
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        own = threading.get_ident() == self._thread
        call: Callable[..., object] = (
            self._loop.call_soon if own else self._loop.call_soon_threadsafe
        )
        self._scheduled = True  # first: the loop may run it before the call returns
        try:
            call(self._in_a_turn)
        except RuntimeError:  # the loop is closed: `finish` sends what is left
            self._scheduled = False

    def _in_a_turn(self) -> None:
        self._scheduled = False
        if self.send():
            self._link.flush()

    def send(self) -> bool:
        """Send what waits, unless the link has no room for it; False if nothing was sent."""
        engine = self._engine
        if engine is None or not engine.serving or self._link.congested:
            return False
        with self.lock or threading.Lock():
            records, self._waiting, self._size = self._waiting, [], 0
            dropped, self._dropped = self._dropped, 0
        if not records and not dropped:
            return False
        parts = parts_of(records)
        try:
            while parts:
                payload = [pickle.dumps(parts[0], pickle.HIGHEST_PROTOCOL)]
                self._link.send(Kind.LOG, count=min(dropped, MAX_COUNT), payload=payload)
                dropped = 0
                del parts[0]
        except MemoryError:  # no reason for a worker to end
            self._dropped += dropped + sum(map(len, parts))
        return True

    def finish(self) -> None:
        """The link is about to close: send the rest. Later records go to stderr, if anywhere."""
        self.send()
        self._ended = True


def parts_of(records: list[bytes]) -> list[list[bytes]]:
    """The records of each frame; one frame at least."""
    parts: list[list[bytes]] = [[]]
    size = 0
    for data in records:
        if size >= FRAME_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(data)
        size += len(data)
    return parts


def plain(record: logging.LogRecord) -> dict[str, Any]:
    """What the parent makes the record of (LOGS-1)."""
    values = dict(vars(record))
    values.update(msg=record.getMessage(), args=None, exc_info=None)
    if record.exc_info and not record.exc_text:
        values["exc_text"] = logging.Formatter().formatException(record.exc_info)
    values.pop("message", None)  # a handler's formatter made these two
    values.pop("asctime", None)
    return {name: _portable(value) for name, value in values.items()}


def _portable(value: Any) -> Any:
    if type(value) in PLAIN:
        return value
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # noqa: BLE001 - the user's code
        return repr(value)
    return value
