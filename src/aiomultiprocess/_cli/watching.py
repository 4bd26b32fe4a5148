"""Reads the statistics of the pools of another process, at their sockets (_parent/monitor.py).

All pools of a process are asked at once, and one that does not answer in time is named as such: its
event loop is busy. Processes of other users are not read, nor believed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from typing import Any, Final

from .._parent import monitor_folder
from .._parent.monitor_folder import Place

PATIENCE: Final = 1.0  # seconds for all pools of a process together
LARGEST: Final = 16 << 20  # bytes of one answer

WINDOWS: Final = "watching a pool from another process is not possible on Windows"
NO_PROCESS: Final = (
    "there is no process {}: `python -m aiomultiprocess top` without a number lists the processes "
    "whose pools can be watched"
)
FOREIGN: Final = "process {} belongs to another user: only that user can watch its pools"
NOT_ALLOWED: Final = (
    "process {} has no pool that can be watched: it has to be made by Pool(monitor=True), and used"
)
OTHER_FORMAT: Final = (
    "process {} uses another version of aiomultiprocess, whose answers are not understood here: "
    "run `top` by the Python of that process"
)

Answer = dict[str, Any]


class CannotWatchError(Exception):
    """There is nothing to watch; the text says why, and the way out."""


def processes() -> dict[int, list[Answer | None]]:
    """What each process of this user that has such pools answers, by number."""
    if sys.platform == "win32":
        raise CannotWatchError(WINDOWS)
    found, refusal = {}, None
    for pid in sorted({place.pid for place in monitor_folder.places()}):
        try:
            found[pid] = answers(pid)
        except CannotWatchError as error:  # of another version: it hides no other
            refusal = error
    if refusal is not None and not any(found.values()):
        raise refusal
    return {pid: each for pid, each in found.items() if each}


def first_answers(pid: int) -> list[Answer | None]:
    """As `answers`, of which there has to be one: else CannotWatchError says why there is none."""
    if sys.platform == "win32":
        raise CannotWatchError(WINDOWS)
    found = answers(pid)
    if not found and not monitor_folder.runs(pid):
        raise CannotWatchError(NO_PROCESS.format(pid))
    if not found and _is_foreign(pid):
        raise CannotWatchError(FOREIGN.format(pid))
    if not found:
        raise CannotWatchError(NOT_ALLOWED.format(pid))
    return found


def answers(pid: int) -> list[Answer | None]:
    """One answer for each pool of a process, by their numbers; None for one that is too busy.

    CannotWatchError for an answer of another version.
    """
    end = time.monotonic() + PATIENCE
    found: list[Answer | None] = []
    with contextlib.ExitStack() as stack:
        asked = [_ask(place, stack) for place in monitor_folder.places() if place.pid == pid]
        for peer in asked:
            with contextlib.suppress(ConnectionError, ValueError):
                found.append(_read(peer, pid, end))
    return found


def _ask(place: Place, stack: contextlib.ExitStack) -> socket.socket | None:
    """A connection to a pool, closed if it is not to be read; None if the pool is too busy."""
    peer = stack.enter_context(monitor_folder.unix_socket())
    peer.settimeout(PATIENCE)
    try:
        peer.connect(place.path)
    except (BlockingIOError, TimeoutError):  # too many wait for it
        return None
    except OSError:  # dead
        peer.close()
        return peer
    if not monitor_folder.is_own(peer):
        peer.close()
    return peer


def _read(peer: socket.socket | None, pid: int, end: float) -> Answer | None:
    """The answer; ConnectionError or ValueError if it is none, None if it does not come."""
    if peer is None:
        return None
    if peer.fileno() < 0:
        raise ConnectionError
    received = bytearray()
    while True:
        peer.settimeout(max(end - time.monotonic(), 0.001))
        try:
            piece = peer.recv(1 << 16)
        except TimeoutError:
            return None
        if not piece:
            break
        received += piece
        if len(received) > LARGEST:
            raise ValueError
    answer = json.loads(received)
    if not isinstance(answer, dict) or answer.get("pid") != pid:  # another container's
        raise ValueError
    if answer.get("format") != monitor_folder.FORMAT:
        raise CannotWatchError(OTHER_FORMAT.format(pid))
    return answer


def _is_foreign(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return os.stat(f"/proc/{pid}").st_uid != os.stat("/proc/self").st_uid
    except PermissionError:
        return True
    except OSError:  # it has just ended, or there is no /proc
        return False
