"""The one door to a model that computes: what a name means, and how it is opened to answer, to
score or to train.

The order is the same for all: weights as they are stored, fused forms on them, the method, its
heads, the layout, and last a `Policy`. Chat, evaluation and merging start with `find`, so a model
is always rendered with the template and the stop tokens it was taught with. `find` says what a name
means and reads no weights; `to_answer` and `to_score` read them; `to_train` puts a run's method on
its base and makes what takes the steps. No other file puts a method on a model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tunewright import rewards
from tunewright.core import compat
from tunewright.core.config import BaseConfig, EngineConfig, RunConfig, Section
from tunewright.core.errors import CompatError, ConfigError, ModelError, UsageError, problem
from tunewright.core.registry import methods
from tunewright.core.runfile import kind_of
from tunewright.core.seeds import stream_seed
from tunewright.core.telling import Tell
from tunewright.core.types import Attached, Objective, Sample, Teaching
from tunewright.core.words import say
from tunewright.engine import (
    activation_cache,
    attention,
    offload,
    placement,
    ranks,
    recompute,
    routing,
    sharding,
)
from tunewright.engine.decoding.answers import AnsweringModel, answering
from tunewright.engine.layout import choose
from tunewright.engine.naming import Target, find, read_config, tokenizer_folder
from tunewright.engine.optim import LION_RATE, optimizer_for
from tunewright.engine.oracles.reference import describe
from tunewright.engine.oracles.reward_model import (
    RewardModel,
    Steps,
    require_same_words,
    same_weights,
    sharing_weights,
)
from tunewright.engine.oracles.teacher import Teacher, require_same_vocabulary
from tunewright.engine.placement import World
from tunewright.engine.policy import Policy
from tunewright.engine.rollouts.on_policy import OnPolicyStepper
from tunewright.engine.rollouts.questions import equip
from tunewright.engine.rollouts.rounds import RoundStepper
from tunewright.engine.schedule import Schedule, learning_rate_for, make_schedule, total_steps
from tunewright.engine.step import Stepper
from tunewright.methods.saved import put_on
from tunewright.models import anatomy, load, vocabulary
from tunewright.models.kernels import liger, tree_attention
from tunewright.models.kernels.fused import accelerate
from tunewright.models.kernels.packed import Packs
from tunewright.models.quantised import is_quantised, keep_base, parameter_count
from tunewright.models.scalar_heads import has_score, put_heads
from tunewright.sources.fingerprint import computed_by, fingerprint, is_kept_about
from tunewright.text.renderer import Renderer
from tunewright.text.tokenizer import load_tokenizer

LOOKED_AT = 128
"""Samples that a method may see before the first step."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Loaded:
    """A causal model in memory with the method that is on it, if there is any."""

    causal: Any
    attached: Attached | None
    vocabulary: int
    """Tokens that the base knows: a method may have added some."""
    kept_as: Callable[[], Any] = field(default=lambda: None, kw_only=True)
    """Gives everything that decides what it computes, as the key of what is kept about it; None
    where nothing is kept."""

    @property
    def model(self) -> Any:
        """What computes logits: the method on its base, or the model itself."""
        return self.causal if self.attached is None else self.attached.model

    def choose_layout(self, engine: EngineConfig, dtype: str) -> tuple[str, str]:
        """(layout, reason): what `engine.layout` asks for, or the tree where the model agrees with
        its own stock attention, else padded rows. `dtype` is what it computes in.

        Raises CompatError for a layout that cannot be right and for a head that nobody knows.
        """
        needs = "any" if self.attached is None else self.attached.needs.layout
        # What picks rows by a threshold picks others where half precision rounds in another order,
        # which says nothing about the layout: the base is compared.
        off = self.attached.disabled if self.attached is not None and needs == "padded" else None

        @contextlib.contextmanager
        def policy_in(layout: str) -> Iterator[Policy]:
            with off() if off else contextlib.nullcontext(), computing_in(self.causal, layout):
                yield Policy(self.model, self.causal, layout)

        return choose(engine, self.causal, needs, policy_in, dtype, self.kept_as())

    def policy(self, layout: str, **read: Any) -> Policy:
        """What passes go through; from now on the model computes in `layout`. `read`: what a pass
        gives besides log-probabilities (`Policy`)."""
        use_layout(self.causal, layout)
        return Policy(self.model, self.causal, layout, **read)


