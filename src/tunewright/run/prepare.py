"""A run before its weights are read: `prepare` makes the plan or says what is wrong with it.

Everything that can be wrong without weights is looked for in the order that costs least: `begin`
reads keys, folders and rows, `complete` the model's files, its template and the tokens of the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright import rewards, track
from tunewright.advise import fit, learnt, trial
from tunewright.advise.room import Room
from tunewright.advise.speed import Rates
from tunewright.core import compat, findings
from tunewright.core.config import RunConfig
from tunewright.core.errors import CompatError, ModelError, problem, raise_all
from tunewright.core.files import readable_size
from tunewright.core.registry import methods
from tunewright.core.runfile import ParsedRun, kind_of, objective_of
from tunewright.core.stopwatch import Stopwatch
from tunewright.core.telling import Tell
from tunewright.core.types import Objective
from tunewright.core.words import say
from tunewright.data import DataSet, describe, inspect
from tunewright.engine.placement import World
from tunewright.engine.schedule import make_schedule
from tunewright.engine.sharing import step_sharing
from tunewright.methods import continuing
from tunewright.methods.saved import virtual_tokens
from tunewright.models import vocabulary
from tunewright.record import folder as run_folder
from tunewright.run import gating
from tunewright.run.questions import Probe, Questions, questions_of
from tunewright.run.structure import require_place, require_same_layers
from tunewright.sources import few_bits, find
from tunewright.sources.fingerprint import is_kept_about, judged_by
from tunewright.sources.remote_code import place_of
from tunewright.text import own_template
from tunewright.text.chat_kind import ModelKind, kind_of_model
from tunewright.text.thinking import Thinking
from tunewright.text.tokenizer import load_light, load_tokenizer

if TYPE_CHECKING:
    from tunewright.text.renderer import Renderer

COUNTED_STEPS = 16
"""Steps of which the estimate counts the rows."""


@dataclass(frozen=True)
class Begun:
    """A run whose keys and rows were read; its model was not looked for."""

    continued: continuing.Continued
    out: Path
    resume: Path | None
    rows: DataSet
    """The rows, without tokens."""

    @property
    def config(self) -> RunConfig:
        """What the run is."""
        return self.continued.parsed.config


@dataclass(frozen=True)
class Plan:
    """A run that passed every check that needs no weights."""

    parsed: ParsedRun
    out: Path
    resume: Path | None
    """The folder of the run that is taken up again; None for a new one."""
    source: find.Source
    objective: Objective
    renderer: Renderer
    base_renderer: Renderer
    """How the base is asked: without the tokens that the run adds."""
    data: DataSet
    chat: ModelKind
    context: int | None
    """Tokens that a row may have: what the model takes, less a learnt prompt."""
    questions: Questions

    @property
    def config(self) -> RunConfig:
        """What the run is."""
        return self.parsed.config

    @property
    def base_path(self) -> str:
        """What an adapter names as its base: a hub id where there is one, so that it can be moved;
        else the folder, which plain Transformers can open."""
        source = self.source
        movable = source.kind == "hub" and "@" not in source.spec
        return source.spec if movable else str(source.folder)

    @functools.cached_property
    def shape(self) -> fit.ModelShape:
        """The sizes of the model, from its configuration."""
        return fit.shape_of(self.source.folder)

    def estimate(
        self,
        world: World,
        rates: Rates | None = None,
        *,
        try_blocks: bool = False,
        here: bool = True,
        available: int | None = None,
    ) -> fit.Estimate:
        """What the run will need in `world`; with `rates`, measured here, also its time. `here`
        False: `world` is another machine, about which nothing was learnt.

        What a few blocks of the model took here (`advise/trial.py`) is used where it is known;
        `try_blocks`: it is found out where it is not, which takes some seconds. The first estimate
        decides what `engine.recompute: auto` and `engine.offload: auto` are, for `available` bytes
        (those that are free here).
        """
        config, samples = self.config, self.data.train
        layout = "padded" if config.engine.layout == "padded" else "tree"
        facts = fit.SampleFacts.of(self.data.report, samples, layout)
        draws = self.objective.rollouts is not None or self.objective.own_answers is not None
        schedule = make_schedule(config.engine, facts.samples, 0.0)
        counted = None
        if not draws:
            counted = step_sharing(samples, schedule, world.rows_per_pass, layout, COUNTED_STEPS)
        tried = None
        if rates is not None and world.device == "cpu":
            asked = trial.Asked(
                config, self.source.folder, world, self.objective, samples, self.renderer
            )
            tried = trial.find(asked, self.shape, rates, measure=try_blocks)
        kind = fit.kind_of_run(
            config, self.shape, world.dtype, world.threads, tried=tried is not None
        )
        found = fit.of_run(
            config,
            self.objective,
            self.shape,
            facts,
            steps=schedule.total_steps,
            dtype=world.dtype,
            device=world.device,
            rows_per_pass=world.rows_per_pass,
            layout=layout,
            probes=len(self.questions.probes),
            answer_tokens=max(self.questions.answer_tokens, default=0),
            may_leave_out=all(probe.is_row for probe in self.questions.probes),
            general=self.config.forgetting == "auto" and not self.questions.scored,
            rates=rates,
            counted=counted,
            trial=tried,
            here=here,
            processes=world.processes,
            parallel=world.parallel,
            known=learnt.about(kind, world.device) if rates is not None and here else None,
        )
        if world.parallel == "auto":
            found = fit.among_processes(found, world, available)
        if "auto" in (world.recompute, world.offload):
            most = fit.room_of(world) if available is None else available
            room, why = fit.room_for(found, world.recompute, world.offload, most)
            world.recompute, world.offload = room.recompute, room.offload
            world.keep_bytes = room.keep_bytes
            world.reasons.update(why)
        return fit.with_room(found, Room(world.recompute, world.keep_bytes, world.offload))


def prepare(
    parsed: ParsedRun,
    tell: Tell,
    resume: Path | None = None,
    *,
    extra_probes: Sequence[Probe] = (),
    out_matters: bool = True,
    watch: Stopwatch | None = None,
) -> Plan:
    """The plan of a run. Raises UsageError for everything that can be wrong without weights;
    `out_matters` False: not for an output folder that is taken."""
    watch = watch or Stopwatch()
    with watch.of("data"):
        begun = begin(parsed, resume, out_matters=out_matters)
    return complete(begun, tell, extra_probes, watch)


def begin(parsed: ParsedRun, resume: Path | None = None, *, out_matters: bool = True) -> Begun:
    """Look at a run's keys, its folder and the kinds of its rows. Nothing is fetched."""
    # A resumed run is what its run.yaml says: it was looked at when it began.
    continued = continuing.resolve(parsed) if resume is None else continuing.Continued(parsed)
    config = continued.parsed.config
    raise_all([*compat.problems(config), *track.problems(config.track)], CompatError)
    gating.require(config)
    out = resume or run_folder.out_of(config)
    if resume is None and out_matters:
        run_folder.require_free(out)
    rows = inspect(
        config.data,
        None,
        needs_tokens=False,
        workers=config.engine.threads,
        check=False,
        wants=compat.wanted_rows(config),
    )
    raise_all(compat.row_problems(config, rows.report["kinds"]), CompatError)
    return Begun(continued, out, resume, rows)


