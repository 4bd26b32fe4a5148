"""The pictures of docs/benchmarks.md, as SVG. Without matplotlib there are none.

Each shows all versions of Python that were measured: a bar for each, or a panel for each.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goals import Results, value
from peers import PEERS
from workloads import COUNTS, WORKER_COUNTS, WORKLOADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    "#5c6bc0",
]
SIZE = (5.2, 3.6)  # inches: narrow, so that a phone can show them
SIZES = {"64k": 1 << 16, "1m": 1 << 20, "64m": 1 << 26}


#: The figures of each version of Python.
Versions = dict[str, Results]
#: How strong the bars of one version are, the newest first.
STRENGTHS = (1.0, 0.65, 0.4, 0.25, 0.15)


def draw(runs: dict[str, Any], folder: Path) -> Drawn:
    if find_spec("matplotlib") is None or not runs:
        return []
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "aiomultiprocess"  # the same figures, the same file
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    versions: Versions = {version: found["results"] for version, found in runs.items()}
    drawn = []
    for name, title, picture in PICTURES:
        figure = pyplot.figure(figsize=SIZE, layout="constrained")
        if picture(figure, versions):
            figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11)
            for axes in figure.axes:
                axes.spines[["top", "right"]].set_visible(False)
            figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
            drawn.append((name, title))
        pyplot.close(figure)
    return drawn


def bars(figure: "Figure", versions: Versions, workload: str, metric: str, unit: str) -> bool:
    """One bar for each peer and version, the best peer on top."""
    got = {
        version: {
            peer: number
            for peer in results.get(workload, {})
            if (number := value(results, workload, peer, metric)) is not None
        }
        for version, results in versions.items()
    }
    got = {version: numbers for version, numbers in got.items() if numbers}
    if not got:
        return False
    peers = _worst_first(got, workload, metric)
    from matplotlib.patches import Patch

    axes, key = figure.subplots(), []
    width = 0.8 / len(got)
    figure.set_size_inches(SIZE[0], SIZE[1] * (1 + 0.4 * (len(got) - 1)))
    for number, (version, numbers) in enumerate(got.items()):
        places = {peer: at - width * (number - (len(got) - 1) / 2) for at, peer in enumerate(peers)}
        strength = STRENGTHS[len(got) - 1 - number]
        _bars_of_one(axes, places, numbers, width, unit, strength)
        key.append(Patch(color=LIMIT, alpha=strength, label=f"Python {version}"))
    axes.set_yticks(range(len(peers)), [PEERS[peer].title for peer in peers])
    axes.set_xscale("log")
    axes.margins(x=0.18)
    axes.set_xticks([])
    axes.minorticks_off()
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if len(got) > 1:
        figure.legend(
            handles=key, fontsize=7, loc="outside lower center", ncols=len(got), frameon=False
        )
    return True


def _worst_first(got: dict[str, dict[str, float]], workload: str, metric: str) -> list[str]:
    """The peers as the bars go up; of several versions, the best counts."""
    less_is_better = any(
        m.key == metric and not m.more_is_better for m in WORKLOADS[workload].metrics
    )
    best: dict[str, float] = {}
    for numbers in got.values():
        for peer, number in numbers.items():
            pick = min if less_is_better else max
            best[peer] = pick(number, best.get(peer, number))
    return sorted(best, key=lambda peer: (best[peer], peer), reverse=less_is_better)


def _bars_of_one(
    axes: "Axes",
    places: dict[str, float],
    numbers: dict[str, float],
    width: float,
    unit: str,
    strength: float,
) -> None:
    from matplotlib import ticker

    colours = [OURS.get(peer, LIMIT if PEERS[peer].limit else OTHER) for peer in numbers]
    drawn = axes.barh(
        [places[peer] for peer in numbers],
        list(numbers.values()),
        height=width,
        color=colours,
        alpha=strength,
    )
    text = ticker.EngFormatter(unit=unit, places=0 if unit == "s" else 1)
    axes.bar_label(drawn, [text(number) for number in numbers.values()], padding=3, fontsize=8)


def lines(
    figure: "Figure",
    versions: Versions,
    points: dict[float, str],
    metric: str,
    labels: tuple[str, str],
    scale: float = 1,
) -> bool:
    """One panel for each version; one line for each peer over `points`.

    These say where on the x axis, and which workload.
    """
    shown = {
        version: results
        for version, results in versions.items()
        if any(results.get(workload) for workload in points.values())
    }
    if not shown:
        return False
    figure.set_size_inches(SIZE[0] * (1 if len(shown) == 1 else 0.55 * len(shown)), SIZE[1])
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    known: dict[str, Any] = {}
    for axes, (version, results) in zip(panels, shown.items(), strict=True):
        _lines_of_one(axes, results, points, metric, scale)
        axes.set_xlabel(labels[0])
        if len(shown) > 1:
            axes.set_title(f"Python {version}", fontsize=9)
        handles, names = axes.get_legend_handles_labels()
        known |= dict(zip(names, handles, strict=True))
    panels[0].set_ylabel(labels[1])
    figure.legend(
        known.values(),
        known,
        fontsize=7,
        loc="outside lower center",
        ncols=3 * len(shown) if len(shown) < 3 else 6,
        frameon=False,
    )
    return True


def _lines_of_one(
    axes: "Axes", results: Results, points: dict[float, str], metric: str, scale: float
) -> None:
    peers = {peer for workload in points.values() for peer in results.get(workload, {})}
    others = iter(LINES)
    for peer, entry in PEERS.items():
        # a peer has the same colour in each panel
        style: dict[str, Any] = {"color": OURS[peer], "linewidth": 2} if peer in OURS else {}
        if entry.limit:
            style = {"color": LIMIT, "linestyle": "--"}
        style.setdefault("color", next(others) if peer not in OURS and not entry.limit else None)
        if peer not in peers:
            continue
        got = {
            x: number
            for x, workload in points.items()
            if (number := value(results, workload, peer, metric))
        }
        heights = [y * scale for y in got.values()]
        axes.plot(list(got), heights, marker=".", label=entry.title, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")


def draw_map(figure: "Figure", versions: Versions) -> bool:
    return bars(figure, versions, "ints", "rate", "/s")


def draw_dicts(figure: "Figure", versions: Versions) -> bool:
    return bars(figure, versions, "dicts", "rate", "/s")


def draw_apply(figure: "Figure", versions: Versions) -> bool:
    return bars(figure, versions, "apply", "p50", "s")


def draw_echo(figure: "Figure", versions: Versions) -> bool:
    points: dict[float, str] = {size: f"bytes_{name}" for name, size in SIZES.items()}
    return lines(figure, versions, points, "throughput", ("bytes of one item", "GB/s"), 1e-9)


def draw_arrays(figure: "Figure", versions: Versions) -> bool:
    points: dict[float, str] = {size: f"array_{name}" for name, size in SIZES.items()}
    return lines(figure, versions, points, "throughput", ("bytes of one array", "GB/s"), 1e-9)


def draw_items(figure: "Figure", versions: Versions) -> bool:
    points: dict[float, str] = {count: f"items_{count}" for count in COUNTS}
    return lines(figure, versions, points, "rate", ("items of one map", "items a second"))


def draw_workers(figure: "Figure", versions: Versions) -> bool:
    points: dict[float, str] = {count: f"workers_{count}" for count in WORKER_COUNTS}
    labels = ("workers, all but one idle", "apply, us")
    return lines(figure, versions, points, "p50", labels, 1e6)


PICTURES = (
    ("map-ints.svg", "map of a trivial function over ints, items a second", draw_map),
    ("map-dicts.svg", "map of a trivial function over 72-byte dicts, items a second", draw_dicts),
    ("apply.svg", "one apply after the other, median", draw_apply),
    ("echo.svg", "echo of bytes", draw_echo),
    ("echo-arrays.svg", "echo of arrays", draw_arrays),
    ("items.svg", "map by the number of items", draw_items),
    ("workers.svg", "latency of apply by the number of workers", draw_workers),
)
