"""Does a run fit, and how long will it take: said before any weight is read, refused when it cannot
work, with what would fit instead.

Memory is counted (`memory.py`), time is counted and divided by a rate that this machine was seen to
reach (`speed.py`). Everything works from the raw `config.json` (`shape.py`), so a model of which
only the configuration is here can be judged in milliseconds.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.advise import memory, speed
from tunewright.advise.memory import Work
from tunewright.core.config import BaseConfig, RunConfig
from tunewright.core.errors import Problem, TunewrightError, UsageError, problem
from tunewright.core.files import readable_size
from tunewright.core.registry import methods
from tunewright.core.runfile import kind_of
from tunewright.core.telling import duration
from tunewright.core.types import Objective, OwnAnswers, Rollouts, Sample
from tunewright.core.words import say
from tunewright.engine.schedule import batch_size_for, make_schedule, measuring_of
from tunewright.models.shape import BYTES, ModelShape, rank_of, trainable_parameters
from tunewright.sources import headers

TIGHT = 0.85
"""Share of the memory from which the estimate says that it is tight: the system and other programs
need some, too."""
GUESSED_TOKENS = 256
"""Tokens of a row that nobody could count."""
FOUR_BITS = BaseConfig(bits=4).bits_per_weight
LADDER = (
    # (hidden, layers, inner, heads, key heads, vocabulary, tied) of models people fine-tune, 0.1 to
    # 72 billion weights.
    (576, 30, 1536, 9, 3, 49_152, True),
    (896, 24, 4864, 14, 2, 151_936, True),
    (2048, 16, 8192, 32, 8, 128_256, True),
    (1536, 28, 8960, 12, 2, 151_936, True),
    (2048, 36, 11_008, 16, 2, 151_936, True),
    (2560, 36, 9728, 32, 8, 151_936, True),
    (3584, 28, 18_944, 28, 4, 152_064, False),
    (4096, 32, 14_336, 32, 8, 128_256, False),
    (5120, 48, 13_824, 40, 8, 152_064, False),
    (5120, 64, 27_648, 40, 8, 152_064, False),
    (8192, 80, 28_672, 64, 8, 128_256, False),
)


@dataclass(frozen=True)
class SampleFacts:
    """What the estimate needs to know of the data: rows of one epoch as they are computed, rows
    that predict a token, number of samples."""

    samples: int
    rows_per_epoch: int
    label_rows_per_epoch: int
    longest: int
    held_out: int = 0

    @classmethod
    def of(
        cls, report: dict[str, Any], samples: Sequence[Sample] = (), layout: str = "tree"
    ) -> SampleFacts:
        """From a data report with tokens. The report counts shared beginnings over all samples at
        once; a step shares only among its own, so what is shared is taken at nine tenths."""
        packed = report.get("packed", {})  # documents side by side
        number, held = (packed.get(name, report.get(name, 0)) for name in ("train", "held_out"))
        if (
            report["tokens_total"] is None
        ):  # no tokenizer here: a row is taken for a question and an answer of a few sentences
            return cls(
                number, GUESSED_TOKENS * number, GUESSED_TOKENS * number // 2, GUESSED_TOKENS, held
            )
        total, learnt = report["tokens_total"], report["learnt_tokens"]
        longest = max(report["length_percentiles"]["max"], min(packed.get("tokens", 0), total))
        if layout == "padded":
            return cls(number, round(1.2 * total), learnt, longest, held)
        shared = total - report["shared_prefix"]["rows_physical_estimate"]
        return cls(number, max(1, round(total - 0.9 * shared)), learnt, longest, held)

    def drawing(self, rollouts: Rollouts | None, own: OwnAnswers | None = None) -> SampleFacts:
        """The same for a run that learns from its own answers, in rows of a training step that cost
        as much.

        An answer is taken to be two thirds of `max_new_tokens` long. Its tokens are drawn (a
        forward pass in small products: worth 0.8 of a row), passed once more for each of old
        values, reference and reward model (0.4 each), and learnt from `epochs` times.
        """
        if own is not None:
            wrote = round(self.samples * own.share * own.max_new_tokens * 2 / 3)
            rows = round(self.rows_per_epoch + 1.8 * wrote)
            return replace(
                self,
                rows_per_epoch=rows,
                label_rows_per_epoch=self.label_rows_per_epoch + wrote,
                longest=self.longest + own.max_new_tokens,
            )
        if rollouts is None:
            return self
        drawn = self.samples * rollouts.num_answers * rollouts.max_new_tokens * 2 // 3
        looks = 0.4 * (1 + rollouts.reference + 1)
        rows = round((self.rows_per_epoch + drawn) * (rollouts.epochs + looks) + 0.8 * drawn)
        return replace(
            self,
            rows_per_epoch=rows,
            label_rows_per_epoch=drawn * rollouts.epochs,
            longest=self.longest + rollouts.max_new_tokens,
        )


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
    flops: float
    reasons: list[str]
    steps: int
    rows: int
    """Token rows of the largest pass."""
    question: Question
    """What was asked, so that `require` can try other settings."""

    def by_part(self) -> dict[str, float]:
        """Seconds of the parts of the run, as `core/stopwatch.py` names them, where they could be
        estimated."""
        parts = {
            "load": self.load_seconds,
            "ask": self.ask_seconds,
            "train": self.seconds,
            "evaluate": self.measure_seconds,
        }
        return {part: seconds for part, seconds in parts.items() if seconds is not None}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A run as its estimate sees it."""

    shape: ModelShape
    trainable: int
    rows_per_pass: int
    facts: SampleFacts
    steps: int
    batch_size: int
    dtype: str
    device: str = "cpu"
    layout: str = "tree"
    method: Any = None
    probes: int = 5
    answer_tokens: int = 0
    """Most tokens of an answer to them; 0: nothing is written."""
    may_leave_out: bool = False
    """They are rows of the data, of which no more are asked than there is time for."""
    rates: speed.Rates | None = None
    """What this machine reaches (`speed.measured_rates`); None: no time of its work is given."""
    base_bits: float | None = None
    beside: Sequence[ModelShape] = ()
    """Further models that are held in memory and read every row without learning: a teacher, a
    reward model of its own."""
    reference: bool = False
    """The model itself reads every row once before the first step."""
    measured_rows: float = 0.0
    """Samples that are read without being learnt, over the whole run."""

    @property
    def grown(self) -> ModelShape:
        """The model with the blocks that the method adds."""
        method = self.method
        return method.grown(self.shape) if hasattr(method, "grown") else self.shape

    @property
    def share(self) -> float:
        """The part of an epoch that one step is."""
        return self.batch_size / max(1, self.facts.samples)

    @property
    def step_rows(self) -> int:
        """Token rows of a step."""
        return math.ceil(self.facts.rows_per_epoch * self.share)

    @property
    def label_share(self) -> float:
        """The part of the rows that predicts a token."""
        return self.facts.label_rows_per_epoch / max(1, self.facts.rows_per_epoch)

    @property
    def pass_rows(self) -> int:
        """Token rows of the largest pass."""
        facts = self.facts
        largest = facts.rows_per_epoch
        if facts.samples > self.batch_size:
            # Steps differ: the largest of many is some rows above the mean, by about two spreads of
            # a sum of samples.
            largest = math.ceil(self.step_rows * (1 + 0.4 / math.sqrt(self.batch_size)))
        most = max(self.rows_per_pass, facts.longest)
        return max(1, min(most, max(largest, facts.longest)))

    @property
    def work(self) -> Work:
        """What decides memory besides the model."""
        rows, facts = self.pass_rows, self.facts
        labels = rows * facts.label_rows_per_epoch / max(1, facts.rows_per_epoch)
        return Work(
            self.trainable,
            rows,
            max(1, round(labels)),
            facts.longest,
            self.dtype,
            self.device == "cpu",
            self.layout == "tree",
            tuple(getattr(self.method, "targets", ("linear",))),
            rank_of(self.method),
            self.probes,
            self.base_bits,
        )


