"""The pictures of docs/benchmarks.md, as SVG. Without matplotlib there are none."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goals import Results, value
from peers import PEERS
from workloads import COUNTS, WORKER_COUNTS, WORKLOADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# (file, title) of what was drawn
Drawn = list[tuple[str, str]]

OURS = {"shm": "#1565c0", "pipe": "#64b5f6"}
LIMIT, OTHER = "#9e9e9e", "#ef9a9a"
#: Of the lines of peers; no blue, which is ours.
LINES = [
    "#ef6c00",
    "#2e7d32",
    "#8e24aa",
    "#6d4c41",
    "#d81b60",
    "#546e7a",
    "#afb42b",
    "#00838f",
    "#c62828",
]
SIZE = (5.2, 3.6)  # inches: narrow, so that a phone can show them
SIZES = {"64k": 1 << 16, "1m": 1 << 20, "64m": 1 << 26}


def draw(found: dict[str, Any], folder: Path) -> Drawn:
    if find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "aiomultiprocess"  # the same figures, the same file
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    results: Results = found["results"]
    drawn = []
    for name, title, picture in PICTURES:
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        if picture(axes, results):
            figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11)
            axes.spines[["top", "right"]].set_visible(False)
            figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
            drawn.append((name, title))
        pyplot.close(figure)
    return drawn


def bars(axes: "Axes", results: Results, workload: str, metric: str, unit: str) -> bool:
    """One bar for each peer, the best on top."""
    from matplotlib import ticker

    got = [
        (figure, peer)
        for peer in results.get(workload, {})
        if (figure := value(results, workload, peer, metric)) is not None
    ]
    less_is_better = any(
        m.key == metric and not m.more_is_better for m in WORKLOADS[workload].metrics
    )
    got.sort(reverse=less_is_better)
    colours = [OURS.get(peer, LIMIT if PEERS[peer].limit else OTHER) for _, peer in got]
    drawn = axes.barh(
        [PEERS[peer].title for _, peer in got], [figure for figure, _ in got], color=colours
    )
    text = ticker.EngFormatter(unit=unit, places=0 if unit == "s" else 1)
    axes.bar_label(drawn, [text(figure) for figure, _ in got], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.18)
    axes.set_xticks([])
    axes.minorticks_off()
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return bool(got)


def lines(
    axes: "Axes", results: Results, points: dict[float, str], metric: str, scale: float = 1
) -> bool:
    """One line for each peer over `points`: where on the x axis, and the workload."""
    peers = {peer for workload in points.values() for peer in results.get(workload, {})}
    if not peers:
        return False
    axes.set_prop_cycle(color=LINES)
    for peer in (peer for peer in PEERS if peer in peers):
        got = {
            x: figure
            for x, workload in points.items()
            if (figure := value(results, workload, peer, metric))
        }
        style: dict[str, Any] = {"color": OURS[peer], "linewidth": 2} if peer in OURS else {}
        if PEERS[peer].limit:
            style = {"color": LIMIT, "linestyle": "--"}
        heights = [y * scale for y in got.values()]
        axes.plot(list(got), heights, marker=".", label=PEERS[peer].title, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(
        fontsize=7, loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=3, frameon=False
    )
    return True


def draw_map(axes: "Axes", results: Results) -> bool:
    return bars(axes, results, "ints", "rate", "/s")


def draw_dicts(axes: "Axes", results: Results) -> bool:
    return bars(axes, results, "dicts", "rate", "/s")


def draw_apply(axes: "Axes", results: Results) -> bool:
    return bars(axes, results, "apply", "p50", "s")


def draw_echo(axes: "Axes", results: Results) -> bool:
    axes.set_xlabel("bytes of one item")
    axes.set_ylabel("GB/s")
    points: dict[float, str] = {size: f"bytes_{name}" for name, size in SIZES.items()}
    return lines(axes, results, points, "throughput", 1e-9)


def draw_items(axes: "Axes", results: Results) -> bool:
    axes.set_xlabel("items of one map")
    axes.set_ylabel("items a second")
    return lines(axes, results, {count: f"items_{count}" for count in COUNTS}, "rate")


def draw_workers(axes: "Axes", results: Results) -> bool:
    axes.set_xlabel("workers, all but one idle")
    axes.set_ylabel("apply, us")
    points: dict[float, str] = {count: f"workers_{count}" for count in WORKER_COUNTS}
    return lines(axes, results, points, "p50", 1e6)


PICTURES = (
    ("map-ints.svg", "map of a trivial function over ints, items a second", draw_map),
    ("map-dicts.svg", "map of a trivial function over 72-byte dicts, items a second", draw_dicts),
    ("apply.svg", "one apply after the other, median", draw_apply),
    ("echo.svg", "echo of bytes", draw_echo),
    ("items.svg", "map by the number of items", draw_items),
    ("workers.svg", "latency of apply by the number of workers", draw_workers),
)
