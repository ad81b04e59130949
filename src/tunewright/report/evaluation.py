"""The section that answers "did it get better, and at what cost": the score of the run's questions
before and after, general knowledge, the speed of answers, the word of the doctor.

All figures are those of the summary; the doctor's findings lie in `doctor.json`. What a run does
not have is left out, and a run of an earlier version has no such section.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunewright.data.checks.private import hidden
from tunewright.record import diagnosis
from tunewright.report import reasoning
from tunewright.report.chart import Bar, intervals
from tunewright.report.markup import Child, Html, coded, el, words
from tunewright.report.page import Page, listing, whole
from tunewright.report.record import finite, mapping
from tunewright.report.verdict import kind_label

TONES = {"kept": "good", "forgot": "bad", "unclear": "warn", "unknown": "warn"}


def has_one(page: Page) -> bool:
    """Whether there is anything to say."""
    summary = page.record.summary
    return bool(mapping(summary.get("evaluation")) or mapping(summary.get("forgetting")))


def section(page: Page) -> Html | None:
    """Scores as a picture and in words, forgetting, speed, the doctor."""
    if not has_one(page):
        return None
    scores = [one for one in map(_score, listing(_evaluation(page).get("scores"))) if one]
    general = mapping(page.record.summary.get("forgetting"))
    bars = [_bar(page, kind_label(one.kind, page.lang), one) for one in scores]
    known = _general(general)
    if known is not None:
        bars.append(_bar(page, page.text("evaluation.general", n=known.n), known, named=True))
    rows: list[tuple[Child, Child]] = [
        (
            page.say("evaluation.kind", kind=kind_label(one.kind, page.lang), n=one.n),
            _told(page, one),
        )
        for one in scores
    ]
    if not scores:
        rows.append((page.say("answers.title"), page.say("evaluation.no_score")))
    rows.append((page.say("evaluation.forgetting"), _forgetting(page, general)))
    rows += filter(None, [reasoning.row(page)])
    rows.append((page.say("evaluation.speed"), _speed(page)))
    rows.append((page.say("evaluation.doctor"), _doctor(page)))
    drawing = intervals(bars, page.text("evaluation.chart")) if bars else None
    legend = el(
        "p",
        *(
            el("span", el("i", class_=f"key {side}"), page.say(f"answers.{side}"), class_="legend")
            for side in ("before", "after")
        ),
        class_="legends",
    )
    return page.section(
        "evaluation",
        el("p", page.say("evaluation.explained")) if bars else None,
        el("figure", legend, drawing) if bars else None,
        page.table(rows),
        _by_kind(page, general),
        _examples(page, general),
    )


def _evaluation(page: Page) -> dict[str, Any]:
    return mapping(page.record.summary.get("evaluation"))


# ---- scores


@dataclass(frozen=True)
class _Score:
    """A figure before and after with its intervals, all of them shares from 0 to 1."""

    kind: str
    metric: str
    n: int
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    change: tuple[float, float, float]
    counts: dict[str, int]


def _triple(value: Any, interval: Any) -> tuple[float, float, float] | None:
    """(value, low, high) of figures that are all there."""
    ends = interval if isinstance(interval, list) and len(interval) == 2 else [None, None]
    told = [finite(value), finite(ends[0]), finite(ends[1])]
    known = [one for one in told if one is not None]
    return (known[0], known[1], known[2]) if len(known) == 3 else None


def _score(told: Any) -> _Score | None:
    """An entry of `evaluation.scores`; None for one that is damaged."""
    one = mapping(told)
    sides = [
        _triple(mapping(one.get(side)).get("value"), mapping(one.get(side)).get("interval_95"))
        for side in ("before", "after")
    ]
    change = _triple(one.get("difference"), one.get("difference_interval_95"))
    n, (before, after) = finite(one.get("n")), sides
    if before is None or after is None or change is None or n is None:
        return None
    counts = {key: int(finite(one.get(key)) or 0) for key in ("wins", "losses", "ties")}
    kind, metric = str(one.get("kind")), str(one.get("metric"))
    return _Score(kind, metric, int(n), before, after, change, counts)


def _general(general: dict[str, Any]) -> _Score | None:
    """The shares of general questions that were right, as a score."""
    right = mapping(general.get("right"))
    n = finite(right.get("n"))
    if not n:
        return None
    sides = [
        _triple((finite(right.get(side)) or 0) / n, right.get(f"{side}_interval_95"))
        for side in ("before", "after")
    ]
    before, after = sides
    if before is None or after is None:
        return None
    return _Score("general", "", int(n), before, after, (0.0, 0.0, 0.0), {})


def _points(value: float, sign: bool = False) -> str:
    return f"{100 * value:+.0f}" if sign else f"{100 * value:.0f}\u00a0%"


def _told(page: Page, one: _Score) -> Html:
    """A score in words."""
    before, after, change = one.before, one.after, one.change
    metric = f"evaluation.metric.{one.metric}"
    return page.say(
        "evaluation.value",
        before=_points(before[0]),
        before_low=_points(before[1]),
        before_high=_points(before[2]),
        after=_points(after[0]),
        after_low=_points(after[1]),
        after_high=_points(after[2]),
        difference=_points(change[0], sign=True),
        low=_points(change[1], sign=True),
        high=_points(change[2], sign=True),
        metric=page.text(metric),
        **one.counts,
    )


def _bar(page: Page, name: str, one: _Score, *, named: bool = False) -> Bar:
    label = name if named else page.text("evaluation.kind", kind=name, n=one.n)
    shown = f"{_points(one.before[0])} → {_points(one.after[0])}"
    return Bar(label, shown, [("before", *one.before), ("after", *one.after)])


# ---- forgetting


def _forgetting(page: Page, general: dict[str, Any]) -> Child:
    """The verdict, and what the start could do in each language at all."""
    if not general:
        return None
    if general.get("skipped"):
        return words(f"forgetting.skipped.{general['skipped']}", page.lang, seconds="")
    verdict = str(general.get("verdict"))
    right, score = mapping(general.get("right")), mapping(general.get("score"))
    change = _triple(score.get("difference"), score.get("interval_95")) or (0.0, 0.0, 0.0)
    sentence = words(
        f"forgetting.{verdict}",
        page.lang,
        n=whole(right.get("n")),
        before=whole(right.get("before")),
        after=whole(right.get("after")),
        change=_points(change[0], sign=True),
        low=_points(change[1], sign=True),
        high=_points(change[2], sign=True),
    )
    lines = [
        el("li", _language(page, name, mapping(told)))
        for name, told in mapping(general.get("languages")).items()
    ]
    tone = TONES.get(verdict, "warn")
    return [el("span", sentence, class_=f"tone {tone}"), el("ul", *lines, class_="counts")]


def _language(page: Page, name: str, told: dict[str, Any]) -> Html:
    fields = {key: whole(told.get(key)) for key in ("n", "before", "after")}
    key = "language_able" if told.get("able") else "language_unable"
    return page.say(
        f"forgetting.{key}", language=page.text(f"forgetting.language.{name}"), **fields
    )


def _by_kind(page: Page, general: dict[str, Any]) -> Html | None:
    kinds = mapping(general.get("kinds"))
    if not kinds:
        return None
    names = ("n", "before", "after")
    titles = [page.say("forgetting.n"), page.say("answers.before"), page.say("answers.after")]
    head = el("tr", el("th", ""), *(el("th", title, scope="col") for title in titles))
    rows = [
        el(
            "tr",
            el("th", page.say(f"forgetting.kind.{kind}"), scope="row"),
            *(el("td", whole(mapping(told).get(name))) for name in names),
        )
        for kind, told in kinds.items()
    ]
    table = el("table", el("thead", head), el("tbody", *rows), class_="numbers tight names")
    return page.fold(page.say("forgetting.by_kind"), el("div", table, class_="scroll"))


def _examples(page: Page, general: dict[str, Any]) -> Html | None:
    lost = [mapping(one) for one in listing(general.get("forgotten"))]
    if not lost:
        return None
    summary = page.say("forgetting.examples", count=len(lost))
    return page.fold(summary, pairs(page, lost))


def pairs(page: Page, examples: list[dict[str, Any]], note: Any = None) -> Html:
    """A table of questions with both answers; `note` gives what is said below the second."""
    names = ("question", "before", "after")
    head = el("tr", *(el("th", page.say(f"answers.{name}"), class_=f"c-{name}") for name in names))
    rows = []
    for one in examples:
        cells = [
            el(
                "td",
                _said(page, str(one.get(name) or "")),
                el("span", note(one), class_="note") if note and name == "after" else None,
                class_=f"c-{name}",
                data_label=page.text(f"answers.{name}"),
            )
            for name in names
        ]
        rows.append(el("tr", *cells))
    return el("table", el("thead", head), el("tbody", *rows), class_="pairs")


def _said(page: Page, text: str) -> Html:
    if not text.strip():
        return el("em", page.say("answers.empty"), class_="muted")
    return el("div", hidden(text), class_="said", dir="auto")


# ---- speed and the doctor


def _speed(page: Page) -> Child:
    speed = mapping(_evaluation(page).get("speed"))
    before, after = mapping(speed.get("before")), mapping(speed.get("after"))
    now, was = finite(after.get("tokens_per_second")), finite(before.get("tokens_per_second"))
    if now is None:
        return None
    fields = {"tokens": f"{now:.0f}", "answers": whole(after.get("answers"))}
    if was is None or before.get("answers") != after.get("answers"):
        return page.say("evaluation.speed_value", **fields)
    return page.say("evaluation.speed_both", before=f"{was:.0f}", **fields)


def _doctor(page: Page) -> Child:
    """The worst of the doctor's findings, with the way to all of them; nothing where no doctor
    looked at the run."""
    examination = diagnosis.read(page.record.run)
    if examination is None:
        return None
    wrong = [one for one in examination.findings if one.severity != "info"]
    if not wrong:
        return page.say("evaluation.doctor_none", checked=len(examination.checked))
    worst = min(wrong, key=lambda one: diagnosis.ORDER.index(one.severity))
    told = page.say("evaluation.doctor_worst", count=len(wrong), what=worst.what(page.lang))
    remedy = coded(page.text("evaluation.doctor_remedy", remedy=worst.remedy(page.lang)))
    link = el("a", page.say("evaluation.doctor_all"), href="#doctor")
    return [el("span", told, class_=f"tone {worst.severity}"), el("p", remedy), el("p", link)]
