"""Does a run fit, and how long will it take: said before any weight is read, refused when it cannot
work, with what would fit instead.

The one place for both: `plan`, `train --dry-run` and the check at the start of every run ask
`of_run`. Memory is counted (`memory.py`), time is counted and divided by a rate that this machine
was seen to reach (`speed.py`); where a few blocks of the model were tried here (`trial.py`), they
say what a step takes and holds; and what finished runs took corrects both (`learnt.py`).
Everything works from the raw `config.json` (`shape.py`), so a model of which only the configuration
is here can be judged in milliseconds.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.advise import among, changes, learnt, memory, room, speed, timing
from tunewright.advise.memory import Work
from tunewright.advise.question import Question, SampleFacts
from tunewright.advise.room import Room
from tunewright.advise.trial import Trial
from tunewright.core.config import BaseConfig, RunConfig
from tunewright.core.errors import Problem, TunewrightError, UsageError, problem
from tunewright.core.files import readable_size
from tunewright.core.machine import available_bytes
from tunewright.core.runfile import kind_of
from tunewright.core.telling import duration
from tunewright.core.types import Objective
from tunewright.core.words import say
from tunewright.engine import ranks
from tunewright.engine.placement import World
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

TIGHT, TIGHT_GPU = 0.85, 0.95
"""Share of the memory from which the estimate says that it is tight: the system and other programs
need some, too; of a GPU's, less."""


@dataclass(frozen=True)
class Estimate:
    """What a run will need. `parts` add up to `peak_bytes` on a CPU, where freed memory stays with
    the process."""

    peak_bytes: int
    """The largest resident set (CPU) or allocation (GPU) to expect; what `peak_memory_bytes` of
    summary.json will say."""
    needed_bytes: int
    """The part of it without which the run fails: all but the file that is mapped while it is read.
    """
    parts: dict[str, int]
    seconds: float | None
    """Of all optimiser steps; None where no rate was measured."""
    seconds_range: tuple[float, float] | None
    measure_seconds: float | None
    """Of measuring held-out rows, which comes on top of the steps."""
    ask_seconds: float | None
    """Of asking the questions before and after; None where no rate was measured."""
    load_seconds: float
    """Of starting, and of reading the weights twice."""
    save_seconds: float
    """Of writing checkpoints and what was trained."""
    flops: float
    reasons: list[str]
    steps: int
    rows: int
    """Token rows of the largest pass."""
    question: Question
    """What was asked, so that `require` can try other settings."""
    raw: Mapping[str, float]
    """The seconds of each part and the peak bytes (`memory`) before finished runs corrected them.
    """

    def by_part(self) -> dict[str, float]:
        """Seconds of the parts of the run, as `core/stopwatch.py` names them, where they could be
        estimated."""
        parts = {
            "load": self.load_seconds,
            "ask": self.ask_seconds,
            "train": self.seconds,
            "evaluate": self.measure_seconds,
            "checkpoint": self.save_seconds,
        }
        return {part: seconds for part, seconds in parts.items() if seconds is not None}

    def disturbed_parts(self) -> frozenset[str]:
        """Parts whose seconds rest on what was measured while other programs held the processors:
        how they compare with a run says nothing."""
        trial, rates = self.question.trial, self.question.rates
        if trial is not None:
            return frozenset(("train", "evaluate", "ask") if trial.busy else ())
        return frozenset(("train", "evaluate", "ask") if rates is not None and rates.busy else ())

    @property
    def wall_seconds(self) -> float | None:
        """Of the whole command; None where no rate was measured."""
        if self.seconds is None:
            return None
        return sum(self.by_part().values()) + speed.AROUND_SECONDS


def estimate(question: Question) -> Estimate:
    """Peak bytes and seconds of a run."""
    parts, peak, needed = _bytes(question)
    raw = {"memory": float(peak), **timing.by_part(question)}
    known = question.learnt or learnt.Learnt()
    seconds = {part: value * known.of(part) for part, value in raw.items()}
    peak, needed = round(peak * known.memory), round(needed * known.memory)
    if known.memory != 1.0:
        parts["learnt"] = peak - sum(parts.values())
    train, spread = seconds.get("train"), None
    if train is not None:
        wide = speed.SPREAD if question.trial is None else speed.TRIED_SPREAD
        wide = wide if question.here else speed.STATED_SPREAD
        spread = (train / wide, train * wide)
    return Estimate(
        peak,
        needed,
        parts,
        train,
        spread,
        seconds.get("evaluate"),
        seconds.get("ask"),
        seconds["load"],
        seconds["checkpoint"],
        timing.flops_of(question),
        _reasons(question, parts),
        question.steps,
        question.pass_rows,
        question,
        raw,
    )


