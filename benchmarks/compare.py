"""aiomultiprocess 1.0 against 0.9.1, side by side in one run: `make compare`.

A few workloads of the suite (suite.py), which has more of both, and all other peers. 0.9.1 is
installed from PyPI into an environment of its own, made once below .benchmarks/. Each side runs as
a process of its own, in turn, round by round, so that a slow minute of the machine meets both;
what is printed are medians.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from environments import FOLDER, python_of
from peers import OLD, PEERS
from sessions import Session, idle

PATIENCE = 120.0  # seconds for one measurement

Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One line of the table: its key in the figures, how it is shown, and which way is better."""

    key: str
    title: str
    unit: str
    scale: float
    ratio: str | None  # "new/old" where more is better, "old/new" where less is; None: no ratio


ROWS = (
    Row("rate", "map of a trivial coroutine over ints", "items/s", 1, "new/old"),
    Row("p50", "one apply after the other, p50", "us", 1e6, "old/new"),
    Row("first", "pool of 2, to its first result", "ms", 1e3, "old/new"),
    Row("children", "children of a pool of 2", "", 1, None),
    Row("cpu", "idle: CPU of parent and children", "% of a core", 100, None),
    Row("switches", "idle: wake-ups of parent and children", "/s", 1, None),
)


def measure(python: Path, peer: str, options: argparse.Namespace) -> Figures:
    """One round of one side."""
    session = Session(python, peer, FOLDER / "runners.log", stopped=False)
    figures: Figures = {}
    try:
        for workload, size in (("life", 1), ("ints", options.items), ("apply", options.applies)):
            figures |= session.ask(PATIENCE, do="measure", workload=workload, size=size, chunk=1)
        figures |= idle(session.pid, options.idle)
    finally:
        session.close()
    return figures


def show(old: list[Figures], new: list[Figures]) -> None:
    print(f"{'':40}{OLD:>16}{version('aiomultiprocess'):>16}{'':4}ratio")
    for row in ROWS:
        before = statistics.median(figures[row.key] for figures in old)
        after = statistics.median(figures[row.key] for figures in new)
        ratio = ""
        if row.ratio is not None:
            ratio = f"{after / before if row.ratio == 'new/old' else before / after:.1f}x"
        digits = 2 if row.key == "cpu" else 0
        sides = f"{before * row.scale:>16,.{digits}f}{after * row.scale:>16,.{digits}f}"
        print(f"{row.title:40}{sides}    {ratio:>7}  {row.unit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=100_000, help="ints in one map")
    parser.add_argument("--applies", type=int, default=200, help="applies, one after the other")
    parser.add_argument("--idle", type=float, default=5, help="seconds of idling, each round")
    options = parser.parse_args()
    old = PEERS["old"]
    pythons = {
        "old": python_of(old.environment, old.requirements or ()),
        "shm": Path(sys.executable),
    }
    found: dict[str, list[Figures]] = {peer: [] for peer in pythons}
    for number in range(1, options.rounds + 1):
        for peer, python in pythons.items():
            print(f"round {number} of {options.rounds}: {peer}", file=sys.stderr, flush=True)
            found[peer].append(measure(python, peer, options))
    show(found["old"], found["shm"])


if __name__ == "__main__":
    main()
