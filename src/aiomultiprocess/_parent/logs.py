"""The log records of workers, handled in the parent: `Pool(logs=...)`.

A worker sends what its loggers take (_worker/logs.py); here each record goes to the handlers of the
logger of the same name, as if it had been logged in this process. The supervisor imports this
module with the first record.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from typing import Any, NamedTuple

from .._wire.frames import as_bytes

LEVELS = 'True or a level of logging, such as "INFO" or logging.INFO'

log = logging.getLogger(__name__)


class LogOptions(NamedTuple):
    """What a worker needs to log as the parent would."""

    level: int  # of the handler that sends
    levels: dict[str, int]  # of loggers, by name; "" for the root
    disabled: int  # by `logging.disable`


def options_of(threshold: int | None) -> LogOptions:
    """The options of a worker that starts now; `threshold` instead of the root logger's level."""
    manager = logging.getLogger().manager
    loggers = {
        name: logger.level
        for name, logger in list(manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level
    }
    root = logging.getLogger().level if threshold is None else threshold
    return LogOptions(threshold or logging.NOTSET, {"": root, **loggers}, manager.disable)


def threshold_of(logs: bool | int | str) -> int | None:
    """The level that the argument `logs` of `Pool` names; None for the parent's own levels."""
    if logs is True:
        return None
    if isinstance(logs, str):
        known = logging.getLevelNamesMapping()
        level = known.get(logs, known.get(logs.upper()))
        if level is None:
            raise ValueError(f"logs must be {LEVELS}, got {logs!r}")
        return level
    if type(logs) is not int or logs < 0:
        raise TypeError(f"logs must be {LEVELS}, got {logs!r}")
    return logs


def handle(pid: int | None, dropped: int, payload: Any) -> None:
    """Handle the records of a LOG frame, before which `dropped` others were dropped."""
    if dropped:
        log.warning(
            "worker %s has dropped %d log records: it logged faster than they could be sent",
            pid,
            dropped,
        )
    _handle_all(pickle.loads(as_bytes(payload)))


def _handle_all(records: list[bytes]) -> None:
    """Handle each, and then raise what ends programs, if any of them has raised it.

    Not before that, as the others of the frame would be lost with it.
    """
    failure: BaseException | None = None
    for data in records:
        try:
            _handle(data)
        except BaseException as error:  # noqa: BLE001 - raised below
            failure = error if failure is None else failure
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # the traceback and this frame would keep each other alive


def _handle(data: bytes) -> None:
    record = _loaded(data)
    if record is None:
        return
    try:
        logging.getLogger(record.name).handle(record)
    except Exception:  # noqa: BLE001 - a filter or handler of the user's
        _complain()


def _loaded(data: bytes) -> logging.LogRecord | None:
    """The record; None if an attribute does not unpickle here, unless that ends programs."""
    try:
        return logging.makeLogRecord(pickle.loads(data))
    except (KeyboardInterrupt, SystemExit):  # may be of a signal handler of the program
        raise
    except BaseException:  # noqa: BLE001 - the user's code, which runs for a record only
        _complain()
        return None


def _complain() -> None:
    with contextlib.suppress(Exception):  # the handler that failed may fail again
        log.exception("a log record of a worker could not be handled")
