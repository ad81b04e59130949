"""`report.html` of a sweep: every trial in a table, the best first, and one line a trial through
its settings to what it reached (parallel coordinates)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.core.files import write_text
from tunewright.core.words import language
from tunewright.report.chart import ticks
from tunewright.report.markup import Child, Html, document, el, words
from tunewright.report.verdict import show

WIDTH, HEIGHT, TOP, BOTTOM, SIDE = 860, 340, 34, 16, 70
MOST_AXES = 10
STYLE = """
.sweep path { fill: none; stroke: var(--dot); stroke-width: 1.6; stroke-opacity: .8; }
.sweep path.good { stroke: var(--accent); stroke-width: 2.2; }
.sweep path.best { stroke: var(--held); stroke-width: 3.4; stroke-opacity: 1; }
.sweep path.lost { stroke-dasharray: 3 4; }
tr.best td { font-weight: 600; }
"""


def write_sweep_report(out: Path, lang: str | None = None) -> Path:
    """Write `out/report.html` from `out/sweep.json`, and say where it is."""
    target = out / "report.html"
    write_text(target, render_sweep(out, lang))
    return target


def render_sweep(out: Path, lang: str | None = None) -> str:
    """The page as text."""
    chosen = lang or language()
    record = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    trials = sorted(record["trials"], key=lambda t: _place(record, t))
    best = next((t for t in trials if t["number"] == record["best"]), None)
    title = words("sweep.title", chosen, name=out.resolve().name)
    done = sum(t["status"] not in ("running",) for t in trials)
    verdict = words("sweep.verdict_none", chosen, done=done, trials=record["trials_wanted"])
    if best is not None:
        verdict = words(
            "sweep.verdict",
            chosen,
            done=done,
            trials=record["trials_wanted"],
            number=best["number"] + 1,
            value=show(best["value"]),
            metric=metric_of(record),
        )
    tone = "verdict good" if best else "verdict"
    drawing = parallel(record, trials, chosen) if trials else None
    return document(
        chosen,
        title,
        el("header", el("h1", title), el("p", verdict, class_=tone)),
        el(
            "main",
            el("p", words("sweep.explained", chosen)),
            el("figure", drawing) if drawing is not None else None,
            el("div", _table(record, trials, chosen), class_="scroll"),
            el("p", words("sweep.files", chosen), class_="muted"),
        ),
        style=STYLE,
    )


def metric_of(record: dict[str, Any]) -> str:
    """What the trials are compared by."""
    return str(record["metric"] or "held_out_loss")


def _place(record: dict[str, Any], trial: dict[str, Any]) -> tuple[bool, float, int]:
    sign = -1 if record["higher"] else 1
    value = trial["value"]
    return trial["status"] != "done", sign * (value if value is not None else 0), trial["number"]


def _table(record: dict[str, Any], trials: list[dict[str, Any]], lang: str) -> Html:
    keys = list(record["spaces"])
    names = [*keys, metric_of(record)]
    heads = [el("th", "#", scope="col"), *(el("th", name, scope="col") for name in names)]
    heads += [
        el("th", words(f"sweep.column.{name}", lang), scope="col")
        for name in ("status", "steps", "time")
    ]
    rows = []
    for trial in trials:
        folder = f"trials/{trial['number'] + 1:02d}/report.html"
        name: Child = el("a", str(trial["number"] + 1), href=folder)
        if trial["status"] in ("running", "refused"):
            name = str(trial["number"] + 1)
        status: list[Child] = [words(f"sweep.status.{trial['status']}", lang)]
        if trial["reason"]:
            status += [el("br"), el("small", trial["reason"][:300])]
        cells: list[Child] = [name, *(_shown(trial["params"].get(key)) for key in keys)]
        cells += [show(trial["value"]), status, str(trial["steps"]), f"{trial['seconds']:.0f} s"]
        is_best = trial["number"] == record["best"]
        rows.append(el("tr", *(el("td", c) for c in cells), class_="best" if is_best else None))
    return el("table", el("thead", el("tr", *heads)), el("tbody", *rows))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def parallel(record: dict[str, Any], trials: Sequence[dict[str, Any]], lang: str) -> Html:
    """Parallel coordinates: an upright axis for each setting, the last for what was reached."""
    keys = list(record["spaces"])[: MOST_AXES - 1]
    values = [t["value"] for t in trials if t["value"] is not None]
    axes = [_Axis(key, record["spaces"][key]) for key in keys]
    axes.append(_Reached(metric_of(record), values))
    gap = (WIDTH - 2 * SIDE) / max(1, len(axes) - 1)
    parts: list[Child] = []
    for number, axis in enumerate(axes):
        x = SIDE + number * gap
        parts.append(el("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="axis"))
        name = axis.name.partition(".")[2] or axis.name
        anchor = "middle"
        parts.append(el("text", name, x=x, y=TOP - 16, text_anchor=anchor))
        for at, label in axis.marks():
            y = _y(at)
            parts.append(el("line", x1=x - 4, x2=x, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="axis"))
            parts.append(el("text", label, x=x - 7, y=f"{y + 4:.1f}", text_anchor="end"))
    good = {t["number"] for t in trials[: max(1, len(values) // 4)] if t["status"] == "done"}
    for trial in reversed(trials):
        places = [axis.place(trial) for axis in axes]
        points = [(SIDE + n * gap, _y(at)) for n, at in enumerate(places) if at is not None]
        if len(points) < 2:
            continue
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        is_best = trial["number"] == record["best"]
        kind = "best" if is_best else "good" if trial["number"] in good else "plain"
        kind += "" if trial["status"] == "done" else " lost"
        told = " ".join(f"{k}={_shown(v)}" for k, v in trial["params"].items())
        title = f"{trial['number'] + 1} · {told} · {show(trial['value'])}"
        parts.append(el("path", el("title", title), d=path, class_=kind))
    return el(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart wide sweep",
        role="img",
        aria_label=words("sweep.picture", lang, trials=len(trials)),
    )


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


class _Axis:
    """A setting: a list of choices, or a range that may be logarithmic."""

    def __init__(self, name: str, space: dict[str, Any]):
        self.name, self.choices = name, list(space.get("choices", []))
        self.low, self.high = space.get("low", 0.0), space.get("high", 1.0)
        self.log = not self.choices and self.low > 0 and self.high / self.low >= 10

    def at(self, value: float) -> float:
        """Where a number stands, from 0 to 1."""
        low, high, value = ((math.log(x) if self.log else x) for x in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def place(self, trial: dict[str, Any]) -> float | None:
        """Where a trial crosses the axis."""
        value = trial["params"].get(self.name)
        if self.choices:
            last = max(1, len(self.choices) - 1)
            return self.choices.index(value) / last if value in self.choices else None
        return self.at(value) if isinstance(value, int | float) else None

    def marks(self) -> list[tuple[float, str]]:
        """What is written beside the axis."""
        if self.choices:
            last = max(1, len(self.choices) - 1)
            return [(n / last, _shown(c)[:16]) for n, c in enumerate(self.choices)]
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            values = sorted({self.low, *(10.0**p for p in powers), self.high})
        else:
            values = [v for v in ticks(self.low, self.high) if self.low <= v <= self.high]
        return [(self.at(value), f"{value:g}") for value in values]


class _Reached(_Axis):
    """What the trials reached; outliers do not press the others together."""

    def __init__(self, name: str, values: list[float]):
        ordered = sorted(values) or [0.0, 1.0]
        top = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
        low, high = ordered[0], max(top, ordered[0] + 1e-9)
        if high - low < 1e-6 * max(1.0, abs(low)):
            low, high = low - 0.5, high + 0.5
        super().__init__(name, {"low": low, "high": high})
        self.log = False

    def place(self, trial: dict[str, Any]) -> float | None:
        value = trial["value"]
        return None if value is None else min(1.04, self.at(value))
