"""The report: JSON, tables for the README and the docs, and the state of the goals.

Each run replaces the figures of its own version of Python, in a file of its own. The page and the
plots are made from all of these files, and say for which versions there is none.
"""

import json
import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import plots
from goals import Goal, Results, all_goals, better, ratio, value
from peers import PEERS
from workloads import BY_ITEMS, BY_WORKERS, FIRST, MAIN, STREAMS, Metric, Workload

#: What is known of one run, and that of each version of Python, as "3.11".
Found = dict[str, Any]
Runs = dict[str, Found]

#: The columns of the page, measured or not; a version that was measured besides has one too.
VERSIONS = ("3.11", "3.13", "3.14")
NEEDS = "needs Python"  # so begins the reason of a peer that this version cannot have

#: What stands between these is written by each run; so the README has no figures of another one.
MARKERS = "<!-- {0}: begin -->", "<!-- {0}: end -->"
WIDTH = 124  # columns of the README
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


def write(found: Found, out: Path, readme: Path | None) -> None:
    """Keep one run below `out`, and write the page."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / f"benchmarks-{version_of(found)}.json"
    results.write_text(json.dumps(found, indent=1) + "\n")
    write_page(out, readme)


def write_page(out: Path, readme: Path | None) -> None:
    """Write what the runs below `out` give: page, plots, the table of `readme`; print the page."""
    runs = load(out)
    drawn = plots.draw(runs, out / "img")
    page = whole_page(runs, drawn)
    (out / "benchmarks.md").write_text(page)
    print(page)
    if readme is not None and runs:
        oldest = next(iter(runs.values()))
        insert(readme, "benchmarks", short_table(oldest))
        insert(readme, "figures", bullets(oldest))


def load(folder: Path) -> Runs:
    """What each version has reached, the oldest version first."""
    found = [json.loads(file.read_text()) for file in folder.glob("benchmarks-*.json")]
    runs = {version_of(one): one for one in found}
    return {version: runs[version] for version in in_order(runs)}


def version_of(found: Found) -> str:
    return ".".join(found["python"].split(".")[:2])


def in_order(versions: Iterable[str]) -> list[str]:
    return sorted(versions, key=lambda version: [int(number) for number in version.split(".")])


def columns_of(runs: Runs) -> list[str]:
    return in_order({*VERSIONS, *runs})


def insert(readme: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of that name."""
    first, last = (marker.format(name) for marker in MARKERS)
    before, begin, rest = readme.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise SystemExit(f"{readme.name} has no place for this, between {first} and {last}")
    readme.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")


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
    "x": lambda number: f"{number:.2f}x",
    "%": lambda number: f"{100 * number:.1f} %",
    "": lambda number: f"{number:.0f}",
}


def shown(found: Found, workload: Workload, metric: Metric, peer: str) -> str:
    """One cell: the figure, or why there is none."""
    got = value(found["results"], workload.key, peer, metric.key)
    if got is not None:
        return UNITS[metric.unit](got)
    for failed, who, reason in found["failures"]:
        if (failed, who) == (workload.key, peer):
            words = (word for start, word in REASONS.items() if reason.startswith(start))
            return next(words, "fails")
    reason = found["missing"].get(peer, NEEDS)
    return "" if peer not in workload.peers or reason.startswith(NEEDS) else "not installed"


REASONS = {"no answer": "hangs", "would take": "too slow"}

# Tables


def heading(peer: str) -> str:
    entry = PEERS[peer]
    return entry.title + ("" if entry.coroutines or entry.limit else " *")


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def rows_of(found: Found, workloads: Iterable[Workload]) -> list[tuple[Workload, Metric]]:
    return [
        (workload, metric)
        for workload in workloads
        if workload.key in found["results"]
        for metric in workload.metrics
    ]


def whole_table(found: Found, workloads: Iterable[Workload], peers: list[str]) -> str:
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


def short_table(found: Found) -> str:
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


def bullets(found: Found) -> str:
    """For the README: what the library is for, with its figures in the table."""
    results = found["results"]

    def figure(workload: str, metric: str, peer: str = "shm") -> float:
        return value(results, workload, peer, metric) or math.nan

    waits, alone = figure("wait", "efficiency"), figure("wait", "efficiency", "multiprocessing")
    rate = figure("ints", "rate")
    times = ratio(results, ("ints", "shm", "rate"), ("ints", "old", "rate")) or math.nan
    calls = f"{rate / 1e6:.1f} million" if rate >= 1e6 else f"{rate:,.0f}"
    texts = (
        "**It waits and computes.** With tasks that wait for 10 ms, two workers do "
        f"{waits:.0%} of what is possible; pools that run one task at a time in each process "
        f"reach {alone:.0%}.",
        f"**It is quick.** {calls} trivial calls a second through `map`, {times:.0f} times as many "
        f"as 0.9.1; one call and its answer take {_seconds(figure('apply', 'p50'))}. Nothing "
        "polls: an idle pool makes no system call.",
    )
    return "\n".join(
        textwrap.fill(text.replace("%", " %"), WIDTH, initial_indent="- ", subsequent_indent="  ")
        for text in texts
    )


