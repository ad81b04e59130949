"""Any method goes with any objective unless this file says why not; all reasons at once, before anything is loaded."""

from __future__ import annotations

import importlib.util
from typing import Any

from tunewright.core.config import RunConfig
from tunewright.core.errors import Problem, problem
from tunewright.core.registry import methods, objectives
from tunewright.core.runfile import kind_of
from tunewright.core.types import ROW_KINDS

USUAL = {"preference": "dpo", "judged": "kto", "stepwise": "process_reward", "prompt": "grpo", "text": "pretrain", "conversation": "sft"}
"""The objective that most people want for a kind of rows."""


def problems(run: RunConfig) -> list[Problem]:
    """Everything in a run that cannot go together."""
    found: list[Problem] = []
    found += _base_problems(run)
    rate = run.engine.learning_rate
    if rate != "auto" and rate <= 0:
        found.append(problem("E-COMPAT-03", "engine.learning_rate", value=rate))
    method = methods.get(kind_of(run.method)) if run.method is not None else None
    if method is not None and method.facts.get("own_optimizer") and run.engine.optimizer != "adamw":
        found.append(problem("E-METHOD-07", "engine.optimizer", method=method.name, optimizer=run.engine.optimizer))
    elif run.engine.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        found.append(problem("E-METHOD-08", "engine.optimizer"))
    return found


def _base_problems(run: RunConfig) -> list[Problem]:
    """A quantised base carries only methods that leave it as it is, and its number type has as many bits as it says."""
    base, kind = run.base, kind_of(run.method)
    if base.bits is None:
        return [problem("E-METHOD-60", "base.bits")] if getattr(run.method, "loftq", False) else []
    found = []
    if base.number_type not in {4: ("nf4", "int4"), 8: ("int8",)}[base.bits]:
        found.append(problem("E-METHOD-45", "base.type", type=base.number_type, bits=base.bits))
    entry = methods.get(kind)
    if entry is not None and entry.facts.get("on_quantised", False) is not True:
        usable = [e.name for e in methods if e.facts.get("on_quantised", False) is True]
        found.append(problem("E-COMPAT-02", "base.bits", method=kind, usable=", ".join(usable)))
    return found


def wanted_rows(run: RunConfig) -> tuple[str, ...]:
    """The kinds of rows that the objective of a run learns from, the best first."""
    entry = objectives.get(kind_of(run.objective))
    return tuple(entry.facts.get("rows", ())) if entry else ()


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
