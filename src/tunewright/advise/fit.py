"""Does a run fit, and how long will it take: said before any weight is read, refused when it cannot
work, with what would fit instead.

The one place for both: `plan`, `train --dry-run` and the check at the start of every run ask
`of_run`. Here a run file becomes a question; `estimate.py` answers it, `would_fit.py` looks for
what would fit, `fit_words.py` says it. Everything works from the raw `config.json` (`shape.py`), so
a model of which only the configuration is here can be judged in milliseconds.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from tunewright.advise import learnt, speed
from tunewright.advise.estimate import TIGHT, Estimate, comfortable, estimate, holds_whole, needed
from tunewright.advise.fit_words import describe, problems, require, what_fits, what_is_missing
from tunewright.advise.question import Question, SampleFacts
from tunewright.advise.tried import Trial
from tunewright.advise.would_fit import (
    among_processes,
    largest_fitting,
    leanest,
    room_for,
    room_of,
    ways_to_fit,
    with_room,
)
from tunewright.core.config import BaseConfig, RunConfig
from tunewright.core.errors import TunewrightError
from tunewright.core.runfile import kind_of
from tunewright.core.types import Objective
from tunewright.engine.schedule import (
    Measuring,
    batch_size_for,
    make_schedule,
    measuring_of,
    steps_between,
)
from tunewright.engine.sharing import StepSharing
from tunewright.models.shape import ModelShape, rank_of, trainable_parameters
from tunewright.sources import few_bits, headers


def of_run(
    config: RunConfig,
    objective: Objective,
    shape: ModelShape,
    facts: SampleFacts,
    *,
    steps: int,
    dtype: str,
    device: str,
    rows_per_pass: int,
    layout: str = "tree",
    probes: int | None = None,
    answer_tokens: int = 0,
    may_leave_out: bool = False,
    general: bool = False,
    rates: speed.Rates | None = None,
    counted: StepSharing | None = None,
    trial: Trial | None = None,
    known: learnt.Learnt | None = None,
    here: bool = True,
    processes: int = 1,
    parallel: str = "none",
) -> Estimate:
    """The estimate of what a run file says. `probes` None: as many as the file asks for."""
    asked = config.probes if isinstance(config.probes, int) else len(config.probes)
    rollouts, engine = objective.rollouts, config.engine
    schedule = replace(make_schedule(engine, facts.samples, 0.0), total_steps=steps)
    measuring = measuring_of(
        engine, schedule, facts.held_out, reference=objective.reference, rollouts=rollouts
    )
    # One answer is drawn to a prompt that is measured.
    answers = rollouts.num_answers if rollouts is not None else 1
    return estimate(
        Question(
            shape=shape,
            trainable=trainable_parameters(shape, config.method),
            rows_per_pass=rows_per_pass,
            facts=facts.drawing(rollouts, objective.own_answers),
            steps=steps,
            batch_size=batch_size_for(engine, facts.samples),
            dtype=dtype,
            device=device,
            layout=layout,
            method=config.method,
            probes=asked if probes is None else probes,
            answer_tokens=answer_tokens,
            may_leave_out=may_leave_out,
            general=general,
            rates=rates,
            base_bits=bits_held(config.base, shape),
            beside=models_beside(config, objective),
            reference=objective.reference,
            measured_rows=measuring.passes / answers,
            reference_samples=_read_before(objective, measuring, facts, schedule.batch_size, steps),
            saves=_saves(steps, steps_between(engine.save_every, schedule)),
            epochs=schedule.epochs,
            optimizer=engine.optimizer,
            may_cache=engine.activation_cache != "off" and not engine.neftune,
            draws=rollouts is not None or objective.own_answers is not None,
            counted=counted,
            trial=trial,
            learnt=known,
            here=here,
            processes=processes,
            parallel="ddp" if parallel == "auto" else parallel,
        )
    )


def bits_held(base: BaseConfig, shape: ModelShape) -> float | None:
    """Bits of a weight of the blocks in memory; None where they are in the run's dtype."""
    if base.bits is not None:
        return base.bits_per_weight
    return (not base.dequantise and shape.stored_bits) or None


def _saves(steps: int, every: int) -> int:
    """Checkpoints of a run that writes one after `every` steps (0: never before) and at its end."""
    return 1 + ((steps - 1) // every if every else 0)


def _read_before(
    objective: Objective, measuring: Measuring, facts: SampleFacts, batch: int, steps: int
) -> float:
    """Samples that the model of step 0 reads before the first step: those that will be learnt or
    measured. The first step says it of its own itself."""
    if not objective.reference:
        return 0.0
    learnt_ones = min(facts.samples, batch * (steps - 1))
    more = facts.samples if objective.companions else 0
    return learnt_ones + len(measuring.rows) + more


def kind_of_run(
    config: RunConfig, shape: ModelShape, dtype: str, threads: int, *, tried: bool
) -> learnt.Kind:
    """What decides how a run compares with its estimate."""
    sizes = f"{shape.family} {shape.hidden}x{shape.layers}x{shape.inner} {shape.vocabulary}"
    bits = f" {config.base.number_type}" if config.base.number_type else ""
    method, objective = kind_of(config.method), kind_of(config.objective)
    return learnt.Kind(
        sizes, method + bits, objective, dtype, threads, "trial" if tried else "count"
    )


def models_beside(config: RunConfig, objective: Objective) -> list[ModelShape]:
    """Shapes of the models that a run holds besides its own: a teacher, and reward models that
    cannot stand on the run's base.

    What cannot be found here is refused, with its reason, where it is opened.
    """
    teacher, rollouts = objective.teacher, objective.rollouts
    stands_alone = rollouts is not None and (
        getattr(config.method, "trains_base", False) or config.base.bits is not None
    )
    if teacher is None and not stands_alone:
        return []  # without importing torch
    from tunewright import rewards
    from tunewright.engine.naming import config_folder

    found = []
    try:
        wanted = [teacher.model] if teacher is not None else []
        if rollouts is not None and stands_alone:
            judged = rewards.read(rollouts.rewards, on_bad="stop")
            wanted += [str(run) for _, run in judged.models]
        for target in wanted:
            raw, _ = headers.read_config(config_folder(target) / "config.json")
            found.append(ModelShape.from_config(raw))
    except TunewrightError:
        return found
    return found


def shape_of(folder: Path) -> ModelShape:
    """The shape of the model in a folder: its raw config, and the sizes of its weight files where
    they are. Raises UsageError (E-FIT-02), and ModelError (E-MODEL-91) for weights that are stored
    in a way that is not read here."""
    config, _ = headers.read_config(Path(folder) / "config.json")
    shape = ModelShape.from_config(
        config, sum(p.stat().st_size for p in Path(folder).glob("*.safetensors") if p.is_file())
    )
    with contextlib.suppress(ValueError):  # a header that lies is told by whoever opens it
        few = few_bits.find(Path(folder))
        return shape if few is None else replace(shape, stored_bits=few.bits_per_weight)
    return shape


__all__ = [
    "TIGHT",
    "Estimate",
    "ModelShape",
    "Question",
    "SampleFacts",
    "among_processes",
    "bits_held",
    "comfortable",
    "describe",
    "estimate",
    "holds_whole",
    "kind_of_run",
    "largest_fitting",
    "leanest",
    "models_beside",
    "needed",
    "of_run",
    "problems",
    "rank_of",
    "require",
    "room_for",
    "room_of",
    "shape_of",
    "trainable_parameters",
    "ways_to_fit",
    "what_fits",
    "what_is_missing",
    "with_room",
]
