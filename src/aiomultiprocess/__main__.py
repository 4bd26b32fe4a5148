"""`python -m aiomultiprocess info` and `python -m aiomultiprocess bench`.

Under spawn, workers import the parent's main module, which is this one: it imports nothing heavy
when it is loaded.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m aiomultiprocess", description="What is installed here, and how fast it is."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="version, backend and why it was chosen, event loop")
    timing = commands.add_parser("bench", help="compare with the standard library for a minute")
    timing.add_argument(
        "--seconds", type=float, default=60.0, metavar="N", help="about how long (default: 60)"
    )
    options = parser.parse_args(arguments)
    from ._cli import bench, info

    if options.command == "info":
        return info.show()
    return bench.show(options.seconds)


if __name__ == "__main__":
    sys.exit(main())
