"""What every `auto` of a run became: said with its reason, and written as the folder's run.yaml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright import rewards
from tunewright.advise import fit
from tunewright.core.callbacks import Listeners
from tunewright.core.errors import place_words
from tunewright.core.machine import keep_freed_memory
from tunewright.core.runfile import kind_of
from tunewright.core.signals import StopFlag
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import placement, ranks
from tunewright.engine.placement import World
from tunewright.engine.schedule import Schedule, measuring_of
from tunewright.engine.sharing import step_sharing
from tunewright.record import folder as run_folder
from tunewright.record.events import EventLog
from tunewright.run.prepare import Plan
from tunewright.text import own_template

if TYPE_CHECKING:
    from tunewright.advise.fit import Estimate
    from tunewright.advise.speed import Rates
    from tunewright.engine.loop import Loop
    from tunewright.engine.opening import Ready


@dataclass(frozen=True)
class Decided:
    """Where and how a run computes, without the model that does."""

    world: World
    schedule: Schedule
    layout: str
    rate: float
    """The peak learning rate."""
    trainable: int
    total: int
    """Numbers that train, and numbers in all."""
    cache: int | str
    """Bytes of the activation cache, or `off`."""
    saves_model: bool
    """Every weight may change: the run leaves a whole model."""

    def folder(self, out: Path) -> Path:
        """Where in the run folder `out` the trained weights lie."""
        return out / ("model" if self.saves_model else "adapter")


def place(plan: Plan) -> World:
    """Resolve the device, dtype, threads and rows of a pass."""
    team = ranks.current()
    world = placement.start(plan.config.engine, (plan.data.train, plan.data.report))
    if team.is_many:
        # What holds for all is what the first found; a GPU and its threads are one's own.
        world = replace(team.first(lambda: world), device=world.device, threads=world.threads)
    if world.device == "cpu":
        keep_freed_memory()
    return world


def place_and_estimate(
    plan: Plan, measure: Callable[[Any, World], Rates]
) -> tuple[World, Rates, Estimate]:
    """Where the run computes, how fast that was seen to be, and what the run will need there; of
    several ranks the first finds it out. `measure(shape, world)` gives the rates."""
    world, team = place(plan), ranks.current()

    def find() -> tuple[World, Rates, Estimate]:
        rates = measure(plan.shape, world)
        estimate = plan.estimate(world, rates)
        world.holds_whole = world.parallel != "fsdp" or fit.holds_whole(
            estimate, fit.room_of(world)
        )
        return world, rates, estimate

    found, rates, estimate = team.first(find)
    return replace(found, device=world.device, threads=world.threads), rates, estimate


def open_to_train(
    plan: Plan, world: World, tell: Tell, check: Callable[[], None] | None = None
) -> tuple[Ready, Decided]:
    """Read the weights and make what takes the run's steps; nothing is written. `check` is called
    while answers are drawn."""
    from tunewright.engine.opening import to_train

    opened = to_train(
        plan.config,
        plan.source.folder,
        plan.base_path,
        world,
        plan.objective,
        plan.data.train,
        plan.data.held_out,
        plan.renderer,
        tell,
        check=check,
    )
    decided = Decided(
        world,
        opened.schedule,
        opened.layout,
        opened.rate,
        opened.trainable,
        opened.total,
        opened.cache,
        opened.stepper.attached.saves_model,
    )
    return opened, decided


def loop_of(
    plan: Plan,
    opened: Ready,
    world: World,
    log: EventLog,
    tell: Tell,
    stop: StopFlag,
    listeners: Listeners,
) -> Loop:
    """The steps of a run, none of them taken."""
    from tunewright.engine.loop import Loop

    return Loop(
        opened.stepper,
        opened.schedule,
        plan.data.train,
        plan.data.held_out,
        plan.config.engine,
        plan.out,
        log,
        tell,
        stop,
        world.device,
        listeners=listeners,
    )


def start_of(plan: Plan, world: World) -> dict[str, str]:
    """What the model at step 0 is, for values of it that are kept."""
    from tunewright.engine.oracles.reference import describe

    adapter = Path(plan.config.adapter) if plan.config.adapter else None
    return describe(plan.source.folder, adapter, world.dtype)


def say_where(world: World, tell: Tell) -> None:
    """Device and dtype, with their reasons."""
    tell.line(
        say(
            "train.where",
            device=world.device,
            device_why=world.reasons["engine.device"],
            dtype=world.dtype,
            dtype_why=world.reasons.get("engine.dtype", say("placement.asked")),
        )
    )


def say_layout(decided: Decided, tell: Tell) -> None:
    """The layout of a pass, threads and rows, with the reason."""
    world = decided.world
    tell.line(
        say(
            "train.layout",
            layout=decided.layout,
            why=world.reasons["engine.layout"],
            threads=world.threads,
            rows=world.rows_per_pass,
        )
    )
    # On a CPU there is nothing to choose.
    if decided.layout == "tree" and (world.device != "cpu" or world.attention != "blocks"):
        why = world.reasons["engine.attention"]
        tell.line(say("attention.line", backend=world.attention, why=why))


def publish(plan: Plan, decided: Decided, tell: Tell) -> None:
    """Say what was decided and why, and let the folder of a new run appear."""
    say_where(decided.world, tell)
    say_layout(decided, tell)
    _say_steps(plan, decided, tell)
    _count_sharing(plan, decided, tell)
    _say_measured(plan, decided, tell)
    if plan.resume is None:
        text, team = _run_text(plan, decided), ranks.current()
        kept = _kept(plan)
        team.only_first(lambda: run_folder.create(plan.out, text, plan.data.report, kept))
        tell.line(say("train.folder", folder=plan.out))


def _kept(plan: Plan) -> dict[str, str]:
    """Files of the person's that a resumed run needs as they are now: name -> text."""
    if plan.config.data.template is None:
        return {}
    return {own_template.FILE: str(plan.renderer.tokenizer.chat_template)}


