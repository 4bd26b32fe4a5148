"""What `top` shows of the pools of a process: texts and tables, for rich and as plain lines.

Rates are those of the time since the last picture in which the pool has answered; in the first one,
since the pool was made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .watching import Answer

if TYPE_CHECKING:
    from rich.console import RenderableType

HEADS = ("worker", "pid", "state", "busy", "lag", "rss", "running", "waiting", "done", "done/s")
LAGGING = 1.0  # seconds of one turn from which a worker counts as blocked
OUTCOMES = ("failed", "timed_out", "cancelled", "lost", "retried")
ROWS_BESIDES = 6  # of one pool, beside its workers


class Part(NamedTuple):
    """One pool: what to show of it, each text in its place."""

    title: str
    lines: Sequence[str]
    workers: Sequence[Sequence[str]]


class Pictures:
    """Makes pictures of one process, each with the rates since the one before."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before: dict[int, Answer] = {}

    def picture(self, answers: Sequence[Answer | None], height: int | None = None) -> list[Part]:
        """The parts of one picture; `height` limits the number of rows of all together."""
        known = [answer for answer in answers if answer is not None]
        room = None if height is None else (height - 2) // max(len(answers), 1) - ROWS_BESIDES
        parts = [self._part(answer, room) for answer in known]
        if len(known) == len(answers):  # else one of before may be silent, and not gone
            self._before.clear()
        self._before.update((answer["pool"], answer) for answer in known)
        silent = Part("a pool does not answer: its event loop is busy", (), ())
        return [*parts, *[silent] * (len(answers) - len(known))]

    def heading(self, answers: Sequence[Answer | None]) -> str:
        """The first line: which process, and when."""
        program = next((f", {each['program']}" for each in answers if each), "")
        return f"process {self._pid}{program}, {time.strftime('%H:%M:%S')}"

    def _part(self, answer: Answer, room: int | None) -> Part:
        stats, before = answer["stats"], self._before.get(answer["pool"])
        elapsed = answer["uptime"] - (before["uptime"] if before else 0.0)
        workers = stats["workers"]
        title = (
            f"pool {answer['pool']}, {answer['backend']}, {answer['state']}, "
            f"{_duration(answer['uptime'])}, {many(len(workers), 'worker')}"
        )
        past = {_key(worker): worker for worker in before["stats"]["workers"]} if before else {}
        rows = [_row(worker, past.get(_key(worker)), elapsed) for worker in workers]
        hidden = 0 if room is None else len(rows) - max(room, 1)
        lines = _totals(stats, before["stats"] if before else None, elapsed)
        if hidden > 0:
            del rows[-hidden:]
            lines.append(f"{many(hidden, 'more worker')} not shown: the terminal is too low")
        return Part(title, lines, rows)


def _key(worker: Any) -> tuple[int, int | None]:
    """What a worker is known by: those of several hosts may have the same process id."""
    return worker["index"], worker["pid"]


def _totals(stats: Any, before: Any, elapsed: float) -> list[str]:
    rates = {
        name: (stats[name] - (before[name] if before else 0)) / max(elapsed, 1e-9)
        for name in ("done", *OUTCOMES)
    }
    lines = [
        f"waiting {stats['waiting']:,}  running {stats['running']:,}  "
        f"done {stats['done']:,} ({rates['done']:,.1f}/s)",
        "  ".join(
            f"{name.replace('_', ' ')} {stats[name]:,}"
            + (f" ({rates[name]:,.1f}/s)" if rates[name] else "")
            for name in OUTCOMES
        ),
    ]
    if stats["restarts"]:
        causes = ", ".join(f"{cause} {count:,}" for cause, count in stats["restarts"].items())
        lines.append(f"workers replaced: {causes}")
    return lines


def _row(worker: Any, before: Any, elapsed: float) -> list[str]:
    lag, busy, state = worker["lag"], worker["busy"], worker["state"]
    if state == "running" and lag is not None and lag >= LAGGING:
        state = "blocked"
    seconds = worker["uptime"] - (before["uptime"] if before else 0.0)
    if busy is not None and before and before["busy"] is not None and seconds > 0:
        busy = (busy * worker["uptime"] - before["busy"] * before["uptime"]) / seconds
    done = worker["done"] - (before["done"] if before else 0)
    return [
        f"{worker['index']}" + (f" {worker['host']}" if worker["host"] else ""),
        f"{worker['pid'] or ''}",
        state,
        "" if busy is None else f"{min(max(busy, 0.0), 1.0):.0%}",
        "" if lag is None else f"{lag:.1f} s",
        "" if worker["rss"] is None else f"{worker['rss'] / 1e6:,.0f} MB",
        f"{worker['running']:,}",
        f"{worker['waiting']:,}",
        f"{worker['done']:,}",
        f"{done / max(min(seconds, elapsed), 1e-9):,.1f}",
    ]


def many(count: int, what: str) -> str:
    """A number of things."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


# -- as lines --------------------------------------------------------------------------------------


def plain(heading: str, parts: Sequence[Part]) -> str:
    """The picture as lines of text."""
    lines = [heading]
    for part in parts:
        lines += ["", part.title, *part.lines]
        if part.workers:
            lines += _aligned([HEADS, *part.workers])
    return "\n".join(lines) + "\n"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if head in ("worker", "state") else cell.rjust(width)
            for cell, width, head in zip(row, widths, HEADS, strict=True)
        ).rstrip()
        for row in rows
    ]


# -- with rich -------------------------------------------------------------------------------------

STYLES = {"blocked": "bold red", "running": "green", "leaving": "yellow", "starting": "yellow"}


def rich_picture(heading: str, parts: Sequence[Part], footer: str = "") -> RenderableType:
    """The picture for a console of rich."""
    from rich.console import Group
    from rich.text import Text

    shown: list[RenderableType] = [Text(heading, "bold", no_wrap=True)]
    for part in parts:
        shown += [Text(""), Text(part.title, "bold cyan", no_wrap=True)]
        shown += [Text(line) for line in part.lines]
        if part.workers:
            shown.append(_rich_table(part))
    if footer:
        shown.append(Text(footer, "dim"))
    return Group(*shown)


def _rich_table(part: Part) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in HEADS:
        table.add_column(head, justify="left" if head in ("worker", "state") else "right")
    for row in part.workers:
        cells = [Text(cell, no_wrap=True) for cell in row]
        cells[2].stylize(STYLES.get(row[2], "dim"))
        table.add_row(*cells)
    return table
