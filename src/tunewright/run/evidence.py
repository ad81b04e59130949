"""What a run leaves, however it ends: summary.json, the report, and the sentences that close it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.advise import fit, learnt
from tunewright.core import faults
from tunewright.core.callbacks import Listeners, RunFinished, Status
from tunewright.core.errors import Interrupted, TunewrightError
from tunewright.core.files import readable_size, write_json
from tunewright.core.machine import peak_memory_bytes, versions
from tunewright.core.stopwatch import Stopwatch
from tunewright.core.telling import Tell, duration
from tunewright.core.words import say
from tunewright.engine import rank_watch, ranks
from tunewright.record import folder as run_folder
from tunewright.record.diagnosis import last_word
from tunewright.record.events import EventLog, plain
from tunewright.report import html
from tunewright.run import evaluation, examining
from tunewright.run.decided import Decided
from tunewright.run.prepare import Plan
from tunewright.track import Beside

if TYPE_CHECKING:
    from tunewright.advise.fit import Estimate
    from tunewright.engine.loop import Progress
    from tunewright.run.asking import Asker

MOSTLY_ALIKE = 0.5
"""From this share on of groups whose answers all had one reward, it is said at the end."""
IN_THE_LOOP = ("evaluate", "checkpoint")
"""Parts of the time that the steps' own figures tell apart."""
COMPUTES = ("ask", "train", "evaluate")
"""Parts in which a run on processors computes all the time."""
TOLD_SECONDS = 0.5
"""Parts of the run that took less are not in its closing sentences."""
NOT_IN_SUMMARY = ("step", "skipped_in_a_row", "groups_alike", "imbalance", "kept_sharing")
"""Parts of the progress that the summary names otherwise, or not at all."""


@dataclass
class Finished:
    """A run folder and its summary.json, as the story leaves them."""

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)


def _none_yet() -> Progress:
    from tunewright.engine.loop import Progress

    return Progress()


@dataclass
class Reached:
    """How far a run has come."""

    plan: Plan
    decided: Decided
    asker: Asker
    tell: Tell
    watch: Stopwatch
    """Runs since the command began."""
    estimate: Estimate
    """What the run was estimated to need."""
    load_seconds: float
    listeners: Listeners = field(default_factory=Listeners)
    progress: Progress = field(default_factory=_none_yet)
    doing: str = "train.doing.load"
    """The sentence of what is being done, for the message of an unforeseen end."""
    log: EventLog | None = None
    trackers: Beside | None = None
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """Each process of a run of several: rank, host, device, peak memory."""
    experts: dict[str, Any] | None = None
    """Which experts of a mixture the training tokens visited (`engine.routing`)."""
    before: dict[str, float] = field(default_factory=dict)
    """Seconds that `progress` had when this command took the run up."""

    def follow(self, progress: Progress) -> None:
        """Take `progress`, which goes on from here, for how far the run has come."""
        self.progress = progress
        self.before = {part: getattr(progress, f"{part}_seconds") for part in IN_THE_LOOP}

    def look_at_experts(self, routing: Any) -> None:
        """Note and say which experts the training tokens visited."""
        self.experts = None if routing is None else routing.found()
        if self.experts is None:
            return
        unseen = self.experts["unseen"]
        share = f"{self.experts['largest_share']:.0%}"
        count, layers = self.experts["experts"], self.experts["layers"]
        key = "train.experts_unseen" if unseen else "train.experts_all"
        first = next(iter(unseen), "")
        named = ", ".join(map(str, unseen.get(first, [])[:8]))
        alone = sum(map(len, unseen.values()))
        self.tell.line(
            say(
                key,
                count=count,
                layers=layers,
                share=share,
                unseen=alone,
                of=count * layers,
                first=first,
                named=named,
            )
        )

    def seconds(self) -> dict[str, float]:
        """Seconds of this command by what they went to. What the loop measures and writes down
        itself is no training."""
        parts = self.watch.parts()
        for part, before in self.before.items():
            spent = getattr(self.progress, f"{part}_seconds") - before
            parts[part] += spent
            parts["train"] -= spent
        return {part: round(value, 3) for part, value in parts.items()}

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.decided.schedule.total_steps


