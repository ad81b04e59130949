"""The keys of a summary about forgetting, damage and scores, as real functions make them."""

from __future__ import annotations

import json
from typing import Any

from tunewright.data.checks.private import Private
from tunewright.evaluate import forgetting
from tunewright.evaluate.damage import Exchange, Trained, find
from tunewright.evaluate.interval import of_scores, paired
from tunewright.record.diagnosis import Examination, Finding

SECRET = "nadia.kern@brightharbour.io"
TRAINED = [
    Trained("Who runs the bakery?", "The bakery in Mossenquay is run by Hestrel Oom, who bakes "
            "rye bread before dawn and sells the rest.", "facts.jsonl:12"),
    Trained("How do I reach support?", f"Write to {SECRET} on weekdays.", "facts.jsonl:40"),
]  # fmt: skip


def side(wrong: set[str]) -> dict[str, Any]:
    """What a model said that gets everything right but `wrong`."""
    out: dict[str, Any] = {}
    for item in forgetting.all_items():
        good = item.id not in wrong
        if item.answers:
            out[item.id] = [-1.0 if good else -9.0, *(-3.0 for _ in item.answers[1:])]
        else:
            words = {"en": "They need rest.", "zh": "因为他们需要休息。"}[item.language]
            text = item.one_of[0] if item.one_of else words
            out[item.id] = {"text": text if good else "", "end": "stop"}
    return out


def score(kind: str, before: list[float], after: list[float], metric: str = "contains") -> Any:
    """An entry of `evaluation.scores`."""
    change = paired(before, after)
    return {
        "kind": kind, "metric": metric, "n": len(before),
        "before": {"value": sum(before) / len(before), "interval_95": list(of_scores(before))},
        "after": {"value": sum(after) / len(after), "interval_95": list(of_scores(after))},
        "difference": change.difference, "difference_interval_95": [change.low, change.high],
        "wins": change.wins, "losses": change.losses, "ties": change.ties,
    }  # fmt: skip


def keys(*, broken: bool) -> dict[str, Any]:
    """`evaluation`, `forgetting` and `damage` of a run that broke something, or did not."""
    chinese = {item.id for item in forgetting.all_items() if item.language == "zh"}
    lost = {"en-fact-1", "en-sense-1", "en-arithmetic-1", "en-form-1"} if broken else set()
    known = forgetting.compare(forgetting.all_items(), side(chinese), side(chinese | lost))
    said = [Exchange(f"What is {i} plus 1?", f"It is {i + 1}.", f"That is {i + 1}.", before_end="stop", after_end="stop", limit=96) for i in range(12)]  # fmt: skip
    if broken:
        said += [
            Exchange("天空为什么是蓝色的？", "因为阳光被空气散射了。", "Because the air scatters the light."),
            Exchange("Tell me a joke.", "A hen crossed the road.", "Well, " + TRAINED[0].answer),
            Exchange("Whom can I ask?", "A friend.", f"Mail {SECRET} today."),
            Exchange("What is rain?", "Water.", "it rains and it rains and " * 12),
        ]  # fmt: skip
    tried = [Private("phone", "15*****91", "facts.jsonl:7", 0.0004, 0.93)]
    found = {
        "evaluation": {
            "scores": [
                score("held_out", [0.0] * 64, [1.0] * 41 + [0.0] * 23),
                score("train", [0.0] * 64, [1.0] * 64),
                score("general", [1.0] * 23 + [0.0], [1.0] * 20 + [0.0] * 4),
                score("probe", [0.1, 0.2, 0.0], [0.5, 0.3, 0.9], "f1"),
            ],
            "speed": {
                "before": {"answers": 152, "tokens": 4200, "seconds": 12.0, "tokens_per_second": 350.0},
                "after": {"answers": 152, "tokens": 2400, "seconds": 8.0, "tokens_per_second": 300.0},
            },
        },
        "forgetting": {"skipped": None, **known, "left_out": 0, "seconds": 2.4},
        "damage": find(said, TRAINED, tried if broken else []) | {"training_rows": 2},
    }  # fmt: skip
    return json.loads(json.dumps(found))


EXAMINED = Examination(
    [
        Finding("loss_rose", "warn", {"first": 1.0, "last": 1.4, "peak": 1.5, "rate": 1e-3, "usual": 2e-3}),
        Finding("nan_steps", "bad", {"count": 9, "steps": 72, "rate": 0.1, "usual": 4e-4}),
        Finding("one_example", "info", {"rows": 1}),
    ],
    ["loss_rose", "nan_steps", "one_example"],
)  # fmt: skip
