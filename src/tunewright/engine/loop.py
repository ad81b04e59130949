"""The steps of a run, one after the other: learn, measure, keep checkpoints, stop when asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunewright.core.callbacks import Listeners, stopped_line
from tunewright.core.config import EngineConfig
from tunewright.core.errors import TrainingError, problem
from tunewright.core.faults import cause_of, is_memory
from tunewright.core.machine import peak_memory_bytes
from tunewright.core.sequences import Joined, Picked
from tunewright.core.signals import StopFlag
from tunewright.core.telling import Tell
from tunewright.core.types import WITHOUT_DIFFERENCE, Figures, Sample
from tunewright.core.words import say
from tunewright.engine import ranks, sharding, state
from tunewright.engine.optim import averages
from tunewright.engine.oracles import reference
from tunewright.engine.schedule import Measuring, Schedule, measuring_of, steps_between
from tunewright.engine.state import Progress
from tunewright.engine.step import Stepper, StepReport, means
from tunewright.record import checkpoint
from tunewright.record.events import EventLog

PATIENCE = 3
"""Steps in a row that may be non-finite before the run ends."""


@dataclass
class Loop:
    """Everything the steps of one run need."""

    stepper: Stepper
    schedule: Schedule
    samples: Sequence[Sample]
    held_out: Sequence[Sample]
    engine: EngineConfig
    run: Path
    log: EventLog
    tell: Tell
    stop: StopFlag
    device: str
    progress: Progress = field(default_factory=Progress)
    sample: Callable[[], list[dict[str, Any]]] | None = None
    """Asks some questions of the model as it is: `engine.show_answers`."""
    listeners: Listeners = field(default_factory=Listeners)
    """The callbacks of the run, which hear what is written into `log`."""
    measuring: Measuring = field(init=False)
    measured: Sequence[Sample] = field(init=False)
    """The held-out rows that are measured while the run learns."""

    def __post_init__(self) -> None:
        objective = self.stepper.objective
        self.measuring = measuring_of(
            self.engine,
            self.schedule,
            len(self.held_out),
            reference=objective.reference,
            rollouts=objective.rollouts,
        )
        self.measured = Picked(self.held_out, self.measuring.rows)
        self.stepper.relief.told = self._relieved

    @property
    def checkpoints(self) -> Path:
        """The folder of this run's checkpoints."""
        return self.run / "checkpoints"

    def learn(self) -> None:
        """Take all remaining steps. Leaves the best (or last) weights in the model and a verified
        checkpoint on disk.

        Raises Interrupted after a checkpoint when a signal came, TrainingError when steps stay
        non-finite or a callback raised.
        """
        save_every, evaluate_every = (
            steps_between(setting, self.schedule)
            for setting in (self.engine.save_every, self.engine.evaluate_every)
        )
        if self.held_out and self.progress.step == 0 and self.progress.held_out_loss_before is None:
            self.progress.held_out_loss_before = self._evaluate(0)
        self.tell.start(say("train.steps"))
        self.stop.deferred = True
        try:
            self.heed()
            while (
                self.progress.step < self.schedule.total_steps and not self.progress.stopped_early
            ):
                # One rank that is told to stop stops all of them, after the same step.
                self.stop.signal = ranks.current().any(self.stop.signal)
                if self.stop.signal is not None:
                    self._save()
                    self.stop.check()
                self._one_step()
                self._stop_if_asked()
                step, last = self.progress.step, self.progress.step == self.schedule.total_steps
                last = last or self.progress.stopped_early
                if self.held_out and (last or (evaluate_every and step % evaluate_every == 0)):
                    self._keep_best(self._evaluate(step))
                    self._stop_if_asked()
                    last = last or self.progress.stopped_early
                if self.sample and not last and evaluate_every and step % evaluate_every == 0:
                    self.log.write("answers", step=step, answers=self._answers())
                if last or (save_every and step % save_every == 0):
                    self._save()
                self.heed()
            self.tell.finish()
            self._return_to_best()
            self.stepper.hand_out()
            self._measure_all()
            self.heed()
        finally:
            self.stop.deferred = False

    def _answers(self) -> list[dict[str, Any]]:
        """Answers on the way, which rank 0 writes."""
        assert self.sample is not None
        team, sample = ranks.current(), self.sample
        with self.stepper.handed_out(), sharding.together(self.stepper.policy):
            return team.first(sample)

    def heed(self) -> None:
        """End the run if a callback raised: the step is whole, so a checkpoint is saved first.
        Raises TrainingError."""
        fault = self.listeners.fault
        # Callbacks are told on rank 0; all ranks end together.
        if ranks.current().first(lambda: fault is not None):
            self._save()
            if fault is None:
                ranks.current().wait()  # for the first, which says it
            raise fault or AssertionError("a callback failed on no rank")

    def _stop_if_asked(self) -> None:
        """Let this step be the last if a callback asked for it."""
        p, asked = self.progress, ranks.current().first(lambda: self.listeners.stop)
        if asked is None or p.stopped_early or p.step == self.schedule.total_steps:
            return
        p.stopped_early = True
        self.log.write("stopped_by", step=p.step, by=asked[0], reason=asked[1])
        self.tell.line(stopped_line(asked, p.step))

    def prepare_reference(self, describe: Callable[[], dict[str, str]]) -> None:
        """What other models say of the rows, from the run folder or computed now: a teacher that is
        not to stay in memory, and the model at step 0, which `describe` describes.

        Raises CheckpointError when the run is past step 0 and what it kept is gone.
        """
        policy = self.stepper.policy
        measured = self.held_out if self.measuring.all_at_end else self.measured
        teacher = policy.teacher
        if teacher is not None and teacher.teaching.top_k and not teacher.load(self.run):
            rows, everything = self.stepper.rows_per_pass, Joined(self.samples, measured)
            self._watched(
                "teacher",
                say("distill.scoring"),
                len(everything),
                lambda on_pass: teacher.keep(everything, rows, self.run, on_pass),
            )
        if self.stepper.objective.reference:
            policy.reference = reference.prepare(
                self.stepper,
                self.schedule,
                self.samples,
                measured,
                self.run,
                describe(),
                self.progress.step > 0,
                partial(self._watched, "reference", say("train.reference")),
            )

    def _watched(
        self, event: str, what: str, total: int, compute: Callable[[Callable[[int], None]], int]
    ) -> None:
        """Let `compute` take its time: it is stopped when asked, told of and written down. It gives
        the number of branches."""

        def on_pass(done: int) -> None:
            self.stop.check()
            self.tell.progress(what, done, total)

        start = time.perf_counter()
        self.tell.start(what)
        branches = compute(on_pass)
        self.tell.finish()
        seconds = time.perf_counter() - start
        self.progress.train_seconds += seconds
        self.log.write(event, branches=branches, seconds=round(seconds, 3))

    def _one_step(self) -> None:
        p = self.progress
        number = p.step + 1
        chosen = [self.samples[i] for i in self.schedule.samples_of(number)]
        rate = self.schedule.rate(number)
        start = time.perf_counter()
        try:
            report = self.stepper.step(chosen, number, rate)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
            if not is_memory(e):
                raise
            raise TrainingError(
                problem(
                    "E-TRAIN-02",
                    "",
                    step=number,
                    cause=cause_of(e),
                    rows=self.stepper.rows_per_pass,
                )
            ) from e
        policy = self.stepper.policy
        if policy.reference is not None:
            policy.reference.after_first_step(
                policy, chosen, self.stepper.rows_per_pass, self.run, report.applied
            )
        seconds = time.perf_counter() - start
        p.step, p.samples, p.train_seconds = (
            number,
            p.samples + len(chosen),
            p.train_seconds + seconds,
        )
        p.logical_tokens += report.logical_tokens
        p.physical_rows += report.physical_rows
        p.label_tokens += report.label_tokens
        p.first_loss = report.loss if p.first_loss is None else p.first_loss
        p.final_loss = report.loss
        if report.imbalance is not None and report.kept_sharing is not None:
            p.imbalance = (p.imbalance or 0.0) + report.imbalance
            p.kept_sharing = (p.kept_sharing or 0.0) + report.kept_sharing
        if WITHOUT_DIFFERENCE in report.figures:
            p.groups_alike = (p.groups_alike or 0.0) + report.figures[WITHOUT_DIFFERENCE]
        self._record(report, rate, seconds)
        if report.applied:
            p.skipped_in_a_row = 0
        else:
            self._skipped(report)

    def _relieved(self, text: str, figures: dict[str, Any]) -> None:
        """A step is taken again with less at once: said and written down."""
        self.tell.line(text)
        self.log.write("warning", text=text, **figures)

    def _record(self, report: StepReport, rate: float, seconds: float) -> None:
        p = self.progress
        speed = report.logical_tokens / seconds
        self.log.write(
            "step",
            step=p.step,
            loss=report.loss,
            terms=report.terms,
            learning_rate=rate,
            gradient_norm=report.gradient_norm,
            seconds=round(seconds, 4),
            tokens_per_second=round(speed, 1),
            physical_rows=report.physical_rows,
            label_tokens=report.label_tokens,
            passes=report.passes,
            memory_bytes=peak_memory_bytes(self.device),
            applied=report.applied,
            **({"imbalance": report.imbalance} if report.imbalance is not None else {}),
            **({"figures": report.figures} if report.figures else {}),
        )
        if report.texts:
            self.log.write("answers", step=p.step, answers=report.texts)
        if "reward" in report.figures:
            figures = report.figures
            note = say(
                "train.round",
                reward=f"{figures['reward']:.3f}",
                tokens=f"{figures['answer_tokens']:.0f}",
                kl=f"{figures.get('kl', 0.0):.3f}",
            )
        else:
            note = say("train.progress", loss=f"{report.loss:.3f}", speed=f"{speed:,.0f}")
        self.tell.progress(say("train.step"), p.step, self.schedule.total_steps, note)

    def _skipped(self, report: StepReport) -> None:
        p = self.progress
        p.skipped_steps += 1
        p.skipped_in_a_row += 1
        rows = ", ".join(report.rows[:8]) + (" ..." if len(report.rows) > 8 else "")
        self.log.write(
            "not_applied",
            step=p.step,
            where=report.where,
            loss=report.loss,
            gradient_norm=report.gradient_norm,
            rows=report.rows,
        )
        self.tell.line(say("train.not_finite", step=p.step, where=report.where, rows=rows))
        if report.overflow:
            p.skipped_in_a_row = 0
        if p.skipped_in_a_row >= PATIENCE:
            self._save()
            raise TrainingError(
                problem(
                    "E-TRAIN-01",
                    "",
                    step=p.step,
                    where=report.where,
                    times=p.skipped_in_a_row,
                    rows=rows,
                )
            )

    def _evaluate(self, step: int) -> float:
        start = time.perf_counter()
        figures: Figures = {}
        with self.stepper.handed_out():
            loss, rewards = self.stepper.held_out(self.measured, figures)
        if rewards:
            self._compare_rewards(rewards, step, figures)
        self.progress.evaluate_seconds += time.perf_counter() - start
        self.progress.held_out_loss = loss
        found = means(figures)
        if found:
            self.progress.held_out_figures = found
        self.log.write(
            "evaluation", step=step, held_out_loss=loss, **({"figures": found} if found else {})
        )
        return loss

    def _compare_rewards(self, rewards: list[float], step: int, figures: Figures) -> None:
        """Rewards of the same draws to the same held-out prompts, against those of step 0, with the
        standard error of the change."""
        before = self.progress.held_out_rewards_before
        if step == 0 or len(before) != len(rewards):
            self.progress.held_out_rewards_before = rewards
            return
        change = [b - a for a, b in zip(before, rewards, strict=True)]
        mean = sum(change) / len(change)
        spread = (sum((c - mean) ** 2 for c in change) / max(1, len(change) - 1)) ** 0.5
        figures["reward_change"] = (mean, 1)
        figures["reward_change_error"] = (spread / len(change) ** 0.5, 1)

    def _measure_all(self) -> None:
        """All held-out rows under the weights that are handed out, where only some of them were
        measured on the way and that costs little."""
        if not self.measuring.all_at_end:
            return
        start, p = time.perf_counter(), self.progress
        figures: Figures = {}
        self.tell.start(say("train.measuring_all", rows=f"{len(self.held_out):,}"))
        p.held_out_loss_all, _ = self.stepper.held_out(self.held_out, figures, self.stop.check)
        self.tell.finish()
        p.held_out_figures_all = means(figures)
        p.evaluate_seconds += time.perf_counter() - start
        self.log.write(
            "evaluation_all",
            step=p.step,
            rows=len(self.held_out),
            held_out_loss=p.held_out_loss_all,
            figures=p.held_out_figures_all,
        )

    def _keep_best(self, loss: float) -> None:
        p, complete_from = self.progress, self.stepper.attached.complete_from
        if complete_from is not None and p.step < complete_from():
            return
        better = math.isfinite(loss) and (p.best_loss is None or loss < p.best_loss)
        p.worse_in_a_row = 0 if better else p.worse_in_a_row + 1
        if better:
            p.best_loss, p.best_step, p.best_figures = loss, p.step, p.held_out_figures
            if self.engine.keep_best:
                self._save()
        if (
            self.engine.early_stop
            and p.worse_in_a_row >= self.engine.early_stop
            and p.step < self.schedule.total_steps
        ):
            p.stopped_early = True
            self.log.write("stopped_early", step=p.step, best_step=p.best_step, held_out_loss=loss)
            self.tell.line(say("train.early", step=p.step, count=p.worse_in_a_row))

    def _save(self) -> None:
        start = time.perf_counter()
        folder = state.save(
            self.checkpoints, self.stepper, self.progress, protect=self.progress.best_step
        )
        self.progress.checkpoint_seconds += time.perf_counter() - start
        self.log.write("checkpoint", step=self.progress.step, folder=folder.name)

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Continue from a verified checkpoint."""
        self.progress = state.restore(self.stepper, found)

    def _return_to_best(self) -> None:
        p = self.progress
        if not self.engine.keep_best or p.best_step in (None, p.step):
            return
        found = checkpoint.load_step(self.checkpoints, p.best_step or 0)
        if found is None:
            self.tell.line(say("train.best_lost", step=p.best_step))
            return
        state.load_weights(self.stepper, found)
        if averages(self.stepper.optimizer):
            state.load_optimizer(self.stepper, found)
        p.held_out_loss, p.held_out_figures = p.best_loss, p.best_figures or p.held_out_figures
        self.log.write("returned_to_best", step=p.best_step, held_out_loss=p.best_loss)
        self.tell.line(say("train.best", step=p.best_step, loss=f"{p.best_loss:.4f}"))