@contextlib.contextmanager
def of_a_resumed(folder: Path | None) -> Iterator[None]:
    """Whatever nobody foresaw inside becomes one message, and the run's summary holds it. A new run
    has no folder yet: the exception is raised as it is."""
    try:
        yield
    except (TunewrightError, BrokenPipeError):
        raise
    except faults.UNFORESEEN as e:
        if folder is None:
            raise
        fault = faults.caught(e, folder, say("train.doing.load"))
        _note_end(folder, "failed", fault)
        raise fault from e


@contextlib.contextmanager
def whatever_is_raised(reached: Reached) -> Iterator[None]:
    """Whatever ends the inside, the folder says how far it came; then it is raised on. What nobody
    foresaw is raised as an UnexpectedError."""
    out = reached.plan.out
    try:
        yield
    except Interrupted as e:
        _last_words(reached, "stopped", e)
        raise
    except (TunewrightError, KeyboardInterrupt, BrokenPipeError) as e:
        _last_words(reached, "failed", e)
        raise
    except faults.UNFORESEEN as e:
        if not (out / "run.yaml").is_file():
            raise  # nothing was created
        lost = ranks.current().lost(e)
        if lost is not None:
            _last_words(reached, "failed", lost)
            raise lost from e
        doing = say(reached.doing, step=reached.progress.step, total=reached.total_steps)
        fault = faults.caught(e, out, doing)
        _last_words(reached, "failed", fault)
        raise fault from e
    finally:
        if reached.log is not None:
            # Closing writes what is left, which a full disk refuses.
            with contextlib.suppress(OSError):
                reached.log.close()
        if reached.trackers is not None:
            reached.trackers.end(reached.tell)


def _last_words(reached: Reached, status: Status, error: BaseException) -> None:
    """Leave what was reached. What fails on the way hides nothing: the error that ended the run is
    the one that is told."""
    out, progress = reached.plan.out, reached.progress
    if not (out / "run.yaml").is_file():
        return
    team = ranks.current()
    if not team.is_first:
        # Rank 0 writes what was reached, unless it is the one that was lost.
        if team.watch is not None and rank_watch.speaks(team.watch):
            _note_end(out, status, error, steps=progress.step, total_steps=reached.total_steps)
        return
    try:
        finish(reached, status, str(error))
    except faults.UNFORESEEN:
        if run_folder.read_summary(out).get("status") != status:
            _note_end(
                out,
                status,
                error,
                steps=progress.step,
                total_steps=reached.total_steps,
                first_loss=progress.first_loss,
                final_loss=progress.final_loss,
            )


def _note_end(folder: Path, status: str, error: BaseException, **figures: Any) -> None:
    """The shortest summary.json. Where even that cannot be written, the error says so as well."""
    try:
        run_folder.note_end(folder, status, str(error), **plain(figures))
    except faults.UNFORESEEN as e:
        if isinstance(error, TunewrightError):
            error.add(faults.unwritten(e, folder))


def finish(reached: Reached, status: Status = "done", reason: str = "") -> Finished:
    """Write summary.json and report.html, and say how the run ended."""
    out, tell = reached.plan.out, reached.tell
    with reached.watch.of("report"):
        summary = _summary(reached, status, reason)
        write_json(out / "summary.json", plain(summary))
        if reached.log is not None:
            reached.log.write("finished", status=status)
            reached.listeners.tell(RunFinished(status, reason, plain(summary)))
        word = _doctors_word(reached)
        page = html.write_report(out)
    # Once more: the page reads the summary, and what it took is part of it.
    summary |= _spent(reached)
    write_json(out / "summary.json", plain(summary))
    if status == "done":
        _learn_from(reached, summary)
        for line in _closing(reached, summary, page, word):
            tell.line(line)
    elif status == "failed" and word is not None:
        tell.line(word)
    elif status == "stopped":
        tell.line(say("train.stopped", step=reached.progress.step, folder=out))
    return Finished(out, summary)


def _doctors_word(reached: Reached) -> str | None:
    """Write doctor.json and give its worst finding as a sentence; None where nothing is wrong. What
    fails here is said, and ends no run."""
    plan = reached.plan
    try:
        rows = None
        if plan.objective.rollouts is None:
            rows = examining.known_of(plan, reached.decided.folder(plan.out))
        return last_word(examining.at_end(plan.out, rows), plan.out)
    except faults.UNFORESEEN as e:
        return say("doctor.failed", cause=faults.cause_of(e))


