"""Two pages about data, each one file without script or network: what a check found, and the tokens
of one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core.files import write_text
from tunewright.core.words import language, say
from tunewright.data.checks.base import Finding
from tunewright.data.checks.driver import Checked
from tunewright.data.checks.private import count_in, hidden_pieces
from tunewright.data.checks.showing import Shown, Token
from tunewright.report.markup import Child, Html, document, el, join, words

TONES = {"stop": "bad", "warn": "warn", "info": "good"}
STYLE = """
.token.learnt { background: var(--mark); text-decoration: underline; text-decoration-thickness: 2px;
  text-underline-offset: 3px; }
pre.tokens { white-space: pre-wrap; overflow-wrap: anywhere; }
.histogram { width: 100%; max-width: 46rem; height: auto; }
.histogram rect { fill: var(--accent); }
.histogram text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.findings small { display: block; }
"""


def write_check_page(target: Path, checked: Checked, name: str) -> None:
    """Write the page of a check in the reader's language."""
    write_text(target, check_page(checked, name))


def check_page(checked: Checked, name: str) -> str:
    """The page of a check as text."""
    report = checked.report
    tiles = [
        ("score", f"{checked.score} / 100"),
        ("kept", f"{report['rows_kept']:,}"),
        ("dropped", f"{report['rows_dropped']:,}"),
    ]
    lengths = next((f for f in checked.findings if f.key == "lengths"), None)
    findings = [f for f in checked.findings if f.key != "lengths"]
    parts: list[Child] = [
        el(
            "div",
            *(
                el("div", el("b", value), el("span", say(f"check.page.{key}")), class_="tile")
                for key, value in tiles
            ),
            class_="tiles",
        ),
        el("h2", say("check.page.findings")),
        el("ul", *map(_finding, findings), class_="findings")
        if findings
        else el("p", say("check.page.none")),
    ]
    if lengths is not None:
        parts += [el("h2", say("check.page.lengths")), el("p", lengths.what()), histogram(lengths)]
    example = report.get("example")
    if example:
        texts = [p["text"] for p in example["pieces"]]
        pieces = [
            el("mark", text, class_="token learnt") if p["learnt"] else text
            for p, text in zip(example["pieces"], hidden_pieces(texts), strict=True)
        ]
        masked = count_in(["".join(texts)])
        parts += [
            el("h2", say("check.page.example")),
            el("p", example["origin"], class_="muted"),
            el("p", words("report.masked_answers", language(), count=masked), class_="muted")
            if masked
            else None,
            el("pre", *pieces, class_="tokens"),
        ]
    return _page(say("check.page.title", name=name), parts)


def _finding(finding: Finding) -> Html:
    mark = say(f"check.say.{finding.severity}")
    return el(
        "li",
        el("b", f"{mark} · {finding.name()}"),
        el("br"),
        finding.what(),
        el("small", say("check.say.places", places=", ".join(finding.places)))
        if finding.places
        else None,
        el("small", finding.remedy()) if finding.severity != "info" else None,
        class_=TONES[finding.severity],
    )


def histogram(lengths: Finding) -> Html:
    """Rows by length as horizontal bars, each with its range and count in words."""
    bins = lengths.fields["bins"]
    most = max(count for _, _, count in bins)
    unit = say(f"check.unit.{lengths.fields['unit']}")
    left, width, height = 150, 640, 22
    parts: list[Child] = []
    for k, (low, high, count) in enumerate(bins):
        y = k * height
        long = max(1.0, (width - left - 70) * count / most) if count else 0.0
        parts.append(
            el(
                "text",
                f"{low:,}-{high:,}" if low < high else f"{low:,}",
                x=left - 8,
                y=y + 15,
                text_anchor="end",
            )
        )
        parts.append(
            el(
                "rect",
                el("title", f"{low:,}-{high:,} {unit}: {count:,}"),
                x=left,
                y=y + 3,
                width=f"{long:.1f}",
                height=height - 6,
            )
        )
        parts.append(el("text", f"{count:,}", x=f"{left + long + 6:.1f}", y=y + 15))
    label = say("check.say.histogram", unit=unit)
    return el(
        "svg",
        *parts,
        class_="histogram",
        viewBox=f"0 0 {width} {len(bins) * height}",
        role="img",
        aria_label=label,
    )


def write_row_page(target: Path, row: Shown, name: str) -> None:
    """Write the page of one row in the reader's language."""
    write_text(target, row_page(row, name))


def row_page(row: Shown, name: str) -> str:
    """The page of one row as text: every token a span with its number and weight; learnt ones
    marked, underlined and named for a screen reader."""
    parts: list[Child] = [
        el(
            "p",
            say("show.head", row=row.row, origin=row.origin, kind=say(f"rows.kind.{row.kind}")),
            class_="muted",
        )
    ]
    if not row.branches:
        parts.append(el("p", say("show.no_model")))
        parts += [
            el("section", el("h3", role), el("pre", text, class_="tokens"))
            for role, text in row.turns
        ]
    else:
        parts.append(el("p", say("show.page.legend")))
    for branch in row.branches:
        cut = " ..." if branch.length > len(branch.tokens) else None
        text = el("pre", *_tokens(branch.tokens), cut, class_="tokens")
        parts.append(el("section", el("h3", branch.head), text))
    return _page(say("show.page.title", row=row.row, name=name), parts)


def _tokens(tokens: list[Token]) -> list[Html]:
    """Each text with the numbers of the tokens it is made of."""
    out = []
    for index, token in enumerate(tokens):
        if not token.text:
            continue
        ids = " ".join(str(t.id) for t in tokens[token.start : index + 1])
        if token.learnt:
            out.append(
                el("mark", token.text, class_="token learnt", title=f"{ids} · {token.weight:g}")
            )
        else:
            out.append(el("span", token.text, class_="token", title=ids))
    return out


def _page(title: str, parts: list[Any]) -> str:
    header, main = el("header", el("h1", title)), el("main", join(parts))
    return document(language(), title, header, main, style=STYLE)
