"""`methods.html` of a comparison of methods: the table, the losses as bars, and what each method's
model answered to the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core.comparing import contains
from tunewright.core.files import write_text
from tunewright.core.words import language
from tunewright.report.markup import Child, Html, document, el, words
from tunewright.report.record import finite

BAR, ROW, LEFT, RIGHT, FIGURE = 560, 26, 170, 130, 56
"""Pixels: the longest bar, the height of a row, room for names, right of the bars, and for a
figure."""
LONGEST = 600
"""Characters of an answer that are shown."""


def write_methods_page(
    out: Path, table: list[list[str]], rows: list[dict[str, Any]], lang: str | None = None
) -> Path:
    """Write `out/methods.html` from the table's cells (its head first) and the rows of
    `bench_methods`, and say where it is."""
    chosen = lang or language()
    title = words("compare.title", chosen)
    done = [row for row in rows if "problem" not in row]
    failed = [row for row in rows if "problem" in row]
    sections: list[Child] = [
        _table(table, done),
        el("p", words("compare.explained", chosen), class_="muted"),
    ]
    if any(finite(row["held_out_after"]) is not None for row in done):
        sections += [
            el("h2", words("compare.losses", chosen)),
            el("p", words("compare.bars", chosen)),
            _bars(done, chosen),
        ]
    if failed:
        sections += [
            el("h2", words("compare.not_run", chosen)),
            el("ul", *(el("li", el("code", row["kind"]), " ", row["problem"]) for row in failed)),
        ]
    if any(row["answers"] for row in done):
        sections += [el("h2", words("compare.answers", chosen)), *_answers(done, chosen)]
    header, main = el("header", el("h1", title)), el("main", *sections)
    target = out / "methods.html"
    write_text(target, document(chosen, title, header, main))
    return target


def _table(cells: list[list[str]], done: list[dict[str, Any]]) -> Html:
    head, *lines = cells
    body = []
    for line, row in zip(lines, done, strict=True):
        name = el("a", line[0].strip("`"), href=f"{Path(row['folder']).name}/report.html")
        body.append(el("tr", el("td", name), *(el("td", cell) for cell in line[1:])))
    heads = el("tr", *(el("th", name, scope="col") for name in head))
    return el(
        "div",
        el("table", el("thead", heads), el("tbody", *body), class_="numbers tight"),
        class_="scroll",
    )


def _bars(done: list[dict[str, Any]], lang: str) -> Html:
    """Held-out loss after training, lowest first, with a mark where the same model stood before."""
    shown = sorted(
        ((row, after) for row in done if (after := finite(row["held_out_after"])) is not None),
        key=lambda pair: pair[1],
    )
    befores = [before for row, _ in shown if (before := finite(row["held_out_before"])) is not None]
    top = max([*befores, *(after for _, after in shown)]) or 1.0
    parts: list[Child] = []
    for i, (row, after) in enumerate(shown):
        y, before = 8 + i * ROW, finite(row["held_out_before"])
        parts.append(el("text", row["kind"], x=LEFT - 8, y=y + 15, text_anchor="end"))
        parts.append(
            el(
                "rect",
                el("title", f"{row['kind']}: {after:.3f}"),
                class_="p1",
                x=LEFT,
                y=y + 3,
                width=f"{BAR * after / top:.1f}",
                height=ROW - 9,
            )
        )
        if before is not None:
            at = f"{LEFT + BAR * before / top:.1f}"
            parts.append(
                el(
                    "line",
                    el("title", f"{before:.3f}"),
                    class_="axis",
                    x1=at,
                    x2=at,
                    y1=y,
                    y2=y + ROW - 3,
                )
            )
        # Beside the bar's end, and not where it would be read as the mark's figure.
        end, mark = BAR * after / top, BAR * (before or 0) / top
        end = mark if end <= mark < end + FIGURE else end
        parts.append(el("text", f"{after:.3f}", x=f"{LEFT + end + 8:.1f}", y=y + 15))
    label = words("compare.losses", lang)
    return el(
        "svg",
        *parts,
        class_="chart bars",
        viewBox=f"0 0 {LEFT + BAR + RIGHT} {len(shown) * ROW + 16}",
        role="img",
        aria_label=label,
    )


def _answers(done: list[dict[str, Any]], lang: str) -> list[Child]:
    """One table a question: the base model's answer, then every method's."""
    parts: list[Child] = []
    first = next(row for row in done if row["answers"])
    for number, asked in enumerate(first["answers"]):
        lines = [
            el(
                "tr",
                el("td", words("compare.base", lang)),
                _said(asked["before"], asked["expected"], lang),
            )
        ]
        for row in done:
            if (
                number < len(row["answers"])
                and row["answers"][number]["question"] == asked["question"]
            ):
                lines.append(
                    el(
                        "tr",
                        el("td", row["kind"]),
                        _said(row["answers"][number]["after"], asked["expected"], lang),
                    )
                )
        fold = el(
            "details",
            el("summary", words("compare.all", lang)),
            el("table", el("tbody", *lines), class_="facts"),
            open=number == 0,
        )
        expected = (
            el("p", words("compare.expected", lang), " ", el("b", asked["expected"][:LONGEST]))
            if asked["expected"].strip()
            else None
        )
        parts += [el("h3", asked["question"][:LONGEST]), expected, fold]
    return parts


def _said(text: str, expected: str, lang: str) -> Html:
    right = contains(text, expected)
    said = (
        el("span", text[:LONGEST], class_="said")
        if text.strip()
        else el("span", words("compare.empty", lang), class_="muted")
    )
    return el("td", el("span", "✓ ", class_="mark learnt") if right else None, said)
