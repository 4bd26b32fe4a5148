"""`python -m aiomultiprocess info` and `python -m aiomultiprocess bench`.

Under spawn, workers import the parent's main module, and so this one: nothing heavy at the top.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m aiomultiprocess", description="What is installed here, and how fast it is."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="version, backend and why it is this one, event loop")
    timing = commands.add_parser("bench", help="one minute against what this Python has")
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