def estimate(question: Question) -> Estimate:
    """Peak bytes and seconds of a run."""
    parts, peak, needed = _bytes(question)
    flops, rates = _flops(question), question.rates
    seconds = spread = measure = asking = None
    if rates:
        reached, facts = rates.flops * speed.EFFICIENCY, question.facts
        seconds = flops / reached
        spread = (seconds / speed.SPREAD, seconds * speed.SPREAD)
        epoch = sum(
            _reading(one, facts.rows_per_epoch, facts.label_rows_per_epoch)
            for one in (question.grown, *question.beside)
        )
        measure = question.measured_rows * epoch / max(1, facts.samples) / reached
        tokens = question.answer_tokens if question.probes else 0
        asking = speed.ask_seconds(question.grown, question.dtype, tokens, rates)
        if question.may_leave_out:
            asking = min(asking, speed.seconds_allowed(seconds))
    return Estimate(
        peak,
        needed,
        parts,
        seconds,
        spread,
        measure,
        asking,
        speed.load_seconds(question.shape),
        flops,
        _reasons(question, parts),
        question.steps,
        question.pass_rows,
        question,
    )


def _bytes(question: Question) -> tuple[dict[str, int], int, int]:
    """(parts, peak, needed) in bytes."""
    shape, work = question.grown, question.work
    beside = sum(other.parameters * work.item for other in question.beside)
    parts = memory.parts_of(shape, work) | {"beside": beside}
    train = sum(parts.values())
    answers, mapped = memory.answering_bytes(shape, work), memory.loading_bytes(shape, work)
    parts |= {"answers": answers, "loading": mapped}
    if not work.on_cpu:
        peak = max(train, parts["weights"] + parts["adapter"] + answers)
        return parts, peak, peak
    # Freed blocks stay in the process (`keep_freed_memory`), and the file is read once more at the
    # end, for the reload that proves the adapter.
    peak, needed = train + answers + mapped, train + answers
    if work.base_bits is not None:
        # The wide model is read first and quantised matrix by matrix.
        wide = shape.parameters * work.item + parts["process"]
        peak, needed = max(peak, wide + mapped), max(needed, wide)
    return parts, peak, needed


