"""What is held back in a child while it starts, and how the child releases it.

spawn.py launches children with these restrictions; the code that runs in a child lifts them. Every
child imports this module, so it stays light.

STARTUP-1  SIGINT is blocked until `accept_interrupts`, so that Ctrl-C during the start prints no
    traceback of half-imported modules.
STARTUP-2  A spawned child collects no garbage until `collect_garbage`: what it makes until then are
    modules, which stay, and the collector would walk them again and again. The threshold is raised,
    and the collector not disabled, so that `gc.disable()` in a user's module has its effect.
STARTUP-3  Ctrl-C reaches the whole process group, and the parent of a worker decides what it means.
    So the worker's handler of SIGINT does nothing. It is a function, because programs that a task
    starts would inherit SIG_IGN, and these shall end by Ctrl-C. System calls go on after it, as far
    as the system restarts any: a C library may give up at EINTR. Where the parent ignores SIGINT,
    as a shell makes jobs in the background do, worker and programs do, too.
"""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from types import FrameType
from typing import Final

#: The amount by which the threshold is raised, and later lowered. A threshold is a C int: a module
#: of the user's may multiply what it finds.
HELD: Final = 10**8

#: The first statement that a spawned child runs (STARTUP-2).
HOLD_GARBAGE: Final = f"import gc; gc.set_threshold(gc.get_threshold()[0] + {HELD}); "


def ignore_interrupts() -> None:
    """Do nothing at SIGINT from now on, in a worker (STARTUP-3)."""
    if sys.platform == "win32":  # programs do not inherit it there
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, on_interrupt)
        signal.siginterrupt(signal.SIGINT, False)
        # after other exit hooks: CPython ends with the default action in place of a function
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def on_interrupt(signum: int, frame: FrameType | None) -> None:
    """The handler of SIGINT in a worker."""


def accept_interrupts() -> None:
    """Unblock SIGINT, in a child that has set its handler (STARTUP-1)."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def collect_garbage() -> None:
    """Start garbage collection of new objects, in a child that has imported its modules."""
    threshold = gc.get_threshold()[0]
    if threshold >= HELD:
        gc.freeze()
        gc.set_threshold(threshold % HELD)  # what a user's module may have added or multiplied
