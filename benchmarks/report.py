"""The report of a run: JSON, tables for the README and the docs, and the state of the goals."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import plots
from goals import Goal, Results, goals, value
from peers import PEERS
from workloads import BY_ITEMS, BY_WORKERS, FIRST, MAIN, STREAMS, Metric, Workload

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
README_OTHERS = "old", "multiprocessing"
README_ROWS = frozenset(
    [
        "map, ints",
        "map, 72-byte dicts",
        "apply, one at a time, p50",
        "items that await 10 ms, 2 x 16 at once",
        "idle: wake-ups a second",
    ]
)


def write(found: dict[str, Any], out: Path, readme: Path | None) -> None:
    """Write everything below `out`, put the short table into `readme`, and print the tables."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmarks.json").write_text(json.dumps(found, indent=1) + "\n")
    drawn = plots.draw(found, out / "img")
    page = whole_page(found, drawn)
    (out / "benchmarks.md").write_text(page)
    print(page)
    if readme is not None:
        insert(readme, short_table(found))


def insert(readme: Path, table: str) -> None:
    """Replace what stands between the markers."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme.name} has no place for the table, between {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


# Figures as people read them


def _scaled(number: float, suffixes: Iterable[tuple[float, str]]) -> str:
    for least, suffix in suffixes:
        if abs(number) >= least:
            scaled = number / least
            return f"{scaled:.{0 if scaled >= 9.95 else 1}f}{suffix}"
    return "0"


def _seconds(number: float) -> str:
    return _scaled(number, ((1, " s"), (1e-3, " ms"), (1e-6, " us"), (1e-9, " ns")))


def _rate(number: float) -> str:
    return _scaled(number, ((1e6, " M/s"), (1e3, " k/s"), (1e-9, "/s")))


UNITS: dict[str, Callable[[float], str]] = {
    "/s": lambda number: f"{number:.0f}/s" if number < 1e3 else _rate(number),
    "s": _seconds,
    "B/s": lambda number: f"{number / 1e9:.2f} GB/s",
    "B": lambda number: f"{number / 2**20:.0f} MB",
    "%": lambda number: f"{100 * number:.1f} %",
    "": lambda number: f"{number:.0f}",
}


def shown(found: dict[str, Any], workload: Workload, metric: Metric, peer: str) -> str:
    """One cell: the figure, or why there is none."""
    got = value(found["results"], workload.key, peer, metric.key)
    if got is not None:
        return UNITS[metric.unit](got)
    for failed, who, reason in found["failures"]:
        if (failed, who) == (workload.key, peer):
            words = (word for start, word in REASONS.items() if reason.startswith(start))
            return next(words, "fails")
    return "not installed" if peer in found["missing"] and peer in workload.peers else ""


REASONS = {"no answer": "hangs", "would take": "too slow"}

# Tables


def heading(peer: str) -> str:
    entry = PEERS[peer]
    return entry.title + ("" if entry.coroutines or entry.limit else " *")


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def rows_of(found: dict[str, Any], workloads: Iterable[Workload]) -> list[tuple[Workload, Metric]]:
    return [
        (workload, metric)
        for workload in workloads
        if workload.key in found["results"]
        for metric in workload.metrics
    ]


def whole_table(found: dict[str, Any], workloads: Iterable[Workload], peers: list[str]) -> str:
    rows = rows_of(found, workloads)
    if not rows:
        return "Not measured."
    seen = [peer for peer in peers if any(shown(found, *row, peer) for row in rows)]
    return table(
        ["", *map(heading, seen)],
        ([row[1].title, *(shown(found, *row, peer) for peer in seen)] for row in rows),
    )


def best_other(results: Results, workload: Workload, metric: Metric) -> str:
    """The best of the peers that have no column of their own."""
    got = {
        peer: figure
        for peer, entry in PEERS.items()
        if peer not in ("shm", "pipe", *README_OTHERS) and not entry.limit
        if (figure := value(results, workload.key, peer, metric.key)) is not None
    }
    if not got:
        return ""
    peer = (max if metric.more_is_better else min)(got, key=lambda peer: got[peer])
    return f"{UNITS[metric.unit](got[peer])} ({heading(peer)})"


def short_table(found: dict[str, Any]) -> str:
    """For the README: this library, its forerunner, the standard library, the best of the rest."""
    columns = ["shm", *README_OTHERS]
    rows = [
        [
            metric.title,
            *(shown(found, workload, metric, peer) for peer in columns),
            best_other(found["results"], workload, metric),
        ]
        for workload, metric in rows_of(found, (*MAIN, FIRST))
        if metric.title in README_ROWS
    ]
    header = ["", *map(heading, columns), "best other peer"]
    return f"{table(header, rows)}\n\n{circumstances(found)} {TWINS}"


TWINS = (
    "\\* runs the synchronous twin of each coroutine, in chunks of the best size that was found."
)


def circumstances(found: dict[str, Any]) -> str:
    rounds = found["scale"]["rounds"]
    smaller = "" if found["scale"]["size"] == "size" else " Sizes are smaller than is said here."
    return (
        f"Medians of {rounds} interleaved rounds, pools of 2 workers, {found['cpus']} CPUs, "
        f"{found['system']}, Python {found['python']}, {found['when'][:10]}.{smaller}"
    )


def goal_table(states: list[Goal]) -> str:
    words = {True: "met", False: "**missed**", None: ""}
    return table(
        ["goal", "wanted", "got", ""],
        ([goal.title, goal.wanted, goal.got, words[goal.met]] for goal in states),
    )


def versions(found: dict[str, Any]) -> str:
    lines = []
    for peer, entry in PEERS.items():
        if peer in found["missing"]:
            lines.append(f"- {entry.title}: not installed ({found['missing'][peer]})")
        elif peer in found["versions"] and not entry.limit:
            lines.append(f"- {entry.title}: {found['versions'][peer]}")
    return "\n".join(lines)


def whole_page(found: dict[str, Any], drawn: list[tuple[str, str]]) -> str:
    peers = list(PEERS)
    pictures = [f"![{title}](img/{name})" for name, title in drawn]
    sections = [
        "# Benchmarks",
        "This library beside its peers, and beside the limits of the machine, in one run. The best "
        "is on top; grey bars are limits, and axes are logarithmic. "
        "[What was tried, and what each figure is made of](performance.md).",
        circumstances(found) + " Made by `make bench`; not edited by hand.",
        *pictures,
        "## Goals",
        goal_table(goals(found)),
        "## Everything",
        whole_table(found, (*MAIN, FIRST), peers),
        TWINS,
        "## By the number of workers",
        whole_table(found, BY_WORKERS, peers),
        "## By the number of items",
        whole_table(found, (*BY_ITEMS, *STREAMS), peers),
        "## Versions",
        versions(found),
        *failures(found),
    ]
    return "\n\n".join(sections) + "\n"


def failures(found: dict[str, Any]) -> list[str]:
    lines = [
        f"- {PEERS[peer].title}, {workload}: {' '.join(reason.split())[:200]}"
        for workload, peer, reason in found["failures"]
    ]
    return ["## What could not be measured", "\n".join(lines)] if lines else []
