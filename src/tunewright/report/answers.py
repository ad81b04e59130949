"""The section that shows what changed: every question with the answer before and after."""

from __future__ import annotations

import re

from tunewright.data.checks.private import count_in, hidden
from tunewright.report.markup import Child, Html, coded, el, esc, join
from tunewright.report.page import Page, finite
from tunewright.report.record import Answer, Count, mapping
from tunewright.report.verdict import kind_label

SHOWN = 12
"""Rows of a kind that stand open; the others are folded."""
LONGEST = 6000
"""Characters of one answer that are shown."""
MARKS = {"learnt": "✓", "known": "✓", "forgotten": "✗", "not_yet": "✗"}


def section(page: Page) -> Html:
    """Counts by kind, then the rows: forgotten ones first, each kind after that."""
    answers = page.record.answers
    if not answers:
        return page.section("answers", el("p", page.say("answers.none"), class_="muted"))
    forgotten = [a for a in answers if a.forgotten]
    pending = all(a.pending for a in answers)
    counted = any(count.asked for count in page.record.counts)
    parts: list[Child] = (
        [el("p", page.say("answers.pending"))] if pending else [_counts(page), _demo(page)]
    )
    if counted and not pending:
        parts.append(el("p", page.say("answers.legend"), class_="muted"))
    if masked := sum(map(_private, answers)):
        note = page.text("masked", count=masked, file="before_after.jsonl")
        parts.append(el("p", coded(note), class_="muted"))
    if forgotten:
        parts += [
            el("h3", page.say("answers.forgotten_first", count=len(forgotten))),
            _table(page, forgotten),
        ]
    for count in page.record.counts:
        rows = [a for a in answers if a.kind == count.kind and not a.forgotten]
        if rows:
            parts += [el("h3", kind_label(count.kind, page.lang)), _rows(page, rows)]
    return page.section("answers", *parts)


def _private(answer: Answer) -> int:
    """How many private values stand in a row of the table."""
    return count_in((answer.question, answer.expected, answer.before, answer.after))


def _counts(page: Page) -> Html:
    items = []
    for count in page.record.counts:
        if count.asked:
            items.append(
                el("li", el("b", kind_label(count.kind, page.lang)), " ", count_text(page, count))
            )
    return (
        el("ul", *items, class_="counts")
        if items
        else el("p", page.say("answers.no_expected"), class_="muted")
    )


def count_text(page: Page, count: Count) -> Html:
    """`learnt 55 of 64 (before: 0)`, or for general questions `forgotten 1 of 24`."""
    if count.kind == "general":
        return page.say(
            "answers.count_forgotten",
            forgotten=count.forgotten,
            known=count.right_before,
            asked=count.asked,
        )
    key = "answers.count_learnt_forgotten" if count.forgotten else "answers.count_learnt"
    return page.say(
        key,
        right=count.right_after,
        asked=count.asked,
        before=count.right_before,
        forgotten=count.forgotten,
    )


def _demo(page: Page) -> Html:
    """The counts of the demo as its summary states them."""
    demo = mapping(page.record.summary.get("demo"))
    keys = (
        "facts",
        "base_train",
        "base_held_out",
        "tuned_train",
        "tuned_held_out",
        "general_base_right",
        "general_kept",
    )
    if not all(finite(demo.get(key)) is not None for key in keys):
        return Html("")
    return el("p", page.say("answers.demo", **{key: f"{finite(demo[key]):g}" for key in keys}))


def _rows(page: Page, rows: list[Answer]) -> Html:
    first = _table(page, rows[:SHOWN])
    if len(rows) <= SHOWN:
        return first
    return join(
        [
            first,
            page.fold(
                page.say("answers.more", count=len(rows) - SHOWN), _table(page, rows[SHOWN:])
            ),
        ]
    )


def _table(page: Page, rows: list[Answer]) -> Html:
    expected = any(a.expected.strip() for a in rows)
    pending = all(a.pending for a in rows)
    names = [
        "question",
        *(["expected"] if expected else []),
        "before",
        *([] if pending else ["after"]),
    ]
    head = el(
        "thead",
        el(
            "tr",
            *(
                el("th", page.say(f"answers.{name}"), scope="col", class_=f"c-{name}")
                for name in names
            ),
        ),
    )
    return el("table", head, el("tbody", *(_row(page, a, expected) for a in rows)), class_="pairs")


def _row(page: Page, answer: Answer, expected: bool) -> Html:
    outcome = answer.outcome
    label = "wrong" if outcome == "not_yet" and answer.kind == "general" else outcome
    mark = (
        el("span", MARKS[outcome], " ", page.say(f"answers.is_{label}"), class_=f"mark {outcome}")
        if outcome in MARKS
        else None
    )
    notes = []
    if answer.after_cut:
        notes.append(el("span", page.say("answers.cut"), class_="note"))
    if answer.after_reload is not None and answer.after_reload != answer.after:
        notes.append(
            el(
                "span",
                page.say("answers.reload", answer=_short(answer.after_reload)),
                class_="note",
            )
        )
    cells = [_cell(page, "question", _shown(page, answer.question))]
    if expected:
        cells.append(_cell(page, "expected", _shown(page, answer.expected)))
    cells.append(_cell(page, "before", _shown(page, answer.before, answer.expected)))
    if not answer.pending:
        cells.append(
            _cell(
                page,
                "after",
                el("div", mark, notes) if mark or notes else None,
                _shown(page, answer.after, answer.expected),
            )
        )
    return el("tr", *cells, class_=outcome)


def _cell(page: Page, name: str, *children: Child) -> Html:
    return el("td", *children, class_=f"c-{name}", data_label=page.text(f"answers.{name}"))


def _short(text: str) -> str:
    text = hidden(text)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _shown(page: Page, text: str, expected: str = "") -> Html:
    """An answer as it is, with the expected part highlighted where it stands literally."""
    if not text.strip():
        return el("em", page.say("answers.empty"), class_="muted")
    text, expected = _short(text), hidden(expected)
    wanted = r"\s+".join(re.escape(word) for word in expected.split())
    # A whole answer that was learnt word for word needs no highlight: the mark says it.
    found = (
        re.search(wanted, text, re.IGNORECASE)
        if wanted and len(expected) < 0.9 * len(text)
        else None
    )
    if not found:
        return el("div", text, class_="said", dir="auto")
    return el(
        "div",
        esc(text[: found.start()]),
        el("mark", found.group()),
        esc(text[found.end() :]),
        class_="said",
        dir="auto",
    )
