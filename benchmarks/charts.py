"""Small charts as SVG text: bars with their spread, and lines; the same input gives the same bytes.

A chart has a background of its own, light or dark as the reader's system is, so that it can be read on any page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH, MARGIN = 760.0, 20.0
LABEL_WIDTH, VALUE_WIDTH = 215.0, 80.0
BAR_STEP, BAR_HEIGHT = 24.0, 14.0
PLOT_HEIGHT = 190.0
STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 } .panel { font-weight: 600 }
.muted { fill: #57606a; font-size: 11px } .strong { font-weight: 600 } .end { text-anchor: end } .middle { text-anchor: middle }
.page { fill: #ffffff; stroke: #d0d7de } .grid { stroke: #d8dee4 } .spread { stroke: #24292f; stroke-width: 1.2 }
.mark { stroke: #9a6700; stroke-dasharray: 4 3; stroke-width: 1.2 } .mark-text { fill: #9a6700; font-size: 11px }
.ours { fill: #0969da; stroke: #0969da } .peer { fill: #8c959f; stroke: #8c959f }
.line { fill: none; stroke-width: 2 } .over { paint-order: stroke; stroke: #ffffff; stroke-width: 4 }
@media (prefers-color-scheme: dark) {
text, .strong { fill: #e6edf3 } .muted { fill: #9198a1 }
.page { fill: #0d1117; stroke: #3d444d } .grid { stroke: #2a313c } .spread { stroke: #e6edf3 }
.mark { stroke: #d29922 } .mark-text { fill: #d29922 }
.ours { fill: #4493f8; stroke: #4493f8 } .peer { fill: #656c76; stroke: #656c76 }
.line { fill: none } .over { stroke: #0d1117 }
}
"""


@dataclass(frozen=True)
class Bar:
    """One bar: the median of its values, and a thin line from the lowest to the highest."""

    label: str
    values: Sequence[float]
    is_ours: bool


@dataclass(frozen=True)
class Mark:
    """A reference line for the bars."""

    value: float
    text: str


@dataclass(frozen=True)
class Bars:
    """A panel of horizontal bars, from 0."""

    title: str
    bars: Sequence[Bar]
    mark: Mark | None = None

    @property
    def height(self) -> float:
        """The panel's height, without space around it."""
        return 24 + BAR_STEP * len(self.bars) + (16 if self.mark else 4)

    def draw(self, top: float) -> list[str]:
        """The panel's elements, from `top` down."""
        most = max([max(bar.values) for bar in self.bars] + ([self.mark.value] if self.mark else []))
        left, scale = MARGIN + LABEL_WIDTH, (WIDTH - 2 * MARGIN - LABEL_WIDTH - VALUE_WIDTH) / (most or 1)
        bottom = top + 24 + BAR_STEP * len(self.bars)
        drawn = [_text(MARGIN, top + 12, self.title, "panel")]
        for number, bar in enumerate(self.bars):
            y, value = top + 24 + BAR_STEP * number, median(bar.values)
            middle = y + BAR_HEIGHT / 2
            kind, weight = ("ours", "strong") if bar.is_ours else ("peer", "")
            drawn.append(_text(left - 8, middle + 4, bar.label, f"end {weight}".strip()))
            width = max(value * scale, 1.0)
            drawn.append(f'<rect class="{kind}" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR_HEIGHT}"/>')
            if max(bar.values) > min(bar.values):
                ends = [left + figure * scale for figure in (min(bar.values), max(bar.values))]
                drawn.append(_line("spread", ends[0], middle, ends[1], middle))
            beyond = left + max(max(bar.values) * scale, width) + 6
            drawn.append(_text(beyond, middle + 4, figure_text(value), weight))
        drawn.append(_line("grid", left, top + 20, left, bottom))
        if self.mark:
            x = left + self.mark.value * scale
            drawn.append(_line("mark", x, top + 20, x, bottom))
            drawn.append(_text(x, bottom + 11, self.mark.text, "mark-text middle"))
        return drawn