def complete(
    begun: Begun,
    tell: Tell,
    extra_probes: Sequence[Probe] = (),
    watch: Stopwatch | None = None,
    *,
    is_light: bool = False,
) -> Plan:
    """Find the model, read its small files and the tokens of the rows, and say what was found.

    `is_light`: no weights will follow, so the tokenizer may be one that takes no time to load and
    cannot be saved.
    """
    watch = watch or Stopwatch()
    with watch.of("load"):
        return _complete(begun, tell, extra_probes, watch, is_light)


def _complete(
    begun: Begun, tell: Tell, extra_probes: Sequence[Probe], watch: Stopwatch, is_light: bool
) -> Plan:
    from tunewright.models import load

    source = find.resolve(begun.config.model, report=tell.line)
    begun = _with_factor(begun, source.folder, tell)
    config = begun.config
    _require_words(config, source.folder)
    _require_wide(config, source.folder)
    objective = objective_of(config)
    if objective.rollouts is not None:
        rewards.read(objective.rollouts.rewards, on_bad=objective.rollouts.on_bad)
    template = own_template.read(config.data.template, begun.resume)
    renderer, base_renderer = _renderers(config, source.folder, objective, is_light, template)
    if config.data.template is not None:
        renderer.template_name = Path(config.data.template).name
    stated = _context_that_fits(begun, source.folder)
    _require_teacher(objective)
    context = _context_of(config, stated)
    with watch.of("data"):
        data = _tokens(config, objective, renderer, context)
    # Questions without an answer are asked as the rows were learnt.
    for one in (renderer, base_renderer):
        one.thinking = replace(one.thinking, habit=(data.report["thinking"] or {}).get("asked"))
    if objective.rollouts is not None:
        from tunewright.engine.rollouts.questions import Questions as Drawn

        data = replace(
            data,
            train=Drawn(data.train_rows, renderer),
            held_out=Drawn(data.held_out_rows, renderer),
        )
    chat = kind_of_model(source.folder, renderer.tokenizer)
    size = _millions(load.parameter_count(source.folder))
    tell.line(say("train.model", model=config.model, size=size, kind=chat.reason))
    if not chat.is_chat:
        tell.line(say("train.base_model"))
    for note in begun.continued.notes:
        tell.line(note)
    tell.line(describe(data.report, colour=tell.colour))
    questions = questions_of(config, data, objective, renderer, context, extra_probes, tell)
    return Plan(
        begun.continued.parsed,
        begun.out,
        begun.resume,
        source,
        objective,
        renderer,
        base_renderer,
        data,
        chat,
        context,
        questions,
    )