def _flops(question: Question) -> float:
    """Operations of all steps, and of the passes that learn nothing."""
    shape, facts = question.grown, question.facts
    rows = question.step_rows * question.steps
    labels = facts.label_rows_per_epoch * question.share * question.steps
    is_tree = question.layout == "tree"
    flops = speed.run_flops(
        shape,
        rows=round(rows),
        label_rows=round(labels),
        trainable=question.trainable,
        frozen=rank_of(question.method) is not None,
        mean_keys=min(question.pass_rows, facts.longest / 2 + 64 if is_tree else facts.longest),
        unread=max(0.0, 1 - question.label_share) if is_tree else 0.0,
    )
    flops += sum(_reading(other, rows, labels) for other in question.beside)
    if question.reference:
        flops += _reading(shape, facts.rows_per_epoch, facts.label_rows_per_epoch)
    return flops


def _reading(shape: ModelShape, rows: float, labels: float) -> float:
    """Operations of a pass that learns nothing."""
    return 2.0 * (rows * shape.active_weights + labels * shape.head_weights)


def _reasons(question: Question, parts: dict[str, int]) -> list[str]:
    """What the figures rest on, in sentences."""
    rates, experts, beside = question.rates, question.grown.experts, question.beside
    rows, longest = f"{question.pass_rows:,}", f"{question.facts.longest:,}"
    reasons = [say("fit.reason.rows", rows=rows, longest=longest)]
    if rates:
        speed_text, share = f"{rates.flops / 1e9:,.0f}", f"{speed.EFFICIENCY:.0%}"
        reasons.append(say("fit.reason.rate", rate=speed_text, dtype=question.dtype, share=share))
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
    rates: speed.Rates | None = None,
) -> Estimate:
    """The estimate of what a run file says. `probes` None: as many as the file asks for."""
    asked = config.probes if isinstance(config.probes, int) else len(config.probes)
    rollouts = objective.rollouts
    schedule = replace(make_schedule(config.engine, facts.samples, 0.0), total_steps=steps)
    measuring = measuring_of(
        config.engine, schedule, facts.held_out, reference=objective.reference, rollouts=rollouts
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
            batch_size=batch_size_for(config.engine, facts.samples),
            dtype=dtype,
            device=device,
            layout=layout,
            method=config.method,
            probes=asked if probes is None else probes,
            answer_tokens=answer_tokens,
            may_leave_out=may_leave_out,
            rates=rates,
            base_bits=config.base.bits_per_weight,
            beside=models_beside(config, objective),
            reference=objective.reference,
            measured_rows=measuring.passes / answers,
        )
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
    they are. Raises UsageError (E-FIT-02)."""
    config, _ = headers.read_config(Path(folder) / "config.json")
    return ModelShape.from_config(
        config, sum(p.stat().st_size for p in Path(folder).glob("*.safetensors") if p.is_file())
    )


# ---- what would fit


def _fits(question: Question, available: int, **changes: Any) -> bool:
    """Whether the same run would fit with other settings."""
    return _needed(question, **changes) <= TIGHT * available


def _needed(question: Question, *, longest: int | None = None, **changes: Any) -> int:
    """Bytes that the same run needs with another longest sample or other parts of the question."""
    asked = replace(question, **changes)
    shape, facts = asked.shape, asked.facts
    if asked.method is not None:
        trainable = trainable_parameters(shape, asked.method)
    else:
        trainable = question.trainable * shape.parameters // question.shape.parameters
    if longest is not None:
        facts = replace(facts, longest=min(facts.longest, longest))
    return _bytes(replace(asked, trainable=trainable, facts=facts))[2]


def ladder() -> list[ModelShape]:
    """Shapes of common models, smallest first: the yardstick of `largest_fitting`."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "tie_word_embeddings",
    )
    return [
        ModelShape.from_config({"model_type": "llama", **dict(zip(names, sizes, strict=True))})
        for sizes in LADDER
    ]


