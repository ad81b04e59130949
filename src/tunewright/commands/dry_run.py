"""`tunewright train --dry-run`: every check, the data report and an estimate, and nothing written
or downloaded but small files. The story of a run, stopped before its weights are read."""

from __future__ import annotations

from typing import Any

from tunewright.advise import fit
from tunewright.advise.speed import measured_rates
from tunewright.core.errors import ModelError, UsageError, raise_all
from tunewright.core.machine import available_bytes
from tunewright.core.registry import AXES
from tunewright.core.runfile import ParsedRun, kind_of, objective_of
from tunewright.core.telling import Once, Tell
from tunewright.core.words import say
from tunewright.data import describe
from tunewright.engine import placement
from tunewright.engine.schedule import total_steps
from tunewright.run import decided
from tunewright.run.prepare import Begun, begin, complete
from tunewright.sources import find, vet


def dry_run(parsed: ParsedRun, *, tell: Tell | None = None) -> dict[str, Any]:
    """Check a run, show its data and estimate its memory and time. Raises UsageError for everything
    `train` would refuse, also for what cannot fit.

    With only a config.json at hand it says what is missing and what would fit, without loading
    torch.
    """
    # The model is looked for twice: without its weights and, where they are here, with them.
    tell = Once(tell or Tell())
    begun = begin(parsed)
    source = find.resolve(begun.config.model, report=tell.line, weights=False)
    raise_all(vet.problems_of(source.folder, weights=False), ModelError)
    shape = fit.shape_of(source.folder)
    missing = fit.what_is_missing(source.folder, shape)
    for line in missing:
        tell.line(line)
    found = _of_shape(begun, shape, tell) if missing else _of_plan(begun, shape, tell)
    asked = found.question
    available = available_bytes(asked.device)
    for line in fit.describe(found, available):
        tell.line(line)
    raise_all(fit.problems(found, available), UsageError)
    tell.line(say("train.dry_run_done"))
    return {
        "missing": missing,
        "steps": found.steps,
        "samples": asked.facts.samples,
        "peak_memory_bytes": found.peak_bytes,
        "needed_memory_bytes": found.needed_bytes,
        "available_memory_bytes": available,
        "parts": found.parts,
        "train_seconds": found.seconds,
        "train_seconds_range": found.seconds_range,
        "measure_seconds": found.measure_seconds,
        "seconds": found.by_part(),
        "dtype": asked.dtype,
        "device": asked.device,
        "parameters": shape.parameters,
        "kinds": {axis: kind_of(getattr(begun.config, axis)) for axis in AXES},
    }


def _of_plan(begun: Begun, shape: fit.ModelShape, tell: Tell) -> fit.Estimate:
    """The estimate of a run whose weights are here."""
    plan = complete(begun, tell, is_light=True)
    world = placement.start(
        plan.config.engine, (plan.data.train, plan.data.report), will_compute=False
    )
    rates = measured_rates(shape, world)
    decided.say_where(world, tell)
    return plan.estimate(world, rates)


def _of_shape(begun: Begun, shape: fit.ModelShape, tell: Tell) -> fit.Estimate:
    """The estimate of a run of whose model only the configuration is here; what is `auto` is taken
    as it mostly becomes."""
    config, engine = begun.config, begun.config.engine
    rows = placement.CPU_ROWS if engine.rows_per_pass == "auto" else engine.rows_per_pass
    tell.line(describe(begun.rows.report, colour=tell.colour))
    facts = fit.SampleFacts.of(begun.rows.report)
    return fit.of_run(
        config,
        objective_of(config),
        shape,
        facts,
        steps=total_steps(engine, facts.samples),
        dtype="bfloat16" if engine.dtype == "auto" else engine.dtype,
        device="cpu" if engine.device == "auto" else engine.device,
        rows_per_pass=rows,
    )
