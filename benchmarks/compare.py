"""aiomultiprocess 1.0 against 0.9.1, side by side in one run: `make bench`.

0.9.1 is installed from PyPI into an environment of its own, made once below .benchmarks/ from the
interpreter that runs this. Both sides run benchmarks/runner.py as a process of their own, in turn,
round by round, so that a slow minute of the machine meets both; what is printed are medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNNER = HERE / "runner.py"
OLD = "0.9.1"

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
    Row("map", "map of a trivial coroutine over ints", "items/s", 1, "new/old"),
    Row("apply", "one apply after the other, p50", "us", 1e6, "old/new"),
    Row("first", "pool of 2, to its first result", "ms", 1e3, "old/new"),
    Row("children", "children of a pool of 2", "", 1, None),
    Row("cpu", "idle: CPU of parent and children", "% of a core", 100, None),
    Row("switches", "idle: wake-ups of parent and children", "/s", 1, None),
)


def old_python() -> Path:
    """The interpreter of an environment that holds 0.9.1, made where it is not there yet."""
    tag = f"{sys.implementation.cache_tag}-{zlib.crc32(sys.base_prefix.encode()):08x}"
    folder = HERE.parent / ".benchmarks" / f"aiomultiprocess-{OLD}-{tag}"
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        print(f"installing aiomultiprocess {OLD} into {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", f"aiomultiprocess=={OLD}"]
        subprocess.run(pip, check=True)
        ready.touch()
    return python


def parents() -> dict[int, int]:
    """Every process of the machine with its parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        found[int(stat.parent.name)] = int(fields[1])
    return found


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    table = parents()
    members = [pid]
    for member in members:
        members += [child for child, parent in table.items() if parent == member]
    return members


def used(pids: list[int]) -> tuple[float, int]:
    """Seconds of CPU and context switches of all threads of these processes so far."""
    nanoseconds = switches = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            nanoseconds += int((task / "schedstat").read_text().split()[0])
            for line in (task / "status").read_text().splitlines():
                if "ctxt_switches" in line:
                    switches += int(line.split()[1])
    return nanoseconds / 1e9, switches


def idle(pid: int, seconds: float) -> Figures:
    """What a runner with an idle pool does, seen from outside so that looking wakes nobody."""
    pids = family(pid)
    time.sleep(1)  # let what the measurements left behind come to rest
    cpu, switches = used(pids)
    time.sleep(seconds)
    cpu_after, switches_after = used(pids)
    return {
        "children": len(pids) - 1,
        "cpu": (cpu_after - cpu) / seconds,
        "switches": (switches_after - switches) / seconds,
    }


def measure(python: Path, options: argparse.Namespace) -> Figures:
    """One round of one side."""
    command = [str(python), str(RUNNER), str(options.items), str(options.applies)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None
        line = runner.stdout.readline()
        if not line:
            raise SystemExit(f"{python} {RUNNER.name} failed")
        figures: Figures = json.loads(line)
        if sys.platform == "linux":
            figures |= idle(runner.pid, options.idle)
        runner.stdin.close()
    return figures


def show(old: list[Figures], new: list[Figures]) -> None:
    print(f"{'':40}{OLD:>16}{version('aiomultiprocess'):>16}{'':4}ratio")
    for row in ROWS:
        if any(row.key not in figures for figures in old + new):
            continue
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
    sides = {"old": old_python(), "new": Path(sys.executable)}
    found: dict[str, list[Figures]] = {"old": [], "new": []}
    for number in range(1, options.rounds + 1):
        for side, python in sides.items():
            print(f"round {number} of {options.rounds}: {side}", file=sys.stderr, flush=True)
            found[side].append(measure(python, options))
    show(found["old"], found["new"])


if __name__ == "__main__":
    main()
