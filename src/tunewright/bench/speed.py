"""`tunewright bench`: what a run would cost on this machine, and whether its gradients are right,
on the user's own model and rows.

The story of a run, stopped after its first optimiser steps: the same plan, made ready by the same
function, in memory; nothing is written. Where the run keeps activations, the first visit of a row
costs more than the later ones: the steps are then taken twice, and the rates are those of the whole
run, whose first epoch is made of first visits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunewright.core.machine import peak_memory_bytes, versions
from tunewright.core.runfile import ParsedRun, kind_of
from tunewright.core.telling import Tell
from tunewright.core.types import Sample
from tunewright.core.words import say
from tunewright.run import decided
from tunewright.run.prepare import Plan, prepare

if TYPE_CHECKING:
    from tunewright.engine.schedule import Schedule
    from tunewright.engine.step import Stepper

COUNTED = ("logical_tokens", "physical_rows", "label_tokens")


def bench(
    parsed: ParsedRun, *, steps: int = 4, certificate: bool = True, tell: Tell | None = None
) -> dict[str, Any]:
    """Measure `steps` optimiser steps and compute the gradient certificate.

    Returns rates a second (logical tokens, physical rows, label tokens, samples), the share of rows
    saved, peak bytes, `activation_cache` (bytes or `off`) with `seconds_per_step_cached` where it
    is on, and `certificate` with its verdict and worst gap for each dtype. Raises UsageError for
    what `train` would refuse.
    """
    tell = tell or Tell()
    plan = prepare(parsed, tell, out_matters=False)
    figures = _measure(plan, steps, tell)
    if certificate:
        figures["certificate"] = _certify(plan, figures["layout"], tell)
    return figures


def _measure(plan: Plan, steps: int, tell: Tell) -> dict[str, Any]:
    world = decided.place(plan)
    start = time.perf_counter()
    opened, made = decided.open_to_train(plan, world, tell)
    load_seconds = time.perf_counter() - start
    decided.say_where(world, tell)
    decided.say_layout(made, tell)
    stepper, schedule = opened.stepper, made.schedule
    keeps = stepper.policy.cache is not None
    # With a cache, the rows of later epochs would be known.
    most = min(schedule.total_steps, schedule.steps_per_epoch) if keeps else schedule.total_steps
    count = min(steps, most)
    chosen = [
        [plan.data.train[i] for i in schedule.samples_of(number)] for number in range(1, count + 1)
    ]
    _prepare_reference(stepper, [sample for step in chosen for sample in step])
    totals, timed = _timed(stepper, schedule, chosen, 1 + keeps, tell)
    first = min(1.0, 1 / schedule.epochs) if keeps else 1.0
    seconds = first * sum(timed[0]) + (1 - first) * sum(timed[-1])
    rates = {f"{name}_per_second": round(value / seconds, 2) for name, value in totals.items()}
    cached = {"seconds_per_step_cached": [round(s, 3) for s in timed[1]]} if keeps else {}
    return {
        "steps": count,
        **totals,
        **rates,
        "share_saved": round(1 - totals["physical_rows"] / totals["logical_tokens"], 4),
        "train_seconds": round(seconds, 3),
        "seconds_per_step": [round(s, 3) for s in timed[0]],
        **cached,
        "activation_cache": made.cache,
        "load_seconds": round(load_seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(world.device),
        "device": world.device,
        "dtype": world.dtype,
        "layout": made.layout,
        "threads": world.threads,
        "rows_per_pass": world.rows_per_pass,
        "versions": versions(),
    }


def _timed(
    stepper: Stepper, schedule: Schedule, chosen: list[list[Sample]], visits: int, tell: Tell
) -> tuple[dict[str, int], list[list[float]]]:
    """Take the steps of `chosen` `visits` times. Returns what one visit computed, and the seconds
    of each step of each visit."""
    totals, timed = dict.fromkeys(("samples", *COUNTED), 0), list[list[float]]()
    tell.start(say("train.steps"))
    for visit in range(visits):
        timed.append([])
        for number, samples in enumerate(chosen, 1):
            begin = time.perf_counter()
            report = stepper.step(samples, number, schedule.rate(number))
            timed[-1].append(time.perf_counter() - begin)
            done, total = visit * len(chosen) + number, visits * len(chosen)
            tell.progress(say("train.step"), done, total)
            if not visit:
                totals["samples"] += len(samples)
                for name in COUNTED:
                    totals[name] += getattr(report, name)
    tell.finish()
    return totals, timed


def _prepare_reference(stepper: Stepper, samples: Sequence[Sample]) -> None:
    """What the model says before the first step of the rows that will be seen, for objectives that
    measure from there."""
    from tunewright.engine.oracles.reference import ReferenceStore

    if not stepper.objective.reference:
        return
    more = stepper.objective.companions
    store = ReferenceStore({})
    store.fill(
        stepper.policy, [*samples, *(more(samples, None) if more else [])], stepper.rows_per_pass
    )
    stepper.policy.reference = store


def _certify(plan: Plan, layout: str, tell: Tell) -> dict[str, Any]:
    from tunewright.bench.certificate import bench_certificate, pick

    if not pick(plan.data.train):
        tell.line(say("bench.no_short_sample"))
        return {"passed": None}
    tell.line(say("bench.certifying"))
    found = bench_certificate(
        plan.source.folder,
        plan.data.train,
        method=kind_of(plan.config.method),
        config=plan.config.method,
        layout=layout,
        attention="flex" if plan.config.engine.attention == "flex" else "blocks",
    )
    for line in found.lines():
        tell.line(line)
    worst = {d: found.worst(d) for d in dict.fromkeys(g.dtype for g in found.gaps)}
    return {
        "passed": found.passed,
        "worst": {
            d: {"gap": g.gap, "limit": g.limit, "tensor": g.tensor} for d, g in worst.items()
        },
    }