def _bytes(question: Question) -> tuple[dict[str, int], int, int]:
    """(parts, peak, needed) in bytes."""
    shape, work = question.grown, question.work
    beside = sum(other.parameters * work.item for other in question.beside)
    parts = memory.parts_of(shape, work)
    whole = memory.whole_bytes(shape, work)
    parts = among.parts_of(parts, shape, work, question) | {"beside": beside}
    train = sum(parts.values())
    around = []
    if question.parallel == "fsdp" and work.on_cpu:
        around = among.phases_of(parts, shape, work, question, whole)
        train = max(train, *(sum(phase.values()) for phase in around))
    answers, mapped = memory.answering_bytes(shape, work), memory.loading_bytes(shape, work)
    parts |= {"answers": answers, "loading": mapped}
    if not work.on_cpu:
        peak = max(train, parts["weights"] + parts["adapter"] + answers)
        # What the driver holds there is not counted as allocated, and yet nobody else can have it.
        return parts, peak, peak + (memory.GPU_BYTES if question.device.startswith("cuda") else 0)
    if work.trial is not None and work.trial.peak_bytes:
        around.append(_measuring(parts, work.trial, memory.measuring_bytes(shape, work)))
        return _largest_phase(parts, work, around)
    # Freed blocks stay in the process (`keep_freed_memory`), and the file is read once more at the
    # end, for the reload that proves the adapter.
    peak, needed = train + answers + mapped, train + answers
    if work.base_bits is not None:
        # The wide model is read first and quantised matrix by matrix.
        wide = shape.parameters * work.item + parts["process"]
        peak, needed = max(peak, wide + mapped), max(needed, wide)
    return parts, peak, needed


def _measuring(parts: dict[str, int], trial: Trial, head: int) -> dict[str, int]:
    """The parts while held-out rows are measured between steps: what the steps freed stays with the
    process, and a large block is none of it."""
    stays = {name: size for name, size in parts.items() if name not in ("answers", "loading")}
    holes = memory.hole_bytes(trial, parts["kernels"], parts["activations"] + head)
    return stays | {"head": head, "holes": holes}


def _largest_phase(
    parts: dict[str, int], work: Work, around: list[dict[str, int]]
) -> tuple[dict[str, int], int, int]:
    """(parts, peak, needed) of the phase of a run that holds most, where what the process keeps of
    the others was seen in a trial: training; the reload at the end, while the file is mapped; the
    answers of what was reloaded, with the weights laid out once more; and those `around`."""
    stays = {name: parts[name] for name in ("weights", "adapter", "process", "kernels")}
    stays["holes"] = int(memory.TORN * parts["kernels"])
    learns = {n: size for n, size in parts.items() if n not in ("answers", "loading")}
    packed = 0 if work.base_bits is not None else parts["weights"]
    phases = [
        learns,
        stays | {"loading": parts["loading"]},
        stays | {"answers": parts["answers"] + packed},
    ]
    phases += around
    largest = max(phases, key=lambda phase: sum(phase.values()))
    # The mapped file and the second layout of the weights give way where memory is short.
    least = max(sum(learns.values()), sum(stays.values()) + parts["answers"])
    least = max([least, *(sum(phase.values()) for phase in around)])
    return largest, sum(largest.values()), least


