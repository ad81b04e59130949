"""One optimiser step: passes forward and backward, one division by the step's weights, a finite
check, clipping, the update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tunewright.core.moves import later
from tunewright.core.seeds import stream_seed
from tunewright.core.sequences import blocks
from tunewright.core.types import Attached, Figures, Objective, Passes, PassOutput, Sample, Term
from tunewright.engine import ranks, routing, sharding
from tunewright.engine.neftune import Noise
from tunewright.engine.optim import averages
from tunewright.engine.policy import Policy
from tunewright.engine.portions import Portions
from tunewright.engine.relief import Relief

GROW_AFTER = 200


def add_figures(into: Figures, found: Figures) -> None:
    """Add the figures of a pass to those of the step."""
    for name, (total, count) in found.items():
        before = into.get(name, (0.0, 0))
        into[name] = (before[0] + total, before[1] + count)


def means(figures: Figures) -> dict[str, float]:
    """The mean of every figure that has a count."""
    return {name: float(total) / count for name, (total, count) in read(figures).items() if count}


def read(figures: Figures) -> Figures:
    """The same with every sum as a number of Python; the device is asked once for all of them."""
    waiting = {name: t for name, (t, _) in figures.items() if isinstance(t, torch.Tensor)}
    numbers = torch.stack([*waiting.values()]).tolist() if waiting else []
    known = dict(zip(waiting, numbers, strict=True))
    return {name: (known.get(name, total), count) for name, (total, count) in figures.items()}


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
    imbalance: float | None = None
    """Rows of the fullest rank as a multiple of the mean, where several share the step."""
    kept_sharing: float | None = None
    """Share of the rows saved by one process that the ranks still save."""
    sums: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """The terms while passes are taken: on the device, where nobody waits for them."""


def runner(policy: Policy, rows_per_pass: int) -> Passes:
    """What `Objective.measure` is given: samples in, the outputs of their passes out, without
    gradient and without dropout."""

    @torch.no_grad()
    def run(samples: list[Sample]) -> Iterator[PassOutput]:
        policy.model.eval()
        found = [policy(group) for group in policy.own_passes(samples, rows_per_pass)]
        yield from exchanged(found, samples)

    return run


def exchanged(own: list[PassOutput], samples: list[Sample]) -> Iterator[PassOutput]:
    """The passes of all ranks, those of rank 0 first: what is measured over a whole step is then
    the same everywhere. `own` are passes over some of `samples`, without gradient."""
    team = ranks.current()
    if not team.is_many:
        yield from own
        return
    place = {id(sample): i for i, sample in enumerate(samples)}
    device = own[0].logprob.device if own else None
    told = [
        ([place[id(sample)] for sample in one.samples], replace(on_host(one), samples=[]))
        for one in own
    ]
    for part in team.gather(told):
        for places, one in part:
            output = replace(one, samples=[samples[i] for i in places])
            yield output if device is None else moved(output, device)


def on_host(output: PassOutput) -> PassOutput:
    """The same in the memory of this machine."""
    return moved(output, torch.device("cpu"))


def moved(output: PassOutput, device: torch.device) -> PassOutput:
    """The same on a device."""
    tensors: dict[str, Any] = {
        name: value.detach().to(device)
        for name, value in vars(output).items()
        if isinstance(value, torch.Tensor)
    }
    return replace(output, **tensors)


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
    relief: Relief = field(init=False)
    """What is done where memory runs out."""

    def __post_init__(self) -> None:
        self.relief = Relief(self)

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
        own |= {"objective": self.objective.state()} if self.objective.state else {}
        if self.policy.routing is not None:
            own["visits"] = self.policy.routing.state()
        return {**own, **self.relief.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.loss_scale, self.good_steps = state["loss_scale"], state["good_steps"]
        self.relief.load_state(state)
        if self.objective.load_state:
            self.objective.load_state(state["objective"])
        if self.policy.routing is not None:
            self.policy.routing.load_state(state.get("visits", {}))

    @contextlib.contextmanager
    def handed_out(self) -> Iterator[None]:
        """Inside, the weights are those that would be handed out now, which with some optimisers
        are not those that learn; afterwards these again, to the bit."""
        parts = averages(self.optimizer)
        before = [p.detach().clone() for p in self.parameters()] if parts else []
        for part in parts:
            part.average_into()
        try:
            yield
        finally:
            if parts:
                self._put_back(before)

    def hand_out(self) -> None:
        """Put the weights that are handed out in place, after the last step."""
        for part in averages(self.optimizer):
            part.average_into()

    def held_out(
        self, samples: Sequence[Sample], figures: Figures, stop: Callable[[], None] | None = None
    ) -> tuple[float, list[float]]:
        """(the loss over `samples`, rewards where there are any). Adds to `figures`; `stop` is
        called before each pass and may raise."""

        def measure() -> tuple[float, Figures]:
            found: Figures = {}
            rows = self.rows_per_pass
            return held_out_loss(self.policy, self.objective, samples, rows, stop, found), found

        first = next(iter(blocks(samples)), [])
        loss, found = self.relief.fit(measure, first, learns=False)
        add_figures(figures, found)
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
        team, shared = ranks.current(), self.policy.share(samples)
        groups = self.policy.own_passes(samples, self.rows_per_pass, shared, fill=False)
        missing = team.most(len(groups)) - len(groups)
        for group in groups:
            self._one_pass(group, noise, totals, report, figures)
        for _ in range(missing):
            self._empty_pass(samples, noise)
        # Of the weights themselves, which all ranks have: one of them says it.
        if self.attached.penalties and team.is_first:
            self._add(self.attached.penalties(), {}, report)
        team.sum_gradients(self.parameters())
        # From here on the host waits for the device.
        report.terms = means({name: (total, 1) for name, total in report.sums.items()})
        report.loss = sum(report.terms.values())
        if shared is not None:
            figures = _together(report, read(figures), shared)
        report.figures = means(figures)
        return report

    def _empty_pass(self, samples: list[Sample], noise: Noise | None) -> None:
        """A pass of weight 0, where another rank has more of them and all must take part."""
        output = self.policy([smallest(samples)], noise)
        parts = (output.logprob, output.score, output.value, output.log_z, output.divergence)
        total = sum(part.float().sum() for part in parts if part is not None and part.numel())
        if isinstance(total, torch.Tensor) and total.requires_grad:
            (0.0 * total).backward()

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
            terms = terms | self.policy.routing.terms()
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
            before = report.sums.get(name)
            report.sums[name] = later(part) if before is None else before + later(part)

    def _drawn_gradients(self, samples: list[Sample]) -> StepReport:
        """`gradients` with the draws of this step: dropout depends on the step alone, so that a
        resumed run, or a step that is taken again, draws the same. Every rank draws its own."""
        more = [ranks.current().rank] if ranks.current().rank else []
        torch.manual_seed(stream_seed(self.seed, "dropout", self.number, *more))
        return self.gradients(samples)

    def step(self, samples: list[Sample], number: int, learning_rate: float) -> StepReport:
        """Gradient, finite check, clipping, update. A step that is not finite changes no weight and
        says where it broke."""
        self.number = number
        report = self.relief.fit(lambda: self._drawn_gradients(samples), samples)
        parameters = self.parameters()
        if self.loss_scale != 1.0:
            for p in parameters:
                if p.grad is not None:
                    p.grad /= self.loss_scale
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        report.gradient_norm = float(sharding.whole(norm))
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
        return sharding.all_finite(self.parameters())

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
            if p.grad is not None and not sharding.all_finite([p.grad]):
                return name
        return "gradient norm"


def smallest(samples: Sequence[Sample]) -> Sample:
    """The sample with the fewest tokens."""
    return min(samples, key=lambda s: sum(len(branch.tokens) for branch in s.branches))


def _together(report: StepReport, figures: Figures, shared: Portions) -> Figures:
    """Make the report of one rank that of all; gives the figures of all."""
    counts = ("passes", "physical_rows", "logical_tokens", "label_tokens")
    told = ranks.current().gather(
        (report.terms, [getattr(report, name) for name in counts], figures)
    )
    report.terms = {}
    for terms, _, _ in told:
        for name, value in terms.items():
            report.terms[name] = report.terms.get(name, 0.0) + value
    report.loss = sum(report.terms.values())
    for i, name in enumerate(counts):
        setattr(report, name, sum(numbers[i] for _, numbers, _ in told))
    report.imbalance = round(shared.imbalance, 4)
    report.kept_sharing = round(shared.kept_share, 4)
    return ranks.add_up([part for _, _, part in told])


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
    loss, found = 0.0 if len(samples) else float("nan"), {} if figures is None else figures
    policy.model.eval()
    for block in blocks(samples):
        if objective.prepare:
            objective.prepare(block)
        if objective.measure:
            objective.measure(block, runner(policy, rows_per_pass))
        for group in policy.own_passes(block, rows_per_pass):
            if stop is not None:
                stop()
            output = policy(group)
            terms = (objective.measured or objective.terms)(output)
            add_figures(found, output.figures)
            loss += sum(
                float(c * total / totals[name])
                for name, (total, c) in terms.items()
                if totals.get(name)
            )
    told = ranks.current().gather((loss, read(found)))
    if len(told) > 1:
        loss = sum(part for part, _ in told)
        found.clear()
        found.update(ranks.add_up([part for _, part in told]))
    return loss
