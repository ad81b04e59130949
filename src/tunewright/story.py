"""The story of a run, top to bottom: ask, train, ask again, evidence. The only file that sees every
room. Read it first."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright import rewards
from tunewright.core import compat, faults, signals
from tunewright.core.config import RunConfig
from tunewright.core.errors import (
    CompatError,
    Interrupted,
    TrainingError,
    TunewrightError,
    UsageError,
    problem,
    raise_all,
)
from tunewright.core.files import readable_size, write_json, write_text
from tunewright.core.machine import available_bytes, keep_freed_memory, return_freed_memory
from tunewright.core.registry import methods
from tunewright.core.runfile import ParsedRun, kind_of, objective_of, parse_run
from tunewright.core.telling import Tell, duration
from tunewright.core.words import say
from tunewright.data import DataSet, describe, inspect
from tunewright.engine.schedule import Schedule, total_steps
from tunewright.record import checkpoint
from tunewright.record import folder as run_folder
from tunewright.record.events import EventLog, plain
from tunewright.run.questions import Probe, choose_probes, pair_probes, under
from tunewright.run.structure import require_place, require_same_layers
from tunewright.sources import find
from tunewright.text.chat_kind import kind_of_model
from tunewright.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tunewright.models.generate import AnsweringModel

ANSWER_TOKENS = 96
"""Longest answer to a probe without an expected answer, in tokens; with one, an answer may be a
quarter longer than it."""
SHORT_ANSWER_TOKENS = 48
MOSTLY_ALIKE = 0.5
"""From this share on of groups whose answers all had one reward, it is said at the end."""
FEW_PROBES = 20
"""Up to this many questions are asked of the model in memory and again of the reloaded one; more
only of the reloaded one."""


@dataclass
class Finished:
    """A run folder and its summary.json, as the story leaves them."""

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass
class Prepared:
    """A run that passed every check that needs no weights."""

    parsed: ParsedRun
    out: Path
    source: find.Source
    tokenizer: Any
    renderer: Any
    data: DataSet
    chat: Any
    base_renderer: Any
    """How the base is asked: without the tokens that the run adds."""
    context: int | None = None
    """Tokens that a row may have: what the model takes, less a learnt prompt."""


def train(
    parsed: ParsedRun,
    *,
    tell: Tell | None = None,
    extra_probes: list[Probe] | None = None,
    resume: Path | None = None,
) -> Finished:
    """Do the run. Raises UsageError before anything is created, TrainingError, CheckpointError or
    UnexpectedError when it fails, Interrupted when stopped. Once its folder is there, every one of
    them leaves summary.json with what was reached."""
    tell = tell or Tell()
    started = time.perf_counter()
    with signals.watching() as stop:
        try:
            prepared = prepare(parsed, tell, resume)
            return _Story(prepared, tell, stop, started, extra_probes or [], resume).tell_it()
        except (TunewrightError, BrokenPipeError):
            raise
        except faults.UNFORESEEN as e:
            if resume is None:
                raise  # nothing was created
            fault = faults.caught(e, resume, say("train.doing.load"))
            _note_end(resume, "failed", fault)
            raise fault from e


def prepare(
    parsed: ParsedRun, tell: Tell, resume: Path | None = None, *, out_matters: bool = True
) -> Prepared:
    """Everything that can be wrong without weights, in the order that costs least: keys, folders,
    rows, model files, template, tokens."""
    from tunewright.methods import continuing

    # A resumed run is what its run.yaml says: it was looked at when it began.
    continued = continuing.resolve(parsed) if resume is None else continuing.Continued(parsed)
    parsed = continued.parsed
    config = parsed.config
    raise_all(compat.problems(config), CompatError)
    out = resume or (
        Path(config.out) if config.out else run_folder.default_out(config, kind_of(config.method))
    )
    if resume is None and out_matters:
        run_folder.require_free(out)
    wants = compat.wanted_rows(config)
    bare = inspect(
        config.data,
        None,
        needs_tokens=False,
        workers=config.engine.threads,
        check=False,
        wants=wants,
    )
    raise_all(compat.row_problems(config, bare.report["kinds"]), CompatError)
    source = find.resolve(config.model, report=tell.line)
    from tunewright.engine.opening import renderer_of, tokenizer_folder
    from tunewright.methods.saved import virtual_tokens
    from tunewright.models import load, vocabulary
    from tunewright.text.thinking import Thinking

    _require_words(config, source.folder)
    rolls = learns_from_answers(config)
    thinking = Thinking(config.data.thinking, by_rows=not rolls)
    # What an adapter was taught with: it may know more words than its base. Rows are read with the
    # words that a method adds.
    own, added = (
        tokenizer_folder(Path(config.adapter) if config.adapter else None, source.folder),
        vocabulary.tokens_of(config.method),
    )
    tokenizer = load_tokenizer(source.folder)
    renderer = base_renderer = renderer_of(tokenizer, source.folder, thinking=thinking)
    if own != source.folder or added:
        tokenizer = load_tokenizer(own)
        vocabulary.add_tokens(tokenizer, added)
        renderer = renderer_of(tokenizer, source.folder, own, thinking=thinking)
    model_config = _model_config(source.folder)
    require_place(config, model_config)
    if continued.asked is not None:
        require_same_layers(continued.asked, Path(config.adapter or ""), model_config)
    _require_fitting(config, model_config)
    _require_teacher(config)
    context = load.context_of(model_config)
    # A learnt prompt takes room of the context, a new one or one that the run goes on with.
    prompt = (
        virtual_tokens(Path(config.adapter))
        if config.adapter
        else getattr(config.method, "num_tokens", 0)
    )
    if context is not None and prompt:
        if prompt >= context:
            raise CompatError(
                problem("E-METHOD-27", "method.num_tokens", tokens=prompt, context=context)
            )
        context -= prompt
    # Objectives that learn from documents take them whole, however long they are.
    documents = objective_of(config).pack
    data = inspect(
        config.data,
        renderer,
        context,
        config.engine.seed,
        workers=config.engine.threads,
        pack=documents,
        wants=wants,
    )
    _require_room(config, data, context)
    # Questions without an answer are asked as the rows were learnt.
    for one in (renderer, base_renderer):
        one.thinking = replace(one.thinking, habit=(data.report["thinking"] or {}).get("asked"))
    if rolls:
        from tunewright.engine.rollouts.questions import Questions

        data = replace(
            data,
            train=Questions(data.train_rows, renderer),
            held_out=Questions(data.held_out_rows, renderer),
        )
    chat = kind_of_model(source.folder, tokenizer)
    tell.line(
        say(
            "train.model",
            model=config.model,
            size=_millions(load.parameter_count(source.folder)),
            kind=chat.reason,
        )
    )
    if not chat.is_chat:
        tell.line(say("train.base_model"))
    for note in continued.notes:
        tell.line(note)
    tell.line(describe(data.report, colour=tell.colour))
    return Prepared(parsed, out, source, tokenizer, renderer, data, chat, base_renderer, context)


def _require_teacher(config: RunConfig) -> None:
    """Refuse a teacher that is not there, or has no words, before weights are read. Raises what
    opening it would raise."""
    teacher = objective_of(config).teacher
    if teacher is not None:
        from tunewright.engine import opening

        opening.require_words(opening.config_folder(teacher.model), teacher.model)


def _require_fitting(config: RunConfig, model_config: Any) -> None:
    """Refuse a new method that the model's own configuration speaks against."""
    entry = (
        methods.get(kind_of(config.method))
        if config.method is not None and not config.adapter
        else None
    )
    if entry is not None and "obstacles" in entry.facts:
        raise_all(entry.facts["obstacles"](config.method, model_config), CompatError)


