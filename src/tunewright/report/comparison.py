"""A comparison of models for people: the lines of the terminal, and one page that asks nobody for
anything. Both are made from the figures of `tunewright compare --json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.core.files import readable_size, write_text
from tunewright.core.telling import duration
from tunewright.core.words import language, say
from tunewright.data.checks.private import count_in, hidden
from tunewright.report.markup import Child, Html, document, el, words
from tunewright.report.side_by_side import plain

SHOWN_ROWS = 5
"""Answers on the terminal; the page has them all."""
LONGEST_LINE, LONGEST_NAME = 90, 40
DASH = "–"
STYLE = """
.side { table-layout: fixed; } .side th:first-child { width: 5.5rem; } .side td { overflow-wrap: anywhere; }
.side .lost td { background: var(--bad-paper); } .side .won td { background: var(--good-paper); }
.names td:first-child, .names th:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; text-align: left; }
"""  # noqa: E501


# ---- figures as text


def number(value: Any, digits: int = 3) -> str:
    """A figure, or a dash for none."""
    return DASH if value is None else f"{value:.{digits}f}"


def signed(value: Any, digits: int = 3) -> str:
    """A difference with its sign; no minus before a zero."""
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}"
    return text.replace("-", "+") if not float(text) else text


def size(value: Any) -> str:
    """Bytes for people, or a dash."""
    return DASH if not value else readable_size(value)


def name_of(subject: dict[str, Any]) -> str:
    """A name that fits a table: its end tells more than its beginning."""
    name = plain(subject["name"])
    return name if len(name) <= LONGEST_NAME else "…" + name[-LONGEST_NAME + 1 :]


def _figure(found: dict[str, Any], name: str) -> str:
    figure = found["figures"].get(name)
    if not figure or figure["value"] is None:
        return DASH
    low, high = figure["interval_95"]
    digits = 1 if figure["scale"] == 100 else 3
    return f"{figure['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(result: dict[str, Any], lang: str | None = None) -> list[list[str]]:
    """The head and a line a subject: scores with intervals, loss, speed, sizes."""
    one_loss = _same_tokens(result)
    head = [
        say("beside.subject", lang),
        *result["metrics"],
        say("beside.loss" if one_loss else "beside.loss_character", lang),
        say("beside.speed", lang),
        say("beside.per_answer", lang),
        say("beside.disk", lang),
        say("beside.memory", lang),
    ]
    lines = [head]
    for found in result["subjects"]:
        loss = found["loss"] or {}
        lines.append(
            [
                name_of(found),
                *(_figure(found, name) for name in result["metrics"]),
                number(loss.get("token_mean" if one_loss else "nats_per_character"), 4),
                number(found["tokens_per_second"], 1),
                number(found["seconds_per_answer"], 2),
                size(found["bytes_on_disk"]),
                size(found["memory_bytes"]),
            ]
        )
    kept = [i for i in range(len(head)) if i == 0 or any(line[i] != DASH for line in lines[1:])]
    return [[line[i] for i in kept] for line in lines]


def _same_tokens(result: dict[str, Any]) -> bool:
    """Whether a loss of a token means the same for all."""
    scored = [found["loss"] for found in result["subjects"] if found["loss"]]
    return len({(round(one["tokens"], 6), one["rows"]) for one in scored}) <= 1


def difference_lines(pair: dict[str, Any], lang: str | None = None) -> list[str]:
    """What b has more than a, a line a metric."""
    if pair["no_difference"]:
        key = "no_difference" if "loss" in pair else "same_everywhere"
        return [say(f"beside.{key}", lang, **_names(pair))]
    lines = []
    for name, found in pair["differences"].items():
        lines.append(
            say(
                "beside.difference",
                lang,
                metric=name,
                difference=signed(found["difference"]),
                low=signed(found["low"]),
                high=signed(found["high"]),
                verdict=say(f"beside.{_verdict(found)}", lang),
                **{key: found[key] for key in ("wins", "losses", "ties")},
            )
        )
    if found := pair.get("loss"):
        lines.append(
            say(
                "beside.difference_nats",
                lang,
                difference=signed(found["difference"]),
                low=signed(found["low"]),
                high=signed(found["high"]),
                **{key: found[key] for key in ("wins", "losses", "ties")},
            )
        )
    if pair["speed_ratio"]:
        lines.append(say("beside.speed_ratio", lang, ratio=f"{pair['speed_ratio']:.2f}"))
    return lines


def _verdict(found: dict[str, Any]) -> str:
    """better, worse, or open where the interval holds zero."""
    return "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "open"


def _names(pair: dict[str, Any]) -> dict[str, str]:
    return {side: name_of({"name": pair[side]}) for side in ("a", "b")}


def check_line(check: dict[str, Any], lang: str | None = None) -> str:
    """What the fresh load of the base showed."""
    gap = check["largest_logit_difference"]
    return say(
        "beside.base_equal" if gap == 0 else "beside.base_differs",
        lang,
        name=plain(check["column"]),
        rows=check["rows"],
        places=check["places"],
        gap=f"{gap:.3g}",
    )


# ---- the terminal


def lines(result: dict[str, Any]) -> list[str]:
    """The comparison for a terminal, in the reader's language."""
    out = [say("beside.rows", n=result["n"], rows=result["rows_read"], data=result["data"])]
    out += [plain(warning) for warning in result["warnings"]]
    out += ["", *_aligned(table(result))]
    for pair in result["pairs"]:
        same = say("beside.same", same=pair["same_answers"], n=result["n"])
        out += ["", say("beside.pair", same=same, **_names(pair))]
        out += [f"  {line}" for line in difference_lines(pair)]
    if result["base_check"]:
        out += ["", check_line(result["base_check"])]
    shown = [row for row in result["rows"] if not row["same"]][:SHOWN_ROWS]
    if shown:
        total = sum(not row["same"] for row in result["rows"])
        out += ["", say("beside.worst_first", shown=len(shown), count=total)]
        for row in shown:
            out += _row_lines(row, result["subjects"])
    return [*out, "", say("beside.took", time=duration(result["seconds"]))]


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    from rich.cells import cell_len

    widths = [max(cell_len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]


def _shown(text: str) -> str:
    """A text of a row or an answer, its private values masked."""
    return plain(hidden(text))


def _one_line(text: str) -> str:
    text = " ".join(_shown(text).split())
    return text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE].rstrip() + " …"