def _require_wide(config: RunConfig, folder: Path) -> None:
    """Raise where a checkpoint that is quantised already cannot be trained as the run says."""
    few = few_bits.find(folder)
    if few is None:
        return
    raise_all(few_bits.problems(folder, few, config.base), ModelError)
    entry = methods.get(kind_of(config.method))
    if config.base.dequantise or entry is None or entry.facts.get("on_quantised", False) is True:
        return
    usable = ", ".join(e.name for e in methods if e.facts.get("on_quantised", False) is True)
    about = {"kind": few.kinds, "size": readable_size(2 * few.numbers), "usable": usable}
    raise_all([problem("E-MODEL-92", str(folder), method=entry.name, **about)], CompatError)


def _with_factor(begun: Begun, folder: Path, tell: Tell) -> Begun:
    """The run with a number for the factor of its rotary scaling."""
    from tunewright.models import load, rotary

    config = begun.config
    if config.base.rotary is None or config.base.rotary.factor != "auto":
        return begun
    found, why = rotary.settled(
        config.base.rotary, load.load_config(folder), config.data.max_tokens
    )
    tell.line(why)
    base = config.base.model_copy(update={"rotary": found})
    parsed = begun.continued.parsed
    parsed = replace(parsed, config=config.model_copy(update={"base": base}))
    return replace(begun, continued=replace(begun.continued, parsed=parsed))


def _renderers(
    config: RunConfig, base: Path, objective: Objective, is_light: bool, template: str | None
) -> tuple[Renderer, Renderer]:
    """How the run's rows are rendered, and how its base is asked.

    An adapter may know more words than its base, and a method may add some: the rows are read with
    them. A template of the person's own is that of both: before and after are asked alike.
    """
    from tunewright.engine.naming import renderer_of, tokenizer_folder

    thinking = Thinking(
        config.data.thinking,
        by_rows=objective.rollouts is None,
        arguments=config.data.template_arguments,
    )
    opened = load_light(base)[0] if is_light else load_tokenizer(base)
    own_template.lay_over(opened, template)
    base_renderer = renderer_of(opened, base, thinking=thinking)
    own = tokenizer_folder(Path(config.adapter) if config.adapter else None, base)
    added = vocabulary.tokens_of(config.method)
    if own == base and not added:
        return base_renderer, base_renderer
    tokenizer = own_template.lay_over(load_tokenizer(own), template)
    vocabulary.add_tokens(tokenizer, added)
    return renderer_of(tokenizer, base, own, thinking=thinking), base_renderer


