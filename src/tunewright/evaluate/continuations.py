"""How likely given texts are as continuations of given contexts, without a chat template: what
multiple-choice exams and lm-eval ask for.

Tokens are made as lm-eval makes them (context and continuation tokenised together, white space at
the end of the context belongs to the continuation, too long rows lose their beginning), so the
figures are comparable with published ones. What is computed is ours: continuations of one context
are branches of one sample, and contexts that begin alike share their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.core.config import EngineConfig
from tunewright.core.errors import UsageError, problem
from tunewright.core.machine import keep_freed_memory
from tunewright.core.telling import Tell
from tunewright.core.types import Branch, Sample
from tunewright.engine import opening
from tunewright.evaluate import ranking
from tunewright.evaluate.address import is_address
from tunewright.evaluate.logprobs import Likeliest, logprobs_of
from tunewright.models.load import room_of

DEFAULT_CONTEXT = 2048
"""Tokens, where a model names no limit."""

Pair = tuple[list[int], list[int]]
"""Token ids of a context and of one continuation."""


@dataclass
class Scorer:
    """An opened model that scores continuations."""

    opened: opening.Opened
    layout: str
    layout_reason: str
    rows_per_pass: int

    @classmethod
    def of(cls, opened: opening.Opened) -> Scorer:
        """With the layout and the size of a pass that suit the model."""
        layout, reason = opened.choose_layout(EngineConfig(), opened.world.dtype)
        return cls(opened, layout, reason, opened.world.rows_per_pass)

    @property
    def context(self) -> int:
        """Tokens that context and continuation may have together."""
        return room_of(self.opened.causal, self.opened.model) or DEFAULT_CONTEXT

    def about(self) -> dict[str, Any]:
        """The model and how it computes, as keys of a result."""
        target, world = self.opened.target, self.opened.world
        return {
            "target": target.name,
            "model": target.source.spec,
            "adapter": str(target.adapter or ""),
            "layout": self.layout,
            "layout_reason": self.layout_reason,
            "dtype": world.dtype,
            "device": world.device,
        }

    def score(
        self, pairs: Sequence[Pair], on_done: Callable[[int], None] | None = None
    ) -> list[tuple[float, bool]]:
        """For each pair the log-probability of the continuation in nats, and whether greedy
        decoding would write it. `on_done` is called with how many pairs are scored."""
        samples: list[Sample] = []
        place: dict[tuple[int, ...], int] = {}
        where: list[tuple[int, int]] = []
        for context, continuation in pairs:
            at = place.setdefault(tuple(context), len(samples))
            if at == len(samples):
                samples.append(Sample([], at))
            where.append((at, len(samples[at].branches)))
            samples[at].branches.append(self._branch(context, continuation))
        greedy: Likeliest = []
        found = logprobs_of(
            self.opened,
            samples,
            layout_name=self.layout,
            rows_per_pass=self.rows_per_pass,
            exact=True,
            on_samples=on_done and (lambda n: on_done(round(n * len(pairs) / len(samples)))),
            likeliest=greedy,
        )
        return [(sum(found[i][b]), all(greedy[i][b])) for i, b in where]

    def _branch(self, context: list[int], continuation: list[int]) -> Branch:
        """The last token is predicted and not read, so one more than the context fits."""
        tokens = [*context, *continuation][-(self.context + 1) :]
        first = len(tokens) - len(continuation)
        assert first > 0, "a continuation fills the whole context"
        return Branch(tokens, list(range(first, len(tokens))), [1.0] * len(continuation))


def open_scorer(
    target: str,
    tell: Tell,
    *,
    base: bool = False,
    dtype: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
) -> Scorer:
    """The model that `target` names (run, adapter, model folder, GGUF file, hub id), ready to
    score. Raises UsageError for an address (E-EXAM-12) and for a model that gives scores and no
    words (E-OBJ-37), and what opening raises."""
    if is_address(target):
        raise UsageError(problem("E-EXAM-12", target.partition("?")[0]))
    found = opening.find(target, tell, base=base)
    if ranking.is_scorer(found):
        raise UsageError(problem("E-OBJ-37", target, target=target))
    opened = opening.to_answer(found, dtype=dtype, device=device, threads=threads)
    if opened.world.device == "cpu":
        keep_freed_memory()
    return Scorer.of(opened)


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool | None = None) -> list[list[int]]:
    """Token ids of raw texts, with the tokenizer's own beginning unless they bring it or `special`
    says otherwise."""
    start = tokenizer.bos_token or tokenizer.eos_token
    if special is None and start and texts and texts[0].startswith(start):
        special = False
    how = {} if special is None else {"add_special_tokens": special}
    return [list(ids) for ids in tokenizer(list(texts), **how)["input_ids"]] if texts else []


def encode_pairs(tokenizer: Any, context: str, continuations: Sequence[str]) -> list[Pair]:
    """A context that has more than white space, and each of its continuations, as tokens."""
    texts = [context.rstrip(), *(context + one for one in continuations)]
    before, *wholes = encode(tokenizer, texts)
    return [(before, whole[len(before) :]) for whole in wholes]
