"""`tunewright bench`: what a run would cost on this machine, and whether its gradients are right, on the user's own model and rows.

Takes the first optimiser steps of the run as `tunewright train` would, in memory; writes nothing.
"""

from __future__ import annotations

import time
from typing import Any

from tunewright.core.runfile import ParsedRun, kind_of
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine.schedule import make_schedule
from tunewright.story import prepare


def bench(parsed: ParsedRun, *, steps: int = 4, certificate: bool = True, tell: Tell | None = None) -> dict[str, Any]:
    """Measure `steps` optimiser steps and compute the gradient certificate.

    Returns rates a second (logical tokens, physical rows, label tokens, samples), the share of rows saved, peak bytes, and `certificate` with its
    verdict and worst gap for each dtype. Raises UsageError for what `train` would refuse.
    """
    tell = tell or Tell()
    prepared = prepare(parsed, tell, out_matters=False)
    parsed = prepared.parsed
    figures = _measure(parsed, prepared, steps, tell)
    if certificate:
        figures["certificate"] = _certify(parsed, prepared, tell)
    return figures


def _measure(parsed: ParsedRun, prepared: Any, steps: int, tell: Tell) -> dict[str, Any]:
    from tunewright.engine import placement
    from tunewright.engine.asking import equip
    from tunewright.engine.assembly import assemble
    from tunewright.engine.meters import peak_memory_bytes, versions
    from tunewright.models.fast import keep_freed_memory

    config = parsed.config
    world = placement.start(config.engine, (prepared.data.train, prepared.data.report))
    if world.device == "cpu":
        keep_freed_memory()
    start = time.perf_counter()
    made = assemble(config, prepared.source.folder, str(prepared.source.folder), world, len(prepared.data.train), tell, steps=steps,
                    samples=prepared.data.train)  # fmt: skip
    load_seconds = time.perf_counter() - start
    stepper, layout, why = made.stepper, made.layout, world.reasons["engine.layout"]
    schedule = make_schedule(config.engine, len(prepared.data.train), made.rate)
    tell.line(say("train.where", device=world.device, device_why=world.reasons["engine.device"], dtype=world.dtype,
                  dtype_why=world.reasons.get("engine.dtype", say("placement.asked"))))  # fmt: skip
    tell.line(say("train.layout", layout=layout, why=why, threads=world.threads, rows=world.rows_per_pass))
    totals = {"samples": 0, "logical_tokens": 0, "physical_rows": 0, "label_tokens": 0}
    seconds, each = 0.0, []
    count = min(steps, schedule.total_steps)
    equip(stepper, prepared.renderer, prepared.tokenizer)
    _prepare_reference(stepper, [prepared.data.train[i] for number in range(1, count + 1) for i in schedule.samples_of(number)])
    tell.start(say("train.steps"))
    for number in range(1, count + 1):
        chosen = [prepared.data.train[i] for i in schedule.samples_of(number)]
        begin = time.perf_counter()
        report = stepper.step(chosen, number, schedule.rate(number))
        each.append(time.perf_counter() - begin)
        seconds += each[-1]
        totals["samples"] += len(chosen)
        totals["logical_tokens"] += report.logical_tokens
        totals["physical_rows"] += report.physical_rows
        totals["label_tokens"] += report.label_tokens
        tell.progress(say("train.step"), number, count)
    tell.finish()
    rates = {f"{name}_per_second": round(value / seconds, 2) for name, value in totals.items()}
    return {
        "steps": count, **totals, **rates, "share_saved": round(1 - totals["physical_rows"] / totals["logical_tokens"], 4), "train_seconds": round(seconds, 3),
        "seconds_per_step": [round(s, 3) for s in each], "load_seconds": round(load_seconds, 3), "peak_memory_bytes": peak_memory_bytes(world.device),
        "device": world.device, "dtype": world.dtype, "layout": layout, "threads": world.threads, "rows_per_pass": world.rows_per_pass, "versions": versions(),
    }  # fmt: skip


def _prepare_reference(stepper: Any, samples: list[Any]) -> None:
    """What the model says before the first step of the rows that will be seen, for objectives that measure from there."""
    from tunewright.engine.reference import ReferenceStore

    if not stepper.objective.reference:
        return
    more = stepper.objective.companions
    store = ReferenceStore({})
    store.fill(stepper.policy, [*samples, *(more(samples, None) if more else [])], stepper.rows_per_pass)
    stepper.policy.reference = store


def _certify(parsed: ParsedRun, prepared: Any, tell: Tell) -> dict[str, Any]:
    from tunewright.evaluate.certificate import bench_certificate, pick

    if not pick(prepared.data.train):
        tell.line(say("bench.no_short_sample"))
        return {"passed": None}
    tell.line(say("bench.certifying"))
    found = bench_certificate(prepared.source.folder, prepared.data.train, method=kind_of(parsed.config.method), config=parsed.config.method)
    for line in found.lines():
        tell.line(line)
    worst = {d: found.worst(d) for d in dict.fromkeys(g.dtype for g in found.gaps)}
    return {"passed": found.passed, "worst": {d: {"gap": g.gap, "limit": g.limit, "tensor": g.tensor} for d, g in worst.items()}}
