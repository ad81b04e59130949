"""`tunewright bench`: what a run would cost on this machine, and whether its gradients are right,
on the user's own model and rows.

Takes the first optimiser steps of the run as `tunewright train` would, made ready by the same
function, in memory; writes nothing. Where the run keeps activations, the first visit of a row costs
more than the later ones: the steps are then taken twice, and the rates are those of the whole run,
whose first epoch is made of first visits.
"""

from __future__ import annotations

import time
from typing import Any

from tunewright.core.machine import keep_freed_memory
from tunewright.core.runfile import ParsedRun, kind_of
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.story import base_path_of, prepare


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
    prepared = prepare(parsed, tell, out_matters=False)
    parsed = prepared.parsed
    figures = _measure(parsed, prepared, steps, tell)
    if certificate:
        figures["certificate"] = _certify(parsed, prepared, tell)
    return figures


def _measure(parsed: ParsedRun, prepared: Any, steps: int, tell: Tell) -> dict[str, Any]:
    from tunewright.core.machine import peak_memory_bytes, versions
    from tunewright.engine import placement
    from tunewright.engine.opening import to_train

    config, data = parsed.config, prepared.data
    world = placement.start(config.engine, (data.train, data.report))
    if world.device == "cpu":
        keep_freed_memory()
    start = time.perf_counter()
    made = to_train(
        config,
        prepared.source.folder,
        base_path_of(prepared.source),
        world,
        data.train,
        data.held_out,
        prepared.renderer,
        tell,
    )
    load_seconds = time.perf_counter() - start
    stepper, layout, schedule = made.stepper, made.layout, made.schedule
    tell.line(
        say(
            "train.where",
            device=world.device,
            device_why=world.reasons["engine.device"],
            dtype=world.dtype,
            dtype_why=world.reasons.get("engine.dtype", say("placement.asked")),
        )
    )
    tell.line(
        say(
            "train.layout",
            layout=layout,
            why=world.reasons["engine.layout"],
            threads=world.threads,
            rows=world.rows_per_pass,
        )
    )
    totals = {"samples": 0, "logical_tokens": 0, "physical_rows": 0, "label_tokens": 0}
    count = min(steps, schedule.total_steps)
    keeps = stepper.policy.cache is not None
    if keeps:
        count = min(count, schedule.steps_per_epoch)  # the rows of later steps would be known
    chosen = [
        [data.train[i] for i in schedule.samples_of(number)] for number in range(1, count + 1)
    ]
    _prepare_reference(stepper, [sample for step in chosen for sample in step])
    timed: list[list[float]] = []
    tell.start(say("train.steps"))
    for visit in range(1 + keeps):
        timed.append([])
        for number, samples in enumerate(chosen, 1):
            begin = time.perf_counter()
            report = stepper.step(samples, number, schedule.rate(number))
            timed[-1].append(time.perf_counter() - begin)
            tell.progress(say("train.step"), visit * count + number, (1 + keeps) * count)
            if visit:
                continue
            totals["samples"] += len(samples)
            totals["logical_tokens"] += report.logical_tokens
            totals["physical_rows"] += report.physical_rows
            totals["label_tokens"] += report.label_tokens
    tell.finish()
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
        "layout": layout,
        "threads": world.threads,
        "rows_per_pass": world.rows_per_pass,
        "versions": versions(),
    }


def _prepare_reference(stepper: Any, samples: list[Any]) -> None:
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


def _certify(parsed: ParsedRun, prepared: Any, tell: Tell) -> dict[str, Any]:
    from tunewright.bench.certificate import bench_certificate, pick

    if not pick(prepared.data.train):
        tell.line(say("bench.no_short_sample"))
        return {"passed": None}
    tell.line(say("bench.certifying"))
    found = bench_certificate(
        prepared.source.folder,
        prepared.data.train,
        method=kind_of(parsed.config.method),
        config=parsed.config.method,
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
