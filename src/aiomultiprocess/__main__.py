"""`python -m aiomultiprocess`: the commands info, bench and top.

Under spawn, workers import the parent's main module, which is this one: it imports nothing heavy
when it is loaded.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        status = _run(options)
        print(end="", flush=True)  # here, and not at the exit of the interpreter
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _run(options: Namespace) -> int:
    """Run the command; the exit status."""
    from ._cli import bench, info

    if options.command == "info":
        return info.show(as_json=options.json)
    if options.command == "bench":
        return bench.show(options.seconds, options.svg)
    from ._cli import top

    return top.show(options.pid, once=options.once)


def _parser() -> ArgumentParser:
    import argparse

    from . import __version__

    parser = argparse.ArgumentParser(
        prog="python -m aiomultiprocess",
        description="What is installed here, how fast it is, and what pools do.",
    )
    parser.add_argument("--version", action="version", version=f"aiomultiprocess {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    facts = commands.add_parser("info", help="version, backend and why it was chosen, event loop")
    facts.add_argument("--json", action="store_true", help="for programs")
    timing = commands.add_parser("bench", help="compare with the standard library for a minute")
    timing.add_argument(
        "--seconds", type=_duration, default=60.0, metavar="N", help="about how long (default: 60)"
    )
    timing.add_argument("--svg", metavar="FILE", help="write the bars into this file, too")
    watching = commands.add_parser("top", help="watch the pools of a running process")
    watching.add_argument(
        "pid", type=_positive, nargs="?", metavar="PID", help="without it: which there are"
    )
    watching.add_argument("--once", action="store_true", help="print one picture and end")
    return parser


def _positive(text: str) -> int:
    """The number of a process; argparse says what is wrong with any other text."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _duration(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < 1e6:  # nor NaN, which never ends
        raise ValueError
    return seconds


_duration.__name__ = "number of seconds"
_positive.__name__ = "process number"  # in argparse's message


if __name__ == "__main__":
    sys.exit(main())