def _say_steps(plan: Plan, decided: Decided, tell: Tell) -> None:
    config, schedule = plan.config, decided.schedule
    tell.line(
        say(
            "train.trains",
            trainable=f"{decided.trainable:,}",
            total=f"{decided.total:,}",
            share=f"{100 * decided.trainable / decided.total:.2f}",
            method=kind_of(config.method),
        )
    )
    key = "engine.learning_rate"
    is_auto = config.engine.learning_rate == "auto"
    tell.line(
        say(
            "train.plan",
            samples=schedule.num_samples,
            steps=schedule.total_steps,
            batch=schedule.batch_size,
            rate=f"{decided.rate:g}",
            why=decided.world.reasons[key] if is_auto else place_words(plan.parsed.source(key)),
        )
    )


def _count_sharing(plan: Plan, decided: Decided, tell: Tell) -> None:
    """How much of the prompts a step computes once, counted from the steps as they will be cut."""
    found = step_sharing(
        plan.data.train, decided.schedule, decided.world.rows_per_pass, decided.layout
    )
    plan.data.report["step_sharing"] = found.as_dict()
    if decided.layout == "tree" and plan.objective.rollouts is None:
        share, speed_up = f"{found.prompt_shared:.0%}", f"{found.speed_up:.2f}"
        tell.line(say("train.sharing", share=share, speed_up=speed_up))


def _say_measured(plan: Plan, decided: Decided, tell: Tell) -> None:
    """Which held-out rows are measured, where not all of them are."""
    num_held = len(plan.data.held_out)
    measuring = measuring_of(
        plan.config.engine,
        decided.schedule,
        num_held,
        reference=plan.objective.reference,
        rollouts=plan.objective.rollouts,
    )
    if len(measuring.rows) < num_held:
        end = say("train.measured_all" if measuring.all_at_end else "train.measured_some")
        some = f"{len(measuring.rows):,}"
        tell.line(say("train.measured_rows", all=f"{num_held:,}", some=some, end=end))


def _run_text(plan: Plan, decided: Decided) -> str:
    """run.yaml: every value as resolved, with the reason of what was `auto`."""
    world, reward = decided.world, getattr(plan.config.objective, "reward", None)
    resolved = {
        "engine.device": world.device,
        "engine.dtype": world.dtype,
        "engine.threads": world.threads,
        "engine.rows_per_pass": world.rows_per_pass,
        "engine.layout": decided.layout,
        "engine.recompute": world.recompute,
        "engine.offload": world.offload,
        "engine.attention": world.attention,
        "engine.processes": world.processes,
        "engine.parallel": world.parallel if world.processes > 1 else plan.config.engine.parallel,
        "engine.learning_rate": decided.rate,
        "engine.batch_size": decided.schedule.batch_size,
        "out": str(plan.out),
        "engine.activation_cache": decided.cache,
    }
    if reward is not None:
        # A person's own code with its SHA-256.
        resolved["objective.reward"] = rewards.recorded(reward)
    reasons = {
        key: reason
        for key, reason in world.reasons.items()
        if plan.parsed.source(key) == "default" or key not in plan.parsed.given
    }
    return run_folder.run_text(plan.parsed, resolved, reasons)
