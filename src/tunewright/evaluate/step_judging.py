"""How well a process reward model judges steps, next to a judge that always says yes."""

from __future__ import annotations

import math
from typing import Any

from tunewright.core import compat
from tunewright.core.errors import UsageError, problem
from tunewright.core.types import Stepwise
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.evaluate import scorer
from tunewright.evaluate.interval import wilson
from tunewright.models import load
from tunewright.objectives.process_reward import first_wrong, step_branches


def judges_steps(found: opening.Target) -> bool:
    """Whether a run was trained to judge steps, or a model scores every token."""
    judged = compat.judges(found.settings.get("objective.kind"))
    return judged == "steps" or load.scores_tokens(found.source.folder)


def measure(
    found: opening.Target,
    data: Any,
    name: str,
    *,
    dtype: str | None,
    device: str,
    threads: Any,
    details: bool,
    started: float,
) -> dict[str, Any]:
    """Judge every step of `data`. Raises UsageError where its rows have no steps (E-EVAL-07) or a
    score is no number (E-EVAL-04)."""
    if not data.train_rows or not all(isinstance(row, Stepwise) for row in data.train_rows):
        raise UsageError(problem("E-EVAL-07", name, target=found.name))
    samples = list(data.train)
    for sample in samples:
        sample.branches = step_branches(sample.branches[0].tokens, sample.facts["steps"])
    scored = scorer.scores(found, samples, name, dtype=dtype, device=device, threads=threads)
    scores = scored.by_sample
    truth = {s.index: [bool(right) for _, right in s.facts["steps"]] for s in samples}
    said = {index: [score > 0 for score in one] for index, one in scores.items()}
    right = sum(a == b for index in said for a, b in zip(said[index], truth[index], strict=True))
    steps = sum(map(len, truth.values()))
    first = sum(first_wrong(said[index]) == first_wrong(truth[index]) for index in said)
    judging: dict[str, Any] = {
        "steps": steps,
        "right": right,
        "accuracy": right / steps,
        "interval_95": wilson(right, steps),
        "answers": len(samples),
        "first_error": first / len(samples),
        "first_error_interval_95": wilson(first, len(samples)),
        "always_yes": sum(map(sum, truth.values())) / steps,
        "always_yes_first_error": sum(all(one) for one in truth.values()) / len(samples),
    }
    if details:
        chances = {
            index: [1 / (1 + math.exp(-score)) for score in one] for index, one in scores.items()
        }
        judging["rows"] = [
            {"row": str(s.origin), "chances": chances[s.index], "right": truth[s.index]}
            for s in samples
        ]
    return scored.result(found, data, name, started, steps=judging)


def lines(judging: dict[str, Any]) -> list[str]:
    """The figures for a terminal."""

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    low, high = judging["interval_95"]
    shares = {
        name: percent(judging[name])
        for name in ("accuracy", "always_yes", "first_error", "always_yes_first_error")
    }
    out = [
        say(
            "evaluate.steps",
            **shares,
            right=judging["right"],
            n=judging["steps"],
            low=percent(low),
            high=percent(high),
        )
    ]
    out.append(say("evaluate.steps_first", **shares, answers=judging["answers"]))
    if judging["accuracy"] <= judging["always_yes"]:
        out.append(say("evaluate.steps_no_better"))
    return out
