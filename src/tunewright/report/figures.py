"""What an objective watches beside its loss: rewards, KL, margins, accuracy, lengths; and texts
that the model wrote on the way."""

from __future__ import annotations

import math
from typing import Any

from tunewright.report.chart import LOW_NARROW, LOW_WIDE, Series, chart, smooth, thin
from tunewright.report.markup import Child, Html, el
from tunewright.report.page import Page, whole
from tunewright.report.record import Record, finite, mapping, number
from tunewright.report.verdict import show

SHOWN = (
    "reward",
    "accuracy",
    "first_error",
    "said_right",
    "margin",
    "rewards_chosen",
    "rewards_rejected",
    "kl",
    "kl_coefficient",
    "entropy",
    "clip_share",
    "answer_tokens",
    "finished",
    "explained_variance",
    "groups_without_difference",
    "empty_answers",
    "left_out",
    "divergence",
    "own_answers",
)
"""Figures that get a drawing, in this order; each part of a reward (`reward_NAME`) follows the
whole."""
MOST_TEXTS = 24


def names_of(record: Record) -> list[str]:
    """The figures of a run that are drawn."""
    found = {name for e in [*record.steps, *record.measured] for name in mapping(e.get("figures"))}
    parts = sorted(
        name
        for name in found
        if name.startswith("reward_")
        and name not in ("reward_spread", "reward_change", "reward_change_error")
    )
    if len(parts) == 1 and all(
        finite(values[parts[0]]) == finite(values["reward"])
        for values in _both(record, "reward", parts[0])
    ):
        parts = []  # the whole reward once more
    order = ["reward", *parts, *SHOWN[1:]] if "reward" in found else [*SHOWN[1:]]
    return [name for name in order if name in found]


def _both(record: Record, one: str, other: str) -> list[dict[str, Any]]:
    """The figures of every event that has both."""
    return [
        figures
        for e in [*record.steps, *record.measured]
        if {one, other} <= set(figures := mapping(e.get("figures")))
    ]


def section(page: Page) -> Html | None:
    """A small drawing for every figure, and the texts; None for a run without any."""
    names = names_of(page.record)
    if not names:
        return None
    drawings: list[Child] = [_drawing(page, name) for name in names]
    return page.section("figures", el("p", page.say("figures.explained")), *drawings, _texts(page))


def _label(page: Page, name: str) -> str:
    if name == "accuracy" and "first_error" in names_of(page.record):
        return page.text("figures.step_accuracy")
    return (
        page.text(f"figures.{name}")
        if name in SHOWN
        else page.text("figures.part", name=name.removeprefix("reward_"))
    )


def _points(events: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    found = ((float(e["step"]), number(mapping(e.get("figures")).get(name))) for e in events)
    return [(x, y) for x, y in found if y is not None and math.isfinite(y)]


def _drawing(page: Page, name: str) -> Html | None:
    points, held = _points(page.record.steps, name), _points(page.record.measured, name)
    if len(points) + len(held) < 2:
        return None
    shown, label = thin(points), _label(page, name)

    def title(x: float, y: float) -> str:
        return page.text("figures.at_step", name=label, step=f"{x:g}", value=show(y))

    series = [
        Series("steps", shown, "dot", dots=True, line=False, titles=[title(x, y) for x, y in shown])
    ]
    if points:
        series.append(
            Series(
                "smooth",
                thin(
                    list(zip([x for x, _ in points], smooth([y for _, y in points]), strict=True))
                ),
                "smooth",
            )
        )
    if held:
        series.append(
            Series("held", held, "held", dots=True, titles=[title(x, y) for x, y in held])
        )
    every = points or held
    caption = page.say(
        "figures.caption", name=label, first=show(every[0][1]), last=show(every[-1][1])
    )
    # The caption names the figure; along the axis a long name would be cut off.
    drawing = chart(
        series,
        (LOW_WIDE, LOW_NARROW),
        page.text("loss.step"),
        "",
        f"{label}: {show(every[0][1])} → {show(every[-1][1])}",
        show,
    )
    return el("figure", el("figcaption", caption), drawing)


def _texts(page: Page) -> Html | None:
    told = [
        (e.get("step"), mapping(answer))
        for e in page.record.events
        if e.get("event") == "answers"
        for answer in e.get("answers") or []
    ]
    judged = any("reward" in answer for _, answer in told)
    rows = []
    for step, answer in told:
        cells = [
            whole(step),
            str(answer.get("question", ""))[:300],
            str(answer.get("answer", ""))[:600],
        ]
        cells += [show(number(answer.get("reward")))] if judged else []
        rows.append(el("tr", *(el("td", cell) for cell in cells)))
    if not rows:
        return None
    head = el(
        "thead",
        el(
            "tr",
            *(
                el("th", page.say(f"figures.texts.{n}"), scope="col")
                for n in ("step", "question", "answer", *(["reward"] if judged else []))
            ),
        ),
    )
    kept = (
        rows if len(rows) <= MOST_TEXTS else [*rows[: MOST_TEXTS // 2], *rows[-MOST_TEXTS // 2 :]]
    )
    table = el("div", el("table", head, el("tbody", *kept)), class_="scroll")
    return page.fold(page.say("figures.texts", count=len(rows)), table, open_=True)