@dataclass
class Opened(Loaded):
    """A model that a person named, with its tokenizer and template. Whoever wants answers asks
    `answering`."""

    renderer: Renderer
    target: Target
    world: World
    packs: Packs | None = field(default=None, kw_only=True)
    """Packed weights that stay from one answer to the next; None: each makes its own."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that the model was taught with."""
        return self.renderer.tokenizer

    @property
    def answering(self) -> AnsweringModel:
        """What answers: the method on its base, or the model itself."""
        return answering(self.causal, self.attached, self.renderer, packs=self.packs)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[AnsweringModel]:
        """Inside, the model answers as its base does. Yields the base, to be asked with its own
        tokenizer, template and stops, knowing no added token: the same as when the base is opened
        alone. Raises UsageError where the method cannot be switched off."""
        if self.attached is None:
            if not self.switches:
                raise UsageError(
                    problem("E-RUN-15", self.target.name, reason=say("chat.whole_model"))
                )
            yield self.answering
        elif self.attached.disabled is None:
            raise UsageError(
                problem("E-RUN-15", self.target.name, reason=self.attached.disabled_reason)
            )
        else:
            with self.attached.disabled():
                yield answering(
                    self.causal,
                    self.attached,
                    self.base_renderer,
                    vocabulary=self.vocabulary,
                    packs=self.packs,
                )

    @property
    def switches(self) -> bool:
        """Whether `untouched` can answer: what was trained can be switched off, or nothing was. Of
        a whole model that was trained the base is another."""
        if self.attached is not None:
            return self.attached.disabled is not None
        return (
            self.target.run is None
            or self.target.source.folder.resolve() != (self.target.run / "model").resolve()
        )

    @functools.cached_property
    def base_renderer(self) -> Renderer:
        """How the base is asked."""
        return self.target.base_renderer()


def read_on(world: World) -> str:
    """Where the weights of a run are read: what no device has room for, before it is in shares, in
    the machine's memory."""
    return "cpu" if world.parallel == "fsdp" else world.device


def _put_fused_forms(causal: Any) -> None:
    """Fused forms of norms and gated MLPs, where they give what the model's own modules give."""
    accelerate(causal)
    if next(causal.parameters()).device.type == "cuda":
        liger.accelerate(causal)


def put_new(method: Section, causal: Any, card: Any, base_path: str) -> Attached:
    """The method that a section of a run file describes on `causal`, whose anatomy is `card`.
    `base_path` is what it names as its base when it is saved. Raises what the method raises."""
    entry = methods.get(kind_of(method))
    assert entry is not None
    attached: Attached = entry.function(method, causal, card, base_path)
    keep_base(attached, causal)
    return attached


def put_saved(causal: Any, folder: Path, **how: Any) -> Attached:
    """The method saved in `folder` on `causal`; arguments, and what is raised, as of
    `methods.saved.put_on`."""
    attached = put_on(causal, folder, **how)
    keep_base(attached, causal)
    return attached


def from_files(
    folder: Path,
    adapter: Path | None,
    world: World,
    base: BaseConfig | None = None,
    *,
    causal: Any = None,
) -> Loaded:
    """The model of `folder` with the method saved in `adapter` on it, nothing of which trains.

    `base` says how it is held; `causal` is the model of `folder` where it is in memory already.
    Raises ModelError for what cannot be opened or does not fit.
    """
    if causal is None:
        causal = load.load_model(folder, dtype=world.torch_dtype(), device=world.device, base=base)
    known = int(causal.get_input_embeddings().weight.shape[0])
    _put_fused_forms(causal)
    attached = None if adapter is None else put_saved(causal, adapter)
    kept_as = functools.partial(_kept_as, folder, adapter, world, base)
    return Loaded(causal, attached, known, kept_as=kept_as)