def _require_words(config: RunConfig, folder: Path) -> None:
    """Refuse to teach a whole judge to write: only an objective that trains a judge goes on from
    one."""
    from tunewright.engine import opening

    if not compat.judges(kind_of(config.objective)):
        opening.require_words(folder, config.model)


def _require_room(config: RunConfig, data: DataSet, context: int | None) -> None:
    """Refuse a run that draws answers where the longest question leaves no room for one. Raises
    CompatError."""
    objective = objective_of(config)
    own = objective.own_answers
    drawing = own if own is not None and own.share else objective.rollouts
    if drawing:
        from tunewright.data.store.columns import asked_lengths
        from tunewright.engine.rollouts.sampling import require_room

        require_room(
            max([*asked_lengths(data.train), *asked_lengths(data.held_out)], default=0),
            drawing.max_new_tokens,
            context,
        )


def learns_from_answers(config: RunConfig) -> bool:
    """Whether the run draws answers from the model; then its rewards are read, too. Raises
    ConfigError for rewards that cannot work."""
    rollouts = objective_of(config).rollouts
    if rollouts is None:
        return False
    rewards.read(rollouts.rewards, on_bad=rollouts.on_bad)
    return True


def base_path_of(source: find.Source) -> str:
    """What an adapter names as its base: a hub id where there is one, so that it can be moved; else
    the folder, which plain Transformers can open."""
    return source.spec if source.kind == "hub" and "@" not in source.spec else str(source.folder)


