"""`report.html` of a pipeline: one line a stage with its held-out figures, and the way to each
stage's own page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core.files import write_text
from tunewright.core.words import language
from tunewright.record.folder import read_summary
from tunewright.report.markup import Child, Html, document, el, words
from tunewright.report.page import Page
from tunewright.report.record import finite, read_record
from tunewright.report.verdict import headline, losses_of, show


def write_stages_report(out: Path, lang: str | None = None) -> Path:
    """Write `out/report.html` from `out/summary.json` and the stages' run folders, and say where it
    is."""
    target = out / "report.html"
    write_text(target, render_stages(out, lang))
    return target


def render_stages(out: Path, lang: str | None = None) -> str:
    """The page as text."""
    chosen = lang or language()
    summary = read_summary(out)
    stages = [row for row in summary.get("stages", []) if isinstance(row, dict)]
    title = words("pipeline.title", chosen, name=out.resolve().name)
    done = sum(row.get("status") == "done" for row in stages)
    tone = "good" if done == len(stages) else "warn"
    heads = el(
        "tr",
        *(
            el("th", words(f"pipeline.column.{key}", chosen), scope="col")
            for key in ("stage", "what", "held_out", "other", "time")
        ),
    )
    rows = [_row(out, row, chosen) for row in stages]
    return document(
        chosen,
        title,
        el(
            "header",
            el("h1", title),
            el(
                "p",
                words("pipeline.verdict", chosen, done=done, count=len(stages)),
                class_=f"verdict {tone}",
            ),
        ),
        el("pre", str(summary["reason"])) if summary.get("reason") else None,
        el(
            "main",
            el("div", el("table", el("thead", heads), el("tbody", *rows)), class_="scroll"),
            el("p", words("pipeline.explained", chosen)),
        ),
    )


def _row(out: Path, row: dict[str, Any], lang: str) -> Html:
    """One stage: what it is, what it measured, where its page is."""
    folder = out / str(row.get("folder", ""))
    name: Child = str(row.get("name", "?"))
    what: list[Child] = [f"{row.get('objective', '?')} · {row.get('method', '?')}"]
    if not (folder / "run.yaml").is_file():
        return el(
            "tr",
            el("td", name),
            el("td", *what),
            el("td", words("pipeline.status.waiting", lang), colspan="3", class_="muted"),
        )
    record = read_record(folder)
    page, losses = Page(record, lang), losses_of(record)
    verdict = headline(record)
    what += [
        el("br"),
        el(
            "small",
            words(f"pipeline.status.{row.get('status')}", lang),
            " · ",
            words(verdict.key, lang, **verdict.fields),
        ),
    ]
    figures = record.summary.get("held_out_figures")
    figures = figures if isinstance(figures, dict) else {}
    held: Child = words("pipeline.no_held_out", lang)
    if (
        losses.held_after is not None and "reward_change" in figures
    ):  # what learns from rewards has the negative reward for a loss
        before, after = (
            show(None if loss is None else -loss)
            for loss in (losses.held_before, losses.held_after)
        )
        held = words("pipeline.reward", lang, before=before, after=after)
    elif losses.held_after is not None:
        held = f"{show(losses.held_before)} → {show(losses.held_after)}"
    others = [
        f"{key} {show(finite(value))}"
        for key, value in figures.items()
        if finite(value) is not None
    ]
    if (folder / "report.html").is_file():
        name = el("a", name, href=f"{row['folder']}/report.html")
    return el(
        "tr",
        el("td", name),
        el("td", *what),
        el("td", held),
        el("td", *[part for one in others for part in (one, el("br"))]),
        el("td", page.seconds(record.summary.get("train_seconds"))),
    )