def _require_words(config: RunConfig, folder: Path) -> None:
    """Refuse to teach a whole judge to write: only an objective that trains a judge goes on from
    one."""
    from tunewright.engine.naming import require_words

    if not compat.judges(kind_of(config.objective)):
        require_words(folder, config.model)


def _context_that_fits(begun: Begun, folder: Path) -> int | None:
    """Tokens that the model of `folder` takes, as its configuration states them. Raises CompatError
    where the run's method does not fit it.

    Transformers reads the configuration and builds the model for that, which takes seconds; a
    method that fitted is not tried on the same configuration again.
    """
    from tunewright.models import load

    config = begun.config
    key = None
    if config.adapter is None and is_kept_about(folder) and not place_of(folder).model:
        key = {
            "config": (folder / "config.json").read_text(encoding="utf-8"),
            "method": config.method.model_dump(mode="json"),
            "rotary": config.base.rotary and config.base.rotary.model_dump(mode="json"),
            "by": judged_by(),
        }
    found = findings.read("fits", key) if key is not None else None
    if isinstance(found, dict) and "context" in found:
        context: int | None = found["context"]
        return context
    model_config = load.load_config(folder, config.base)
    _require_method(begun, model_config)
    context = load.context_of(model_config)
    if key is not None:
        findings.keep("fits", key, {"context": context})
    return context


def _require_method(begun: Begun, model_config: Any) -> None:
    """Refuse a method that has no place in the model, or that its configuration speaks against."""
    config, asked = begun.config, begun.continued.asked
    require_place(config, model_config)
    if asked is not None:
        require_same_layers(asked, Path(config.adapter or ""), model_config)
    entry = methods.get(kind_of(config.method))
    if entry is not None and not config.adapter and "obstacles" in entry.facts:
        raise_all(entry.facts["obstacles"](config.method, model_config), CompatError)


def _require_teacher(objective: Objective) -> None:
    """Refuse a teacher that is not there, or has no words. Raises what opening it would raise."""
    if objective.teacher is not None:
        from tunewright.engine.naming import config_folder, require_words

        name = objective.teacher.model
        require_words(config_folder(name), name)


def _context_of(config: RunConfig, context: int | None) -> int | None:
    """Tokens that a row may have, of the `context` that the model states. A learnt prompt, a new
    one or one that the run goes on with, takes some of it. Raises CompatError where it takes all.
    """
    prompt = (
        virtual_tokens(Path(config.adapter))
        if config.adapter
        else getattr(config.method, "num_tokens", 0)
    )
    if context is None or not prompt:
        return context
    if prompt >= context:
        raise CompatError(
            problem("E-METHOD-27", "method.num_tokens", tokens=prompt, context=context)
        )
    return context - int(prompt)


def _tokens(
    config: RunConfig, objective: Objective, renderer: Renderer, context: int | None
) -> DataSet:
    """The rows with their tokens. Raises DataError for a set from which nothing would be learnt,
    CompatError where the longest question leaves no room for an answer that is to be drawn."""
    data = inspect(
        config.data,
        renderer,
        context,
        config.engine.seed,
        workers=config.engine.threads,
        # Objectives that learn from documents take them whole, however long they are.
        pack=objective.pack,
        wants=compat.wanted_rows(config),
        questions_only=objective.rollouts is not None,
    )
    own = objective.own_answers
    drawing = own if own is not None and own.share else objective.rollouts
    if drawing is not None:
        from tunewright.data.store.columns import asked_lengths
        from tunewright.engine.rollouts.sampling import require_room

        lengths = [*asked_lengths(data.train), *asked_lengths(data.held_out)]
        require_room(max(lengths, default=0), drawing.max_new_tokens, context)
    return data


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} M" if count >= 1e7 else f"{count / 1e6:.2f} M"
