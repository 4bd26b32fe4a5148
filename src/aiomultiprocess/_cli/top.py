"""`python -m aiomultiprocess top`: what the pools of another process do, on one screen.

With rich (extra `cli`) and in a terminal, the screen is drawn anew each second; in a terminal
without rich it is cleared; anywhere else the pictures follow each other as lines.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator

from .._parent import monitor_folder
from . import pictures, terminal, watching
from .pictures import Part, Pictures

PERIOD = 1.0  # seconds
FOOTER = "q ends this"
CLEAR = "\x1b[H\x1b[2J"

Show = Callable[[str, list[Part]], None]


def show(pid: int | None, *, once: bool) -> int:
    """Show the pools of a process, or without a number which there are; the exit status."""
    try:
        if pid is None:
            _list()
        elif once:
            _show_once(pid)
        else:
            _watch(pid)
    except watching.CannotWatchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # as q
        pass
    return 0


def _list() -> None:
    found = watching.processes()
    if not found:
        print("there is no process whose pools can be watched: make them by Pool(monitor=True)")
    for pid, answers in found.items():
        program = next((each["program"] for each in answers if each), "")
        print(f"{pid:>8}  {pictures.many(len(answers), 'pool')}  {program}".rstrip())


def _show_once(pid: int) -> None:
    answers = watching.first_answers(pid)
    made = Pictures(pid)
    parts = made.picture(answers)
    console = terminal.console()
    if console is None:
        print(pictures.plain(made.heading(answers), parts), end="", flush=True)
    else:
        console.print(pictures.rich_picture(made.heading(answers), parts))


def _watch(pid: int) -> None:
    answers = watching.first_answers(pid)
    made = Pictures(pid)
    with _screen() as draw, terminal.keyboard() as keys:
        while answers:
            draw(made.heading(answers), made.picture(answers, _height()))
            if keys.is_q_pressed_within(PERIOD):
                return
            answers = watching.answers(pid)
    print(_end_of(pid))


def _end_of(pid: int) -> str:
    if monitor_folder.runs(pid):
        return f"the pools of process {pid} have ended"
    return f"process {pid} has ended"


def _height() -> int | None:
    return shutil.get_terminal_size().lines if terminal.is_terminal() else None


@contextlib.contextmanager
def _screen() -> Iterator[Show]:
    console = terminal.console()
    if console is None:
        yield _print
        return
    from rich.live import Live

    with Live(console=console, screen=True, auto_refresh=False) as live:

        def draw(heading: str, parts: list[Part]) -> None:
            live.update(pictures.rich_picture(heading, parts, FOOTER), refresh=True)

        yield draw


def _print(heading: str, parts: list[Part]) -> None:
    text = pictures.plain(heading, parts)
    text = f"{CLEAR}{text}{FOOTER}" if terminal.is_terminal() else f"{text}\n"
    print(text, end="\n" if terminal.is_terminal() else "", flush=True)
