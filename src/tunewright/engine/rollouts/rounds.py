"""A step of learning from the model's own answers: draw, judge, and then several updates on what
was drawn.

One step of the run is one round: answers to `engine.batch_size` prompts, then `epochs` x
`minibatches` updates. Checkpoints lie between rounds, and a round is a function of the weights, the
seed and its number, so a run that was killed in the middle of a round takes the same round again.

The old values are computed in the very passes of the first updates, so that with dropout 0 the
first ratio is exactly 1; a round of one update, whose old values nothing else needs, takes them
from that update itself. The reference is the model at step 0: where the policy objective asks for
it, a copy of what trains, put in place while reference values are computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tunewright.core.errors import TrainingError, problem
from tunewright.core.seeds import permutation
from tunewright.core.types import Answer, Branch, Experience, Figures, Rollouts, Sample
from tunewright.engine import ranks
from tunewright.engine.oracles.reward_model import RewardModel
from tunewright.engine.rollouts.sampling import Drawn, How, Sampler
from tunewright.engine.step import Stepper, StepReport, add_figures, exchanged, means
from tunewright.models.kernels.fused import fused_without_gradient

SHOWN_EVERY = 10
"""Rounds between two sets of sample texts in the log."""
SHOWN = 2


@dataclass
class Asking:
    """What rounds need to know of words: the row behind a sample, its prompt, and how tokens become
    text."""

    prompt: Callable[[Sample], list[int]]
    question: Callable[[Sample], Any]
    """The messages up to the answer."""
    facts: Callable[[Sample], dict[str, Any]]
    decode: Callable[[list[int]], str]
    stop_ids: frozenset[int]
    parts: Callable[[list[int], list[int], bool], tuple[str, str]] | None = None
    """(prompt, tokens, whether it ended) -> (thought, answer). None: no thought is told apart."""


@dataclass
class Judged:
    """The answers of a round that count, one group a prompt, and the samples made of them."""

    groups: list[list[Experience]]
    samples: list[Sample]
    figures: Figures
    texts: list[dict[str, Any]]


@dataclass
class RoundStepper(Stepper):
    """A `Stepper` whose step is a round."""

    rollouts: Rollouts | None = None
    rewards: Any = None
    """A `RewardSet`: anything with `score(answers)`."""
    reward_models: list[tuple[float, RewardModel]] = field(default_factory=list)
    asking: Asking | None = None
    sampler: Sampler | None = None
    start: dict[str, Tensor] | None = None
    """What trains, as it was at step 0; None where no reference is asked for."""
    version: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollouts is not None and self.rollouts.reference:
            # Made before a checkpoint is read: it is what trains as it was at step 0.
            self.start = {name: p.detach().clone() for name, p in self.trained()}

    @contextlib.contextmanager
    def at_start(self) -> Iterator[None]:
        """Inside, the model is the one of step 0."""
        assert self.start is not None
        now = {name: p.detach().clone() for name, p in self.trained()}
        try:
            with torch.no_grad():
                for name, p in self.trained():
                    p.copy_(self.start[name])
            yield
        finally:
            with torch.no_grad():
                for name, p in self.trained():
                    p.copy_(now[name])

    # ---- one round

    def step(self, samples: list[Sample], number: int, learning_rate: float) -> StepReport:
        """A round over the prompts of `samples`. Raises TrainingError where no answer of the round
        could be judged."""
        rollouts = self._rollouts()
        judged = self.draw_and_judge(samples, number)
        self.number = number
        if rollouts.picks:
            add_figures(judged.figures, rollouts.judge(judged.groups))
            reports = self._learn_picked(judged.samples, number, learning_rate)
        else:
            reports = self._learn(judged, number, learning_rate)
        self.version += 1
        report = self._together(reports) if reports else _nothing_learnt(judged)
        report.figures = means(judged.figures) | report.figures
        report.texts = judged.texts if number % SHOWN_EVERY == 1 or number == 1 else []
        for sample in judged.samples:
            sample.facts.pop("experience")
        if rollouts.after_round:
            rollouts.after_round({**report.figures, "answers": float(len(judged.samples))})
        return report

    def _learn(self, judged: Judged, number: int, learning_rate: float) -> list[StepReport]:
        """The updates of a round on all of its answers, or on the pairs that are made of them."""
        rollouts = self._rollouts()
        learnt = judged.samples if rollouts.pair is None else pairs_of(judged, rollouts.pair)
        parts = self._minibatches(learnt, number)
        if rollouts.pair is None and (
            len(parts) > 1 or rollouts.reference or "value" in self.policy.heads
        ):
            first = parts[: rollouts.minibatches]
            self.relief.fit(lambda: self._old_values(first), judged.samples, learns=False)
        if rollouts.reference:
            drawn = judged.samples
            self.relief.fit(lambda: self._reference_values(drawn), drawn, learns=False)
        with torch.no_grad():
            add_figures(judged.figures, rollouts.judge(judged.groups))
        return [super(RoundStepper, self).step(part, number, learning_rate) for part in parts]

    def _learn_picked(
        self, samples: list[Sample], number: int, learning_rate: float
    ) -> list[StepReport]:
        """The updates on the answers that were picked. Where none was, no weight moves: not even by
        what the optimiser remembers."""
        picked = [s for s in samples if bool(s.facts["experience"].advantage.any())]
        if not picked:
            return [StepReport(0.0, {}, 0.0, True, 0, 0, 0, 0)]
        parts = self._minibatches(picked, number)
        return [super(RoundStepper, self).step(part, number, learning_rate) for part in parts]

    def _rollouts(self) -> Rollouts:
        assert self.rollouts is not None and self.asking is not None and self.sampler is not None
        return self.rollouts

    def _minibatches(self, samples: list[Sample], number: int) -> list[list[Sample]]:
        """The samples of each update: `minibatches` parts of even size in every epoch, in an order
        of its own."""
        rollouts = self._rollouts()
        if not samples:
            return []
        count = min(rollouts.minibatches, len(samples))
        parts = []
        for epoch in range(rollouts.epochs):
            order = permutation(self.seed, "minibatch", len(samples), number, epoch)
            bounds = [round(i * len(order) / count) for i in range(count + 1)]
            parts += [[samples[i] for i in order[a:b]] for a, b in pairwise(bounds)]
        return parts

    def _old_values(self, parts: list[list[Sample]]) -> None:
        """Log-probabilities and values before the first update, in the passes in which the first
        epoch will learn."""
        self.policy.model.eval()
        for part in parts:
            with torch.no_grad(), fused_without_gradient():
                groups = self.policy.own_passes(part, self.rows_per_pass)
                own = [self.policy(group) for group in groups]
            for output in exchanged(own, part):
                group = output.samples
                counts = [len(s.branches[0].learnt) for s in group]
                values = (
                    output.value.split(counts) if output.value is not None else [None] * len(group)
                )
                for sample, old, value in zip(
                    group, output.logprob.split(counts), values, strict=True
                ):
                    sample.facts["experience"].old, sample.facts["experience"].value = old, value

    def _reference_values(self, samples: list[Sample]) -> None:
        self.policy.model.eval()
        with self.at_start(), torch.no_grad(), fused_without_gradient():
            groups = self.policy.own_passes(samples, self.rows_per_pass)
            own = [self.policy(group) for group in groups]
        for output in exchanged(own, samples):
            counts = [len(s.branches[0].learnt) for s in output.samples]
            for sample, values in zip(output.samples, output.logprob.split(counts), strict=True):
                sample.facts["experience"].reference = values

    def draw_and_judge(
        self, prompts: Sequence[Sample], number: int, num_answers: int | None = None
    ) -> Judged:
        """Answers to `prompts` and their rewards. Round 0 is measuring: its draws are the same
        whenever it is taken."""
        rollouts, asking = self._rollouts(), self.asking
        assert asking is not None and self.sampler is not None
        how = How(
            num_answers or rollouts.num_answers,
            rollouts.max_new_tokens,
            rollouts.temperature,
            rollouts.top_p,
            rollouts.top_k,
        )
        asked = [asking.prompt(sample) for sample in prompts]
        drawn = self.sampler.draw(asked, how, self.seed, number, version=self.version)
        samples = [
            [drawn_sample(p, prompt, one) for one in answers]
            for p, prompt, answers in zip(prompts, asked, drawn, strict=True)
        ]
        answers = [
            self._answer(p, one) for p, group in zip(prompts, drawn, strict=True) for one in group
        ]
        flat = [s for group in samples for s in group]
        # Once for all: a reward may be code of one's own, or ask a server.
        scores = ranks.current().first(lambda: self.rewards.score(answers))
        total = list(scores.total)
        figures: Figures = {f"reward_{name}": (mean, 1) for name, mean in scores.means().items()}
        for weight, model in self.reward_models:
            values = model.score(flat)
            figures[model.name] = (sum(values), len(values))
            total = [t + weight * v for t, v in zip(total, values, strict=True)]
        bad = {i for i, value in enumerate(total) if not math.isfinite(value)}
        self._require_some(answers, bad, len(scores.bad))
        for i, one in enumerate(one for group in drawn for one in group):
            total[i] -= 0.0 if one.finished else rollouts.unfinished_penalty
            flat[i].facts["experience"] = Experience(
                total[i], len(one.tokens), one.finished, one.logprobs, tokens=one.tokens
            )
        kept = [i for i in range(len(flat)) if i not in bad]
        groups = [
            [
                s.facts["experience"]
                for i, s in enumerate(group, g * how.num_answers)
                if i not in bad
            ]
            for g, group in enumerate(samples)
        ]
        figures |= self._figures(
            [total[i] for i in kept],
            [answers[i] for i in kept],
            [flat[i].facts["experience"] for i in kept],
            len(bad),
        )
        texts = self._texts([(answers[i], total[i]) for i in kept[:: max(1, how.num_answers)]])
        return Judged([g for g in groups if g], [flat[i] for i in kept], figures, texts)

    def _answer(self, prompt: Sample, drawn: Drawn) -> Answer:
        assert self.asking is not None
        ids = drawn.tokens[:-1] if drawn.finished else drawn.tokens
        facts = self.asking.facts(prompt)
        thought, text = "", ""
        if self.asking.parts is None:
            text = self.asking.decode(ids).strip()
        else:
            thought, text = self.asking.parts(self.asking.prompt(prompt), ids, drawn.finished)
        return Answer(
            self.asking.question(prompt),
            text,
            len(drawn.tokens),
            drawn.finished,
            facts,
            prompt.origin,
            thought,
        )

    @staticmethod
    def _texts(judged: Sequence[tuple[Answer, float]]) -> list[dict[str, Any]]:
        """The first of these answers, to be looked at."""
        return [
            {
                "question": answer.messages[-1].content if answer.messages else "",
                "answer": answer.whole,
                "reward": round(reward, 4),
            }
            for answer, reward in judged[:SHOWN]
        ]

    @staticmethod
    def _require_some(answers: list[Answer], bad: set[int], count: int) -> None:
        if len(bad) == len(answers):
            raise TrainingError(
                problem(
                    "E-OBJ-36", str(answers[0].origin or ""), answers=len(answers), faults=count
                )
            )

    @staticmethod
    def _figures(
        rewards: list[float], answers: list[Answer], experiences: list[Experience], left_out: int
    ) -> Figures:
        count = len(rewards)
        mean = sum(rewards) / count
        spread = (sum((r - mean) ** 2 for r in rewards) / max(1, count - 1)) ** 0.5
        tokens = sum(e.num_tokens for e in experiences)
        return {
            "reward": (sum(rewards), count),
            "reward_spread": (spread, 1),
            "answer_tokens": (float(tokens), count),
            "finished": (float(sum(a.finished for a in answers)), count),
            "empty_answers": (float(sum(not a.text for a in answers)), count),
            "entropy": (-sum(sum(e.sampled) for e in experiences), tokens),
            "left_out": (float(left_out), 1),
        }

    def _together(self, reports: list[StepReport]) -> StepReport:
        """The updates of a round as one report. A round counts as applied when every update was."""
        count = len(reports)
        bad = next((r for r in reports if not r.applied), None)
        figures = {
            name: sum(r.figures[name] for r in reports) / count for name in reports[0].figures
        }
        figures["first_ratio_gap"] = reports[0].figures.get("ratio_gap", 0.0)
        figures["updates"] = float(count)
        return StepReport(
            sum(r.loss for r in reports) / count,
            {
                name: sum(r.terms.get(name, 0.0) for r in reports) / count
                for name in reports[0].terms
            },
            sum(r.gradient_norm for r in reports) / count,
            bad is None,
            sum(r.passes for r in reports),
            sum(r.physical_rows for r in reports),
            sum(r.logical_tokens for r in reports),
            sum(r.label_tokens for r in reports),
            bad.where if bad else "",
            bad.rows if bad else [],
            figures,
            bad.overflow if bad else False,
            imbalance=reports[0].imbalance,
            kept_sharing=reports[0].kept_sharing,
        )

    # ---- what a checkpoint holds besides

    def state(self) -> dict[str, Any]:
        """As of a `Stepper`, and what the objective keeps from round to round."""
        kept = {"objective": self.rollouts.state()} if self.rollouts and self.rollouts.state else {}
        return super().state() | kept

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        super().load_state(state)
        if self.rollouts and self.rollouts.load_state:
            self.rollouts.load_state(state["objective"])

    # ---- measuring

    def held_out(
        self, samples: Sequence[Sample], figures: Figures, stop: Callable[[], None] | None = None
    ) -> tuple[float, list[float]]:
        """As `measure`."""
        del stop
        return self.measure(samples, figures)

    def measure(
        self, prompts: Sequence[Sample], figures: Figures | None = None
    ) -> tuple[float, list[float]]:
        """(minus the mean reward of one answer to each prompt, the rewards): always the same draws,
        so that two measurements differ by the weights."""
        found = self.draw_and_judge(prompts, 0, 1)
        rewards = [e.reward for group in found.groups for e in group]
        if figures is not None:
            add_figures(figures, found.figures)
        for sample in found.samples:
            sample.facts.pop("experience")
        return -sum(rewards) / len(rewards), rewards


def pairs_of(judged: Judged, pair: Callable[[list[Sample]], Sample | None]) -> list[Sample]:
    """What `pair` makes of the answers to each prompt that teach something."""
    rest = iter(judged.samples)
    made = [pair([next(rest) for _ in group]) for group in judged.groups]
    return [sample for sample in made if sample is not None]


def _nothing_learnt(judged: Judged) -> StepReport:
    """A round in which no two answers differ: the weights stay, and that is no fault."""
    tokens = sum(len(b.tokens) for s in judged.samples for b in s.branches)
    return StepReport(0.0, {}, 0.0, True, 0, tokens, tokens, 0)


def drawn_sample(prompt: Sample, tokens: list[int], drawn: Drawn) -> Sample:
    """A drawn answer as something to learn from. A prompt's weight stands in the weights of its
    answers' tokens."""
    learnt = list(range(len(tokens), len(tokens) + len(drawn.tokens)))
    branch = Branch(tokens + drawn.tokens, learnt, [prompt.weight] * len(learnt), role="drawn")
    return Sample([branch], prompt.index, prompt.origin, prompt.weight)