def _row_lines(row: dict[str, Any], subjects: Sequence[dict[str, Any]]) -> list[str]:
    out = [f"  ? {_one_line(row['question'])}"]
    if row["expected"].strip():
        out.append(f"    = {_one_line(row['expected'])}")
    for subject, text in zip(subjects, row["answers"], strict=True):
        out.append(f"    {name_of(subject)}: {_one_line(text) or say('beside.empty')}")
    return out


# ---- the page


def write_page(path: Path, result: dict[str, Any], lang: str | None = None) -> Path:
    """Write the page of a comparison and say where it is."""
    chosen = lang or language()
    title = say("beside.title", chosen, names=" · ".join(name_of(s) for s in result["subjects"]))
    about = say("beside.rows", chosen, n=result["n"], rows=result["rows_read"], data=result["data"])
    body: list[Child] = [el("p", about)]
    if result["warnings"]:
        body.append(el("ul", *(el("li", plain(w)) for w in result["warnings"]), class_="findings"))
    body += [_table_of(table(result, chosen)), el("p", words("beside.explained", chosen))]
    body.append(el("h2", words("beside.differences", chosen)))
    for pair in result["pairs"]:
        same = say("beside.same", chosen, same=pair["same_answers"], n=result["n"])
        head = say("beside.pair", chosen, same=same, **_names(pair))
        body += [el("h3", head), el("ul", *map(_item, difference_lines(pair, chosen)))]
    if check := result["base_check"]:
        tone = "good" if check["largest_logit_difference"] == 0 else "warn"
        body.append(el("ul", el("li", check_line(check, chosen), class_=tone), class_="findings"))
    body += [el("h2", words("beside.answers", chosen)), el("p", words("beside.order", chosen))]
    if masked := _private(result):
        body.append(el("p", words("report.masked_answers", chosen, count=masked), class_="muted"))
    body += [_answers(row, result, chosen) for row in result["rows"]]
    page = document(chosen, title, el("header", el("h1", title)), el("main", *body), style=STYLE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _private(result: dict[str, Any]) -> int:
    """How many private values the page masks."""
    return count_in(
        text
        for row in result["rows"]
        for text in (row["question"], row["expected"], *row["answers"])
    )


def _item(text: str) -> Html:
    return el("li", text)


def _table_of(cells: list[list[str]]) -> Html:
    head, *rest = cells
    return el(
        "div",
        el(
            "table",
            el("thead", el("tr", *(el("th", name, scope="col") for name in head))),
            el("tbody", *(el("tr", *(el("td", cell) for cell in line)) for line in rest)),
            class_="numbers tight names",
        ),
        class_="scroll",
    )


def _answers(row: dict[str, Any], result: dict[str, Any], lang: str) -> Html:
    """One question with everybody's answers; folded where all said the same."""
    lines = []
    for place, (subject, text) in enumerate(zip(result["subjects"], row["answers"], strict=True)):
        said = (
            el("span", _shown(text), class_="said")
            if text.strip()
            else el("span", words("beside.empty", lang), class_="muted")
        )
        scores = " · ".join(
            f"{name} {values[place]:.2f}" for name, values in row["scores"].items() if values
        )
        small = el("small", scores, class_="mark") if scores else None
        lines.append(
            el("tr", el("th", name_of(subject), scope="row"), el("td", said, " ", small),
               class_=_change(row, place))
        )  # fmt: skip
    expected = (
        el("p", words("beside.expected", lang), " ", el("b", _shown(row["expected"])))
        if row["expected"].strip()
        else None
    )
    head = el("summary", el("b", _one_line(row["question"]) or row["origin"]))
    return el(
        "details",
        head,
        el("p", _shown(row["question"]), class_="said"),
        expected,
        el("table", el("tbody", *lines), class_="side"),
        el("p", row["origin"], class_="muted"),
        open=not row["same"],
    )


def _change(row: dict[str, Any], place: int) -> str | None:
    """Whether a subject's scores of this row are above or below the first one's."""
    change = sum(v[place] - v[0] for v in row["scores"].values() if v)
    return "won" if change > 0 else "lost" if change < 0 else None