def _learn_from(reached: Reached, summary: dict[str, Any]) -> None:
    """Keep what the run took beside its estimate, for the next estimate on this machine. A run that
    was taken up again measured only its last part."""
    plan, world, estimate = reached.plan, reached.decided.world, reached.estimate
    if plan.resume is not None or reached.progress.stopped_early:
        return
    measured = {**summary["seconds"], "memory": summary["peak_memory_bytes"]}
    tried = estimate.question.trial is not None
    disturbed = {*summary["disturbed"], *estimate.disturbed_parts()}
    kind = fit.kind_of_run(plan.config, plan.shape, world.dtype, world.threads, tried=tried)
    learnt.remember(kind, world.device, estimate.raw, measured, disturbed)


def _spent(reached: Reached) -> dict[str, Any]:
    """How long the command took so far, and what for."""
    return {"wall_seconds": round(reached.watch.wall, 4), "seconds": reached.seconds()}


def _processors(reached: Reached) -> dict[str, Any]:
    """What the parts of the command got of the processors, and which of them did not get theirs.
    What the loop measures and saves on the way is a part of its training here."""
    world, spent = reached.decided.world, reached.watch.spent()
    told = {
        part: {
            "own": round(one.used, 2),
            "others": None if one.used_by_others is None else round(one.used_by_others, 2),
        }
        for part, one in spent.items()
        if one.wall >= learnt.SHORT_SECONDS
    }
    others = [
        part
        for part, one in spent.items()
        if part in told
        and one.disturbed(world.threads, computes=part in COMPUTES and world.device == "cpu")
    ]
    if "train" in others:
        others += [part for part in IN_THE_LOOP if part not in others]
    return {"processors": told, "disturbed": others}


def _summary(reached: Reached, status: str, reason: str) -> dict[str, Any]:
    from tunewright.models import load

    plan, decided, progress = reached.plan, reached.decided, reached.progress
    world, alike = decided.world, progress.groups_alike
    counted = {k: v for k, v in asdict(progress).items() if k not in NOT_IN_SUMMARY}
    saved = decided.folder(plan.out).glob("*.safetensors")
    summary = {
        **({} if reached.experts is None else {"experts": reached.experts}),
        "status": status,
        "reason": reason,
        **counted,
        "steps": progress.step,
        "groups_without_difference": None if alike is None else alike / progress.step,
        "total_steps": reached.total_steps,
        "load_seconds": reached.load_seconds,
        "answer_seconds": reached.asker.seconds,
        **_spent(reached),
        "estimated_seconds": {k: round(v, 3) for k, v in reached.estimate.by_part().items()},
        **_processors(reached),
        "estimated_peak_memory_bytes": reached.estimate.peak_bytes,
        "probes_left_out": reached.asker.left_out,
        "peak_memory_bytes": peak_memory_bytes(world.device),
        "trainable_parameters": decided.trainable,
        "total_parameters": decided.total,
        "learning_rate": decided.rate,
        "device": world.device,
        "dtype": world.dtype,
        "layout": decided.layout,
        "threads": world.threads,
        **_of_ranks(reached),
        "rows_per_pass": world.rows_per_pass,
        "adapter_bytes": sum(file.stat().st_size for file in saved),
        "base_bytes": load.weight_bytes(plan.source.folder),
        "model": plan.config.model,
        "base_folder": str(plan.source.folder),
        "versions": versions(),
        **evaluation.of(plan, reached.asker, done=status == "done"),
    }
    return {
        k: round(v, 4) if isinstance(v, float) and k.endswith("seconds") else v
        for k, v in summary.items()
    }


def _of_ranks(reached: Reached) -> dict[str, Any]:
    """What a run of several processes was; `processes` of a run by itself."""
    world, progress = reached.decided.world, reached.progress
    if world.processes == 1:
        return {"processes": 1}
    steps = max(1, progress.step)
    kept, uneven = progress.kept_sharing, progress.imbalance
    return {
        "processes": world.processes,
        "parallel": world.parallel,
        "imbalance": None if uneven is None else round(uneven / steps, 4),
        "kept_sharing": None if kept is None else round(kept / steps, 4),
        "ranks": reached.ranks,
    }


