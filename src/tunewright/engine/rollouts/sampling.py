"""Answers drawn from the model that is being trained, with the log-probability of every token as
the sampler saw it.

`Sampler.draw` is all that training asks of a sampler: token ids, log-probabilities, whether the
answer ended, and the version of the weights that wrote it; another sampler can take its place.
Draws are a function of (seed, step, answer), whatever the batches are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tunewright.core.errors import CompatError, problem
from tunewright.core.seeds import stream_seed
from tunewright.engine import ranks, sharding
from tunewright.engine.decoding.batch import Ask
from tunewright.engine.decoding.drawing import Sampling
from tunewright.engine.decoding.writer import Writer
from tunewright.engine.policy import Policy


@dataclass(frozen=True)
class How:
    """How answers are drawn. At `temperature` 0 the likeliest token is taken; log-probabilities are
    always those of the whole vocabulary."""

    num_answers: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass
class Drawn:
    """One answer. `tokens` include the stop token where `finished`; `logprobs` are those of the
    model at the temperature, in nats."""

    tokens: list[int]
    logprobs: list[float]
    finished: bool
    version: int = 0


@dataclass
class Sampler:
    """Draws answers from `policy`. `rows` answers are written at once; `check` is called between
    steps and may raise."""

    policy: Policy
    stop_ids: frozenset[int]
    rows: int = 96
    check: Callable[[], None] | None = None

    @cached_property
    def writer(self) -> Writer:
        """What writes; weights that stay as they are stay packed from round to round."""
        layout = "padded" if self.policy.layout == "padded" else "any"
        return Writer(
            self.policy,
            self.stop_ids,
            needs_layout=layout,
            rows=self.rows,
            paced=False,
            check=self.check,
        )

    def draw(
        self, prompts: Sequence[list[int]], how: How, seed: int, *counters: int, version: int = 0
    ) -> list[list[Drawn]]:
        """For each prompt (token ids up to where the answer begins) `how.num_answers` answers.
        Raises CompatError where one would outgrow the context."""
        longest = max((len(p) for p in prompts), default=0)
        require_room(longest, how.max_new_tokens, sharding.room(self.policy))
        generator = torch.Generator().manual_seed(stream_seed(seed, "rollout", *counters))
        k = how.num_answers
        luck = torch.rand(
            len(prompts) * k, how.max_new_tokens, generator=generator, dtype=torch.float64
        )
        sampling = Sampling(how.temperature, how.top_p, how.top_k)
        asks = [
            Ask(list(prompt), how.max_new_tokens, k, sampling, luck[i * k : (i + 1) * k])
            for i, prompt in enumerate(prompts)
        ]

        def write(own: list[Ask]) -> list[list[Drawn]]:
            return [
                [Drawn(one.tokens, one.logprobs, one.end == "stop", version) for one in written]
                for written in (self.writer.write(own, logprobs=True) if own else [])
            ]

        with sharding.together(self.policy):
            return ranks.current().each(asks, write)


def require_room(longest: int, max_new_tokens: int, context: int | None) -> None:
    """Raise CompatError unless the longest question leaves room for a whole answer: one that is cut
    off by the context would be judged as if it were the model's own end."""
    if context is not None and longest + max_new_tokens > context:
        raise CompatError(
            problem(
                "E-MODEL-58",
                "objective.max_new_tokens",
                tokens=longest,
                wanted=max_new_tokens,
                context=context,
                room=max(0, context - longest),
            )
        )
