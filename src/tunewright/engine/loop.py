"""The steps of a run, one after the other: learn, measure, keep checkpoints, stop when asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunewright.core.config import EngineConfig
from tunewright.core.errors import CheckpointError, TrainingError, problem
from tunewright.core.faults import cause_of, is_memory
from tunewright.core.machine import peak_memory_bytes
from tunewright.core.sequences import Joined, Picked
from tunewright.core.signals import StopFlag
from tunewright.core.telling import Tell
from tunewright.core.types import WITHOUT_DIFFERENCE, Figures, Sample
from tunewright.core.words import say
from tunewright.engine.optim import load_optimizer_tensors, optimizer_tensors
from tunewright.engine.oracles.reference import FILE as REFERENCE_FILE
from tunewright.engine.oracles.reference import ReferenceStore
from tunewright.engine.rollouts.rounds import RoundStepper
from tunewright.engine.schedule import Measuring, Schedule, measuring_of, steps_between
from tunewright.engine.step import Stepper, StepReport, held_out_loss, means
from tunewright.models.generate import room_of
from tunewright.record import checkpoint
from tunewright.record.events import EventLog

PATIENCE = 3
"""Steps in a row that may be non-finite before the run ends."""


@dataclass
class Progress:
    """What a run has done so far; stored in every checkpoint and the source of the summary's
    figures."""

    step: int = 0
    samples: int = 0
    logical_tokens: int = 0
    physical_rows: int = 0
    label_tokens: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    first_loss: float | None = None
    final_loss: float | None = None
    held_out_loss_before: float | None = None
    held_out_loss: float | None = None
    held_out_figures: dict[str, float] = field(default_factory=dict)
    """What the objective watches (accuracy, margin), as last measured on the held-out rows."""
    held_out_loss_all: float | None = None
    """Over all held-out rows at the end, where only some of them were measured on the way."""
    held_out_figures_all: dict[str, float] = field(default_factory=dict)
    held_out_rewards_before: list[float] = field(default_factory=list)
    """Rewards of the answers to the held-out prompts before training, where a run learns from
    rewards."""
    groups_alike: float | None = None
    """Summed over the steps: the share of groups whose answers all had one reward, where a run
    compares answers with others to the same question."""
    best_step: int | None = None
    best_loss: float | None = None
    best_figures: dict[str, float] = field(default_factory=dict)
    """`held_out_figures` at the best step: what is told of the weights that are handed out."""
    worse_in_a_row: int = 0
    """Measurements since the lowest held-out loss."""
    stopped_early: bool = False
    skipped_steps: int = 0
    skipped_in_a_row: int = 0


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

    @property
    def checkpoints(self) -> Path:
        """The folder of this run's checkpoints."""
        return self.run / "checkpoints"

    def learn(self) -> None:
        """Take all remaining steps. Leaves the best (or last) weights in the model and a verified
        checkpoint on disk.

        Raises Interrupted after a checkpoint when a signal came, TrainingError when steps stay
        non-finite.
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
            while (
                self.progress.step < self.schedule.total_steps and not self.progress.stopped_early
            ):
                if self.stop.signal is not None:
                    self._save()
                    self.stop.check()
                self._one_step()
                step, last = self.progress.step, self.progress.step == self.schedule.total_steps
                if self.held_out and (last or (evaluate_every and step % evaluate_every == 0)):
                    self._keep_best(self._evaluate(step))
                    last = last or self.progress.stopped_early
                if last or (save_every and step % save_every == 0):
                    self._save()
            self.tell.finish()
            self._return_to_best()
            self._measure_all()
        finally:
            self.stop.deferred = False

    def prepare_reference(self, describe: Callable[[], dict[str, str]]) -> None:
        """Log-probabilities under the model at step 0, from the run folder or computed now, while
        the weights are those of step 0.

        Raises CheckpointError when the run is past step 0 and what it kept is gone, and the method
        cannot be switched off to compute it again.
        """
        self._prepare_teacher()
        if not self.stepper.objective.reference:
            return
        start, about = time.perf_counter(), describe()
        also = self.stepper.objective.companions
        measured = self.held_out if self.measuring.all_at_end else self.measured
        everything = Joined(self.samples, measured)
        extra: Iterable[Sample] = (
            also(everything, room_of(self.stepper.policy.causal[0], self.stepper.policy.model))
            if also
            else ()
        )  # also in a run that is taken up again: partners are chosen here
        store = ReferenceStore.load(self.run, about)
        if store is None:
            if self.progress.step:
                raise CheckpointError(
                    problem("E-CKPT-05", str(self.run / REFERENCE_FILE), cause="-")
                )
            store, rows = ReferenceStore(about, self.run), self.stepper.rows_per_pass
            # In the passes in which the first epoch will learn, so that half precision rounds both
            # alike: at step 1 nothing differs.
            steps = range(
                1 + self._learns_as_it_measures(),
                min(self.schedule.steps_per_epoch, self.schedule.total_steps) + 1,
            )
            learnt = sum(len(self.schedule.samples_of(number)) for number in steps)
            total = learnt + len(measured) + (len(everything) if also else 0)
            what, done = say("train.reference"), 0
            self.tell.start(what)
            for number in steps:
                part = [self.samples[i] for i in self.schedule.samples_of(number)]
                store.fill(
                    self.stepper.policy,
                    part,
                    rows,
                    on_pass=partial(self._reference_done, what, total=total, before=done),
                )
                done += len(part)
            for rest, before in ((measured, done), (extra, done + len(measured))):
                store.fill(
                    self.stepper.policy,
                    rest,
                    rows,
                    on_pass=partial(self._reference_done, what, total=total, before=before),
                )
            self.tell.finish()
            if len(store):
                store.save(self.run)
            self.progress.train_seconds += time.perf_counter() - start
            self.log.write(
                "reference", branches=len(store), seconds=round(time.perf_counter() - start, 3)
            )
        store.taking = self.progress.step == 0 and self._learns_as_it_measures()
        self.stepper.policy.reference = store

    def _learns_as_it_measures(self) -> bool:
        """Whether a pass that learns computes what a pass that measures does: no dropout, no noise
        on embeddings or gates."""
        drops = any(
            "Dropout" in type(m).__name__ and getattr(m, "p", 0)
            for m in self.stepper.policy.model.modules()
        )
        return not drops and not self.stepper.neftune and self.stepper.attached.penalties is None

    def _keep_first_values(self, report: StepReport, chosen: Sequence[Sample]) -> None:
        """After the first step: what its passes left is the last of the reference. A step that was
        not finite is measured again, as it changed nothing."""
        store = self.stepper.policy.reference
        if store is None or not store.taking:
            return
        store.taking = False
        if not report.applied:
            self.stepper.policy.reference = None
            store.fill(self.stepper.policy, chosen, self.stepper.rows_per_pass, again=True)
            self.stepper.policy.reference = store
        store.save(self.run)

    def _prepare_teacher(self) -> None:
        """The scores of a teacher that is not to stay in memory, from the run folder or computed
        now."""
        teacher = self.stepper.policy.teacher
        if teacher is None or not teacher.teaching.top_k or teacher.load(self.run):
            return
        start, rows, what = time.perf_counter(), self.stepper.rows_per_pass, say("distill.scoring")
        everything = Joined(
            self.samples, self.held_out if self.measuring.all_at_end else self.measured
        )
        self.tell.start(what)
        teacher.fill(
            everything,
            rows,
            self.run,
            on_pass=lambda done: self._reference_done(what, done, len(everything)),
        )
        self.tell.finish()
        teacher.save(self.run)
        teacher.close()
        self.progress.train_seconds += time.perf_counter() - start
        self.log.write(
            "teacher", branches=len(teacher.store), seconds=round(time.perf_counter() - start, 3)
        )

    def _reference_done(self, what: str, done: int, total: int, before: int = 0) -> None:
        self.stop.check()
        self.tell.progress(what, before + done, total)

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
        self._keep_first_values(report, chosen)
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
        if WITHOUT_DIFFERENCE in report.figures:
            p.groups_alike = (p.groups_alike or 0.0) + report.figures[WITHOUT_DIFFERENCE]
        self._record(report, rate, seconds)
        if report.applied:
            p.skipped_in_a_row = 0
        else:
            self._skipped(report)

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
        if isinstance(self.stepper, RoundStepper):
            loss = self._measure_rewards(self.stepper, step, figures)
        else:
            loss = held_out_loss(
                self.stepper.policy,
                self.stepper.objective,
                self.measured,
                self.stepper.rows_per_pass,
                figures=figures,
            )
        self.progress.evaluate_seconds += time.perf_counter() - start
        self.progress.held_out_loss = loss
        found = means(figures)
        if found:
            self.progress.held_out_figures = found
        self.log.write(
            "evaluation", step=step, held_out_loss=loss, **({"figures": found} if found else {})
        )
        return loss

    def _measure_rewards(self, stepper: RoundStepper, step: int, figures: Figures) -> float:
        """Rewards of the same draws to the same held-out prompts at every measurement; against
        those of step 0, with the standard error of the change."""
        loss, rewards = stepper.measure(self.measured, figures)
        before = self.progress.held_out_rewards_before
        if step == 0 or len(before) != len(rewards):
            self.progress.held_out_rewards_before = rewards
            return loss
        change = [b - a for a, b in zip(before, rewards, strict=True)]
        mean = sum(change) / len(change)
        spread = (sum((c - mean) ** 2 for c in change) / max(1, len(change) - 1)) ** 0.5
        figures["reward_change"] = (mean, 1)
        figures["reward_change_error"] = (spread / len(change) ** 0.5, 1)
        return loss

    def _measure_all(self) -> None:
        """All held-out rows under the weights that are handed out, where only some of them were
        measured on the way and that costs little."""
        if not self.measuring.all_at_end:
            return
        start, p = time.perf_counter(), self.progress
        figures: Figures = {}
        self.tell.start(say("train.measuring_all", rows=f"{len(self.held_out):,}"))
        if isinstance(self.stepper, RoundStepper):
            p.held_out_loss_all = self.stepper.measure(self.held_out, figures)[0]
        else:
            p.held_out_loss_all = held_out_loss(
                self.stepper.policy,
                self.stepper.objective,
                self.held_out,
                self.stepper.rows_per_pass,
                self.stop.check,
                figures,
            )
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

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        wanted = set(self.stepper.attached.parameters)
        return [
            (name, q)
            for name, q in self.stepper.attached.model.named_parameters()
            if name in wanted
        ]

    def _save(self) -> None:
        start = time.perf_counter()
        named = self._named()
        tensors: dict[str, dict[str, Any]] = {
            "model": dict(named),
            "optimizer": optimizer_tensors(self.stepper.optimizer, named),
        }
        if self.stepper.attached.tensors:
            tensors["method"] = self.stepper.attached.tensors()
        state: dict[str, Any] = {
            "progress": asdict(self.progress),
            "loss_scale": self.stepper.loss_scale,
            "good_steps": self.stepper.good_steps,
        }
        if self.stepper.attached.state:
            state["method"] = self.stepper.attached.state()
        if (
            isinstance(self.stepper, RoundStepper)
            and self.stepper.rollouts
            and self.stepper.rollouts.state
        ):
            state["objective"] = self.stepper.rollouts.state()
        folder = checkpoint.save(
            self.checkpoints,
            self.progress.step,
            tensors,
            _json(state),
            protect=self.progress.best_step,
        )
        self.progress.checkpoint_seconds += time.perf_counter() - start
        self.log.write("checkpoint", step=self.progress.step, folder=folder.name)

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Continue from a verified checkpoint."""
        self._load_weights(found)
        load_optimizer_tensors(self.stepper.optimizer, self._named(), found.tensors("optimizer"))
        self.stepper.loss_scale, self.stepper.good_steps = (
            found.state["loss_scale"],
            found.state["good_steps"],
        )
        self.progress = Progress(**_floats(found.state["progress"]))
        if self.stepper.attached.load_state:
            self.stepper.attached.load_state(found.state["method"])
        if (
            isinstance(self.stepper, RoundStepper)
            and self.stepper.rollouts
            and self.stepper.rollouts.load_state
        ):
            self.stepper.rollouts.load_state(found.state["objective"])

    def _load_weights(self, found: checkpoint.Checkpoint) -> None:
        stored = found.tensors("model")
        with torch.no_grad():
            if self.stepper.attached.tensors:
                kept = found.tensors("method")
                for name, tensor in self.stepper.attached.tensors().items():
                    tensor.copy_(kept[name])
            for name, q in self._named():
                if (
                    q.dtype != stored[name].dtype
                ):  # a weight that slept then is held in fewer bits than one that learns
                    q.data = q.data.to(stored[name].dtype)
                q.copy_(stored[name])

    def _return_to_best(self) -> None:
        p = self.progress
        if not self.engine.keep_best or p.best_step in (None, p.step):
            return
        found = checkpoint.load_step(self.checkpoints, p.best_step or 0)
        if found is None:
            self.tell.line(say("train.best_lost", step=p.best_step))
            return
        self._load_weights(found)
        p.held_out_loss, p.held_out_figures = p.best_loss, p.best_figures or p.held_out_figures
        self.log.write("returned_to_best", step=p.best_step, held_out_loss=p.best_loss)
        self.tell.line(say("train.best", step=p.best_step, loss=f"{p.best_loss:.4f}"))


def _json(value: Any) -> Any:
    from tunewright.record.events import plain

    return plain(value)


def _floats(progress: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON could only hold as words become floats again."""
    return {k: float(v) if isinstance(v, str) else v for k, v in progress.items()}
