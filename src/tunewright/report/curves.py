"""The sections of the loss and of the learning rate."""

from __future__ import annotations

import math

from tunewright.report.chart import (
    LOW_NARROW,
    LOW_WIDE,
    MOST_POINTS,
    NARROW,
    WIDE,
    Series,
    chart,
    smooth,
    thin,
)
from tunewright.report.markup import Child, Html, el
from tunewright.report.page import Page, strings, whole
from tunewright.report.record import finite, number
from tunewright.report.verdict import losses_of, lowest, show

TABLE_ROWS = 12


def section(page: Page) -> Html:
    """The loss curve, the learning rate, and the figures behind them."""
    steps = page.record.steps
    if not steps and not page.record.evaluations:
        return page.section("loss", el("p", page.say("loss.none"), class_="muted"))
    return page.section(
        "loss",
        el("p", page.say("loss.explained")),
        _legend(page),
        _loss(page),
        _lost_list(page),
        _rate(page),
        _figures(page),
        _log(page),
    )


def _loss(page: Page) -> Html:
    pairs = [(float(e["step"]), number(e.get("loss"))) for e in page.record.steps]
    good = [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]
    lost = [
        (x, page.text("loss.at_step", step=f"{x:g}", loss=show(y)))
        for x, y in pairs
        if y is not None and not math.isfinite(y)
    ]
    shown = thin(good)
    line = thin(list(zip([x for x, _ in good], smooth([y for _, y in good]), strict=True)))
    series = [
        Series(
            "loss",
            shown,
            "dot",
            dots=True,
            line=False,
            titles=[page.text("loss.at_step", step=f"{x:g}", loss=show(y)) for x, y in shown],
        ),
        Series("smooth", line, "smooth"),
    ]
    held = [(float(s), y) for s, y in page.record.evaluations if math.isfinite(y)]
    lost += [
        (float(s), page.text("loss.held_at_step", step=s, loss=show(y)))
        for s, y in page.record.evaluations
        if not math.isfinite(y)
    ]
    if held:
        series.append(
            Series(
                "held",
                held,
                "held",
                dots=True,
                titles=[
                    page.text("loss.held_at_step", step=f"{x:g}", loss=show(y)) for x, y in held
                ],
            )
        )
    losses = losses_of(page.record)
    label = page.text("loss.label", first=show(losses.first), final=show(losses.final))
    return el(
        "figure",
        chart(
            series,
            (WIDE, NARROW),
            page.text("loss.step"),
            page.text("loss.loss"),
            label,
            show,
            lost,
        ),
    )


def _legend(page: Page) -> Html:
    items = [("dot", "loss.legend_steps"), ("smooth", "loss.legend_smooth")]
    if page.record.evaluations:
        items.append(("held", "loss.legend_held"))
    if _lost(page):
        items.append(("lost", "loss.legend_lost"))
    keys = [
        el("span", el("i", class_=f"key {class_}"), page.say(key), class_="legend")
        for class_, key in items
    ]
    many = len(page.record.steps) > MOST_POINTS
    return el(
        "p",
        *keys,
        el("span", page.say("loss.thinned", count=MOST_POINTS), class_="muted") if many else None,
        class_="legends",
    )


def _lost(page: Page) -> list[tuple[int, str, list[str]]]:
    """Steps that were not applied or whose loss is not finite: (step, what, rows)."""
    told = {
        int(n): e
        for e in page.record.events
        if e.get("event") == "not_applied" and (n := finite(e.get("step"))) is not None
    }
    found = []
    for e in page.record.steps:
        loss, step = number(e.get("loss")), int(e["step"])
        if e.get("applied") is False or (loss is not None and not math.isfinite(loss)):
            found.append((step, show(loss), strings(told.get(step, {}).get("rows"))))
    return found


def _lost_list(page: Page) -> Html | None:
    lost = _lost(page)
    if not lost:
        return None
    items = []
    for step, loss, rows in lost[:20]:
        where = ", ".join(rows[:8]) + (" …" if len(rows) > 8 else "")
        items.append(
            el(
                "li",
                page.say(
                    "loss.lost_rows" if where else "loss.lost", step=step, loss=loss, rows=where
                ),
            )
        )
    return page.fold(page.say("loss.lost_title", count=len(lost)), el("ul", *items))


def _rate(page: Page) -> Html | None:
    found = ((e["step"], finite(e.get("learning_rate"))) for e in page.record.steps)
    points = [(float(x), y) for x, y in found if y is not None]
    if len(points) < 2:
        return None
    peak = max(y for _, y in points)
    label = page.text("loss.rate_label", peak=show(peak))
    drawing = chart(
        [Series("rate", thin(points), "smooth")],
        (LOW_WIDE, LOW_NARROW),
        page.text("loss.step"),
        page.text("loss.rate"),
        label,
        show,
    )
    return el("figure", el("figcaption", page.say("loss.rate_explained", peak=show(peak))), drawing)


def _figures(page: Page) -> Html | None:
    """A dozen steps as a table, for those who read numbers or cannot see the drawing."""
    steps = page.record.steps
    if not steps:
        return None
    every = max(1, math.ceil((len(steps) - 1) / (TABLE_ROWS - 1)))
    chosen = steps[::every] + ([steps[-1]] if (len(steps) - 1) % every else [])
    names = ("step", "loss", "rate", "norm", "speed")
    head = el("thead", el("tr", *(el("th", page.say(f"loss.{n}"), scope="col") for n in names)))
    rows = []
    for e in chosen:
        cells = [
            whole(e.get("step")),
            *(show(number(e.get(k))) for k in ("loss", "learning_rate", "gradient_norm")),
            whole(e.get("tokens_per_second")),
        ]
        rows.append(el("tr", *(el("td", cell) for cell in cells)))
    parts: list[Child] = [
        el("div", el("table", head, el("tbody", *rows), class_="numbers"), class_="scroll")
    ]
    if page.record.evaluations:
        low = lowest(page.record)
        held = ", ".join(f"{step}: {show(loss)}" for step, loss in page.record.evaluations[:60])
        parts.append(el("p", page.say("loss.held_list", held=held, step=low[0] if low else "–")))
    return page.fold(page.say("loss.figures"), *parts)


def _log(page: Page) -> Html | None:
    """What else happened: warnings, resumes, the return to the best weights."""
    items = []
    for e in page.record.events:
        if e.get("event") == "warning":
            items.append(el("li", str(e.get("text", ""))))
        elif e.get("event") == "resumed":
            items.append(el("li", page.say("loss.resumed", step=whole(e.get("step")))))
        elif e.get("event") == "reloaded":
            items.append(
                el(
                    "li",
                    page.say("loss.reloaded", gap=show(number(e.get("largest_logit_difference")))),
                )
            )
        elif e.get("event") == "returned_to_best":
            items.append(
                el(
                    "li",
                    page.say(
                        "loss.returned",
                        step=whole(e.get("step")),
                        loss=show(number(e.get("held_out_loss"))),
                    ),
                )
            )
    return el("ul", *items[:50], class_="log") if items else None
