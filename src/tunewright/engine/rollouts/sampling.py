"""Answers drawn from the model that is being trained, with the log-probability of every token as
the sampler saw it.

`Sampler.draw` is all that training asks of a sampler: token ids, log-probabilities, whether the
answer ended, and the version of the weights that wrote it; another sampler can take its place.
Draws are a function of (seed, step, answer), whatever the batches are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunewright.core.errors import CompatError, problem
from tunewright.core.seeds import stream_seed
from tunewright.engine.policy import Policy, head_of
from tunewright.models.generate import room_of
from tunewright.models.kernels import rollout_attention
from tunewright.models.kernels.fused import fused_without_gradient
from tunewright.models.kernels.rollout_attention import RolloutMemory

FEWER = 0.75
"""Answers that ended leave the batch once those that go on are at most this share of it."""


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
class _Batch:
    """Answers that are being written together. Row r belongs to answer `answer[r]` of the caller; a
    row that ended waits until it is taken out."""

    answer: list[int]
    ended: list[bool]


@dataclass
class Sampler:
    """Draws answers from `policy`. `rows` answers are written at once; `check` is called between
    steps and may raise."""

    policy: Policy
    stop_ids: frozenset[int]
    rows: int = 96
    check: Callable[[], None] | None = None

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[list[int]], how: How, seed: int, *counters: int, version: int = 0
    ) -> list[list[Drawn]]:
        """For each prompt (token ids up to where the answer begins) `how.num_answers` answers.
        Raises CompatError where one would outgrow the context."""
        longest = max((len(p) for p in prompts), default=0)
        require_room(longest, how.max_new_tokens, room_of(self.policy.causal[0], self.policy.model))
        generator = torch.Generator().manual_seed(stream_seed(seed, "rollout", *counters))
        luck = torch.rand(
            len(prompts) * how.num_answers,
            how.max_new_tokens,
            generator=generator,
            dtype=torch.float64,
        )
        found = [Drawn([], [], False, version) for _ in range(len(luck))]
        causal = self.policy.causal[0]
        before, was_training = causal.config._attn_implementation, self.policy.model.training
        shared = self.policy.layout == "tree"
        rollout_attention.register()
        self.policy.model.eval()
        causal.set_attn_implementation(
            rollout_attention.NAME
            if shared
            else ("sdpa" if getattr(causal, "_supports_sdpa", True) else "eager")
        )
        try:
            order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
            at_once = max(1, self.rows // how.num_answers)
            for start in range(0, len(order), at_once):
                chosen = order[start : start + at_once]
                with fused_without_gradient():
                    (self._write if shared else self._write_apart)(
                        prompts, chosen, how, luck, found
                    )
        finally:
            causal.set_attn_implementation(before)
            self.policy.model.train(was_training)
        return [found[p * how.num_answers : (p + 1) * how.num_answers] for p in range(len(prompts))]

    def _write(
        self,
        prompts: Sequence[list[int]],
        chosen: list[int],
        how: How,
        luck: Tensor,
        found: list[Drawn],
    ) -> None:
        policy, device, k = self.policy, self.policy.device, how.num_answers
        lengths = torch.tensor([len(prompts[p]) for p in chosen], device=device)
        longest = int(lengths.max())
        ids = torch.tensor(
            [prompts[p] + [0] * (longest - len(prompts[p])) for p in chosen], device=device
        )
        prompt = policy.virtual()
        virtual = prompt.num_tokens if prompt is not None else 0
        own_rows = virtual if prompt is not None and prompt.rows is not None else 0
        memory = RolloutMemory(lengths, k, how.max_new_tokens, virtual)
        positions = torch.arange(virtual - own_rows, virtual + longest, device=device).expand(
            len(chosen), -1
        )
        inputs = policy.inputs(ids, prompt)
        if own_rows:
            # Learnt rows stand in front of the text: for attention they are text, each seen by
            # those after it.
            memory.num_virtual, memory.lengths = 0, lengths + own_rows
        hidden = policy.body(
            **inputs, position_ids=positions, rollout_memory=memory, use_cache=False
        ).last_hidden_state
        last = hidden[
            torch.arange(len(chosen), device=device), lengths - 1 + own_rows
        ].repeat_interleave(k, 0)
        memory.reading = False
        batch = _Batch([p * k + i for p in chosen for i in range(k)], [False] * (len(chosen) * k))
        for n in range(how.max_new_tokens):
            token = self._take(last, batch, n, how, luck, found)
            if self.check is not None:
                self.check()
            if all(batch.ended) or n + 1 == how.max_new_tokens:
                return
            token = self._fewer(batch, token, memory)
            position = (memory.lengths - own_rows + virtual).repeat_interleave(memory.group)[
                :, None
            ] + n
            memory.written = n
            last = policy.body(
                input_ids=token[:, None],
                position_ids=position,
                rollout_memory=memory,
                use_cache=False,
            ).last_hidden_state[:, 0]

    def _take(
        self, last_RD: Tensor, batch: _Batch, n: int, how: How, luck: Tensor, found: list[Drawn]
    ) -> Tensor:
        """The next token of every row, noted where the answer still goes on."""
        z = (
            head_of(self.policy.causal[0])
            .logits(last_RD.contiguous())
            .to(torch.promote_types(last_RD.dtype, torch.float32))
        )
        logprob_RV = torch.log_softmax(z / how.temperature if how.temperature > 0 else z, -1)
        token = pick(logprob_RV, luck[batch.answer, n].to(z.device), how)
        said = logprob_RV.gather(1, token[:, None])[:, 0].tolist()
        for row, (t, value) in enumerate(zip(token.tolist(), said, strict=True)):
            if batch.ended[row]:
                continue
            answer = found[batch.answer[row]]
            answer.tokens.append(t)
            answer.logprobs.append(value)
            answer.finished = batch.ended[row] = t in self.stop_ids
        return token

    def _fewer(self, batch: _Batch, token: Tensor, memory: RolloutMemory) -> Tensor:
        """Take answers that ended out of the batch, where that makes it much smaller. Every prompt
        keeps as many rows as the busiest one needs."""
        group = memory.group
        going = [
            [row for row in range(p * group, (p + 1) * group) if not batch.ended[row]]
            for p in range(len(memory.lengths))
        ]
        prompts = [p for p, rows in enumerate(going) if rows]
        most = max(len(going[p]) for p in prompts)
        if len(prompts) * most > FEWER * len(batch.ended):
            return token
        rows: list[int] = []
        for p in prompts:
            idle = [row for row in range(p * group, (p + 1) * group) if batch.ended[row]]
            rows += (going[p] + idle)[:most]
        where = torch.tensor(rows, device=token.device)
        memory.keep(torch.tensor(prompts, device=token.device), where, most)
        batch.answer, batch.ended = [batch.answer[r] for r in rows], [batch.ended[r] for r in rows]
        return token[where]

    def _write_apart(
        self,
        prompts: Sequence[list[int]],
        chosen: list[int],
        how: How,
        luck: Tensor,
        found: list[Drawn],
    ) -> None:
        """For models that refuse our attention: every answer with a whole sequence of its own,
        computed anew at each step, with stock attention."""
        k, device = how.num_answers, self.policy.device
        batch = _Batch([p * k + i for p in chosen for i in range(k)], [False] * (len(chosen) * k))
        texts = [list(prompts[p]) for p in chosen for _ in range(k)]
        for n in range(how.max_new_tokens):
            longest = max(map(len, texts))
            ids = torch.tensor([t + [0] * (longest - len(t)) for t in texts], device=device)
            mask = torch.tensor(
                [[1] * len(t) + [0] * (longest - len(t)) for t in texts], device=device
            )
            prompt = self.policy.virtual()
            more = prompt.num_tokens if prompt is not None else 0
            if more:
                mask = torch.cat([mask.new_ones(len(mask), more), mask], 1)
            first = more if prompt is not None and prompt.rows is not None else 0
            positions = torch.arange(more - first, more + longest, device=device).expand(
                len(texts), -1
            )
            hidden = self.policy.body(
                **self.policy.inputs(ids, prompt),
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state
            last = hidden[
                torch.arange(len(texts), device=device),
                torch.tensor([len(t) - 1 + first for t in texts], device=device),
            ]
            token = self._take(last, batch, n, how, luck, found).tolist()
            if self.check is not None:
                self.check()
            if all(batch.ended):
                return
            keep = [row for row in range(len(texts)) if not batch.ended[row]]
            texts = [[*texts[row], token[row]] for row in keep]
            batch.answer, batch.ended = [batch.answer[r] for r in keep], [False] * len(keep)


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


def pick(logprob_RV: Tensor, luck_R: Tensor, how: How) -> Tensor:
    """(R,) token ids: the first whose summed probability passes `luck`, a number in [0, 1); the
    likeliest at temperature 0."""
    if how.temperature <= 0:
        return logprob_RV.argmax(-1)
    chance = logprob_RV.exp()
    if how.top_k or how.top_p < 1:
        count = min(how.top_k or chance.shape[1], chance.shape[1])
        sorted_, index = chance.sort(dim=-1, descending=True, stable=True)
        # A token stays while what is likelier than it sums to less than top_p: the likeliest always
        # stays.
        kept = (sorted_.cumsum(-1) - sorted_ < how.top_p) & (
            torch.arange(chance.shape[1], device=chance.device) < count
        )
        chance = torch.zeros_like(chance).scatter(1, index, sorted_ * kept)
    total = chance.cumsum(-1)
    place = luck_R.to(total.dtype)[:, None] * total[:, -1:]
    token = torch.searchsorted(total, place, right=True)[:, 0]
    # Rounding may carry the last place past the end, or to a token whose probability is 0.
    last = chance.shape[1] - 1 - (chance.flip(1) > 0).to(torch.uint8).argmax(1)
    return torch.minimum(token, last)
