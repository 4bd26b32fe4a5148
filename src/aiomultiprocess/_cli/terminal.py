"""What the commands need of a terminal: rich, if it is installed (extra `cli`), and single keys."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console | None:
    """A console of rich for a terminal; None if stdout is none, or rich is not installed."""
    if not is_terminal():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False)


def is_terminal() -> bool:
    """Whether stdout is a terminal that can clear its screen."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Keyboard:
    """Waits for time or for the key q; `with keyboard()` makes one."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd  # None: there is no keyboard

    def is_q_pressed_within(self, seconds: float) -> bool:
        """Wait for the key q, or the end of stdin, but no longer."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._fd is None:
                time.sleep(left)
            elif select.select([self._fd], [], [], left)[0]:
                typed = os.read(self._fd, 1024)
                if not typed or b"q" in typed.lower():
                    return True
        return False


@contextlib.contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Keys that arrive at once and are not shown, where stdin is a terminal."""
    if sys.platform == "win32" or not (sys.stdin and sys.stdin.isatty() and is_terminal()):
        yield Keyboard(None)
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    on_sigterm = signal.signal(signal.SIGTERM, _exit)  # or the terminal would stay as it is
    try:
        tty.setcbreak(fd)
        yield Keyboard(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, on_sigterm)


def _exit(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)
