"""The section that says what training broke, with examples, or that nothing was found and on how
many answers that rests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunewright.core.words import say
from tunewright.data.checks.private import hidden
from tunewright.report.evaluation import pairs
from tunewright.report.markup import Child, Html, el, words
from tunewright.report.page import Page, listing, share, whole
from tunewright.report.record import finite, mapping

FEW = 10
"""Fewer answers than this prove little."""


def fields_of(finding: Mapping[str, Any], lang: str | None = None) -> dict[str, Any]:
    """The fields of the sentence `damage.CODE` about a finding in `damage` of the summary."""
    more = mapping(finding.get("figures"))
    kinds = mapping(more.get("kinds"))
    told = [say(f"damage.kind.{kind}", lang=lang) for kind in kinds]
    return {
        **{key: whole(finding.get(key)) for key in ("count", "looked_at", "before")},
        "kinds": say("damage.glue_kinds", lang=lang).join(told),
        **{key: whole(value) for key, value in more.items() if key != "kinds"},
    }


def section(page: Page) -> Html | None:
    """The findings, worst first, each with what to do and examples; None for a run that was not
    looked at."""
    told = mapping(page.record.summary.get("damage"))
    if not told:
        return None
    questions = finite(told.get("questions")) or 0
    findings = [mapping(one) for one in listing(told.get("findings"))]
    if not questions:
        return page.section("damage", el("p", page.say("damage.no_answers"), class_="muted"))
    parts: list[Child] = []
    if not findings:
        few = page.say("damage.few") if questions < FEW else None
        parts.append(el("p", page.say("damage.none", questions=whole(questions)), " ", few))
    if findings:
        items = [_item(page, one) for one in findings]
        parts.append(el("ul", *items, class_="findings"))
        parts += [_examples(page, one) for one in findings if listing(one.get("evidence"))]
    return page.section("damage", *parts, _rests(page, told, findings))


def _item(page: Page, one: dict[str, Any]) -> Html:
    code = str(one.get("code"))
    sentence = words(f"damage.{code}", page.lang, **fields_of(one, page.lang))
    return el(
        "li",
        el("b", page.say(f"damage.code.{code}")),
        ": ",
        sentence,
        words("damage.end", page.lang),
        words(f"damage.do.{code}", page.lang),
        class_=str(one.get("severity")),
    )


def _examples(page: Page, one: dict[str, Any]) -> Html:
    code, examples = str(one.get("code")), [mapping(e) for e in listing(one.get("evidence"))]
    title = el("span", page.say("damage.examples"), ": ", page.say(f"damage.code.{code}"))
    if code == "memorised":
        return page.fold(title, el("ul", *(el("li", _known(page, e)) for e in examples)))
    if code == "personal_data":
        leaks = [
            el("li", hidden(str(e.get("question"))), el("br"), _leak(page, e)) for e in examples
        ]
        return page.fold(title, el("ul", *leaks))

    def note(example: dict[str, Any]) -> Html | None:
        if "copied" not in example:
            return None
        return page.say("damage.source", row=example.get("row"), copied=example["copied"])

    return page.fold(title, pairs(page, examples, note))


def _leak(page: Page, example: dict[str, Any]) -> Html:
    key = "damage.leak_expected" if example.get("expected") else "damage.leak"
    kind = say(f"damage.kind.{example.get('kind')}", lang=page.lang)
    fields = {"value": example.get("value"), "row": example.get("row")}
    return page.say(key, kind=kind, **fields)


def _known(page: Page, example: dict[str, Any]) -> Html:
    kind = say(f"damage.kind.{example.get('kind')}", lang=page.lang)
    fields = {key: share(example.get(key), 1) for key in ("before", "after")}
    where = {"value": example.get("value"), "row": example.get("row")}
    return page.say("damage.probability", kind=kind, **where, **fields)


def _rests(page: Page, told: dict[str, Any], findings: list[dict[str, Any]]) -> Html:
    """What was looked for in how many answers."""
    counts = {str(one.get("code")): one.get("count") for one in findings}
    titles = ("check", "on", "result")
    head = el("tr", *(el("th", page.say(f"damage.{title}"), scope="col") for title in titles))
    rows = [
        el(
            "tr",
            el("th", page.say(f"damage.code.{code}"), scope="row"),
            el("td", whole(count)),
            el("td", whole(counts.get(code, 0))),
        )
        for code, count in mapping(told.get("looked_at")).items()
    ]
    table = el("table", el("thead", head), el("tbody", *rows), class_="numbers tight names")
    compared = page.say(
        "damage.rows",
        answers=whole(told.get("training_answers")),
        rows=whole(told.get("training_rows")),
    )
    return page.fold(page.say("damage.rests"), el("div", table, class_="scroll"), el("p", compared))