@dataclass(frozen=True)
class Series:
    """A line through points, the least `x` first."""

    label: str
    points: Sequence[tuple[float, float]]
    is_ours: bool


@dataclass(frozen=True)
class Lines:
    """A panel of lines over a logarithmic x."""

    title: str
    series: Sequence[Series]
    x_text: Callable[[float], str]
    is_log: bool = False
    """Whether y is logarithmic too."""

    @property
    def height(self) -> float:
        """The panel's height, without space around it."""
        return 24 + PLOT_HEIGHT + 24

    def draw(self, top: float) -> list[str]:
        """The panel's elements, from `top` down."""
        xs = sorted({x for series in self.series for x, _ in series.points})
        ys = [y for series in self.series for _, y in series.points]
        left, right = MARGIN + 60, WIDTH - MARGIN - LABEL_WIDTH
        above, bottom = top + 28, top + 24 + PLOT_HEIGHT
        span = math.log10(xs[-1] / xs[0]) or 1.0
        ticks = decades(min(ys), max(ys)) if self.is_log else round_steps(max(ys))
        low, high = (math.log10(ticks[0]), math.log10(ticks[-1])) if self.is_log else (0.0, ticks[-1])

        def at_x(x: float) -> float:
            return left + (right - left) * math.log10(x / xs[0]) / span

        def at_y(y: float) -> float:
            share = ((math.log10(y) if self.is_log else y) - low) / ((high - low) or 1.0)
            return bottom - (bottom - above) * share

        drawn = [_text(MARGIN, top + 12, self.title, "panel")]
        for tick in ticks:
            drawn.append(_line("grid", left, at_y(tick), right, at_y(tick)))
            drawn.append(_text(left - 8, at_y(tick) + 4, f"{tick:,g}", "muted end"))
        drawn += [_text(at_x(x), bottom + 16, self.x_text(x), "muted middle") for x in xs]
        ends = spaced([at_y(series.points[-1][1]) for series in self.series], 15.0)
        labels = []
        for series, end in zip(self.series, ends, strict=True):
            kind = "ours" if series.is_ours else "peer"
            path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in series.points)
            drawn.append(f'<polyline class="{kind} line" points="{path}"/>')
            drawn += [f'<circle class="{kind}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3"/>' for x, y in series.points]
            said, place = f"{series.label}  {figure_text(series.points[-1][1])}", at_x(series.points[-1][0]) + 9
            labels.append(_text(place, end + 4, said, "over strong" if series.is_ours else "over"))
        return [*drawn, *labels]


def chart(title: str, panels: Sequence[Bars | Lines], notes: Sequence[str]) -> str:
    """A whole SVG: a title, panels one below the other, and notes in small print."""
    top, drawn = MARGIN + 16, [_text(MARGIN, MARGIN + 12, title, "title")]
    for panel in panels:
        top += 16
        drawn += panel.draw(top)
        top += panel.height
    for note in notes:
        top += 16
        drawn.append(_text(MARGIN, top + 4, note, "muted"))
    height = top + MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img">'
    page = f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1:.0f}" height="{height - 1:.0f}" rx="6"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", page, *drawn, "</svg>\n"])


def figure_text(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def round_steps(most: float) -> list[float]:
    """About four ticks from 0 to above `most`, at round numbers."""
    power = 10 ** math.floor(math.log10(most / 4 or 1))
    step = next(step * power for step in (1, 2, 5, 10) if step * power * 4 >= most * 0.8)
    return [step * number for number in range(math.ceil(most / step) + 1)]


def decades(least: float, most: float) -> list[float]:
    """Powers of ten around both."""
    return [10.0**power for power in range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)]


def spaced(places: Sequence[float], apart: float) -> list[float]:
    """The positions, moved down where two are closer than `apart`."""
    moved = list(places)
    order = sorted(range(len(places)), key=lambda number: places[number])
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + apart)
    return moved


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