def _kept_as(
    folder: Path, adapter: Path | None, world: World, base: BaseConfig | None, **more: Any
) -> dict[str, Any] | None:
    """The key of what is kept about a model: its files, how they are held, and what computes.
    `more`: what a run puts on it. None for the smallest models, of which nothing is kept."""
    if not is_kept_about(folder):
        return None
    return {
        "model": fingerprint(folder),
        "adapter": "" if adapter is None else fingerprint(adapter),
        "base": None if base is None else base.model_dump(mode="json"),
        "dtype": world.dtype,
        "device": world.device,
        "by": computed_by(),
        **more,
    }


def world_of(
    found: Target, dtype: str | None, device: str, threads: int | Literal["auto"]
) -> World:
    """Where and how `found` will compute. `dtype` None: the run's own dtype, else what suits
    the device. Raises ConfigError for values that do not fit."""
    wanted = dtype or str(found.settings.get("engine.dtype", "auto"))
    if wanted not in DTYPES:
        raise ConfigError(
            problem(
                "E-CONFIG-08",
                "--dtype",
                field="engine.dtype",
                value=wanted,
                reason=", ".join(DTYPES),
            )
        )
    return placement.start(
        EngineConfig.model_validate({"dtype": wanted, "device": device, "threads": threads})
    )


def to_answer(
    found: Target,
    *,
    dtype: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
) -> Opened:
    """Read the weights of `found`, to be asked or measured. `dtype` None: the run's own dtype,
    else what suits the device. Raises ConfigError for values that do not fit and ModelError
    for files that do not."""
    world = world_of(found, dtype, device, threads)
    loaded = from_files(found.source.folder, found.adapter, world, base_of(found.settings))
    return Opened(**vars(loaded), renderer=found.renderer(), target=found, world=world)


def to_score(found: Target, layout: str, world: World, *, causal: Any = None) -> Policy:
    """Read the weights of `found`, which gives numbers: a policy whose passes have `score`.

    `causal` is its base where that is in memory already. Raises ModelError for a model without a
    score head.
    """
    loaded = from_files(
        found.source.folder, found.adapter, world, base_of(found.settings), causal=causal
    )
    if not has_score(loaded.causal):
        raise ModelError(problem("E-OBJ-34", found.name))
    if causal is None:
        loaded.model.requires_grad_(False)
    return loaded.policy(layout, heads=("score",))


def base_of(settings: dict[str, Any]) -> BaseConfig:
    """How the base of a run was held while it was trained; wide for anything that is not a run."""
    if not any(name.startswith("method") for name in settings):
        settings = {**settings, "base.dequantise": True}
    names = ("bits", "type", "double", "block", "dequantise", "rotary")
    return BaseConfig(
        **{
            name: settings[f"base.{name}"]
            for name in names
            if settings.get(f"base.{name}") is not None
        }
    )


def open_target(
    target: str,
    tell: Tell,
    *,
    base: bool = False,
    dtype: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    think: bool | None = None,
) -> Opened:
    """`find` and `to_answer` in one: what `target` names, ready to answer."""
    return to_answer(
        find(target, tell, base=base, think=think), dtype=dtype, device=device, threads=threads
    )


def use_layout(causal: Any, layout: str) -> None:
    """Let `causal` compute in `layout`: our attention for the tree, a stock one for padded rows."""
    tree_attention.register()
    causal.set_attn_implementation(
        tree_attention.NAME if layout == "tree" else load.stock_attention(causal)
    )


@contextlib.contextmanager
def computing_in(causal: Any, layout: str) -> Iterator[None]:
    """Inside, `causal` computes in `layout`; afterwards as before."""
    before = causal.config._attn_implementation
    use_layout(causal, layout)
    try:
        yield
    finally:
        causal.set_attn_implementation(before)


# ---- to train


