"""The story of a run, top to bottom: ask, train, ask again, evidence. Read it first; its parts are
told in `run/`."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright import track
from tunewright.advise import fit
from tunewright.advise.speed import measured_rates
from tunewright.core import signals
from tunewright.core.callbacks import Callback, Listeners
from tunewright.core.errors import TrainingError, problem
from tunewright.core.machine import return_freed_memory, versions
from tunewright.core.runfile import ParsedRun, parse_run
from tunewright.core.stopwatch import Stopwatch
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import ranks
from tunewright.record import checkpoint
from tunewright.record import folder as run_folder
from tunewright.record.events import EventLog
from tunewright.run import decided, evidence, gating, joining, launching
from tunewright.run.evidence import Finished, Reached
from tunewright.run.prepare import prepare
from tunewright.run.questions import Probe

if TYPE_CHECKING:
    from tunewright.engine.loop import Loop
    from tunewright.run.prepare import Plan
    from tunewright.run.saved import Saved


def train(
    parsed: ParsedRun,
    *,
    tell: Tell | None = None,
    extra_probes: Sequence[Probe] = (),
    resume: Path | None = None,
    on: Iterable[Callback] = (),
) -> Finished:
    """Do the run. Raises UsageError before anything is created, TrainingError, CheckpointError or
    UnexpectedError when it fails, Interrupted when stopped. Once its folder is there, every one of
    them leaves summary.json with what was reached. `on` are told of what happens. With
    `engine.processes` several are started, and this one waits for them."""
    processes = launching.count(parsed)
    if processes > 1:
        return launching.launch(parsed, processes, extra_probes, resume, on)
    with joining.with_others(parsed, resume, tell or Tell()) as (parsed, resume, tell):
        listeners = Listeners.of(on if ranks.current().is_first else ())
        return _train(parsed, tell, extra_probes, resume, listeners)


def _train(
    parsed: ParsedRun,
    tell: Tell,
    extra_probes: Sequence[Probe],
    resume: Path | None,
    listeners: Listeners,
) -> Finished:
    watch = Stopwatch()
    with run_folder.Hold() as hold, signals.watching() as stop, evidence.of_a_resumed(resume):
        if resume:
            joining.take(hold, resume)
        plan = prepare(parsed, tell, resume, extra_probes=extra_probes, watch=watch)
        joining.require_same_rows(plan)
        with watch.of("load"):
            world, rates, estimate = decided.place_and_estimate(plan, measured_rates)
            plan = joining.with_what_can_be_asked(plan, world, tell)
            fit.require(estimate, fit.room_of(world))
            newest = functools.partial(_newest_checkpoint, plan.out, tell)
            found = ranks.current().first(newest) if resume else None

            from tunewright.run import saved  # torch is loaded with the first weight
            from tunewright.run.asking import Asker

            asker, loading = Asker(plan, world, stop.check, tell, rates), time.perf_counter()
            opened, made = decided.open_to_train(plan, world, tell, stop.check)
        seconds = time.perf_counter() - loading
        reached = Reached(plan, made, asker, tell, watch, estimate, seconds, listeners)
        with evidence.whatever_is_raised(reached):  # a summary says what was reached
            decided.publish(plan, made, tell)  # the folder appears
            joining.take(hold, plan.out)
            joining.require_folder(plan.out)
            path = joining.written_by_first(plan.out / "events.jsonl")
            reached.log = log = EventLog(path, listeners.hear)
            listeners.follow(plan.out, run_folder.read_run(plan.out), log.write)
            loop = decided.loop_of(plan, opened, world, log, tell, stop, listeners)
            if resume:
                _go_on(loop, found)
            reached.follow(loop.progress)
            log.write(
                "started",
                step=loop.progress.step,
                total_steps=made.schedule.total_steps,
                versions=versions(),
                device=world.device,
                dtype=world.dtype,
            )
            if ranks.current().is_first:
                reached.trackers = track.start(plan.config.track, plan.out, tell)

            loop.heed()
            reached.doing = "train.doing.ask"
            with watch.of("ask"):
                joining.by_first(opened, world, functools.partial(asker.before, opened))
            listeners.tell_answers("before", asker.probes)
            reached.doing = "train.doing.reference"
            if plan.config.engine.show_answers and asker.probes and not asker.scored:
                loop.sample = functools.partial(asker.on_the_way, opened)
            with watch.of("train"):
                loop.prepare_reference(lambda: decided.start_of(plan, world))
                reached.doing = "train.doing.learn"
                loop.learn()
            reached.look_at_experts(loop.stepper.policy.routing)
            if loop.progress.skipped_steps == made.schedule.total_steps:
                raise TrainingError(problem("E-TRAIN-03"))

            reached.doing = "train.doing.save"
            with watch.of("checkpoint"):
                files = saved.save(plan, opened, made, asker)
            reached.ranks = joining.part(world)
            if files is None:
                return Finished(plan.out)  # another rank goes on
            del opened, loop.stepper, loop.sample  # what follows knows only the files
            if world.holds_whole:
                _prove(plan, files, reached)
            reached.doing = "train.doing.finish"
            finished = evidence.finish(reached)
    del reached  # the gate opens the run as anybody would
    finished = gating.after_training(plan, finished, tell)
    if listeners.fault is not None:  # all is written; what a callback did last is still said
        raise listeners.fault
    return finished


def _prove(plan: Plan, files: Saved, reached: Reached) -> None:
    """Load what was saved afresh, prove it equal to the model that was in memory, and ask again."""
    from tunewright.run import saved

    watch, asker, log = reached.watch, reached.asker, reached.log
    assert log is not None
    reached.doing = "train.doing.ask_again"
    with watch.of("load"):
        gc.collect()
        return_freed_memory()
        fresh = saved.load_afresh(plan, files, reached.decided)
        saved.require_equal(files, fresh, log)
    reached.doing = "train.doing.ask_after"
    with watch.of("ask"):
        asker.reloaded(fresh, files.scores, files.questions)
    reached.listeners.tell_answers("after", asker.probes)
    reached.load_seconds += fresh.seconds


def _newest_checkpoint(out: Path, tell: Tell) -> checkpoint.Checkpoint | None:
    found = checkpoint.load_latest(out / "checkpoints")
    for name, why in found.quarantined if found else []:
        tell.line(say("train.quarantined", name=name, why=why))
    return found


def _go_on(loop: Loop, found: checkpoint.Checkpoint | None) -> None:
    if found is None:
        loop.tell.line(say("train.resume_zero"))
    else:
        loop.restore(found)
        loop.tell.line(say("train.resumed", step=found.step))
    world = ranks.current().world
    more = {"processes": world} if world > 1 else {}
    loop.log.write("resumed", step=loop.progress.step, **more)


def resume_run(
    folder: Path,
    *,
    tell: Tell | None = None,
    extra_probes: Sequence[Probe] = (),
    on: Iterable[Callback] = (),
    words: Sequence[str] = (),
) -> Finished:
    """Continue the run of `folder` from its newest verified checkpoint. A finished run is left as
    it is. `words` may say that other processes go on with it. Raises UsageError for other words."""
    given, summary = run_folder.read_run(folder), run_folder.read_summary(folder)
    if summary.get("status") == "done":
        if words:
            run_folder.raise_if_finished(folder)
        further = run_folder.further(folder)
        (tell or Tell()).line(say("train.already_done", folder=folder, further=further))
        return Finished(folder, summary)
    given = joining.going_on(given, words)
    parsed = parse_run(given, dict.fromkeys(given, "run.yaml"))
    return train(parsed, tell=tell, resume=folder, extra_probes=extra_probes, on=on)
