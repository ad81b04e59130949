"""From a plan to something that can take a step: weights, method, objective, layout and optimiser
put together. Training and `bench` share this."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright import rewards
from tunewright.core.config import RunConfig
from tunewright.core.registry import methods
from tunewright.core.runfile import kind_of
from tunewright.core.seeds import stream_seed
from tunewright.core.telling import Tell
from tunewright.core.types import Attached, Objective, Sample
from tunewright.core.words import say
from tunewright.data import DataSet
from tunewright.engine import activation_cache
from tunewright.engine.layout import choose
from tunewright.engine.opening import computing_in, tokenizer_folder, use_layout
from tunewright.engine.optim import optimizer_for
from tunewright.engine.oracles.reward_model import open_reward_model, twin
from tunewright.engine.oracles.teacher import open_teacher
from tunewright.engine.placement import World
from tunewright.engine.policy import Policy
from tunewright.engine.rollouts.on_policy import OnPolicyStepper
from tunewright.engine.rollouts.questions import equip
from tunewright.engine.rollouts.rounds import RoundStepper
from tunewright.engine.schedule import Schedule, learning_rate_for, make_schedule, total_steps
from tunewright.engine.step import Stepper
from tunewright.methods.saved import put_on
from tunewright.models import anatomy, load, vocabulary
from tunewright.models.kernels.fused import accelerate
from tunewright.models.quantised import keep_base, parameter_count
from tunewright.models.scalar_heads import has_score, put_heads
from tunewright.text.tokenizer import load_tokenizer

LOOKED_AT = 128
"""Samples that a method may see before the first step."""


@dataclass
class Assembled:
    """What a run trains with. `causal` is the causal language model inside `attached.model`; `rate`
    the resolved peak learning rate."""

    causal: Any
    attached: Attached
    stepper: Stepper
    layout: str
    rate: float

    @property
    def trainable(self) -> int:
        """Numbers that train."""
        return sum(q.numel() for q in self.stepper.parameters())

    @property
    def total(self) -> int:
        """Numbers in all: base and method."""
        return parameter_count(self.attached.model)


def assemble(
    config: RunConfig,
    folder: Path,
    base_path: str,
    world: World,
    objective: Objective,
    num_samples: int,
    tell: Tell,
    *,
    samples: Sequence[Sample] = (),
) -> Assembled:
    """Read the weights of `folder`, put the run's method on them and choose the layout. Nothing is
    written.

    `base_path` is what a saved adapter names as its base. Some of `samples` are shown to a method
    that asks for rows. Adds to `world.reasons` what was decided and why. Raises ModelError,
    CompatError and ConfigError for what does not fit.
    """
    notes: list[str] = []
    causal = load.load_model(
        folder, dtype=world.torch_dtype(), device=world.device, notes=notes, base=config.base
    )
    card = anatomy.of(causal)
    for note in [*notes, *card.notes]:
        tell.line(note)
    # Before anything is put on the base: what a reward model of the same base will go on.
    spare = twin(causal) if objective.rollouts and config.base.bits is None else None
    accelerate(causal)
    torch.manual_seed(stream_seed(config.engine.seed, "init"))
    if config.adapter:
        attached = put_on(
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
        entry = methods.get(kind_of(config.method))
        assert entry is not None
        attached = entry.function(config.method, causal, card, base_path)
    for note in attached.notes:
        tell.line(note)
    if attached.look is not None:
        attached.look(_some_rows(samples))
    keep_base(attached, causal)
    _tell_head(config, has_score(causal), "score" in objective.heads, tell)
    put_heads(causal, attached, objective.heads)

    @contextlib.contextmanager
    def policy_in(layout: str) -> Iterator[Any]:
        # What picks rows by a threshold picks others where half precision rounds in another order,
        # which says nothing about the layout: the base is compared.
        picks = attached.needs.layout == "padded" and attached.disabled is not None
        with (
            attached.disabled() if picks and attached.disabled else contextlib.nullcontext(),
            computing_in(causal, layout),
        ):
            yield Policy(attached.model, causal, layout)

    layout, world.reasons["engine.layout"] = choose(
        config.engine, causal, attached.needs.layout, policy_in, world.dtype
    )
    use_layout(causal, layout)
    steps = total_steps(config.engine, num_samples)
    rate = config.engine.learning_rate
    if rate == "auto":
        rate = objective.rate_factor * learning_rate_for(
            attached.learning_rate, steps, parameter_count(causal)
        )
    if attached.begin:
        attached.begin(steps)
    world.reasons["engine.batch_size"] = say("train.batch_reason", samples=num_samples)
    world.reasons["engine.learning_rate"] = say(
        "train.rate_reason", method=kind_of(config.method), steps=steps
    )
    parts: dict[str, Any] = {
        "policy": Policy(attached.model, causal, layout),
        "attached": attached,
        "objective": objective,
        "optimizer": optimizer_for(config.engine, attached, causal),
        "rows_per_pass": world.rows_per_pass,
        "clip": config.engine.clip,
        "seed": config.engine.seed,
        "loss_scale": 4096.0 if world.dtype == "float16" else 1.0,
        "neftune": config.engine.neftune,
    }
    words = _words_of_its_own(config, folder)
    if objective.rollouts:
        wanted = rewards.read(objective.rollouts.rewards, on_bad=objective.rollouts.on_bad)
        models = [
            (
                weight,
                open_reward_model(
                    run,
                    spare if attached.needs.frozen_base else None,
                    folder,
                    layout,
                    world,
                    tell,
                    words,
                ),
            )
            for weight, run in wanted.models
        ]
        stepper: Stepper = RoundStepper(
            **parts, rollouts=objective.rollouts, rewards=wanted, reward_models=models
        )
    elif objective.own_answers:
        stepper = OnPolicyStepper(**parts, own=objective.own_answers)
    else:
        stepper = Stepper(**parts)
    stepper.policy.heads = objective.heads
    stepper.policy.spread = objective.spread
    if objective.teacher:
        stepper.policy.teacher = open_teacher(
            objective.teacher,
            folder,
            causal.config.get_text_config().vocab_size,
            config.engine,
            world,
            tell,
            words,
        )
    return Assembled(causal, attached, stepper, layout, rate)


@dataclass
class Ready(Assembled):
    """What takes the steps of a run, with everything that decides what a step costs. `cache` is
    `engine.activation_cache` as it was decided."""

    schedule: Schedule
    cache: int | str


def ready(
    config: RunConfig,
    folder: Path,
    base_path: str,
    world: World,
    objective: Objective,
    data: DataSet,
    renderer: Any,
    tell: Tell,
    *,
    check: Callable[[], None] | None = None,
) -> Ready:
    """`assemble`, and what a stepper needs besides: its questions and sampler, and the store of
    activations. `check` is called while answers are drawn."""
    made = assemble(
        config, folder, base_path, world, objective, len(data.train), tell, samples=data.train
    )
    schedule = make_schedule(config.engine, len(data.train), made.rate)
    equip(made.stepper, renderer, renderer.tokenizer, check)
    cache, world.reasons["engine.activation_cache"] = activation_cache.install(
        made.stepper.policy,
        config.engine,
        [data.train, data.held_out],
        schedule.epochs,
        world.device,
        tell,
    )
    return Ready(**vars(made), schedule=schedule, cache=cache)


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