@dataclass
class Ready(Loaded):
    """What takes the steps of a run, with everything that decides what a step costs."""

    stepper: Stepper
    layout: str
    rate: float
    """The resolved peak learning rate."""
    schedule: Schedule
    cache: int | str
    """`engine.activation_cache` as it was decided."""

    @property
    def trainable(self) -> int:
        """Numbers that train."""
        return sum(q.numel() for q in self.stepper.parameters())

    @property
    def total(self) -> int:
        """Numbers in all: base and method."""
        return parameter_count(self.model)


def to_train(
    config: RunConfig,
    folder: Path,
    base_path: str,
    world: World,
    objective: Objective,
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    renderer: Any,
    tell: Tell,
    *,
    check: Callable[[], None] | None = None,
    causal: Any = None,
) -> Ready:
    """Read the weights of `folder`, put the run's method on them, choose the layout and make the
    stepper. Nothing is written.

    `base_path` is what a saved adapter names as its base. `check` is called while answers are drawn
    and may raise. `causal` takes the place of the model of `folder`; nothing is then kept about it.
    Adds to `world.reasons` what was decided and why. Raises ModelError, CompatError and ConfigError
    for what does not fit.
    """
    loaded, attached, spare, roles = _learner(
        config, folder, base_path, world, objective, train, tell, causal
    )
    layout, reason = ranks.current().first(lambda: loaded.choose_layout(config.engine, world.dtype))
    steps = total_steps(config.engine, len(train))
    rate = config.engine.learning_rate
    if rate == "auto":
        count = parameter_count(loaded.causal)
        rate = objective.rate_factor * learning_rate_for(attached.learning_rate, steps, count)
        rate *= LION_RATE if config.engine.optimizer == "lion" else 1.0
    if attached.begin:
        attached.begin(steps)
    world.reasons["engine.layout"] = reason
    world.reasons["engine.batch_size"] = say("train.batch_reason", samples=len(train))
    world.reasons["engine.learning_rate"] = say(
        "train.rate_reason", method=kind_of(config.method), steps=steps
    )
    stepper = _stepper(
        config, objective, loaded, attached, layout, spare, folder, world, tell, roles
    )
    _make_room(stepper, world)
    world.attention, world.reasons["engine.attention"] = attention.choose(
        config.engine, loaded.causal, layout, world.device, world.dtype
    )
    stepper.policy.attention = world.attention
    stepper.policy.routing = routing.watching(loaded.causal, config.engine.balance)
    schedule = make_schedule(config.engine, len(train), rate)
    equip(stepper, renderer, check)
    engine = config.engine
    if engine.balance is not None:  # routers below the lowest trained block must run as well
        engine = engine.model_copy(update={"activation_cache": "off"})
    cache, world.reasons["engine.activation_cache"] = activation_cache.install(
        stepper.policy, engine, [train, held_out], schedule.epochs, world.device, tell
    )
    return Ready(
        **vars(loaded), stepper=stepper, layout=layout, rate=rate, schedule=schedule, cache=cache
    )


def _make_room(stepper: Stepper, world: World) -> None:
    """What is computed again and what lies elsewhere, as it was decided; `auto` is nothing where
    nobody estimated."""
    policy = stepper.policy
    policy.keep_bytes = world.keep_bytes
    if world.parallel == "fsdp" and world.offload not in ("auto", "none"):
        raise CompatError.of(
            "E-DIST-08",
            "engine.offload",
            what=f"`engine.offload: {world.offload}`",
            other="`engine.parallel: fsdp`",
            instead="engine.offload_shares=true, engine.parallel=ddp",
        )
    recompute.install(policy, world.recompute)
    if world.offload in ("activations", "all"):
        offload.keep_activations_away(policy, offload.store_for(policy.device))
    if world.offload in ("optimizer", "all"):
        store = offload.store_for(policy.device)
        stepper.optimizer = offload.AwayOptimizer(stepper.optimizer, store)


