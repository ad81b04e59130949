"""A run as its estimate sees it: the model's sizes, what the data needs, and how it is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunewright.advise import speed
from tunewright.advise.learnt import Learnt
from tunewright.advise.memory import Work
from tunewright.advise.tried import Trial
from tunewright.core.types import OwnAnswers, Rollouts, Sample
from tunewright.engine.sharing import StepSharing
from tunewright.models.limits import KEEP_BYTES
from tunewright.models.shape import ModelShape, rank_of

READING = 1 / 3
"""Products of a pass that learns nothing, for each of one that learns: a layer has one forward and
two backward."""
GUESSED_TOKENS = 256
"""Tokens of a row that nobody could count."""


@dataclass(frozen=True)
class SampleFacts:
    """What the estimate needs to know of the data: rows of one epoch as they are computed, rows
    that predict a token, number of samples."""

    samples: int
    rows_per_epoch: int
    label_rows_per_epoch: int
    longest: int
    held_out: int = 0

    @classmethod
    def of(
        cls, report: dict[str, Any], samples: Sequence[Sample] = (), layout: str = "tree"
    ) -> SampleFacts:
        """From a data report with tokens. The report counts shared beginnings over all samples at
        once; a step shares only among its own, so what is shared is taken at nine tenths."""
        packed = report.get("packed", {})  # documents side by side
        number, held = (packed.get(name, report.get(name, 0)) for name in ("train", "held_out"))
        if (
            report["tokens_total"] is None
        ):  # no tokenizer here: a row is taken for a question and an answer of a few sentences
            return cls(
                number, GUESSED_TOKENS * number, GUESSED_TOKENS * number // 2, GUESSED_TOKENS, held
            )
        total, learnt = report["tokens_total"], report["learnt_tokens"]
        longest = max(report["length_percentiles"]["max"], min(packed.get("tokens", 0), total))
        if layout == "padded":
            return cls(number, round(1.2 * total), learnt, longest, held)
        shared = total - report["shared_prefix"]["rows_physical_estimate"]
        return cls(number, max(1, round(total - 0.9 * shared)), learnt, longest, held)

    def drawing(self, rollouts: Rollouts | None, own: OwnAnswers | None = None) -> SampleFacts:
        """The same for a run that learns from its own answers, in rows of a training step that cost
        as much.

        An answer is taken to be two thirds of `max_new_tokens` long. Its tokens are drawn (a
        forward pass in small products: worth 0.8 of a row), passed once more for each of old
        values, reference and reward model (0.4 each), and learnt from `epochs` times.
        """
        if own is not None:
            wrote = round(self.samples * own.share * own.max_new_tokens * 2 / 3)
            rows = round(self.rows_per_epoch + 1.8 * wrote)
            return replace(
                self,
                rows_per_epoch=rows,
                label_rows_per_epoch=self.label_rows_per_epoch + wrote,
                longest=self.longest + own.max_new_tokens,
            )
        if rollouts is None:
            return self
        drawn = self.samples * rollouts.num_answers * rollouts.max_new_tokens * 2 // 3
        looks = 0.4 * (1 + rollouts.reference + 1)
        rows = round((self.rows_per_epoch + drawn) * (rollouts.epochs + looks) + 0.8 * drawn)
        return replace(
            self,
            rows_per_epoch=rows,
            label_rows_per_epoch=drawn * rollouts.epochs,
            longest=self.longest + rollouts.max_new_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A run as its estimate sees it."""

    shape: ModelShape
    trainable: int
    rows_per_pass: int
    facts: SampleFacts
    steps: int
    batch_size: int
    dtype: str
    device: str = "cpu"
    layout: str = "tree"
    method: Any = None
    probes: int = 5
    answer_tokens: int = 0
    """Most tokens of an answer to them; 0: nothing is written."""
    may_leave_out: bool = False
    """They are rows of the data, of which no more are asked than there is time for."""
    general: bool = False
    """The general questions are asked too, before and after (`run.general`)."""
    rates: speed.Rates | None = None
    """What this machine reaches (`speed.measured_rates`); None: no time of its work is given."""
    base_bits: float | None = None
    beside: Sequence[ModelShape] = ()
    """Further models that are held in memory and read every row without learning: a teacher, a
    reward model of its own."""
    reference: bool = False
    """The model itself reads every row once before the first step."""
    measured_rows: float = 0.0
    """Samples that are read without being learnt, over the whole run."""
    reference_samples: float = 0.0
    """Samples that the model itself reads once before the first step, where `reference`."""
    saves: int = 0
    """Checkpoints that are written, the last one included."""
    epochs: float = 1.0
    optimizer: str = "adamw"
    recompute: str = "none"
    """What is computed again in the backward pass (`engine/recompute.py`)."""
    keep_bytes: int = KEEP_BYTES
    """Attention probabilities are kept up to here."""
    offload: str = "none"
    """What lies elsewhere until it is needed (`engine/offload.py`)."""
    objective: str = "sft"
    may_cache: bool = False
    """Hidden states below the lowest trained block may be kept from the first epoch on."""
    draws: bool = False
    """Answers are drawn in every step."""
    processes: int = 1
    """Processes that share each step."""
    parallel: str = "none"
    """`ddp` or `fsdp` with several processes."""
    counted: StepSharing | None = None
    """Rows of the steps as they will be cut; None: they follow from `facts`."""
    trial: Trial | None = None
    """What a few blocks took here; None: time is counted."""
    here: bool = True
    """The machine is this one."""
    learnt: Learnt | None = None
    """What finished runs on this machine took beside their estimates."""

    @property
    def grown(self) -> ModelShape:
        """The model with the blocks that the method adds."""
        method = self.method
        return method.grown(self.shape) if hasattr(method, "grown") else self.shape

    @property
    def share(self) -> float:
        """The part of an epoch that one step is."""
        return self.batch_size / max(1, self.facts.samples)

    @property
    def step_rows(self) -> int:
        """Token rows of a step."""
        if self.counted is not None:
            return max(1, round(self.counted.physical / self.counted.steps))
        return math.ceil(self.facts.rows_per_epoch * self.share)

    @property
    def label_share(self) -> float:
        """The part of the rows that predicts a token."""
        if self.counted is not None:
            return self.counted.labels / max(1, self.counted.physical)
        return self.facts.label_rows_per_epoch / max(1, self.facts.rows_per_epoch)

    @property
    def passes(self) -> float:
        """Passes of a step."""
        if self.counted is not None:
            return max(1.0, self.counted.passes / self.counted.steps / self.processes)
        if self._drawn is not None:
            return self._drawn[0]
        rows = self.step_rows / self.processes
        return max(1.0, math.ceil(rows / max(1, self.rows_per_pass)))

    @property
    def pass_rows(self) -> int:
        """Token rows of the largest pass."""
        facts = self.facts
        if self.counted is not None and self.counted.largest_pass:
            largest = min(self.counted.largest_pass, max(self.rows_per_pass, facts.longest))
            return max(largest if self.processes == 1 else self._of_a_rank(largest), 1)
        if self._drawn is not None:
            return self._drawn[1]
        largest = facts.rows_per_epoch
        if facts.samples > self.batch_size:
            # Steps differ: the largest of many is some rows above the mean, by about two spreads of
            # a sum of samples.
            largest = math.ceil(self.step_rows * (1 + 0.4 / math.sqrt(self.batch_size)))
        most = max(self.rows_per_pass, facts.longest)
        return max(1, min(most, max(self._of_a_rank(largest), facts.longest)))

    @property
    def _drawn(self) -> tuple[float, int] | None:
        """(passes of a step, rows of the largest) of a run that draws answers, as its trial took
        them; None where there is none. `facts` counts rows that cost as much as drawing, comparing
        and learning together, and these never lie in memory at once."""
        trial = self.trial
        if not self.draws or trial is None or self.processes > 1 or not trial.rows:
            return None
        prompts = self.batch_size / max(1.0, trial.read_samples)
        rows = prompts * trial.rows / max(1.0, trial.passes)
        largest = max(trial.peak_rows, rows * (1 + 0.4 / math.sqrt(self.batch_size)))
        passes = max(1.0, trial.passes) * max(1.0, rows / self.rows_per_pass)
        return passes, max(1, math.ceil(min(largest, max(self.rows_per_pass, self.facts.longest))))

    def _of_a_rank(self, rows: int) -> int:
        """The rows of a pass, where a step of several processes has no more for each."""
        if self.processes == 1:
            return rows
        own = math.ceil(1.2 * self.step_rows / self.processes)
        return min(rows, max(own, self.facts.longest))

    def _passes_before(self) -> float:
        """Passes in which the model at step 0 reads samples."""
        each = self.facts.rows_per_epoch / max(1, self.facts.samples)
        return self.reference_samples * each / max(1, self.rows_per_pass)

    def _measured_labels(self) -> int:
        """Rows of the samples that are measured together which predict a token."""
        facts = self.facts
        held = facts.held_out if self.measured_rows else 0
        return round(held * facts.label_rows_per_epoch / max(1, facts.samples))

    @property
    def work(self) -> Work:
        """What decides memory besides the model."""
        rows, facts = self.pass_rows, self.facts
        labels = rows * self.label_share
        return Work(
            self.trainable,
            rows,
            max(1, round(labels)),
            facts.longest,
            self.dtype,
            self.device == "cpu",
            self.layout == "tree",
            tuple(getattr(self.method, "targets", ("linear",))),
            rank_of(self.method),
            self.probes,
            self.base_bits,
            self.optimizer,
            self.trial,
            self.passes * self.steps + READING * self._passes_before(),
            self.method.moment_numbers(self.grown)
            if hasattr(self.method, "moment_numbers")
            else None,
            measured_labels=self._measured_labels(),
            recompute=self.recompute,
            keep_bytes=self.keep_bytes,
            offload=self.offload,
        )
