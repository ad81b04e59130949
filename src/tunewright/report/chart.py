"""Charts as inline SVG: axes with round ticks, points with a title each, colours from the page's
variables. No script, no library.

Every chart is drawn twice, wide and narrow, because text in a scaled drawing is either too small on
a phone or too large on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunewright.report.markup import Html, el, join

MOST_POINTS = 400
"""Longer runs are averaged into this many groups of steps: more points than pixels show nothing."""

Point = tuple[float, float]


@dataclass
class Series:
    """One row of points. `dots` draws each with its title, otherwise a line is drawn."""

    name: str
    points: list[Point]
    class_: str
    dots: bool = False
    line: bool = True
    titles: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Size:
    """A drawing in pixels: outer size and margins."""

    class_: str
    width: int
    height: int
    left: int = 56
    right: int = 14
    top: int = 14
    bottom: int = 44


WIDE, NARROW = Size("wide", 860, 300), Size("narrow", 360, 250, left=50)
LOW_WIDE, LOW_NARROW = Size("wide", 860, 160), Size("narrow", 360, 160, left=58)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from at most `low` to at least `high`; about
    `wanted` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def smooth(values: Sequence[float]) -> list[float]:
    """The mean over about a tenth of the run around each value, so the line does not lag behind;
    windows shrink evenly towards both ends."""
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    reach = len(values) // 20
    out = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        out.append((total[i + near + 1] - total[i - near]) / (2 * near + 1))
    return out


def thin(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` points, each the mean of neighbours."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def chart(
    series: list[Series],
    sizes: tuple[Size, Size],
    x_name: str,
    y_name: str,
    label: str,
    show: Callable[[float], str],
    lost: Sequence[tuple[float, str]] = (),
) -> Html:
    """The two drawings of one chart. `lost` are places on the x axis without a finite value, each
    with its title."""
    return join([_drawing(series, size, x_name, y_name, label, show, lost) for size in sizes])


def _drawing(
    series: list[Series],
    size: Size,
    x_name: str,
    y_name: str,
    label: str,
    show: Callable[[float], str],
    lost: Sequence[tuple[float, str]],
) -> Html:
    xs = [x for s in series for x, _ in s.points] + [x for x, _ in lost]
    ys = [y for s in series for _, y in s.points]
    x_low, x_high = min(xs, default=0.0), max(xs, default=1.0)
    x_high = x_high if x_high > x_low else x_low + 1
    y_ticks = ticks(
        min(0.0, min(ys, default=0.0)), max(ys, default=1.0), 5 if size.height > 200 else 3
    )
    y_low, y_high = y_ticks[0], y_ticks[-1]
    width, height = size.width - size.left - size.right, size.height - size.top - size.bottom
    x_ticks = [t for t in ticks(x_low, x_high, 8 if width > 500 else 4) if x_low <= t <= x_high]

    def px(x: float) -> float:
        return size.left + (x - x_low) / (x_high - x_low) * width

    def py(y: float) -> float:
        return size.top + (y_high - y) / (y_high - y_low) * height

    parts = [_axes(size, y_ticks, x_ticks, px, py, x_name, y_name, show)]
    for s in series:
        parts += _marks(s, [(f"{px(x):.1f}", f"{py(y):.1f}") for x, y in s.points])
    for x, title in lost:
        place = {"x": f"{px(x):.1f}", "y": f"{size.top + 12}"}
        parts.append(
            el("text", el("title", title), "×", class_="lost", **place, text_anchor="middle")
        )
    return el(
        "svg",
        *parts,
        class_=f"chart {size.class_}",
        viewBox=f"0 0 {size.width} {size.height}",
        role="img",
        aria_label=label,
    )


def _marks(s: Series, places: list[tuple[str, str]]) -> list[Html]:
    """The line and the dots of a series through (x, y) in pixels."""
    marks = []
    if s.line and len(places) > 1:
        marks.append(
            el("polyline", class_=s.class_, points=" ".join(f"{x},{y}" for x, y in places))
        )
    if s.dots:
        titles = s.titles or [""] * len(places)
        marks += [
            el("circle", el("title", title), class_=s.class_, cx=x, cy=y, r=_radius(s))
            for (x, y), title in zip(places, titles, strict=True)
        ]
    return marks


def _radius(s: Series) -> str:
    if "held" in s.class_:
        return "4.5"
    return "3" if len(s.points) < 120 else "2"


def _axes(
    size: Size,
    y_ticks: list[float],
    x_ticks: list[float],
    px: Callable[[float], float],
    py: Callable[[float], float],
    x_name: str,
    y_name: str,
    show: Callable[[float], str],
) -> Html:
    right, bottom = size.width - size.right, size.height - size.bottom
    parts = []
    for t in y_ticks:
        y = f"{py(t):.1f}"
        parts.append(el("line", class_="grid", x1=size.left, x2=right, y1=y, y2=y))
        parts.append(el("text", show(t), x=size.left - 7, y=f"{py(t) + 4:.1f}", text_anchor="end"))
    for t in x_ticks:
        x = f"{px(t):.1f}"
        parts.append(el("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 5))
        parts.append(
            el(
                "text",
                f"{t:,.0f}" if t == int(t) else f"{t:g}",
                x=x,
                y=bottom + 19,
                text_anchor="middle",
            )
        )
    parts.append(el("line", class_="axis", x1=size.left, x2=right, y1=bottom, y2=bottom))
    parts.append(
        el(
            "text",
            x_name,
            class_="name",
            x=f"{(size.left + right) / 2:.0f}",
            y=size.height - 6,
            text_anchor="middle",
        )
    )
    middle = (size.top + bottom) / 2
    if y_name:
        parts.append(
            el(
                "text",
                y_name,
                class_="name",
                x=12,
                y=f"{middle:.0f}",
                text_anchor="middle",
                transform=f"rotate(-90 12 {middle:.0f})",
            )
        )
    return join(parts)


COLOURS = 8
"""Of the parts of a bar; style.css has as many."""


def bar(parts: Sequence[tuple[str, float]], label: str) -> Html:
    """One bar cut into shares; (title, value) each. Nothing for a total of 0."""
    total = sum(value for _, value in parts)
    if total <= 0:
        return Html("")
    x, cells = 0.0, []
    for i, (title, value) in enumerate(parts):
        width = 1000 * value / total
        cells.append(
            el(
                "rect",
                el("title", title),
                class_=f"part p{i % COLOURS}",
                x=f"{x:.1f}",
                y=0,
                width=f"{max(0.0, width):.1f}",
                height=22,
            )
        )
        x += width
    return el(
        "svg",
        *cells,
        class_="bar",
        viewBox="0 0 1000 22",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


@dataclass(frozen=True)
class Bar:
    """A figure with several values: (class, value, low, high) each, shares from 0 to 1. `shown` is
    written at its right end."""

    name: str
    shown: str
    values: list[tuple[str, float, float, float]]


BAR_ROW, BAR_GAP = 16, 30
"""Height of a value, and of the name above the values of a figure, in pixels."""


def intervals(bars: Sequence[Bar], label: str) -> Html:
    """The two drawings of shares with their intervals: a line from low to high and a dot at the
    value, the name of each figure above it."""
    return join([_intervals(bars, label, size) for size in (WIDE, NARROW)])


def _intervals(bars: Sequence[Bar], label: str, size: Size) -> Html:
    left, right = 14, size.width - 14
    parts, y = [], 8.0

    def px(value: float) -> str:
        return f"{left + min(1.0, max(0.0, value)) * (right - left):.1f}"

    for one in bars:
        parts.append(el("text", one.name, class_="label", x=left, y=f"{y + 17:.0f}"))
        parts.append(el("text", one.shown, x=right, y=f"{y + 17:.0f}", text_anchor="end"))
        y += BAR_GAP
        for class_, value, low, high in one.values:
            title = f"{100 * value:.0f} % ({100 * low:.0f}–{100 * high:.0f} %)"
            parts.append(el("line", class_="grid", x1=left, x2=right, y1=f"{y:.0f}", y2=f"{y:.0f}"))
            ends = {"x1": px(low), "x2": px(high), "y1": f"{y:.0f}", "y2": f"{y:.0f}"}
            parts.append(el("line", class_=f"range {class_}", **ends))
            dot = el("title", title)
            parts.append(
                el("circle", dot, class_=f"value {class_}", cx=px(value), cy=f"{y:.0f}", r="5")
            )
            y += BAR_ROW
    return el(
        "svg",
        *parts,
        _shares(px, y),
        class_=f"chart intervals {size.class_}",
        viewBox=f"0 0 {size.width} {y + 28:.0f}",
        role="img",
        aria_label=label,
    )


def _shares(px: Callable[[float], str], y: float) -> Html:
    """The axis from 0 to 100 %."""
    anchors = {0.0: "start", 1.0: "end"}
    return join(
        el(
            "text",
            f"{100 * share:.0f} %",
            x=px(share),
            y=f"{y + 16:.0f}",
            text_anchor=anchors.get(share, "middle"),
        )
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
