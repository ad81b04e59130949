"""Any method goes with any objective unless this file says why not; all reasons at once, before anything is loaded."""

from __future__ import annotations

from typing import Any

from tunewright.core.config import RunConfig
from tunewright.core.errors import Problem, problem
from tunewright.core.registry import objectives
from tunewright.core.runfile import kind_of
from tunewright.core.types import ROW_KINDS

USUAL = {"preference": "dpo", "judged": "kto", "prompt": "grpo", "text": "pretrain", "conversation": "sft"}
"""The objective that most people want for a kind of rows."""


def problems(run: RunConfig) -> list[Problem]:
    """Everything in a run that cannot go together."""
    found: list[Problem] = []
    if run.base.bits is not None:
        found.append(problem("E-COMPAT-02", "base.bits"))
    rate = run.engine.learning_rate
    if rate != "auto" and rate <= 0:
        found.append(problem("E-COMPAT-03", "engine.learning_rate", value=rate))
    return found


def row_problems(run: RunConfig, kinds: set[type[Any]]) -> list[Problem]:
    """What the objective of a run cannot learn from, among the row types that its data has."""
    name = kind_of(run.objective)
    entry = objectives.get(name)
    needs = entry.facts.get("rows", ()) if entry else ()
    found = sorted(ROW_KINDS[kind] for kind in kinds)
    if not needs or set(found) <= set(needs):
        return []
    wrong = next(kind for kind in found if kind not in needs)
    return [problem("E-COMPAT-05", "data.train", objective=name, needs=" / ".join(needs), found=wrong, guess=USUAL[wrong])]