def _model_config(folder: Path) -> Any:
    from tunewright.models import load

    return load.load_config(folder)


class _Story:
    """One run from a prepared plan to a report. Methods stand in the order in which they happen."""

    def __init__(
        self,
        p: Prepared,
        tell: Tell,
        stop: signals.StopFlag,
        started: float,
        extra: list[Probe],
        resume: Path | None,
    ):
        self.p, self.tell, self.stop, self.started, self.resume = p, tell, stop, started, resume
        self.config = p.parsed.config
        self.out = p.out
        objective = objective_of(self.config)
        self.rolls = objective.rollouts is not None
        """The run learns from its own answers."""
        self.scores = "score" in objective.heads
        """The run trains a head that gives numbers, so it is asked for numbers and not for words.
        """
        self.prepare_samples = objective.prepare
        self.probes = (
            pair_probes(self.config.probes, p.data)
            if self.scores
            else self._askable(choose_probes(self.config.probes, p.data) + extra)
        )
        self.answer_tokens = self._longest_answer()
        self.saved = self.out / "adapter"
        self.seconds = {"load": 0.0, "answer": 0.0}
        self.doing = "train.doing.load"
        """The sentence of what is being done, for the message of an unforeseen end."""
        self.log: EventLog | None = None

    def _askable(self, probes: list[Probe]) -> list[Probe]:
        """The questions under the run's system prompt, without those that fill the context, which
        is said."""
        found = under(self.config.data.system, probes)
        if self.p.context is None:
            return found
        kept = [
            probe for probe in found if len(self.p.renderer.prompt(probe.messages)) < self.p.context
        ]
        if len(kept) < len(found):
            self.tell.line(
                say("train.probes_too_long", count=len(found) - len(kept), context=self.p.context)
            )
        return kept

    def _longest_answer(self) -> int:
        if self.scores or any(not q.expected for q in self.probes):
            return ANSWER_TOKENS
        longest = max(
            (len(self.p.tokenizer(q.expected)["input_ids"]) for q in self.probes), default=0
        )
        return max(SHORT_ANSWER_TOKENS, longest * 5 // 4 + 8)

    def tell_it(self) -> Finished:
        from tunewright.engine import placement

        world = placement.start(self.config.engine, (self.p.data.train, self.p.data.report))
        if world.device == "cpu":
            keep_freed_memory()
        self.world = world
        self._require_fit()
        found = self._resume_point()
        loop = self._load_and_attach()
        try:
            self._publish(loop)
            loop.log = self.log = log = EventLog(self.out / "events.jsonl")
            if self.resume:
                self._continue(loop, found)
            log.write(
                "started",
                step=loop.progress.step,
                total_steps=loop.schedule.total_steps,
                versions=_versions(),
                device=world.device,
                dtype=world.dtype,
            )
            self.doing = "train.doing.ask"
            self._ask_before(loop.stepper.policy)
            self.doing = "train.doing.reference"
            loop.prepare_reference(self._reference_model)
            self.doing = "train.doing.learn"
            loop.learn()
            if loop.progress.skipped_steps == loop.schedule.total_steps:
                raise TrainingError(problem("E-TRAIN-03"))
            self._save_and_ask_again(loop)
            self.doing = "train.doing.finish"
            return self._finish(loop, "done")
        except Interrupted as e:
            self._last_words(loop, "stopped", e)
            raise
        except (TunewrightError, KeyboardInterrupt, BrokenPipeError) as e:
            self._last_words(loop, "failed", e)
            raise
        except faults.UNFORESEEN as e:
            if not (self.out / "run.yaml").is_file():
                raise  # nothing was created
            p = loop.progress
            fault = faults.caught(
                e, self.out, say(self.doing, step=p.step, total=loop.schedule.total_steps)
            )
            self._last_words(loop, "failed", fault)
            raise fault from e
        finally:
            if self.log is not None:
                with contextlib.suppress(
                    OSError
                ):  # closing writes what is left, which a full disk refuses
                    self.log.close()

    def _last_words(self, loop: Any, status: str, error: BaseException) -> None:
        """Leave what was reached. What fails on the way hides nothing: the error that ended the run
        is the one that is told."""
        if not (self.out / "run.yaml").is_file():
            return
        try:
            self._finish(loop, status, str(error))
        except faults.UNFORESEEN:
            if run_folder.read_summary(self.out).get("status") != status:
                p = loop.progress
                _note_end(
                    self.out,
                    status,
                    error,
                    steps=p.step,
                    total_steps=loop.schedule.total_steps,
                    first_loss=p.first_loss,
                    final_loss=p.final_loss,
                )

    def _require_fit(self) -> None:
        """Refuse, before weights are read, a run that this machine's memory cannot hold."""
        from tunewright.advise import fit

        w, p = self.world, self.p
        layout = "padded" if self.config.engine.layout == "padded" else "tree"
        facts = fit.SampleFacts.of(p.data.report, p.data.train, layout)
        steps = total_steps(self.config.engine, facts.samples)
        found = fit.of_run(
            self.config,
            fit.shape_of(p.source.folder),
            facts,
            steps=steps,
            dtype=w.dtype,
            device=w.device,
            rows_per_pass=w.rows_per_pass,
            layout=layout,
            probes=len(self.probes),
        )
        fit.require(found, available_bytes(w.device))

    def _resume_point(self) -> checkpoint.Checkpoint | None:
        if not self.resume:
            return None
        found = checkpoint.load_latest(self.out / "checkpoints")
        for name, why in found.quarantined if found else []:
            self.tell.line(say("train.quarantined", name=name, why=why))
        return found

    def _load_and_attach(self) -> Any:
        """Weights, method, layout, optimiser and the store of activations. Nothing has been written
        yet."""
        from tunewright.engine.loop import Loop
        from tunewright.engine.opening import to_train

        start = time.perf_counter()
        p = self.p
        made = to_train(
            self.config,
            p.source.folder,
            base_path_of(p.source),
            self.world,
            p.data.train,
            p.data.held_out,
            p.renderer,
            self.tell,
            check=self.stop.check,
        )
        self.causal: Any = made.causal
        self.attached: Any = made.attached
        self.layout, self.rate, self.trainable, self.total = (
            made.layout,
            made.rate,
            made.trainable,
            made.total,
        )
        self.cache_bytes = made.cache
        self.seconds["load"] += time.perf_counter() - start
        log: Any = None
        return Loop(
            made.stepper,
            made.schedule,
            p.data.train,
            p.data.held_out,
            self.config.engine,
            self.out,
            log,
            self.tell,
            self.stop,
            self.world.device,
        )

    def _publish(self, loop: Any) -> None:
        """Say what was decided and why, and let the run folder appear."""
        schedule = loop.schedule
        w, r = self.world, self.world.reasons
        tell = self.tell.line
        tell(
            say(
                "train.where",
                device=w.device,
                device_why=r["engine.device"],
                dtype=w.dtype,
                dtype_why=r.get("engine.dtype", say("placement.asked")),
            )
        )
        tell(
            say(
                "train.layout",
                layout=self.layout,
                why=r["engine.layout"],
                threads=w.threads,
                rows=w.rows_per_pass,
            )
        )
        share = 100 * self.trainable / self.total
        tell(
            say(
                "train.trains",
                trainable=f"{self.trainable:,}",
                total=f"{self.total:,}",
                share=f"{share:.2f}",
                method=kind_of(self.config.method),
            )
        )
        tell(
            say(
                "train.plan",
                samples=schedule.num_samples,
                steps=schedule.total_steps,
                batch=schedule.batch_size,
                rate=f"{self.rate:g}",
                why=r["engine.learning_rate"]
                if self.config.engine.learning_rate == "auto"
                else self.p.parsed.source("engine.learning_rate"),
            )
        )
        self._tell_sharing(schedule)
        measuring, held = loop.measuring, self.p.data.held_out
        if len(measuring.rows) < len(held):
            end = say("train.measured_all" if measuring.all_at_end else "train.measured_some")
            tell(
                say(
                    "train.measured_rows",
                    all=f"{len(held):,}",
                    some=f"{len(measuring.rows):,}",
                    end=end,
                )
            )
        if self.resume:
            return
        resolved = {
            "engine.device": w.device,
            "engine.dtype": w.dtype,
            "engine.threads": w.threads,
            "engine.rows_per_pass": w.rows_per_pass,
            "engine.layout": self.layout,
            "engine.learning_rate": self.rate,
            "engine.batch_size": schedule.batch_size,
            "out": str(self.out),
            "engine.activation_cache": self.cache_bytes,
        }
        if getattr(self.config.objective, "reward", None) is not None:
            resolved["objective.reward"] = rewards.recorded(
                self.config.objective.reward
            )  # a person's own code with its SHA-256
        auto = {
            k: v
            for k, v in r.items()
            if self.p.parsed.source(k) == "default" or k not in self.p.parsed.given
        }
        run_folder.create(
            self.out, run_folder.run_text(self.p.parsed, resolved, auto), self.p.data.report
        )
        tell(say("train.folder", folder=self.out))

    def _tell_sharing(self, schedule: Schedule) -> None:
        """How much of the prompts a step computes once, counted from the steps as they will be cut."""
        from tunewright.engine.sharing import step_sharing

        found = step_sharing(self.p.data.train, schedule, self.world.rows_per_pass, self.layout)
        self.p.data.report["step_sharing"] = found.as_dict()
        if self.layout == "tree" and not self.rolls:
            self.tell.line(
                say(
                    "train.sharing",
                    share=f"{found.prompt_shared:.0%}",
                    speed_up=f"{found.speed_up:.2f}",
                )
            )

    def _reference_model(self) -> dict[str, str]:
        """What the model at step 0 is, for values that are kept."""
        from tunewright.engine.oracles.reference import describe

        adapter = Path(self.config.adapter) if self.config.adapter else None
        return describe(self.p.source.folder, adapter, self.world.dtype)

    def _continue(self, loop: Any, found: checkpoint.Checkpoint | None) -> None:
        if found is None:
            self.tell.line(say("train.resume_zero"))
        else:
            loop.restore(found)
            self.tell.line(say("train.resumed", step=found.step))
        assert self.log is not None
        self.log.write("resumed", step=loop.progress.step)

    def _ask_before(self, policy: Any) -> None:
        """The model answers before the first step, once per run."""
        path = self.out / "before_after.jsonl"
        if self.resume and path.is_file():
            stored = [
                json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line
            ]
            if [row["question"] for row in stored] == [q.question for q in self.probes]:
                for probe, row in zip(self.probes, stored, strict=True):
                    probe.before = row["before"]
                return
        before = self._scored(policy) if self.scores else self._answers_before()
        for probe, text in zip(self.probes, before, strict=True):
            probe.before = text
        self._write_answers()

    def _scored(self, policy: Any) -> list[str]:
        """What the score head says of both answers of each probe's pair, or of each step of its
        answer."""
        import torch

        from tunewright.models.kernels.fused import fused_without_gradient

        found = []
        policy.model.eval()
        for probe in self.probes:
            if self.prepare_samples:
                self.prepare_samples([probe.sample])
            with torch.no_grad(), fused_without_gradient():
                scores = policy([probe.sample]).score.tolist()
            if "steps" in probe.sample.facts:
                found.append(
                    say(
                        "train.steps_scored",
                        chances=", ".join(f"{1 / (1 + math.exp(-score)):.2f}" for score in scores),
                    )
                )
            else:
                found.append(
                    say("train.scored", chosen=f"{scores[0]:+.3f}", rejected=f"{scores[1]:+.3f}")
                )
        return found

    def _answers_before(self) -> list[str]:
        """The answers of what the run starts from: the adapter it goes on with, or the untouched
        base."""
        from tunewright.models.generate import answering
        from tunewright.models.load import load_config

        if self.config.adapter:
            return self._answers(
                answering(self.causal, self.attached, self.p.renderer), say("train.ask_start")
            )
        off = self.attached.disabled
        words = int(load_config(self.p.source.folder).get_text_config().vocab_size)
        with off() if off else contextlib.nullcontext():
            return self._answers(
                answering(self.causal, self.attached, self.p.base_renderer, vocabulary=words),
                say("train.ask_before"),
            )

    def _answers(self, model: AnsweringModel, what: str) -> list[str]:
        from tunewright.models.generate import answer

        if not self.probes:
            return []
        start = time.perf_counter()
        self.tell.start(what)
        prompts = [
            model.renderer.prompt(q.messages, form=q.form(model.renderer)) for q in self.probes
        ]
        answers = answer(
            model,
            prompts,
            max_new_tokens=self.answer_tokens,
            check=self.stop.check,
            on_batch=lambda done: self.tell.progress(what, done, len(prompts)),
        )
        self.tell.finish()
        full = sum(one.end in ("context", "no_room") for one in answers)
        if full:
            self.tell.line(say("train.context_full", count=full, n=len(answers)))
        self.seconds["answer"] += time.perf_counter() - start
        return [one.text for one in answers]

    def _write_answers(self) -> None:
        rows = [
            {k: v for k, v in vars(q).items() if k not in ("messages", "sample")}
            for q in self.probes
        ]
        write_text(
            self.out / "before_after.jsonl",
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        )

    def _save_and_ask_again(self, loop: Any) -> None:
        """Save, forget the model, load the saved files afresh, compare, and ask what was asked
        before."""
        from tunewright.engine.opening import from_files
        from tunewright.models.generate import answering

        self.doing = "train.doing.ask_after"
        whole = self.attached.saves_model
        self.saved = folder = self.out / ("model" if whole else "adapter")
        in_memory = None
        if self.scores:
            in_memory = self._scored(loop.stepper.policy)
        elif len(self.probes) <= FEW_PROBES:
            in_memory = self._answers(
                answering(self.causal, self.attached, self.p.renderer), say("train.ask_after")
            )
        self.doing = "train.doing.save"
        self.attached.save(folder)
        self.p.tokenizer.save_pretrained(str(folder))
        fingerprint = self._fingerprint(self.attached.model)
        loop.stepper = self.causal = self.attached = None
        self.doing = "train.doing.ask_again"
        gc.collect()
        return_freed_memory()
        start = time.perf_counter()
        fresh = from_files(
            folder if whole else self.p.source.folder,
            None if whole else folder,
            self.world,
            None if whole else self.config.base,
        )
        self.seconds["load"] += time.perf_counter() - start
        gap = float(
            (self._fingerprint(fresh.model) - fingerprint).abs().max() / fingerprint.abs().max()
        )
        assert self.log is not None
        self.log.write("reloaded", largest_logit_difference=gap)
        if not gap <= 1e-3:
            raise TrainingError(problem("E-TRAIN-04", str(folder), gap=gap))
        reloaded = (
            self._scored(fresh.policy(self.layout, heads=("score",)))
            if self.scores
            else self._answers(
                answering(fresh.causal, fresh.attached, self.p.renderer), say("train.ask_reloaded")
            )
        )
        for i, (probe, text) in enumerate(zip(self.probes, reloaded, strict=True)):
            probe.after, probe.after_reload = (in_memory[i] if in_memory else text), text
            if probe.after != text:
                self.tell.line(say("train.reload_differs", question=probe.question[:60]))
        self._write_answers()

    def _fingerprint(self, model: Any) -> Any:
        """Logits of the last row of one training sample, through stock attention: equal before
        saving and after loading, or something was lost."""
        import torch

        from tunewright.models.generate import stock_attention

        ids = torch.tensor([self.p.data.train[0].branches[0].tokens[:64]], device=self.world.device)
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        with stock_attention(causal), torch.no_grad():
            return model(input_ids=ids).logits[0, -1].float()

    def _finish(self, loop: Any, status: str, reason: str = "") -> Finished:
        """summary.json and report.html."""
        from tunewright.core.machine import peak_memory_bytes
        from tunewright.report.html import write_report

        p = loop.progress
        from tunewright.models import load

        summary = {
            "status": status,
            "reason": reason,
            **{
                k: v
                for k, v in asdict(p).items()
                if k not in ("step", "skipped_in_a_row", "groups_alike")
            },
            "steps": p.step,
            "groups_without_difference": None
            if p.groups_alike is None
            else p.groups_alike / p.step,
            "total_steps": loop.schedule.total_steps,
            "load_seconds": self.seconds["load"],
            "answer_seconds": self.seconds["answer"],
            "wall_seconds": time.perf_counter() - self.started,
            "peak_memory_bytes": peak_memory_bytes(self.world.device),
            "trainable_parameters": self.trainable,
            "total_parameters": self.total,
            "learning_rate": self.rate,
            "device": self.world.device,
            "dtype": self.world.dtype,
            "layout": self.layout,
            "threads": self.world.threads,
            "rows_per_pass": self.world.rows_per_pass,
            "adapter_bytes": sum(f.stat().st_size for f in self.saved.glob("*.safetensors")),
            "base_bytes": load.weight_bytes(self.p.source.folder),
            "model": self.config.model,
            "base_folder": str(self.p.source.folder),
            "versions": _versions(),
        }
        summary = {
            k: round(v, 4) if isinstance(v, float) and k.endswith("seconds") else v
            for k, v in summary.items()
        }
        write_json(self.out / "summary.json", plain(summary))
        if self.log is not None:
            self.log.write("finished", status=status)
        page = write_report(self.out)
        if status == "done":
            self._say_done(summary, page)
        elif status == "stopped":
            self.tell.line(say("train.stopped", step=p.step, folder=self.out))
        return Finished(self.out, summary)

    def _say_done(self, s: dict[str, Any], page: Path) -> None:
        speed = s["samples"] / s["train_seconds"] if s["train_seconds"] else 0.0
        self.tell.line(
            say(
                "train.done",
                steps=s["steps"],
                time=duration(s["train_seconds"]),
                first=f"{s['first_loss']:.3f}",
                last=f"{s['final_loss']:.3f}",
                speed=f"{speed:.2f}",
                memory=readable_size(s["peak_memory_bytes"]),
            )
        )
        if s["held_out_loss_all"] is not None:
            self.tell.line(
                say(
                    "train.measured_at_end",
                    rows=f"{len(self.p.data.held_out):,}",
                    loss=f"{s['held_out_loss_all']:.4f}",
                )
            )
        figures = s["held_out_figures"]
        if "reward_change" in figures:
            self.tell.line(
                say(
                    "train.rewarded",
                    before=f"{sum(s['held_out_rewards_before']) / len(s['held_out_rewards_before']):.3f}",
                    after=f"{figures['reward']:.3f}",
                    change=f"{figures['reward_change']:+.3f}",
                    error=f"{figures['reward_change_error']:.3f}",
                    count=len(s["held_out_rewards_before"]),
                )
            )
        elif "first_error" in figures:
            shares = {
                name: f"{100 * figures[name]:.0f}"
                for name in ("accuracy", "steps_right", "first_error")
            }
            self.tell.line(say("train.steps_ranked", **shares))
        elif "accuracy" in figures:
            self.tell.line(
                say(
                    "train.ranked",
                    share=f"{100 * figures['accuracy']:.0f}",
                    margin=f"{figures['margin']:.3f}",
                )
            )
        if (alike := s["groups_without_difference"]) is not None and alike >= MOSTLY_ALIKE:
            self.tell.line(
                say(
                    "train.all_alike" if alike == 1 else "train.mostly_alike",
                    share=f"{100 * alike:.0f}",
                )
            )
        if not self.rolls and s["first_loss"] and s["final_loss"] > 0.9 * s["first_loss"]:
            self.tell.line(say("train.barely"))
        saved = 1 - s["physical_rows"] / s["logical_tokens"] if s["logical_tokens"] else 0.0
        if saved >= 0.01:
            self.tell.line(say("train.shared", share=f"{100 * saved:.0f}"))
        self.tell.line(
            say(
                "train.adapter",
                folder=self.saved,
                size=readable_size(s["adapter_bytes"]),
                base=readable_size(s["base_bytes"]),
            )
        )
        self.tell.line(
            say("train.next_scores" if self.scores else "train.next", folder=self.out, page=page)
        )


def _note_end(folder: Path, status: str, error: BaseException, **figures: Any) -> None:
    """The shortest summary.json. Where even that cannot be written, the error says so as well."""
    try:
        run_folder.note_end(folder, status, str(error), **plain(figures))
    except faults.UNFORESEEN as e:
        if isinstance(error, TunewrightError):
            error.add(faults.unwritten(e, folder))


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} M" if count >= 1e7 else f"{count / 1e6:.2f} M"


def _versions() -> dict[str, str]:
    from tunewright.core.machine import versions

    return versions()


def resume_run(
    folder: Path, *, tell: Tell | None = None, extra_probes: list[Probe] | None = None
) -> Finished:
    """Continue the run of `folder` from its newest verified checkpoint. A finished run is left as
    it is."""
    given = run_folder.read_run(folder)
    summary = run_folder.read_summary(folder)
    if summary.get("status") == "done":
        (tell or Tell()).line(
            say("train.already_done", folder=folder, further=run_folder.further(folder))
        )
        return Finished(folder, summary)
    parsed = parse_run(given, dict.fromkeys(given, "run.yaml"))
    return train(parsed, tell=tell, resume=folder, extra_probes=extra_probes)


__all__ = ["Finished", "Prepared", "Probe", "UsageError", "prepare", "resume_run", "train"]
