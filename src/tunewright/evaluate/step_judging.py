"""How well a process reward model judges steps, next to a judge that always says yes."""

from __future__ import annotations

import math
import time
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.types import Stepwise
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.evaluate.interval import wilson


def judges_steps(found: opening.Target) -> bool:
    """Whether a run was trained to judge steps."""
    return found.settings.get("objective.kind") == "process_reward"


def measure(
    found: opening.Target, data: Any, name: str, *, dtype: str | None, device: str, threads: Any, details: bool, started: float
) -> dict[str, Any]:
    """Judge every step of `data`. Raises UsageError where its rows have no steps (E-EVAL-07) or a score is no number (E-EVAL-04)."""
    import torch

    from tunewright.engine.forward import Policy
    from tunewright.engine.tree import cut_passes
    from tunewright.models.fast import fused_without_gradient, keep_freed_memory
    from tunewright.objectives.process_reward import first_wrong, step_branches

    if not data.train_rows or not all(isinstance(row, Stepwise) for row in data.train_rows):
        raise UsageError(problem("E-EVAL-07", name, target=found.name))
    keep_freed_memory()
    opened = opening.load_found(found, dtype=dtype, device=device, threads=threads)
    loaded = time.perf_counter()
    layout = str(found.settings.get("engine.layout", "padded"))
    opening.use_layout(opened.causal, layout)
    policy = Policy(opened.model, opened.causal, layout)
    policy.heads = ("score",)
    samples = list(data.train)
    for sample in samples:
        sample.branches = step_branches(sample.branches[0].tokens, sample.facts["steps"])
    scores: dict[int, list[float]] = {}
    with torch.no_grad(), fused_without_gradient():
        policy.model.eval()
        for group in cut_passes(samples, opened.world.rows_per_pass, padded=layout == "padded"):
            values = policy(group).score
            assert values is not None
            for sample, value in zip(group, values.split([len(s.branches) for s in group]), strict=True):
                scores[sample.index] = value.tolist()
    if not all(math.isfinite(score) for found_scores in scores.values() for score in found_scores):
        raise UsageError(problem("E-EVAL-04", name, value="nan"))
    truth = {s.index: [bool(right) for _, right in s.facts["steps"]] for s in samples}
    said = {index: [score > 0 for score in one] for index, one in scores.items()}
    right = sum(a == b for index in said for a, b in zip(said[index], truth[index], strict=True))
    steps = sum(map(len, truth.values()))
    first = sum(first_wrong(said[index]) == first_wrong(truth[index]) for index in said)
    judging: dict[str, Any] = {
        "steps": steps, "right": right, "accuracy": right / steps, "interval_95": wilson(right, steps), "answers": len(samples), "first_error": first / len(samples),
        "first_error_interval_95": wilson(first, len(samples)), "always_yes": sum(map(sum, truth.values())) / steps,
        "always_yes_first_error": sum(all(one) for one in truth.values()) / len(samples),
    }  # fmt: skip
    if details:
        chances = {index: [1 / (1 + math.exp(-score)) for score in one] for index, one in scores.items()}
        judging["rows"] = [{"row": str(s.origin), "chances": chances[s.index], "right": truth[s.index]} for s in samples]
    now = time.perf_counter()
    return {
        "target": found.name, "data": name, "data_report": data.report, "steps": judging, "warnings": [], "device": opened.world.device,
        "dtype": opened.world.dtype, "layout": layout, "seconds": {"total": now - started, "load": loaded - started},
    }  # fmt: skip


def lines(judging: dict[str, Any]) -> list[str]:
    """The figures for a terminal."""

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    low, high = judging["interval_95"]
    shares = {name: percent(judging[name]) for name in ("accuracy", "always_yes", "first_error", "always_yes_first_error")}
    out = [say("evaluate.steps", **shares, right=judging["right"], n=judging["steps"], low=percent(low), high=percent(high))]
    out.append(say("evaluate.steps_first", **shares, answers=judging["answers"]))
    if judging["accuracy"] <= judging["always_yes"]:
        out.append(say("evaluate.steps_no_better"))
    return out
