"""The section that holds the verdict of the gate of a run, from its summary and `gate.json`."""

from __future__ import annotations

import json
from typing import Any

from tunewright.report import gate_review
from tunewright.report.markup import Child, Html, coded, el
from tunewright.report.page import Page
from tunewright.report.record import mapping

ORDER = ("fails", "undecided", "holds")
"""Verdicts of a clause, the worst first."""
TONES = {"fails": "bad", "undecided": "warn", "holds": "good"}
FIGURES = "gate.json"


def has_one(page: Page) -> bool:
    """Whether the run named a contract that was put to it."""
    return bool(mapping(page.record.summary.get("gate")))


def section(page: Page) -> Html | None:
    """The verdict in a sentence and every clause with what was found; None without a gate."""
    told = mapping(page.record.summary.get("gate"))
    if not told:
        return None
    contract = str(told.get("contract") or "-")
    if told.get("problem"):
        text = page.text("gate.not_asked", contract=contract, problem=told["problem"])
        return page.section("gate", el("ul", el("li", text, class_="bad"), class_="findings"))
    result = _figures(page)
    if result is None:  # the summary alone
        names = ", ".join(str(one) for one in told.get("failed") or [])
        key = "gate.passed_short" if told.get("passed") else "gate.failed_short"
        return page.section("gate", el("p", page.say(key, names=names or "-")))
    clauses = sorted(
        result["clauses"], key=lambda one: (one["passed"], ORDER.index(one["verdict"]))
    )
    changed = sum(one["kind"] != "reworded" for one in result["changes"])
    return page.section(
        "gate",
        el("p", el("b", gate_review.headline(result, page.lang))),
        el("p", gate_review.rate_sentence(result, page.lang), class_="muted"),
        el("p", page.say("gate.about", contract=contract)),
        el("ul", *(_clause(page, one) for one in clauses), class_="findings"),
        el("p", coded(page.text("gate.more", changed=changed)), class_="muted"),
    )


def _clause(page: Page, clause: dict[str, Any]) -> Html:
    mark = gate_review.MARKS[clause["verdict"]]
    found: list[Child] = []
    for text in clause["sentences"]:
        found += [el("br"), gate_review.shown(text)]
    tone = "bad" if not clause["passed"] else TONES[clause["verdict"]]
    line = gate_review.clause_line(clause, page.lang)
    return el("li", el("b", f"{mark} {line}"), *found, class_=tone)


def _figures(page: Page) -> dict[str, Any] | None:
    """`gate.json` of the run; None where it cannot be read as the verdict of a gate."""
    try:
        text = (page.record.run / FIGURES).read_text(encoding="utf-8")
        result = json.loads(text)
        wanted = ("clauses", "changes", "failed", "undecided", "error_rate", "a")
        known = all(one["verdict"] in ORDER and "passed" in one for one in result["clauses"])
        return result if known and all(key in result for key in wanted) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