def _learner(
    config: RunConfig,
    folder: Path,
    base_path: str,
    world: World,
    objective: Objective,
    samples: Sequence[Sample],
    tell: Tell,
    causal: Any = None,
) -> tuple[Loaded, Attached, Any, dict[str, list[str]]]:
    """The base with the run's method and heads on it, a second tree over the same untouched weights
    where reward models may stand on it, and the modules of the base by role."""
    notes: list[str] = []
    given = causal is not None
    if not given:
        causal = load.load_model(
            folder, dtype=world.torch_dtype(), device=read_on(world), notes=notes, base=config.base
        )
    card = anatomy.of(causal)
    for note in [*notes, *card.notes]:
        tell.line(note)
    known = int(causal.get_input_embeddings().weight.shape[0])
    # Before anything is put on the base: what a reward model of the same base will go on.
    shares = objective.rollouts is not None and not is_quantised(causal)
    spare = sharing_weights(causal) if shares and world.parallel != "fsdp" else None
    _put_fused_forms(causal)
    torch.manual_seed(stream_seed(config.engine.seed, "init"))
    if config.adapter:
        attached = put_saved(
            causal,
            Path(config.adapter),
            base_path=base_path,
            trainable=True,
            dropout=getattr(config.method, "dropout", None),
        )
        method = methods.get(kind_of(config.method))
        if method is not None and "continued" in method.facts:
            method.facts["continued"](attached, config.method)
        tell.line(say("train.from_adapter", folder=config.adapter))
    else:
        attached = put_new(config.method, causal, card, base_path)
    for note in attached.notes:
        tell.line(note)
    if attached.look is not None:
        attached.look(_some_rows(samples))
    _tell_head(config, has_score(causal), "score" in objective.heads, tell)
    put_heads(causal, attached, objective.heads)
    loaded = Loaded(causal, attached, known)
    if attached.look is None and not given:  # else the rows decide how it starts
        start = None if config.adapter is None else Path(config.adapter)
        loaded.kept_as = functools.partial(
            _kept_as,
            folder,
            start,
            world,
            config.base,
            method=config.method.model_dump(mode="json"),
            heads=list(objective.heads),
            seed=config.engine.seed,
        )
    return loaded, attached, spare if attached.needs.frozen_base else None, card.roles


def _stepper(
    config: RunConfig,
    objective: Objective,
    loaded: Loaded,
    attached: Attached,
    layout: str,
    spare: Any,
    folder: Path,
    world: World,
    tell: Tell,
    roles: dict[str, list[str]],
) -> Stepper:
    """What takes the steps, with the models that its objective asks besides."""
    engine, words = config.engine, _words_of_its_own(config, folder)
    rollouts, teacher = objective.rollouts, None
    if objective.teacher:
        size = loaded.causal.config.get_text_config().vocab_size
        teacher = teacher_of(objective.teacher, folder, size, engine, world, tell, words)
    policy = loaded.policy(
        layout,
        heads=objective.heads,
        spread=objective.spread,
        asks=objective.asks,
        teacher=teacher,
        temperature=rollouts.temperature if rollouts else 1.0,
    )
    _among_ranks(policy, attached, engine, world)
    parts: dict[str, Any] = {
        "policy": policy,
        "attached": attached,
        "objective": objective,
        "optimizer": optimizer_for(engine, attached, loaded.causal, roles),
        "rows_per_pass": world.rows_per_pass,
        "clip": engine.clip,
        "seed": engine.seed,
        "loss_scale": 4096.0 if world.dtype == "float16" else 1.0,
        "neftune": engine.neftune,
    }
    if rollouts:
        wanted = rewards.read(rollouts.rewards, on_bad=rollouts.on_bad)
        judges = [
            (weight, reward_model_of(run, spare, folder, layout, world, tell, words))
            for weight, run in wanted.models
        ]
        return RoundStepper(**parts, rollouts=rollouts, rewards=wanted, reward_models=judges)
    if objective.own_answers:
        return OnPolicyStepper(**parts, own=objective.own_answers)
    return Stepper(**parts)


