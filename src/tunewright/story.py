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
from tunewright.core.machine import available_bytes, return_freed_memory, versions
from tunewright.core.runfile import ParsedRun, parse_run
from tunewright.core.stopwatch import Stopwatch
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.record import checkpoint
from tunewright.record import folder as run_folder
from tunewright.record.events import EventLog
from tunewright.run import decided, evidence, gating
from tunewright.run.evidence import Finished, Reached
from tunewright.run.prepare import prepare
from tunewright.run.questions import Probe

if TYPE_CHECKING:
    from tunewright.engine.loop import Loop


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
    them leaves summary.json with what was reached. `on` are told of what happens."""
    tell, watch, listeners = tell or Tell(), Stopwatch(), Listeners.of(on)
    with run_folder.Hold() as hold, signals.watching() as stop, evidence.of_a_resumed(resume):
        if resume:
            hold.take(resume)
        plan = prepare(parsed, tell, resume, extra_probes=extra_probes, watch=watch)
        with watch.of("load"):
            world = decided.place(plan)
            rates = measured_rates(plan.shape, world)
            estimate = plan.estimate(world, rates)
            fit.require(estimate, available_bytes(world.device))
            found = _newest_checkpoint(plan.out, tell) if resume else None

            from tunewright.run import saved  # torch is loaded with the first weight
            from tunewright.run.asking import Asker

            asker, loading = Asker(plan, world, stop.check, tell, rates), time.perf_counter()
            opened, made = decided.open_to_train(plan, world, tell, stop.check)
        seconds = time.perf_counter() - loading
        reached = Reached(plan, made, asker, tell, watch, estimate, seconds, listeners)
        with evidence.whatever_is_raised(reached):  # a summary says what was reached
            decided.publish(plan, made, tell)  # the folder appears
            hold.take(plan.out)
            reached.log = log = EventLog(plan.out / "events.jsonl", listeners.hear)
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
            reached.trackers = track.start(plan.config.track, plan.out, tell)

            loop.heed()
            reached.doing = "train.doing.ask"
            with watch.of("ask"):
                asker.before(opened)
            listeners.tell_answers("before", asker.probes)
            reached.doing = "train.doing.reference"
            if plan.config.engine.show_answers and asker.probes and not asker.scored:
                loop.sample = functools.partial(asker.on_the_way, opened)
            with watch.of("train"):
                loop.prepare_reference(lambda: decided.start_of(plan, world))
                reached.doing = "train.doing.learn"
                loop.learn()
            if loop.progress.skipped_steps == made.schedule.total_steps:
                raise TrainingError(problem("E-TRAIN-03"))

            reached.doing = "train.doing.save"
            with watch.of("checkpoint"):
                files = saved.save(plan, opened, made, asker.begun())
            with watch.of("ask"):
                in_memory = asker.scores(opened)
            reached.doing = "train.doing.ask_again"
            with watch.of("load"):
                del opened, loop.stepper, loop.sample  # what follows knows only the files
                gc.collect()
                return_freed_memory()
                fresh = saved.load_afresh(plan, files, made)
                saved.require_equal(files, fresh, log)
            reached.doing = "train.doing.ask_after"
            with watch.of("ask"):
                asker.reloaded(fresh, in_memory, files.questions)
            listeners.tell_answers("after", asker.probes)

            reached.doing = "train.doing.finish"
            reached.load_seconds += fresh.seconds
            finished = evidence.finish(reached)
    del fresh, reached, in_memory  # the gate opens the run as anybody would
    finished = gating.after_training(plan, finished, tell)
    if listeners.fault is not None:  # all is written; what a callback did last is still said
        raise listeners.fault
    return finished


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
    loop.log.write("resumed", step=loop.progress.step)


def resume_run(
    folder: Path,
    *,
    tell: Tell | None = None,
    extra_probes: Sequence[Probe] = (),
    on: Iterable[Callback] = (),
) -> Finished:
    """Continue the run of `folder` from its newest verified checkpoint. A finished run is left as
    it is."""
    given, summary = run_folder.read_run(folder), run_folder.read_summary(folder)
    if summary.get("status") == "done":
        further = run_folder.further(folder)
        (tell or Tell()).line(say("train.already_done", folder=folder, further=further))
        return Finished(folder, summary)
    parsed = parse_run(given, dict.fromkeys(given, "run.yaml"))
    return train(parsed, tell=tell, resume=folder, extra_probes=extra_probes, on=on)
