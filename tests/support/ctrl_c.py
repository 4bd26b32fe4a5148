"""Ctrl-C that a call presses for its program, and presses again until the program has noticed.

CPython notices no signal that strikes between its last look for one and its wait for a lock, until
something else ends that wait. On a loaded machine that happens when the thread that begins to wait
wakes the one that then has the signal sent.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

NOTICED = Path("noticed")


def count_presses() -> None:
    """In the program: raise KeyboardInterrupt at each, and count them in a file."""
    NOTICED.touch()
    signal.signal(signal.SIGINT, _notice)


def press(program: int, total: int) -> Iterator[float]:
    """In a call: until the program has noticed `total` presses; gives pauses in seconds."""
    yield 0.5  # the program goes on to the wait that the test is about
    while NOTICED.stat().st_size < total:
        os.kill(program, signal.SIGINT)
        yield 0.5


def _notice(signum: int, frame: FrameType | None) -> None:
    with NOTICED.open("a") as file:
        file.write(".")
    raise KeyboardInterrupt