def _among_ranks(policy: Policy, attached: Attached, engine: EngineConfig, world: World) -> None:
    """Let all processes of the run start from the weights of the first, and put them in shares
    where the run asks for it; before an optimiser holds them."""
    team = ranks.current()
    if not team.is_many:
        return
    wanted = set(attached.parameters)
    trained = [p for name, p in attached.model.named_parameters() if name in wanted]
    if len(set(team.gather(sum(p.numel() for p in trained)))) > 1:
        raise AssertionError("ranks train other weights")
    team.same_as_first(trained)
    if world.parallel == "fsdp":
        sharding.shard(policy, world.device, hybrid=engine.hybrid, offload=engine.offload_shares)


def teacher_of(
    teaching: Teaching,
    student: Path,
    student_size: int,
    engine: EngineConfig,
    world: World,
    tell: Tell,
    own_words: dict[str, int] | None = None,
) -> Teacher:
    """The teacher a run names. Its files are found and its vocabulary is compared with that of the
    model in `student`, whose head has `student_size` rows; `own_words` are the student's token ids
    where it has more of them than that model.

    Its weights are read when they are needed. Raises CompatError for another vocabulary and what
    `find` raises.
    """
    found = find(teaching.model, tell)
    size = int(read_config(found).get_text_config().vocab_size)
    require_same_vocabulary(
        teaching.model, found.tokenizer_folder, size, student, student_size, own_words
    )

    def opened() -> Policy:
        loaded = from_files(found.source.folder, found.adapter, world, base_of(found.settings))
        layout, why = loaded.choose_layout(
            engine.model_copy(update={"layout": "auto"}), world.dtype
        )
        tell.line(say("distill.teacher", teacher=teaching.model, layout=layout, why=why))
        return loaded.policy(layout)

    about = functools.partial(describe, found.source.folder, found.adapter, world.dtype)
    return Teacher(teaching, min(size, student_size), opened, about)


def reward_model_of(
    run: Path,
    base: Any,
    base_folder: Path,
    layout: str,
    world: World,
    tell: Tell,
    words: dict[str, int] | None = None,
) -> RewardModel:
    """The reward model of a run folder. `base` is a second tree over the untouched base, or None
    where its weights will change; `words` are the token ids of the model that learns, where it has
    more of them than its base.

    Raises ModelError for a run that gives no scores, or whose words have other token ids than the
    policy's.
    """
    found = find(str(run), tell)
    require_same_words(run, found.tokenizer_folder, base_folder, words)
    shared = (
        found.adapter is not None
        and base is not None
        and same_weights(found.source.folder, base_folder)
    )
    tell.line(say("rounds.reward_shared" if shared else "rounds.reward_own", folder=run))
    policy = to_score(found, layout, world, causal=base if shared else None)
    steps = None
    if compat.judges(found.settings.get("objective.kind")) == "steps":
        tokenizer = load_tokenizer(found.tokenizer_folder)
        steps = Steps(
            str(found.settings.get("objective.whole") or "min"),
            lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        )
    return RewardModel(policy, f"reward_{run.name}", world.rows_per_pass, steps)


def _tell_head(config: RunConfig, there: bool, wanted: bool, tell: Tell) -> None:
    """What becomes of the score head that the start brought with it, or that it lacks."""
    if there:
        tell.line(
            say(
                "train.score_kept" if wanted else "train.score_left",
                folder=config.adapter or config.model,
            )
        )
    elif wanted and config.adapter:
        tell.line(say("train.score_new", folder=config.adapter))


def _words_of_its_own(config: RunConfig, folder: Path) -> dict[str, int] | None:
    """Token -> id of the model that learns, where it may know more of them than its base in
    `folder`."""
    added, own = (
        vocabulary.tokens_of(config.method),
        tokenizer_folder(Path(config.adapter) if config.adapter else None, folder),
    )
    if own == folder and not added:
        return None
    tokenizer = load_tokenizer(own)
    vocabulary.add_tokens(tokenizer, added)
    return dict(tokenizer.get_vocab())


def _some_rows(samples: Sequence[Sample]) -> list[list[int]]:
    """Token rows of samples from everywhere in the data."""
    step = max(1, len(samples) // LOOKED_AT)
    return [branch.tokens for sample in samples[::step][:LOOKED_AT] for branch in sample.branches]
