"""Peak bytes and seconds of a run, from what is known of it before any weight is read.

Memory is counted (`memory.py`), time is counted and divided by a rate that this machine was seen to
reach (`speed.py`); where a few blocks of the model were tried here (`trial.py`), they say what a
step takes and holds; and what finished runs took corrects both (`learnt.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunewright.advise import among, learnt, memory, speed, timing
from tunewright.advise.memory import Work
from tunewright.advise.question import Question
from tunewright.advise.tried import Trial
from tunewright.core.files import readable_size
from tunewright.core.words import say
from tunewright.models.shape import trainable_parameters

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


def holds_whole(found: Estimate, available: int) -> bool:
    """Whether a process whose model lies in shares can put it together to answer questions."""
    asked = found.question
    whole = memory.whole_bytes(asked.grown, asked.work) + memory.process_bytes(
        asked.shape, asked.work
    )
    return whole + found.parts["answers"] <= comfortable(asked, available)
