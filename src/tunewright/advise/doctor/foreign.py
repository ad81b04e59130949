"""The facts of a folder that another tool made (a PEFT adapter, or a whole fine-tuned model), and
of any model that is asked about rows.

The base reads the rows, then the trained model, which is the base with the adapter put on it, or
another folder; the weights of the two are never in memory together.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunewright.advise.doctor import files, forms, lines_of, logs, probing
from tunewright.advise.doctor.decoding import Line, decoding_of, settings_of
from tunewright.advise.doctor.facts import Asked, Course, Data, Decoding, Facts, Probed, Weights
from tunewright.advise.doctor.floor import entropy_floor
from tunewright.advise.doctor.found import found_of
from tunewright.core.config import DataConfig
from tunewright.core.errors import ModelError, UsageError
from tunewright.core.machine import return_freed_memory
from tunewright.core.registry import kinds_of_peft_type
from tunewright.core.telling import Tell
from tunewright.core.types import Conversation, Preference, asks
from tunewright.core.words import say
from tunewright.data import DataSet, inspect
from tunewright.engine import opening
from tunewright.engine.decoding.answers import answer
from tunewright.engine.placement import World
from tunewright.engine.schedule import learning_rate_for
from tunewright.methods.peft import rate_of_type
from tunewright.methods.saved import OWN, is_saved
from tunewright.models import load
from tunewright.sources import find as sources
from tunewright.sources import headers

Threads = int | Literal["auto"]
ROWS = 32
"""Rows that both models read."""
ANSWERED = 8
"""Rows that the trained model answers: neighbours, so that a slip by a row is seen."""
FORM_ROWS = 6
MOST_ANSWER_TOKENS, SPARE_TOKENS = 96, 16
FULL_RATE = 2e-5
"""The usual rate of a training of all weights."""
ASK_FORMS = -0.5
"""Mean log-probability of the answers above which nobody asks whether another form fits better."""


@dataclass(frozen=True)
class Pair:
    """The trained model and what it started from. `base` None: nobody knows."""

    tuned: opening.Target
    base: opening.Target | None
    weights: Weights | None = None

    @property
    def folders(self) -> list[Path]:
        """Where decoding settings may stand, the nearest first."""
        found = [self.tuned.adapter, self.tuned.source.folder]
        return [folder for folder in found if folder is not None]


def pair_of(target: str, model: str | None, tell: Tell) -> Pair:
    """What `target` and `--model` name. Raises UsageError and ModelError as `opening.find` does."""
    folder = Path(target)
    if sources.looks_like_path(target) and not folder.exists():
        raise ModelError.of("E-MODEL-01", spec=target)
    if not folder.is_dir():
        raise UsageError.of("E-DOCTOR-01", target)
    if is_saved(folder):
        named = _named_base(folder)
        spec = model or named
        if not spec:
            raise UsageError.of("E-DOCTOR-02", target)
        source = sources.resolve(spec, report=tell.line)
        base = opening.Target(spec, source, None, None, {})
        weights = files.adapter_files(folder, source.folder, spec)
        return Pair(opening.Target(target, source, folder, None, {}), base, weights)
    if not (folder / "config.json").is_file():
        raise UsageError.of("E-DOCTOR-01", target)
    tuned = opening.Target(target, sources.resolve(target, report=tell.line), None, None, {})
    if model is None:
        return Pair(tuned, None, files.model_files(tuned.source.folder, None, ""))
    base = opening.Target(model, sources.resolve(model, report=tell.line), None, None, {})
    weights = files.model_files(tuned.source.folder, base.source.folder, model)
    return Pair(tuned, base, weights)


def _named_base(folder: Path) -> str:
    for name in ("adapter_config.json", OWN):
        named = headers.config_of(folder, name).get("base_model_name_or_path")
        if isinstance(named, str) and named:
            return named
    return ""


def facts_of(
    target: str,
    model: str | None,
    data: str | None,
    tell: Tell,
    *,
    rows: int = ROWS,
    device: str = "auto",
    threads: Threads = "auto",
    **how: Any,
) -> Facts:
    """Everything that a folder of another tool shows. `how` are settings of the data (`format`,
    `columns`, `dir`). Raises UsageError for what cannot be read."""
    pair = pair_of(target, model, tell)
    course, place = logs.course_of(Path(target))
    if place:
        tell.line(say("doctor.log", file=place))
    facts = Facts(target, course=course and _with_usual(course, pair), weights=pair.weights)
    if data is None:
        return facts
    return with_probe(facts, pair, data, tell, rows=rows, device=device, threads=threads, **how)


def _with_usual(course: Course, pair: Pair) -> Course:
    """The course with the rate that suits what was trained."""
    kind = ""
    rate = FULL_RATE
    if pair.tuned.adapter is not None:
        described = headers.config_of(pair.tuned.adapter, "adapter_config.json")
        kind = str(described.get("peft_type") or "")
        rate = rate_of_type(kind) if kinds_of_peft_type(kind) else rate_of_type("LORA")
    count = load.parameter_count(pair.tuned.source.folder)
    usual = learning_rate_for(rate, course.steps, count)
    return replace(course, method=kind.lower() or "full", usual_rate=usual)


def with_probe(
    facts: Facts,
    pair: Pair,
    data: str,
    tell: Tell,
    *,
    rows: int = ROWS,
    device: str = "auto",
    threads: Threads = "auto",
    wants: Sequence[str] = ("conversation",),
    **how: Any,
) -> Facts:
    """The facts with what both models say of the rows of `data`; `wants` are the kinds of rows that
    decide where several formats fit."""
    renderer = _renderer(pair)
    config = opening.read_config(pair.tuned)
    settings = {"train": data, "held_out": 0, "system": pair.tuned.system, **how}
    context = load.context_of(config)
    asked = DataConfig.model_validate(settings)
    read = inspect(asked, renderer, context, to_train=False, wants=wants)
    # Rows before weights: a misspelt column is said in a second.
    probe = _Probe(pair, renderer, read, rows, tell)
    world = opening.world_of(pair.tuned, None, device, threads)
    weights = probe.run(world)
    facts = replace(facts, weights=weights, data=facts.data or _data(read))
    return replace(
        facts,
        probed=probe.probed,
        asked=facts.asked or probe.asked,
        decoding=probe.decoding() or facts.decoding,
    )


def _renderer(pair: Pair) -> Any:
    """How the trained model is asked; a folder without a tokenizer is asked as its base is."""
    folder = pair.tuned.tokenizer_folder
    there = (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file()
    return pair.tuned.renderer() if there or pair.base is None else pair.base.renderer()


def _data(read: DataSet) -> Data:
    """What the rows of a file show, whoever trained on them. How many of them another tool
    dropped or cut nobody knows."""
    report = read.report
    floor = entropy_floor(read.train)
    return Data(
        rows=len(read.train),
        distinct=len(read.train) - int(report["duplicates"] or 0),
        learnt_tokens=report["learnt_tokens"],
        tokens=report["tokens_total"],
        duplicates=int(report["duplicates"] or 0),
        floor=floor.loss if floor else None,
        floor_rows=floor.rows if floor else 0,
        found=found_of(report),
    )


class _Probe:
    """Reads and asks; what it found stands in its attributes."""

    def __init__(self, pair: Pair, renderer: Any, read: DataSet, rows: int, tell: Tell):
        self.pair, self.renderer, self.read, self.tell = pair, renderer, read, tell
        self.probed: Probed | None = None
        self.asked: list[Asked] | None = None
        self.settings = settings_of(*pair.folders)
        stops = set(renderer.stop_ids)
        chosen = lines_of.spread(len(read.train), rows)
        made = [(i, lines_of.line_of(read.train[i], stops)) for i in chosen]
        known = [(i, line) for i, line in made if line is not None]
        self.lines: list[Line] = [line for _, line in known]
        learnt = [set(read.train[i].branches[0].learnt) for i, _ in known]
        self.asking = probing.Asking(
            self.lines, probing.words_of(self.lines, learnt), self._pads(), sorted(stops)
        )
        self.reading: probing.Reading | None = None
        self.forms: dict[str, list[Line]] = {}

    def _pads(self) -> list[int]:
        """Tokens that padding may be: what the tokenizer and the configs name, and the usual
        stand-ins."""
        tokenizer, config = self.renderer.tokenizer, opening.read_config(self.pair.tuned)
        text = config.get_text_config()
        wanted = [
            tokenizer.pad_token_id,
            getattr(text, "pad_token_id", None),
            tokenizer.eos_token_id,
            tokenizer.unk_token_id,
            0,
        ]
        size = int(text.vocab_size)
        return list(dict.fromkeys(i for i in wanted if isinstance(i, int) and 0 <= i < size))

    def run(self, world: World) -> Weights | None:
        """Let both models read, and the trained one answer. Gives what became known of the
        weights."""
        pair, weights = self.pair, self.pair.weights
        if not self.lines:
            self.tell.line(say("doctor.no_answers"))
            return weights
        base, loaded = None, None
        if pair.base is not None:
            loaded = opening.from_files(
                pair.base.source.folder, None, world, opening.base_of(pair.tuned.settings)
            )
            base = self._read(loaded)
        on_base = pair.tuned.adapter is not None and loaded is not None
        if loaded is not None and not on_base:
            del loaded
            gc.collect()
            return_freed_memory()
        try:
            tuned = opening.from_files(
                pair.tuned.source.folder,
                pair.tuned.adapter,
                world,
                opening.base_of(pair.tuned.settings),
                causal=loaded.causal if on_base and loaded is not None else None,
            )
        except ModelError as error:
            if pair.tuned.adapter is None or weights is None:
                raise
            return files.refused(weights, error)
        self.reading = self._read(tuned)
        if self.reading is None:
            return weights
        pairs = any(isinstance(row, Preference) for row in self.read.train_rows[:1])
        self.probed = replace(probing.compare(base, self.reading, self.asking), pairs=pairs)
        if self.probed.tuned.finite:
            self.asked = self._ask(tuned)
            self._try_forms(tuned, base is not None, world)
        return weights

    def _read(self, loaded: opening.Loaded, settings: bool = True) -> probing.Reading | None:
        """What a model says of the rows; None where it does not know all of their tokens."""
        size = int(loaded.causal.get_input_embeddings().weight.shape[0])
        if max(max(line.ids) for line in self.lines) >= size:
            return None
        return probing.read(
            loaded.model, loaded.causal, self.asking, self.settings if settings else {}
        )

    def _ask(self, tuned: opening.Loaded) -> list[Asked]:
        """Greedy answers to a few neighbouring rows."""
        from tunewright.engine.decoding.answers import answering

        model = answering(tuned.causal, tuned.attached, self.renderer)
        rows = [
            (i, row)
            for i, row in enumerate(self.read.train_rows)
            if asks(row) and row.answer().strip()
        ][:ANSWERED]
        if not rows:
            return []
        prompts = [self.renderer.question(row) for _, row in rows]
        limits = [
            min(MOST_ANSWER_TOKENS, len(self.renderer.piece(row.answer())) + SPARE_TOKENS)
            for _, row in rows
        ]
        self.tell.start(say("doctor.asking"))
        answers = answer(model, prompts, max_new_tokens=limits)
        self.tell.finish()
        model.forget()
        return [
            Asked(
                question=row.question()[-1].content,
                expected=row.answer(),
                after=one.text,
                cut=one.end not in ("stop", "context", "no_room"),
                kind="row",
                row=i,
            )
            for (i, row), one in zip(rows, answers, strict=True)
        ]

    def _try_forms(self, tuned: opening.Loaded, has_base: bool, world: World) -> None:
        """Where the answers are poor, how likely they are when asked in other forms."""
        assert self.probed is not None
        if self.probed.tuned.answer >= ASK_FORMS:
            return
        rows = [row for row in self.read.train_rows if isinstance(row, Conversation)]
        rows = [rows[i] for i in lines_of.spread(len(rows), FORM_ROWS)]
        found: dict[str, list[Line]] = {}
        for form in forms.FORMS:
            made = [
                forms.lines_in(form, self.renderer.tokenizer, row.question(), row.answer())
                for row in rows
            ]
            lines = [line for line in made if line is not None]
            if lines and len(lines) == len(rows):
                found[form] = lines
        chat = [line for line in self.lines if line.answer][:FORM_ROWS]
        if not found or not chat:
            return
        found = {"chat": chat, **found}
        after = _likely(tuned, found)
        before = dict.fromkeys(found, -math.inf)
        off = tuned.attached.disabled if tuned.attached is not None else None
        if off is not None:
            with off():
                before = _likely(tuned, found)
        elif has_base and self.pair.base is not None:
            # Rare: another folder's base is read once more, for a few short rows.
            base = opening.from_files(self.pair.base.source.folder, None, world)
            before = _likely(base, found)
        else:
            return
        forms_found = {name: (before[name], after[name]) for name in found}
        self.probed = replace(self.probed, templates=forms_found)

    def decoding(self) -> Decoding | None:
        """What the decoding settings make of the answers, tried on the trained model."""
        reading = self.reading
        # Of the rows, not the tokenizer's: a template may end an answer with a token of its own.
        stops = sorted({line.stop for line in self.lines if line.stop is not None})
        tokens = self.renderer.tokenizer.convert_ids_to_tokens(stops)
        ends = ", ".join(map(str, tokens)) or str(self.renderer.end_text)
        return decoding_of(
            self.settings,
            self.lines,
            stop=ends,
            looks_at_stop=self.pair.tuned.run is None,
            penalty=None if reading is None else reading.penalised,
            luck=_mean(reading.lucky) if reading is not None and reading.lucky else None,
        )


def _likely(loaded: opening.Loaded, found: dict[str, list[Line]]) -> dict[str, float]:
    """Form -> mean log-probability of the answers' tokens."""
    names = list(found)
    out = {}
    for name in names:
        lines = found[name]
        asking = probing.Asking(lines, [[] for _ in lines], [], [])
        reading = probing.read(loaded.model, loaded.causal, asking, {})
        out[name] = _mean([value for _, value in reading.answer])
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else -math.inf