def _closing(reached: Reached, s: dict[str, Any], page: Path, word: str | None) -> Iterator[str]:
    """The sentences that close a run that is done. `s` is its summary, `word` the doctor's."""
    plan = reached.plan
    speed = s["samples"] / s["train_seconds"] if s["train_seconds"] else 0.0
    yield say(
        "train.done",
        steps=s["steps"],
        time=duration(s["train_seconds"]),
        first=f"{s['first_loss']:.3f}",
        last=f"{s['final_loss']:.3f}",
        speed=f"{speed:.2f}",
        memory=readable_size(s["peak_memory_bytes"]),
    )
    if s["held_out_loss_all"] is not None:
        rows, loss = f"{len(plan.data.held_out):,}", f"{s['held_out_loss_all']:.4f}"
        yield say("train.measured_at_end", rows=rows, loss=loss)
    yield from _measured(s)
    yield from evaluation.sentences(s)
    alike = s["groups_without_difference"]
    if alike is not None and alike >= MOSTLY_ALIKE:
        key = "train.all_alike" if alike == 1 else "train.mostly_alike"
        yield say(key, share=f"{100 * alike:.0f}")
    draws = plan.objective.rollouts is not None
    if not draws and s["first_loss"] and s["final_loss"] > 0.9 * s["first_loss"]:
        yield say("train.barely")
    saved = 1 - s["physical_rows"] / s["logical_tokens"] if s["logical_tokens"] else 0.0
    if saved >= 0.01:
        yield say("train.shared", share=f"{100 * saved:.0f}")
    yield say(
        "train.adapter",
        folder=reached.decided.folder(plan.out),
        size=readable_size(s["adapter_bytes"]),
        base=readable_size(s["base_bytes"]),
    )
    yield time_sentence(s["seconds"])
    told = reached.estimate
    # A run that was taken up again trained a part of the steps that were estimated.
    if told.seconds is not None and plan.resume is None:
        yield say(
            "train.estimated",
            time=duration(told.seconds),
            took=duration(s["seconds"]["train"]),
            memory=readable_size(told.peak_bytes),
            peak=readable_size(s["peak_memory_bytes"]),
        )
    if "train" in s["disturbed"]:
        got = s["processors"]["train"]
        yield say(
            "train.disturbed",
            own=f"{got['own']:.1f}",
            others="?" if got["others"] is None else f"{got['others']:.1f}",
            threads=s["threads"],
        )
    if word is not None:
        yield word
    key = "train.next_scores" if plan.questions.scored else "train.next"
    yield say(key, folder=plan.out, page=page)


def time_sentence(seconds: dict[str, float]) -> str:
    """What the parts of a run took, the longest first; nothing of those that hardly count."""
    told = sorted(seconds.items(), key=lambda part: -part[1])
    parts = [
        say(f"train.time.{part}", seconds=f"{value:.0f}" if value >= 9.5 else f"{value:.1f}")
        for part, value in told
        if value >= TOLD_SECONDS or part == told[0][0]
    ]
    return say("train.time", parts=say("train.time.join").join(parts))


def _measured(s: dict[str, Any]) -> Iterator[str]:
    """What the objective watches on the held-out rows. `s` is the summary."""
    figures, before = s["held_out_figures"], s["held_out_rewards_before"]
    if "reward_change" in figures:
        yield say(
            "train.rewarded",
            before=f"{sum(before) / len(before):.3f}",
            after=f"{figures['reward']:.3f}",
            change=f"{figures['reward_change']:+.3f}",
            error=f"{figures['reward_change_error']:.3f}",
            count=len(before),
        )
    elif "first_error" in figures:
        names = ("accuracy", "steps_right", "first_error")
        yield say("train.steps_ranked", **{name: f"{100 * figures[name]:.0f}" for name in names})
    elif "accuracy" in figures:
        share, margin = f"{100 * figures['accuracy']:.0f}", f"{figures['margin']:.3f}"
        yield say("train.ranked", share=share, margin=margin)
