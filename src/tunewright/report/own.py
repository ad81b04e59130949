"""What callbacks of a run added: their figures by step, and the pictures of its folder."""

from __future__ import annotations

import base64
import math
from pathlib import Path

from tunewright.core.callbacks import PICTURE_NAME, PICTURES
from tunewright.report.chart import LOW_NARROW, LOW_WIDE, Series, chart, thin
from tunewright.report.markup import Child, Html, el
from tunewright.report.page import Page
from tunewright.report.record import finite, mapping, number
from tunewright.report.verdict import show

MOST_DRAWINGS, MOST_PICTURES = 24, 24
MOST_BYTES = 4 << 20
"""Of a picture in the page; a larger one stays in its folder."""
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


def pictures(run: Path) -> list[Path]:
    """The pictures that callbacks left in a run folder, by name."""
    folder = run / PICTURES
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if PICTURE_NAME.fullmatch(p.name) and p.is_file())


def section(page: Page) -> Html | None:
    """A drawing for every figure and every picture; None for a run to which nothing was added."""
    drawn = [_drawing(page, name, points) for name, points in _figures(page).items()]
    shown = [_picture(path) for path in pictures(page.record.run)[:MOST_PICTURES]]
    parts: list[Child] = [one for one in [*drawn[:MOST_DRAWINGS], *shown] if one is not None]
    return page.section("own", el("p", page.say("own.intro")), *parts) if parts else None


def _figures(page: Page) -> dict[str, list[tuple[float, float]]]:
    """Name -> (step, value), in the order of the steps; what was added again counts as it came
    last."""
    found: dict[str, dict[float, float]] = {}
    for event in page.record.events:
        step = finite(event.get("step"))
        if event.get("event") != "added" or step is None:
            continue
        for name, value in mapping(event.get("figures")).items():
            told = number(value)
            if told is not None and math.isfinite(told):
                found.setdefault(str(name), {})[step] = told
    return {name: sorted(points.items()) for name, points in sorted(found.items())}


def _drawing(page: Page, name: str, points: list[tuple[float, float]]) -> Html:
    shown = thin(points)
    titles = [f"{name} · {x:g} · {show(y)}" for x, y in shown]
    series = [Series("own", shown, "held", dots=True, titles=titles)]
    label, step = f"{name}: {show(points[-1][1])}", page.text("loss.step")
    return el("figure", chart(series, (LOW_WIDE, LOW_NARROW), step, name, label, show))


def _picture(path: Path) -> Html | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) > MOST_BYTES:
        return el("p", f"{PICTURES}/{path.name}", class_="muted")
    # As an image and never as markup: what a person's code wrote is shown, not run.
    source = f"data:{KINDS[path.suffix]};base64,{base64.b64encode(data).decode()}"
    caption = el("figcaption", path.name)
    return el("figure", el("img", src=source, alt=path.name, style="max-width:100%"), caption)