def _reasons(question: Question, parts: dict[str, int]) -> list[str]:
    """What the figures rest on, in sentences."""
    rates, experts, beside = question.rates, question.grown.experts, question.beside
    rows, longest = f"{question.pass_rows:,}", f"{question.facts.longest:,}"
    reasons = [say("fit.reason.rows", rows=rows, longest=longest)]
    trial, known = question.trial, question.learnt
    if trial is not None:
        blocks, layers = trial.blocks, question.grown.layers
        reasons.append(
            say("fit.reason.trial", blocks=blocks, layers=layers, rows=f"{trial.rows:,.0f}")
        )
        if trial.busy:
            reasons.append(say("fit.reason.busy"))
    elif rates and not question.here:
        reasons.append(say("fit.reason.stated"))
    elif rates:
        speed_text, share = f"{rates.flops / 1e9:,.0f}", f"{speed.EFFICIENCY:.0%}"
        reasons.append(say("fit.reason.rate", rate=speed_text, dtype=question.dtype, share=share))
    if known is not None and known.runs and (known.seconds or known.memory != 1.0):
        key = "fit.reason.learnt" if known.alike else "fit.reason.learnt_others"
        reasons.append(say(key, runs=known.runs))
    if known is not None and known.disturbed:
        reasons.append(say("fit.reason.disturbed", runs=known.disturbed))
    if experts > 1:
        reasons.append(say("fit.reason.experts", count=experts))
    if beside:
        size = f"{sum(other.parameters for other in beside) / 1e9:.2f}"
        held = readable_size(parts["beside"])
        reasons.append(say("fit.reason.beside", count=len(beside), size=size, memory=held))
    return reasons


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


def needed(question: Question, **changed: Any) -> int:
    """Bytes that the same run needs with other parts of the question. What was tried says nothing
    of another method or dtype, so then everything is counted."""
    asked = replace(question, **changed)
    if changed.keys() - {
        "rows_per_pass",
        "facts",
        "recompute",
        "keep_bytes",
        "offload",
        "parallel",
    }:
        asked = replace(asked, trial=None)
    if changed.keys() & {"rows_per_pass", "facts"}:
        asked = replace(asked, counted=None)
    if "trainable" not in changed:
        shape = asked.shape
        if asked.method is not None:
            trainable = trainable_parameters(shape, asked.method)
        else:
            trainable = question.trainable * shape.parameters // question.shape.parameters
        asked = replace(asked, trainable=trainable)
    return _bytes(asked)[2]


def comfortable(question: Question, available: int) -> int:
    """Bytes of `available` that a run may need before it is tight."""
    return round((TIGHT_GPU if question.device.startswith("cuda") else TIGHT) * available)


def largest_fitting(found: Estimate, available: int) -> ModelShape | None:
    """The largest common shape, smaller than the model asked for, with which the same run fits;
    None if not even the smallest does."""
    asked = found.question
    fits = [
        s
        for s in changes.ladder()
        if s.parameters < asked.shape.parameters
        and needed(asked, shape=s) <= comfortable(asked, available)
    ]
    return max(fits, key=lambda s: s.parameters, default=None)


def what_fits(found: Estimate, available: int) -> list[str]:
    """Sentences for what to change so that the run fits, what costs least first."""
    tries = [one.sentence() for one in ways_to_fit(found, available)]
    smaller = largest_fitting(found, available)
    if smaller is not None:
        held = readable_size(needed(found.question, shape=smaller))
        size = changes.billions(smaller.parameters)
        tries.append(say("fit.try.model", size=size, memory=held))
    return tries or [say("fit.try.nothing")]


def ways_to_fit(found: Estimate, available: int) -> list[changes.Way]:
    """What to change so that the run fits, what costs least first; nothing where no change of
    settings helps."""
    most = comfortable(found.question, available)
    return changes.ways(found.question, most, needed, timing.relative_seconds)


def leanest(found: Estimate) -> changes.Way | None:
    """The settings with which the same model needs least memory."""
    return changes.leanest(found.question, needed, timing.relative_seconds)


def problems(found: Estimate, available: int) -> list[Problem]:
    """E-FIT-01 when the run needs more memory than there is, with what would fit; else nothing."""
    if found.needed_bytes <= available:
        return []
    joined = say("fit.join").join(what_fits(found, available))
    return [
        problem(
            "E-FIT-01",
            "",
            needed=readable_size(found.needed_bytes),
            have=readable_size(available),
            tries=joined,
        )
    ]


def room_for(
    found: Estimate, recompute: str, offload: str, available: int
) -> tuple[Room, dict[str, str]]:
    """(how the run makes room where `available` bytes are free, why by key): what takes least time
    of what `engine.recompute` and `engine.offload` leave open."""
    most = comfortable(found.question, available)
    return room.room_for(found.question, recompute, offload, most, needed)


def with_room(found: Estimate, chosen: Room) -> Estimate:
    """The same estimate for a run that makes room so."""
    asked = room.with_room(found.question, chosen)
    return found if asked == found.question else estimate(asked)


