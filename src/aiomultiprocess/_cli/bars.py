"""The figures of `bench`: as a table in plain text, as bars in a terminal, and as an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from rich.console import RenderableType

COLOURS = ("#1f6feb", "#8b949e", "#c9a227")  # of the sides
RICH_COLOURS = ("bright_blue", "bright_black", "yellow")


class Group(NamedTuple):
    """One row of the comparison, with a figure for each side."""

    title: str
    unit: str
    figures: Sequence[float]

    @property
    def heading(self) -> str:
        """The title with the unit, and what is good."""
        return f"{self.title} ({self.unit}, {'less' if self.unit == 'us' else 'more'} is better)"

    def parts(self) -> list[float]:
        """Each figure as a part of the largest."""
        largest = max(self.figures) or 1.0
        return [figure / largest for figure in self.figures]


def as_table(titles: Sequence[str], groups: Sequence[Group]) -> str:
    """Plain text: a line for each group."""
    lines = [f"{'':30}" + "".join(f"{title:>24}" for title in titles)]
    for group in groups:
        cells = "".join(f"{figure:>24,.0f}" for figure in group.figures)
        lines.append(f"{group.title:30}{cells}  {group.unit}")
    return "\n".join(lines)


def as_bars(titles: Sequence[str], groups: Sequence[Group], width: int) -> RenderableType:
    """Bars for a console of rich."""
    from rich.bar import Bar
    from rich.console import Group as Lines
    from rich.table import Table
    from rich.text import Text

    room = max(width - max(map(len, titles)) - 20, 10)
    shown: list[RenderableType] = []
    for group in groups:
        shown.append(Text(group.heading, "bold"))
        grid = Table.grid(padding=(0, 1))
        for colour, title, figure, part in zip(
            RICH_COLOURS, titles, group.figures, group.parts(), strict=True
        ):
            bar = Bar(1.0, 0.0, part, width=room, color=colour)
            grid.add_row(Text(title), bar, Text(f"{figure:>9,.0f}"))
        shown += [grid, Text("")]
    return Lines(*shown)


# -- SVG -------------------------------------------------------------------------------------------

WIDTH = 760
LEFT = 200  # where bars begin
LONGEST = 440
BAR = 18
GAP = 22


def as_svg(titles: Sequence[str], groups: Sequence[Group], note: str) -> str:
    """A picture that needs no font and no script of its own."""
    drawn: list[str] = []
    top = 20
    for group in groups:
        drawn.append(_text(16, top + 14, group.heading, weight=' font-weight="600"'))
        top += GAP
        for colour, title, figure, part in zip(
            COLOURS, titles, group.figures, group.parts(), strict=True
        ):
            length = max(part * LONGEST, 1.0)
            drawn += [
                _text(LEFT - 8, top + 14, title, weight=' text-anchor="end"'),
                f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
                _text(LEFT + length + 8, top + 14, f"{figure:,.0f}"),
            ]
            top += GAP
        top += 12
    drawn.append(_text(16, top + 8, note, colour="#57606a"))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 24}" '
        f'width="{WIDTH}" height="{top + 24}" font-family="sans-serif" font-size="13" role="img">'
    )
    return "\n".join(
        [
            head,
            "<title>aiomultiprocess beside the pools of the standard library</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, text: str, *, weight: str = "", colour: str = "#1f2328") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}"{weight}>{escape(text)}</text>'