def largest_fitting(found: Estimate, available: int) -> ModelShape | None:
    """The largest common shape, smaller than the model asked for, with which the same run fits;
    None if not even the smallest does."""
    asked = found.question
    fits = [
        s
        for s in ladder()
        if s.parameters < asked.shape.parameters and _fits(asked, available, shape=s)
    ]
    return max(fits, key=lambda s: s.parameters, default=None)


def what_fits(found: Estimate, available: int) -> list[str]:
    """Sentences for what to change so that the run fits, the smallest change first."""
    asked = found.question
    tries: list[str] = []
    longest = asked.facts.longest
    fewer = [
        n
        for n in _halves(asked.rows_per_pass)
        if n >= longest and _fits(asked, available, rows_per_pass=n)
    ]
    shorter = [
        n
        for n in _halves(longest, 128)
        if not fewer and _fits(asked, available, rows_per_pass=n, longest=n)
    ]
    if fewer:
        tries.append(say("fit.try.rows", rows=fewer[0]))
    elif shorter:
        tries.append(say("fit.try.tokens", tokens=shorter[0], rows=shorter[0]))
    if asked.work.item > 2 and _fits(asked, available, dtype="bfloat16"):
        tries.append(say("fit.try.dtype"))
    if _can_quantise(asked) and _fits(asked, available, base_bits=FOUR_BITS):
        tries.append(say("fit.try.bits"))
    smaller = largest_fitting(found, available)
    if smaller is not None:
        needed = readable_size(_needed(asked, shape=smaller))
        tries.append(say("fit.try.model", size=billions(smaller.parameters), memory=needed))
    return tries or [say("fit.try.nothing")]


def _can_quantise(asked: Question) -> bool:
    """Whether the base is wide and the method can stand on a quantised one."""
    entry = methods.get(kind_of(asked.method)) if asked.method is not None else None
    return asked.base_bits is None and entry is not None and entry.facts.get("on_quantised") is True


def _halves(start: int, least: int = 64) -> list[int]:
    """Rounded powers of two below `start`, largest first."""
    return [2**k for k in range(start.bit_length(), 0, -1) if least <= 2**k < start]


def billions(parameters: int) -> str:
    """135 million -> '0.1', 7.6 billion -> '7.6'; no unit."""
    return f"{parameters / 1e9:.1f}" if parameters < 2e10 else f"{parameters / 1e9:.0f}"


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
                billions=billions(shape.parameters),
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


def describe(found: Estimate, available: int | None = None) -> list[str]:
    """Lines for the dry run, in the reader's language."""
    shown = say("fit.join").join(
        f"{say(f'fit.part.{name}')} {readable_size(size)}"
        for name, size in found.parts.items()
        if size
    )
    lines = [say("fit.memory", peak=readable_size(found.peak_bytes), parts=shown)]
    if available is not None:
        share = found.needed_bytes / available
        key = "fit.too_big" if share > 1 else "fit.tight" if share > TIGHT else "fit.fits"
        lines.append(
            say(
                key,
                needed=readable_size(found.needed_bytes),
                have=readable_size(available),
                share=f"{share:.0%}",
            )
        )
        if share > TIGHT:
            lines += [f"  {line}" for line in what_fits(found, available)]
    if found.seconds is not None and found.seconds_range is not None:
        low, high = found.seconds_range
        measure = found.measure_seconds or 0.0
        times = {
            "time": found.seconds + measure,
            "low": low + measure / speed.SPREAD,
            "high": high + measure * speed.SPREAD,
            "measure": measure,
        }
        lines.append(
            say(
                "fit.time",
                **{name: duration(value) for name, value in times.items()},
                steps=found.steps,
            )
        )
        beside = {"load": duration(found.load_seconds), "ask": duration(found.ask_seconds or 0)}
        lines.append(say("fit.time_beside", **beside, probes=found.question.probes))
    return lines + [f"  {reason}" for reason in found.reasons]


__all__ = [
    "BYTES",
    "Estimate",
    "ModelShape",
    "Question",
    "SampleFacts",
    "describe",
    "estimate",
    "largest_fitting",
    "of_run",
    "problems",
    "require",
    "shape_of",
    "trainable_parameters",
    "what_fits",
    "what_is_missing",
]