TWINS = (
    "\\* runs the synchronous twin of each coroutine, in chunks of the best size that was found."
)


def circumstances(found: Found) -> str:
    rounds = found["scale"]["rounds"]
    smaller = "" if found["scale"]["size"] == "size" else " Sizes are smaller than is said here."
    return (
        f"Medians of {rounds} interleaved rounds, pools of 2 workers, {found['cpus']} CPUs, "
        f"{found['system']}, Python {found['python']}, {found['when'][:10]}.{smaller}"
    )


def goal_table(runs: Runs) -> str:
    """What each version reached of each goal."""
    states = {version: all_goals(found) for version, found in runs.items()}
    versions, rows = columns_of(runs), all_goals({"results": {}})
    return table(
        ["goal", "wanted", *(f"Python {version}" for version in versions)],
        (
            [
                goal.title,
                goal.wanted,
                *(
                    goal_cell(states[version][at] if version in states else goal)
                    for version in versions
                ),
            ]
            for at, goal in enumerate(rows)
        ),
    )


def goal_cell(goal: Goal) -> str:
    words = {True: ", met", False: ", **missed**", None: ""}
    return goal.got + words[goal.met]


def beside_table(runs: Runs) -> str:
    """This library on each Python, and to the standard library's pool on the same."""
    versions = columns_of(runs)
    rows = [
        [metric.title, *(beside_cell(runs.get(version), workload, metric) for version in versions)]
        for workload in (*MAIN, FIRST)
        for metric in workload.metrics
    ]
    return table(["", *(f"Python {version}" for version in versions)], rows)


def beside_cell(found: Found | None, workload: Workload, metric: Metric) -> str:
    figure = "" if found is None else shown(found, workload, metric, "shm")
    if found is None or not figure:
        return "not measured"
    to_pool = better(found["results"], workload.key, metric, "shm", "multiprocessing")
    if to_pool is None or not metric.unit:
        return figure
    return f"{figure} ({UNITS['x'](to_pool)})"


def versions(found: Found) -> str:
    lines = []
    for peer, entry in PEERS.items():
        reason = found["missing"].get(peer)
        if reason is not None and reason.startswith(NEEDS):
            lines.append(f"- {entry.title}: {reason}")
        elif reason is not None:
            why = " ".join(reason.split())
            lines.append(f"- {entry.title}: not installable on {found['python']} ({why})")
        elif peer in found["versions"] and not entry.limit:
            lines.append(f"- {entry.title}: {found['versions'][peer]}")
    return "\n".join(lines)


def whole_page(runs: Runs, drawn: plots.Drawn) -> str:
    pictures = [f"![{title}](img/{name})" for name, title in drawn]
    sections = [
        "# Benchmarks",
        "This library beside its peers, and beside the limits of the machine, in one run for each "
        "Python. The best is on top; grey bars are limits, and axes are logarithmic. "
        "[What was tried, and what each figure is made of](performance.md).",
        measured(runs),
        "Made by `make bench`; not edited by hand.",
        *pictures,
        "## Goals",
        goal_table(runs),
        "## The Pythons side by side",
        "aiomultiprocess over `shm`; in parentheses, how many times as good it is as "
        "`multiprocessing.Pool` in the same run.",
        beside_table(runs),
        *(section for found in runs.values() for section in version_sections(found)),
    ]
    return "\n\n".join(sections) + "\n"


def measured(runs: Runs) -> str:
    """Of which versions there are figures, and how to get those of the others."""
    return "\n".join(
        f"- {circumstances(runs[version])}"
        if version in runs
        else f"- Python {version}: not measured yet; `make bench PYTHON=python{version}` does it."
        for version in columns_of(runs)
    )


def version_sections(found: Found) -> list[str]:
    version, peers = version_of(found), list(PEERS)
    return [
        f"## Python {version}",
        whole_table(found, (*MAIN, FIRST), peers),
        TWINS,
        f"### By the number of workers, {version}",
        whole_table(found, BY_WORKERS, peers),
        f"### By the number of items, {version}",
        whole_table(found, (*BY_ITEMS, *STREAMS), peers),
        f"### Versions, {version}",
        versions(found),
        *failures(found),
    ]


def failures(found: Found) -> list[str]:
    lines = [
        f"- {PEERS[peer].title}, {workload}: {' '.join(reason.split())[:200]}"
        for workload, peer, reason in found["failures"]
    ]
    heading = f"### What could not be measured, {version_of(found)}"
    return [heading, "\n".join(lines)] if lines else []
