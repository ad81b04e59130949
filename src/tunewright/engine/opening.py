"""The one door to a model that computes: what a name means, and how it is opened to answer, to
score or to train.

The order is the same for all: weights as they are stored, fused forms on them, the method, its
heads, the layout, and last a `Policy`. Chat, evaluation and merging start with `find`, so a model
is always rendered with the template and the stop tokens it was taught with. `find` says what a name
means and reads no weights; `to_answer` and `to_score` read them; `to_train` puts a run's method on
its base and makes what takes the steps.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunewright.core.config import EngineConfig, RunConfig
from tunewright.core.errors import ConfigError, UsageError, problem
from tunewright.core.runfile import kind_of
from tunewright.core.telling import Tell
from tunewright.core.types import Objective, Sample
from tunewright.core.words import say
from tunewright.engine import activation_cache, attention, placement, ranks, routing
from tunewright.engine.decoding.answers import AnsweringModel, answering
from tunewright.engine.learner import learner_of, make_room, stepper_of
from tunewright.engine.loaded import Loaded, base_of, from_files, to_score
from tunewright.engine.naming import Target, find, read_config
from tunewright.engine.optim import LION_RATE
from tunewright.engine.placement import World
from tunewright.engine.rollouts.questions import equip
from tunewright.engine.schedule import Schedule, learning_rate_for, make_schedule, total_steps
from tunewright.engine.step import Stepper
from tunewright.models.kernels.packed import Packs
from tunewright.models.quantised import parameter_count
from tunewright.text.renderer import Renderer

DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    loaded, attached, spare, roles = learner_of(
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
    stepper = stepper_of(
        config, objective, loaded, attached, layout, spare, folder, world, tell, roles
    )
    make_room(stepper, world)
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


__all__ = [
    "Loaded",
    "Opened",
    "Ready",
    "Target",
    "base_of",
    "find",
    "from_files",
    "open_target",
    "read_config",
    "to_answer",
    "to_score",
    "to_train",
    "world_of",
]