def holds_whole(found: Estimate, available: int) -> bool:
    """Whether a process whose model lies in shares can put it together to answer questions."""
    asked = found.question
    whole = memory.whole_bytes(asked.grown, asked.work) + memory.process_bytes(
        asked.shape, asked.work
    )
    return whole + found.parts["answers"] <= comfortable(asked, available)


def room_of(world: World) -> int:
    """Memory of each process of a run: of its GPU, or its part of this machine's."""
    return available_bytes(world.device) // ranks.current().here


def among_processes(found: Estimate, world: World, available: int | None = None) -> Estimate:
    """The estimate with what `engine.parallel: auto` is in `world`, which is noted there."""
    most = room_of(world) if available is None else available
    need = needed(found.question, parallel="ddp")
    world.parallel, world.reasons["engine.parallel"] = among.choose(
        found.question, need, most, comfortable(found.question, most)
    )
    return estimate(replace(found.question, parallel=world.parallel))


def require(found: Estimate, available: int) -> None:
    """Raise UsageError (E-FIT-01) when the run cannot fit."""
    trouble = problems(found, available)
    if trouble:
        raise UsageError(trouble)


def what_is_missing(folder: Path, shape: ModelShape) -> list[str]:
    """Sentences for what a folder lacks before it can be trained on: weights (and their size),
    tokenizer, room on the disk for the download."""
    folder = Path(folder)
    lines = []
    files, _ = headers.weight_files(folder)
    if not files:
        lines.append(
            say(
                "fit.missing.weights",
                size=readable_size(shape.file_bytes),
                billions=changes.billions(shape.parameters),
            )
        )
        free = shutil.disk_usage(folder).free
        if free < shape.file_bytes:
            lines.append(
                say(
                    "fit.missing.disk",
                    free=readable_size(free),
                    size=readable_size(shape.file_bytes),
                )
            )
    if not any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    ):
        lines.append(say("fit.missing.tokenizer"))
    return lines


def describe(found: Estimate, available: int | None = None, where: str = "") -> list[str]:
    """Lines for the dry run and the plan, in the reader's language. `where` names the machine that
    has `available` bytes, if it is not this one."""
    shown = say("fit.join").join(
        f"{say(f'fit.part.{name}')} {readable_size(size)}"
        for name, size in found.parts.items()
        if size
    )
    asked = found.question
    lines = []
    if asked.processes > 1:
        sent = readable_size(among.sent_bytes(asked))
        lines.append(
            say("fit.processes", count=asked.processes, parallel=asked.parallel, sent=sent)
        )
    lines += [say("fit.memory", peak=readable_size(found.peak_bytes), parts=shown)]
    if available is not None:
        share = found.needed_bytes / available
        tight = found.needed_bytes > comfortable(found.question, available)
        key = "fit.too_big" if share > 1 else "fit.tight" if tight else "fit.fits"
        lines.append(
            say(
                key,
                where=where or say("fit.here"),
                needed=readable_size(found.needed_bytes),
                have=readable_size(available),
                share=f"{share:.0%}",
            )
        )
        if tight:
            lines += [f"  {line}" for line in what_fits(found, available)]
    if found.seconds is not None and found.seconds_range is not None:
        lines += _times(found, found.seconds, found.seconds_range)
    return lines + [f"  {reason}" for reason in found.reasons]


def _times(found: Estimate, seconds: float, spread: tuple[float, float]) -> list[str]:
    low, high = spread
    measure, wide = found.measure_seconds or 0.0, high / seconds if seconds else 1.0
    times = {
        "time": seconds + measure,
        "low": low + measure / wide,
        "high": high + measure * wide,
        "measure": measure,
    }
    beside = {
        "load": found.load_seconds,
        "ask": found.ask_seconds or 0.0,
        "save": found.save_seconds,
        "whole": found.wall_seconds or 0.0,
    }
    return [
        say("fit.time", **{n: duration(value) for n, value in times.items()}, steps=found.steps),
        say(
            "fit.time_beside",
            **{n: duration(value) for n, value in beside.items()},
            probes=found.question.probes,
        ),
    ]


__all__ = [
    "Estimate",
    "ModelShape",
    "Question",
    "SampleFacts",
    "describe",
    "estimate",
    "kind_of_run",
    "largest_fitting",
    "of_run",
    "problems",
    "rank_of",
    "require",
    "shape_of",
    "trainable_parameters",
    "ways_to_fit",
    "what_fits",
    "what_is_missing",
]
