"""What is held back in a child while it starts, and how the child lets it come.

`_spawn` launches children so; what they run says when they are up. Light: children import it.

STARTUP-1  SIGINT is blocked until `accept_interrupts`, so that Ctrl-C during the start-up does not
    print a traceback of half-imported modules.
STARTUP-2  In a spawned child no garbage is collected until `collect_garbage`: what is made by then
    are modules, which stay, and the collector would go over them again and again. Held back is the
    threshold, and not the collector, so that `gc.disable()` in a user's module is still a choice.
"""

from __future__ import annotations

import gc
import signal
import sys
from typing import Final

#: By how much the threshold is raised; it says by itself what it was.
HELD: Final = 10**9

#: What a spawned child runs before anything else (STARTUP-2).
HOLD_GARBAGE: Final = f"import gc; gc.set_threshold(gc.get_threshold()[0] + {HELD}); "


def accept_interrupts() -> None:
    """In a child that has settled what SIGINT does: let it come (STARTUP-1)."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def collect_garbage() -> None:
    """In a child that has imported what it needs: collect from now on what is made from now on."""
    threshold = gc.get_threshold()[0]
    if threshold >= HELD:
        gc.freeze()
        gc.set_threshold(threshold - HELD)
