"""What a run did to its model, in figures: the score of its questions before and after, what it
forgot, what it broke, and how fast it answers. Keys of summary.json (docs/damage.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.core.types import Conversation, Judged, Message, PlainText, Preference, Row
from tunewright.core.words import say
from tunewright.evaluate import damage, interval, metrics
from tunewright.report import reasoning
from tunewright.report.damage import fields_of
from tunewright.run.questions import Probe
from tunewright.text import thinking

if TYPE_CHECKING:
    from tunewright.run.asking import Asker
    from tunewright.run.prepare import Plan
    from tunewright.text.renderer import Renderer

KEYS = ("evaluation", "forgetting", "reasoning", "damage")
MOST_ROWS = 50_000
"""Training rows that are searched for what answers recite, spread over all of them."""
METRICS = ("contains", "number", "json_equal", "f1")
"""The one that suits the expected answers is shown: each is 0 to 1 a row and loads no library."""
KINDS = ("held_out", "train", "probe", "general")


def of(plan: Plan, asker: Asker, *, done: bool) -> dict[str, Any]:
    """The keys `evaluation`, `forgetting`, `reasoning` and `damage`; None each for a run that did
    not come to its end, or that is asked for numbers and not for words."""
    if not done or asker.scored:
        return dict.fromkeys(KEYS)
    general, rows = asker.general.report(), plan.data.train_rows
    exchanges = [*_exchanges(plan, asker), *asker.general.exchanges()]
    return {
        "evaluation": {
            "scores": _scores(plan, asker.probes),
            "speed": {side: _speed(asker.speeds.get(side)) for side in ("before", "after")},
        },
        "forgetting": general,
        "reasoning": asker.reasoning.report(),
        "damage": damage.find(exchanges, trained_rows(rows), asker.memorised.values)
        | {"training_rows": len(rows)},
    }


def _speed(spent: dict[str, float] | None) -> dict[str, float] | None:
    if not spent or not spent["seconds"]:
        return None
    return {**spent, "tokens_per_second": spent["tokens"] / spent["seconds"]}


def sentences(summary: dict[str, Any]) -> Iterator[str]:
    """What the last lines of a run say about it."""
    found = summary["forgetting"]
    if found is not None and found["skipped"] is None and found["score"] is not None:
        score, right = found["score"], found["right"]
        yield say(
            f"forgetting.{found['verdict']}",
            n=right["n"],
            before=right["before"],
            after=right["after"],
            change=f"{100 * score['difference']:+.0f}",
            low=f"{100 * score['interval_95'][0]:+.0f}",
            high=f"{100 * score['interval_95'][1]:+.0f}",
        )
    told = reasoning_told(summary.get("reasoning"))
    if told is not None:
        yield told
    broken = summary["damage"]
    if broken is not None and broken["findings"]:
        parts = (say(f"damage.{one['code']}", **fields_of(one)) for one in broken["findings"])
        yield say("damage.found", what=say("damage.glue").join(parts))


def reasoning_told(found: dict[str, Any] | None) -> str | None:
    """What is said of the reasoning questions; None of a model that was not asked any."""
    if found is None or found["skipped"] is not None:
        return None
    return say(f"reasoning.{found['verdict']}", **reasoning.fields_of(found))


# ---- scores


def _scores(plan: Plan, probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """The score of each kind of question that has expected answers."""
    found = []
    for kind in KINDS:
        mine = [probe for probe in probes if probe.kind == kind and probe.expected.strip()]
        if mine:
            found.append({"kind": kind, **_score(plan, mine)})
    return found


def _score(plan: Plan, probes: Sequence[Probe]) -> dict[str, Any]:
    expected = [plan.renderer.without_thoughts(probe.expected) for probe in probes]
    suited = metrics.chosen_for(expected)
    name = next((one for one in METRICS if one in suited), "f1")
    sides = {
        side: metrics.per_row(name, expected, [_bare(plan, probe, side) for probe in probes])
        for side in ("before", "after")
    }
    change = interval.paired(sides["before"], sides["after"])
    return {
        "metric": name,
        "n": len(probes),
        **{
            side: {"value": math.fsum(v) / len(v), "interval_95": list(interval.of_scores(v))}
            for side, v in sides.items()
        },
        "difference": change.difference,
        "difference_interval_95": [change.low, change.high],
        "wins": change.wins,
        "losses": change.losses,
        "ties": change.ties,
    }


def _bare(plan: Plan, probe: Probe, side: str) -> str:
    """An answer without its thought; empty where it was cut off inside that."""
    finished = getattr(probe, f"{side}_end") == "stop"
    opened = _opens(plan.renderer, probe)
    return thinking.parted(getattr(probe, side), opened=opened, finished=finished)[1]


def _opens(renderer: Renderer, probe: Probe) -> bool:
    """Whether a question ends inside a thought."""
    if not renderer.thinks:
        return False
    return renderer.opens(renderer.prompt(probe.messages, form=probe.form(renderer)))


# ---- answers


def _exchanges(plan: Plan, asker: Asker) -> Iterator[damage.Exchange]:
    """The run's own questions with both answers."""
    renderer = plan.renderer
    for probe in asker.probes:
        yield damage.Exchange(
            probe.question,
            probe.before,
            probe.after,
            probe.expected,
            probe.kind,
            probe.before_end,
            probe.after_end,
            asker.limits[probe],
            _opens(renderer, probe),
        )


def trained_rows(rows: Sequence[Row]) -> Iterator[damage.Trained]:
    """What the rows taught, with the question before it."""
    step = max(1, math.ceil(len(rows) / MOST_ROWS))
    for i in range(0, len(rows), step):
        for before, text in learnt_turns(rows[i]):
            asked = next((m.content for m in reversed(before) if m.role == "user"), "")
            yield damage.Trained(asked, text, str(rows[i].origin))


def learnt_turns(row: Row) -> Iterator[tuple[list[Message], str]]:
    """(what stands before, text) of everything that a row taught: every answer of a dialogue, the
    chosen one of a pair, a good one of judged answers, running text with nothing before it."""
    if isinstance(row, PlainText):
        yield [], row.text
    elif isinstance(row, Preference):
        yield row.question(), row.answer()
    elif isinstance(row, Judged):
        if row.good:
            yield row.question(), row.answer()
    elif isinstance(row, Conversation):
        for i, turn in enumerate(row.messages):
            if turn.role == "assistant" and turn.content and turn.weight:
                yield row.messages[:i], turn.content
