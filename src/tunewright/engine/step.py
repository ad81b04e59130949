"""One optimiser step: passes forward and backward, one division by the step's weights, a finite
check, clipping, the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tunewright.core.seeds import stream_seed
from tunewright.core.sequences import blocks
from tunewright.core.types import Attached, Figures, Objective, Passes, PassOutput, Sample, Term
from tunewright.engine import routing
from tunewright.engine.neftune import Noise
from tunewright.engine.policy import Policy

GROW_AFTER = 200


def add_figures(into: Figures, found: Figures) -> None:
    """Add the figures of a pass to those of the step."""
    for name, (total, count) in found.items():
        before = into.get(name, (0.0, 0))
        into[name] = (before[0] + total, before[1] + count)


def means(figures: Figures) -> dict[str, float]:
    """The mean of every figure that has a count."""
    return {name: total / count for name, (total, count) in figures.items() if count}


@dataclass
class StepReport:
    """What one step did. `loss` is the sum of all terms after division; `applied` is False for a
    step that was not finite."""

    loss: float
    terms: dict[str, float]
    gradient_norm: float
    applied: bool
    passes: int
    physical_rows: int
    logical_tokens: int
    label_tokens: int
    where: str = ""
    """For a step that was not finite: `loss` or the name of the first parameter with a bad
    gradient."""
    rows: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    """Means of what the objective found on the way: rewards, margins, accuracy."""
    overflow: bool = False
    """The step was not finite while float16 gradients were scaled up: the scale is lowered and that
    is no fault of the data."""
    texts: list[dict[str, Any]] = field(default_factory=list)
    """Answers to look at, where the step drew some."""


def runner(policy: Policy, rows_per_pass: int) -> Passes:
    """What `Objective.measure` is given: samples in, the outputs of their passes out, without
    gradient and without dropout."""

    @torch.no_grad()
    def run(samples: list[Sample]) -> Iterator[PassOutput]:
        policy.model.eval()
        for group in policy.cut(samples, rows_per_pass):
            yield policy(group)

    return run


@dataclass
class Stepper:
    """Holds what a step needs from one step to the next."""

    policy: Policy
    attached: Attached
    objective: Objective
    optimizer: torch.optim.Optimizer
    rows_per_pass: int
    clip: float | None
    seed: int
    loss_scale: float = 1.0
    """Above 1 only in float16, whose gradients would vanish; halved when they overflow, doubled
    after `GROW_AFTER` good steps."""
    good_steps: int = 0
    neftune: float | None = None
    """Strength of the noise on input embeddings; None: no noise."""
    number: int = 0
    """The step that is being taken: noise and dropout are functions of it."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """What trains."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """What trains, by name, in the order of the model."""
        wanted = set(self.attached.parameters)
        return [(name, p) for name, p in self.attached.model.named_parameters() if name in wanted]

    def state(self) -> dict[str, Any]:
        """What the next step needs to know besides weights and the optimiser's state."""
        own: dict[str, Any] = {"loss_scale": self.loss_scale, "good_steps": self.good_steps}
        if self.policy.routing is not None:
            own["visits"] = self.policy.routing.state()
        return own

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.loss_scale, self.good_steps = state["loss_scale"], state["good_steps"]
        if self.policy.routing is not None:
            self.policy.routing.load_state(state.get("visits", {}))

    def held_out(
        self, samples: Sequence[Sample], figures: Figures, stop: Callable[[], None] | None = None
    ) -> tuple[float, list[float]]:
        """(the loss over `samples`, rewards where there are any). Adds to `figures`; `stop` is
        called before each pass and may raise."""
        loss = held_out_loss(
            self.policy, self.objective, samples, self.rows_per_pass, stop, figures
        )
        return loss, []

    def gradients(self, samples: list[Sample]) -> StepReport:
        """Leave the gradient of the step's loss in the parameters, without an update."""
        if self.objective.prepare:
            with torch.no_grad():
                self.objective.prepare(samples)
        if self.objective.measure:
            self.objective.measure(samples, runner(self.policy, self.rows_per_pass))
        totals = self.objective.plan(samples)
        if self.policy.routing is not None and self.policy.routing.weight is not None:
            for branch in (b for s in samples for b in s.branches):
                branch.whole = True
            totals |= {routing.TERM: routing.tokens_of(samples)}
        report = StepReport(0.0, {}, 0.0, False, 0, 0, 0, 0)
        # After `prepare`, which may have made the branches of this step.
        noise = self._noise(samples)
        # Loading, answering and measuring leave the model in eval mode, in which an adapter's
        # dropout would silently do nothing.
        self.policy.model.train()
        figures: Figures = {}
        for group in self.policy.cut(samples, self.rows_per_pass):
            self._one_pass(group, noise, totals, report, figures)
        report.figures = means(figures)
        if self.attached.penalties:
            self._add(self.attached.penalties(), {}, report)
        return report

    def _noise(self, samples: list[Sample]) -> Noise | None:
        """What is added to the input embeddings of this step, where the run asks for it."""
        if not self.neftune:
            return None
        width = self.policy.causal[0].get_input_embeddings().weight.shape[1]
        whole = "score" in self.policy.heads
        return Noise.of_step(samples, self.neftune, width, self.seed, self.number, whole=whole)

    def _one_pass(
        self,
        group: list[Sample],
        noise: Noise | None,
        totals: dict[str, float],
        report: StepReport,
        figures: Figures,
    ) -> None:
        output = self.policy(group, noise)
        terms = self.objective.terms(output)
        if self.policy.routing is not None:
            terms |= self.policy.routing.terms()
        self._add(terms, totals, report)
        add_figures(figures, output.figures)
        report.passes += 1
        report.physical_rows += output.num_rows
        report.logical_tokens += sum(len(b.tokens) for s in group for b in s.branches)
        report.label_tokens += len(output.weight)

    def _add(self, terms: dict[str, Term], totals: dict[str, float], report: StepReport) -> None:
        """Backward through the sum of the terms. A term that `plan` did not announce (a penalty on
        the weights) is divided by 1; one announced as 0 has nothing to learn from in this step."""
        parts = {
            name: coefficient * total / totals.get(name, 1.0)
            for name, (total, coefficient) in terms.items()
            if totals.get(name, 1.0)
        }
        if not parts:
            return
        loss = torch.stack(
            [part.float() if part.dtype.itemsize < 4 else part for part in parts.values()]
        ).sum()
        if loss.requires_grad:
            (loss * self.loss_scale).backward()
        for name, part in parts.items():
            report.terms[name] = report.terms.get(name, 0.0) + float(part.detach())
        report.loss = sum(report.terms.values())

    def step(self, samples: list[Sample], number: int, learning_rate: float) -> StepReport:
        """Gradient, finite check, clipping, update. A step that is not finite changes no weight and
        says where it broke."""
        # Dropout draws depend on the step alone, so a resumed run draws the same.
        torch.manual_seed(stream_seed(self.seed, "dropout", number))
        self.number = number
        report = self.gradients(samples)
        parameters = self.parameters()
        if self.loss_scale != 1.0:
            for p in parameters:
                if p.grad is not None:
                    p.grad /= self.loss_scale
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        report.gradient_norm = float(norm)
        if not (math.isfinite(report.loss) and math.isfinite(report.gradient_norm)):
            report.where = "loss" if not math.isfinite(report.loss) else self._first_bad()
            report.rows = [str(s.origin) for s in samples if s.origin]
            self.optimizer.zero_grad(set_to_none=True)
            report.overflow = self.loss_scale > 1.0
            self.loss_scale, self.good_steps = max(1.0, self.loss_scale / 2), 0
            return report
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("rate_factor", 1.0)
        before = (
            [p.detach().clone() for p in parameters]
            if self._could_overflow(learning_rate)
            else None
        )
        if not self._update(before is not None):
            assert before is not None
            self._put_back(before)
            report.where = "update"
            self.optimizer.zero_grad(set_to_none=True)
            return report
        if self.attached.after_update:
            self.attached.after_update(number)
        self.optimizer.zero_grad(set_to_none=True)
        report.applied = True
        self.good_steps += 1
        if self.loss_scale != 1.0 and self.good_steps % GROW_AFTER == 0:
            self.loss_scale = min(65536.0, self.loss_scale * 2)
        return report

    def _update(self, guarded: bool) -> bool:
        """Take the optimiser's step. Guarded: whether all weights are finite afterwards."""
        if not guarded:
            self.optimizer.step()
            return True
        try:
            self.optimizer.step()
        except RuntimeError:
            # PyTorch refuses a rate that does not fit the weights' dtype, half-way through them.
            return False
        return all(bool(torch.isfinite(p).all()) for p in self.parameters())

    def _could_overflow(self, learning_rate: float) -> bool:
        # AdamW moves a weight by about the rate, so only an absurd rate can leave the finite
        # numbers in one update.
        return learning_rate > 1e-4 * min(
            (torch.finfo(p.dtype).max for p in self.parameters()), default=0.0
        )

    def _put_back(self, before: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for p, old in zip(self.parameters(), before, strict=True):
                p.copy_(old)

    def _first_bad(self) -> str:
        for name, p in self.policy.model.named_parameters():
            if p.grad is not None and not bool(torch.isfinite(p.grad).all()):
                return name
        return "gradient norm"


@torch.no_grad()
def held_out_loss(
    policy: Policy,
    objective: Objective,
    samples: Sequence[Sample],
    rows_per_pass: int,
    stop: Callable[[], None] | None = None,
    figures: Figures | None = None,
) -> float:
    """The objective's loss over `samples` without gradient, divided once by the weights of all of
    them. NaN for no samples. Adds to `figures`.

    Samples are taken in blocks, so that memory does not grow with their number; what an objective
    measures over a whole step (KTO's baseline) it measures over a block.
    """
    totals: dict[str, float] = {}
    for block in blocks(samples):
        if objective.prepare:
            objective.prepare(block)
        for name, weight in objective.plan(block).items():
            totals[name] = totals.get(name, 0.0) + weight
    loss = 0.0 if len(samples) else float("nan")
    policy.model.eval()
    for block in blocks(samples):
        if objective.prepare:
            objective.prepare(block)
        if objective.measure:
            objective.measure(block, runner(policy, rows_per_pass))
        for group in policy.cut(block, rows_per_pass):
            if stop is not None:
                stop()
            output = policy(group)
            terms = objective.terms(output)
            if figures is not None:
                add_figures(figures, output.figures)
            loss += sum(
                float(c * total / totals[name])
                for name, (total, c) in terms.items()
                if totals.get(name)
            )
    return loss
