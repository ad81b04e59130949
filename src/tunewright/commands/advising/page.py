"""What an advice says: lines for a terminal, a page, and the commands to go on with."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.advise.decide import ASKED, QUERIES, Score, Verdict, told
from tunewright.advise.starting import starter
from tunewright.commands.advising import picture
from tunewright.core.files import readable_size, write_text
from tunewright.core.telling import duration
from tunewright.core.words import language, say
from tunewright.data.checks.private import count_in, hidden
from tunewright.report.markup import Child, document, el, words

if TYPE_CHECKING:
    from tunewright.commands.advising.question import Question
    from tunewright.commands.advising.training import Planned

ORDER = ("constant", "classes", "regressor", "formula", *ASKED, *QUERIES)
LONGEST = 400
"""Characters of an answer on the page."""


# ---- the commands to go on with


def next_commands(
    question: Question, out: Path, verdict: Verdict, planned: Planned | None
) -> list[str]:
    """Commands that carry the verdict out, the first one first."""
    folder = shlex.quote(str(out))
    ask = f'tunewright advise --out {folder} --ask "..."'
    model = shlex.quote(question.model)
    train = f"tunewright train {shlex.quote(str(out / 'train.yaml'))}"
    tried = [f"tunewright chat {shlex.quote(str(planned.out))}"] if planned is not None else []
    by_branch = {
        "no_model": [ask],
        "has_it": [f"tunewright chat {model}"] if verdict.way == "base" else [ask],
        "query": [ask],
        "rag": [ask],
        "rag_and_tune": [train, ask],
        "stable": [train, *tried],
        "format": [train, *tried] if verdict.way in ("lora", "lora_rag") else [ask, train],
        "nothing": [train],
    }
    return by_branch[verdict.branch]


def write_next(question: Question, base: str, out: Path, verdict: Verdict) -> None:
    """The run file of the commands: all rows, settings that suit their number."""
    target = out / "train.yaml"
    if not any(str(target) in line for line in next_commands(question, out, verdict, None)):
        return
    run = str(out / "run")
    text = starter(question.data, base, out=run, name=str(target), columns=question.columns or None)
    write_text(target, text)


# ---- the terminal


def table(made: dict[str, Any]) -> list[list[str]]:
    """The cells of the comparison, its head first."""
    has_form = any(row["form"] for row in made["ways"].values())
    heads = ["way", "score", *(["form"] if has_form else []), "seconds", "tokens", "setup", "disk"]
    rows = [[say(f"advise.head.{head}") for head in heads] + [say("advise.head.change")]]
    for way in sorted(made["ways"], key=ORDER.index):
        row = made["ways"][way]
        cells = [say(f"advise.short.{way}"), _told(row["score"])]
        cells += [_told(row["form"])] if has_form else []
        seconds = row["seconds_per_answer"]
        cells += [
            f"{seconds:.2f}" if seconds >= 0.005 else "0",
            f"{row['prompt_tokens']:.0f}",
            duration(row["setup_seconds"]) if row["setup_seconds"] >= 1 else "0",
            readable_size(row["disk_bytes"]) if row["disk_bytes"] else "0",
            row["when_knowledge_changes"],
        ]
        rows.append(cells)
    return rows


def _told(score: dict[str, float] | None) -> str:
    return told(Score(**score)) if score else "-"


def lines(made: dict[str, Any], verdict: Verdict) -> list[str]:
    """Everything for a terminal but the table."""
    out = ["", say("advise.tree"), *picture.text(verdict), ""]
    out.append(say("advise.verdict", branch=say(f"advise.branch.{verdict.branch}")))
    out += picture.wrapped(verdict.why, picture.WIDTH)
    for key, texts in (("assumed", verdict.assumed), ("remark", verdict.remarks)):
        out += [say(f"advise.{key}", text=text) for text in texts]
    for why in dict.fromkeys(made["left_out"].values()):
        ways = [say(f"advise.way.{way}") for way, w in made["left_out"].items() if w == why]
        out.append(say("advise.not_measured_ways", ways=", ".join(ways), why=why))
    out += ["", say("advise.next"), *(f"  {line}" for line in made["next"])]
    out.append(say("advise.page", page=made["page"], time=duration(made["seconds"])))
    return out


# ---- the page


def write_page(out: Path, made: dict[str, Any], verdict: Verdict) -> Path:
    """Write `advice.html` and say where it is."""
    title = say("advise.title", model=made["asked"]["model"])
    body: list[Child] = [
        el("p", el("b", say(f"advise.branch.{verdict.branch}")), class_="verdict good"),
        el("p", verdict.why),
        el("ul", *(el("li", text) for text in [*verdict.assumed, *verdict.remarks])),
        el("h2", say("advise.next")),
        el("pre", "\n".join(made["next"])),
        el("h2", say("advise.tree")),
        el("div", picture.svg(verdict), class_="scroll"),
        el("ol", *(_evidence(step) for step in verdict.path)),
        el("h2", say("advise.compared")),
        _table(made),
        el("p", say("advise.explained", metric=say(f"advise.metric.{made['metric']}"))),
        *_left_out(made),
        el("h2", say("advise.examples")),
        *_examples(made),
    ]
    header, main = el("header", el("h1", title)), el("main", *body)
    target = out / "advice.html"
    write_text(target, document(language(), title, header, main, style=picture.STYLE))
    return target


def _evidence(step: Any) -> Child:
    answer = el("b", picture.shown(step))
    return el("li", say(f"advise.question.{step.node}"), " ", answer, el("br"), step.evidence)


def _table(made: dict[str, Any]) -> Child:
    head, *rows = table(made)
    return el(
        "div",
        el(
            "table",
            el("thead", el("tr", *(el("th", cell, scope="col") for cell in head))),
            el("tbody", *(el("tr", *(el("td", cell) for cell in row)) for row in rows)),
            class_="tight",
        ),
        class_="scroll",
    )


def _left_out(made: dict[str, Any]) -> list[Child]:
    if not made["left_out"]:
        return []
    items = [el("li", say(f"advise.way.{way}"), ": ", why) for way, why in made["left_out"].items()]
    return [el("h3", say("advise.not_measured")), el("ul", *items)]


def _shown(text: str) -> str:
    """The beginning of a text, its private values masked."""
    return hidden(text)[:LONGEST]


def _examples(made: dict[str, Any]) -> list[Child]:
    parts: list[Child] = []
    texts = [text for row in made["examples"] for text in _texts_of(row)]
    if masked := count_in(texts):
        parts.append(el("p", words("report.masked_answers", language(), count=masked)))
    for row in made["examples"]:
        answers = [
            el(
                "tr",
                el("td", say(f"advise.way.{way}")),
                el("td", _shown(one["answer"]), _query(one)),
                el("td", f"{one['score']:.2f}"),
            )
            for way, one in row["ways"].items()
        ]
        parts += [
            el("h3", _shown(row["question"])),
            el("p", say("advise.expected", text=_shown(row["expected"]))),
            el("div", el("table", el("tbody", *answers)), class_="scroll"),
        ]
    return parts


def _texts_of(row: dict[str, Any]) -> list[str]:
    said = [text for one in row["ways"].values() for text in (one["answer"], one.get("query"))]
    return [text for text in (row["question"], row["expected"], *said) if text]


def _query(one: dict[str, Any]) -> Child:
    return [el("br"), el("code", _shown(one["query"]))] if one.get("query") else None


def read_advice(out: Path) -> dict[str, Any]:
    """advice.json of a folder. Raises OSError or ValueError where there is none."""
    found: dict[str, Any] = json.loads((out / "advice.json").read_text(encoding="utf-8"))
    return found
