"""What to do when nothing happens any more: show where everything waits, and end."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import psutil

from chaos.tasks import SHOW_STACKS

TIME_TO_PRINT = 1.0  # seconds
STATUS = 3  # the exit status of a program that hung


class Watchdog:
    """A thread that ends the program if `progress()` stays the same for `patience` seconds."""

    def __init__(self, progress: Callable[[], object], patience: float) -> None:
        self._progress = progress
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        last, since = self._progress(), time.monotonic()
        while not self._over.wait(self._patience / 30):
            now = self._progress()
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > self._patience:
                self._give_up()

    def _give_up(self) -> None:
        print(f"HUNG: nothing for {self._patience} s at {self._progress()}", file=sys.stderr)
        children = psutil.Process().children(recursive=True)
        for child in children:
            print(f"-- worker {child.pid}, {child.status()}", file=sys.stderr, flush=True)
            child.send_signal(signal.SIGCONT)
            child.send_signal(SHOW_STACKS)
            time.sleep(TIME_TO_PRINT)  # each prints by itself, one after the other
        print("-- parent", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        for task in asyncio.all_tasks(self._loop):
            task.print_stack(file=sys.stderr)
        sys.stderr.flush()
        for child in children:
            child.kill()
        os._exit(STATUS)
