"""The log records of a worker, on their way to the parent: `Pool(logs=...)`.

    record, in any thread --> queue --LOG frames, with results--> parent (_parent/logs.py)

`main` imports this module in workers of pools that want it, and in no others.

LOGS-1  A record leaves this process as plain values: its message and the text of its exception are
    formatted here, and what cannot be pickled of its extra attributes travels as their `repr`.
LOGS-2  Frames are sent from the loop's thread, between items, so that a record that is logged while
    a frame is written (a `__del__` may do that) does not write into it.
LOGS-3  At most `MOST_BYTES` wait here. While they do, records are dropped; the parent gets their
    number, and logs it. Of a record that alone is larger, long values are shortened, and say so.
LOGS-4  Handlers that are there before the initializer runs, inherited by a fork or made by the main
    module, are dropped: what they would do is done by the parent's. Those of the initializer and of
    items stay.
LOGS-5  A worker that exits by itself waits, for half of the grace period at most, until all records
    have left. The number of those that have not is logged to its stderr; so are later records.
"""

from __future__ import annotations

import asyncio
import contextlib
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
LONGEST: Final = 64 << 10  # of a value in a shortened record: characters of text, or bytes
PLAIN: Final = (type(None), bool, int, float, str)

log = logging.getLogger(__name__)

#: The levels of loggers by name, "" for the root: those that are set in the parent.
Levels = dict[str, int]


class LogSender(logging.Handler):
    """The handler of a worker's root logger: it sends each record to the parent."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, link: Link, grace: float, level: int
    ) -> None:
        super().__init__(level)
        self._patience = grace / 2  # seconds (LOGS-5); the exit hooks have the other half
        self._loop = loop
        self._link = link
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._waiting: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._sent = 0  # records that the link got last: it may still have them if it is congested
        self._scheduled = False
        self._all_left: asyncio.Future[None] | None = None  # while `finish` waits
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
            data = _pickled(plain(record))
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
        sent = self._send()
        if self._all_left is not None:
            self._link.flush()
            if not (self._waiting or self._link.congested or self._all_left.done()):
                self._all_left.set_result(None)
        return sent

    def _send(self) -> bool:
        engine = self._engine
        if engine is None or not engine.serving or self._link.congested:
            return False
        with self.lock or threading.Lock():
            records, self._waiting, self._size = self._waiting, [], 0
            dropped, self._dropped = self._dropped, 0
        self._sent = len(records)
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
        """The loop is about to close: send the rest, and say what could not be sent (LOGS-5)."""
        if self._ended or os.getpid() != self._pid:
            return
        try:
            with contextlib.suppress(RuntimeError):  # the user's code has closed or stopped it
                self._send_rest()
        finally:
            self._ended = True
            self._say_what_is_left()

    def _send_rest(self) -> None:
        self.send()
        self._link.flush()
        if not self._link.congested or self._loop.is_closed():
            return
        # the engine calls `send` when there is room
        self._all_left = self._loop.create_future()
        timer = self._loop.call_later(self._patience, self._stop_waiting)
        try:
            self._loop.run_until_complete(self._all_left)
        finally:
            timer.cancel()
            self._all_left = None

    def _stop_waiting(self) -> None:
        if self._all_left is not None and not self._all_left.done():
            self._all_left.set_result(None)

    def _say_what_is_left(self) -> None:
        left = len(self._waiting) + self._dropped + (self._sent if self._link.congested else 0)
        if left:
            log.warning(
                "worker %s exits with up to %d log records unsent: there was no room for them",
                self._pid,
                left,
            )


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


def _pickled(values: dict[str, Any]) -> bytes:
    """The record as bytes, shortened if it is too large to be sent at all (LOGS-3)."""
    data = pickle.dumps(values, pickle.HIGHEST_PROTOCOL)
    if len(data) <= MOST_BYTES:
        return data
    shortened = {name: _shortened(value) for name, value in values.items()}
    return pickle.dumps(shortened, pickle.HIGHEST_PROTOCOL)


def _shortened(value: Any) -> Any:
    if type(value) is str:
        if len(value) <= LONGEST:
            return value
        return f"{value[:LONGEST]}... (shortened: {len(value):,} characters were logged)"
    size = len(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    return value if size <= LONGEST else f"(a value of {size:,} bytes, too large for a log record)"


def _portable(value: Any) -> Any:
    if type(value) in PLAIN:
        return value
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # noqa: BLE001 - the user's code
        return repr(value)
    return value
