"""The scheduler of answers: who is read next, who writes, who has ended.

Prompts wait in a queue until there is a free row and memory for their columns; answers that end
leave the batch at once, and the next prompts join it (continuous batching, Yu et al. 2022, "Orca").
What an answer says depends on its prompt and its own luck alone, never on its company.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tunewright.core.machine import free_bytes
from tunewright.core.pace import Pace, counts_up_to
from tunewright.engine.decoding.lookup import Lookup
from tunewright.engine.decoding.ways import Way, Ways
from tunewright.engine.policy import Policy
from tunewright.models.kernels.packed import Packs
from tunewright.models.limits import ANSWERS_AT_ONCE

End = Literal["stop", "limit", "context", "no_room"]
"""How an answer ended: by a stop token or a stop text; at the most tokens asked for; at the end of
the context; before it began, because the question fills the context."""
READ_ROWS = 2048
"""Tokens of prompts that are read at once; a longer prompt is read alone."""
WEIGHT_ROWS = 16
"""Rows whose arithmetic takes about as long as reading the weights does."""
CHUNK = 256
"""Tokens of the vocabulary whose chances are summed first."""
MEMORY_SHARE = 0.25
"""Share of the free memory that keys and values may take; more prompts wait in the queue."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. At `temperature` 0 the likeliest token is taken; log-probabilities are
    always those of the whole vocabulary."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass
class Ask:
    """A prompt and the answers that are wanted to it. `luck` (answers, limit) holds a number in [0,
    1) for every token that is drawn. `on_token` sees each token of answer i as it is written and
    says whether the answer goes on: how stop texts, streams and cancelling are made."""

    prompt: list[int]
    limit: int
    answers: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    luck: Tensor | None = None
    on_token: Callable[[int, int], bool] | None = None


@dataclass
class Written:
    """One answer. `tokens` include the stop token where `end` is "stop" and it was one; `logprobs`
    (if asked for) are those of the model at the temperature, in nats."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end: End = "limit"


@dataclass
class _Row:
    """An answer that is being written: answer `number` of ask `ask`."""

    ask: int
    number: int


@dataclass
class _Ahead:
    """Tokens that were guessed after the last one, how many were right so far, and (1 + guessed,
    vocabulary) logits of what follows each."""

    guessed: list[int]
    logits: Tensor
    right: int = 0


class Writer:
    """Writes answers with `policy`. `check` is called at every step and may raise. `packed`:
    weights are laid out once for few rows, where there is memory for it, and stay so until
    `forget`. `paced`: threads follow the load (`core.pace`), so that sums may round differently
    from call to call: not for what a run learns from."""

    def __init__(
        self,
        policy: Policy,
        stop_ids: frozenset[int],
        *,
        needs_layout: str = "any",
        vocabulary: int | None = None,
        rows: int = ANSWERS_AT_ONCE,
        cache_bytes: int | None = None,
        packed: bool = True,
        paced: bool = True,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.policy, self.stop_ids, self.vocabulary = policy, stop_ids, vocabulary
        self.rows, self.cache_bytes, self.check = rows, cache_bytes, check
        self.paced = paced and policy.device.type == "cpu"
        self.packs = Packs() if packed and _worth_packing(policy) else None
        self.ways = Ways(policy, self.packs, needs_layout)

    def forget(self) -> None:
        """Free the packed weights; they are made again when they are needed."""
        if self.packs is not None:
            self.packs.forget()

    def write(
        self,
        asks: Sequence[Ask],
        *,
        logprobs: bool = False,
        progress: Callable[[int, int, int], None] | None = None,
        on_end: Callable[[int, Written], None] | None = None,
    ) -> list[list[Written]]:
        """The answers to every ask, in order. `progress` gets the answers that are done, the tokens
        written and the most that may be; `on_end` gets each answer with the number of
        its ask as soon as it has ended."""
        found = [[Written() for _ in range(ask.answers)] for ask in asks]
        waiting = [i for i, ask in enumerate(asks) if ask.limit > 0 and ask.prompt]
        if not waiting:
            return found
        waiting.sort(key=lambda i: len(asks[i].prompt))
        shared = any(asks[i].answers > 1 for i in waiting)
        with self.ways.opened(asks[waiting[-1]].prompt, shared=shared) as way:
            _Batch(self, way, asks, found, deque(waiting), logprobs, progress, on_end).run()
        return found


class _Batch:
    """The loop over tokens of one call."""

    def __init__(
        self,
        writer: Writer,
        way: Way,
        asks: Sequence[Ask],
        found: list[list[Written]],
        queue: deque[int],
        logprobs: bool,
        progress: Callable[[int, int, int], None] | None,
        on_end: Callable[[int, Written], None] | None,
    ) -> None:
        self.writer, self.way, self.asks, self.found = writer, way, asks, found
        self.queue, self.logprobs, self.progress = queue, logprobs, progress
        self.on_end = on_end
        self.rows: list[_Row] = []
        self.lookup: Lookup | None = None
        self.ahead: _Ahead | None = None
        """Set from the first guess on: the last answer is written to its end that way."""
        self.room = _Room(writer, asks)
        self.pace = Pace(())
        self.tokens = 0
        self.done = sum(ask.answers for ask in asks if not ask.limit)
        self.most = sum(ask.limit * ask.answers for ask in asks)

    def run(self) -> None:
        """Until every answer has ended."""
        counts = counts_up_to(torch.get_num_threads()) if self.writer.paced else ()
        with Pace(counts) as self.pace:
            hidden = self._admit(None)
            while hidden is not None:
                hidden = self._admit(self._token(hidden))

    def _step(self, ids: Tensor) -> Tensor:
        """The way's step, with the threads that fit it now: it reads every weight once, whatever
        the rows."""
        with self.pace.unit(len(ids) + WEIGHT_ROWS):
            return self.way.step(ids)

    def _token(self, hidden: Tensor) -> Tensor | None:
        """One token of every row; what the next ones are taken from, None when no row is left."""
        ids = self._take(self.way.logits(hidden) if self.ahead is None else hidden)
        going = [i for i in range(len(self.rows)) if ids[i] >= 0]
        if len(going) < len(self.rows):
            order = self.way.keep(going)
            ids = ids[torch.tensor(order, dtype=torch.long)]
            self.rows = [self.rows[i] for i in order]
        if self.progress is not None:
            self.progress(self.done, self.tokens, self.most)
        if self.writer.check is not None:
            self.writer.check()
        if not self.rows:
            return None
        if self.ahead is not None or self._guessing():
            return self._copied(int(ids[0]), hidden.device)
        return self._step(ids.to(hidden.device))

    def _guessing(self) -> bool:
        """Whether the only answer is one whose next tokens may be guessed."""
        if len(self.rows) > 1 or self.queue or self.logprobs or not self.way.guesses:
            return False
        return self.asks[self.rows[0].ask].sampling.temperature <= 0

    def _copied(self, token: int, device: torch.device) -> Tensor:
        """(1, vocabulary) logits of what follows `token`: from the guesses of an earlier step where
        they were right so far, else from a step with new ones."""
        if self.lookup is None:
            row = self.rows[0]
            written = self.found[row.ask][row.number].tokens
            self.lookup = Lookup([*self.asks[row.ask].prompt, *written[:-1]])
        self.lookup.add(token)
        if self.ahead is not None and token in self.ahead.guessed[self.ahead.right :][:1]:
            self.ahead.right += 1
            self.way.accept()
        else:
            if self.ahead is not None and self.ahead.guessed:
                self.lookup.learn(len(self.ahead.guessed), self.ahead.right)
            guessed = self.lookup.guess()
            ids = torch.tensor([token, *guessed], device=device)
            self.ahead = _Ahead(guessed, self.way.logits(self._step(ids)))
        right = self.ahead.right
        return self.ahead.logits[right : right + 1]

    def _admit(self, hidden: Tensor | None) -> Tensor | None:
        """Read the next prompts where rows are free; (R, D) of all rows, None when all is done."""
        while self.queue and self._may_join():
            chosen = self._next()
            if not chosen:
                break
            group = self.asks[chosen[0]].answers
            new = self.way.read([self.asks[i].prompt for i in chosen], group)
            self.rows += [_Row(i, n) for i in chosen for n in range(group)]
            hidden = new if hidden is None else torch.cat([hidden, new])
            if self.writer.check is not None:
                self.writer.check()
        return hidden if self.rows else None

    def _may_join(self) -> bool:
        if not self.rows:
            return True
        if not self.way.joins:
            return False
        free = self.writer.rows - len(self.rows)
        # Reading a few prompts costs nearly as much as reading many: they are read together.
        waiting = sum(self.asks[i].answers for i in self.queue)
        return free >= min(waiting, max(1, self.writer.rows // 4))

    def _next(self) -> list[int]:
        """The prompts that are read now: as many as rows, memory and a pass allow."""
        chosen: list[int] = []
        rows, tokens = len(self.rows), 0
        first = self.asks[self.queue[0]]
        while self.queue:
            ask = self.asks[self.queue[0]]
            alone = not self.rows and not chosen
            if not alone and (
                rows + ask.answers > self.writer.rows
                or tokens + len(ask.prompt) > READ_ROWS
                or ask.answers != first.answers
                or not self.room.has([r.ask for r in self.rows], [*chosen, self.queue[0]])
                or (not self.way.joins and len(ask.prompt) != len(first.prompt))
            ):
                break
            chosen.append(self.queue.popleft())
            rows, tokens = rows + ask.answers, tokens + len(ask.prompt)
        return chosen

    def _take(self, z: Tensor) -> Tensor:
        """(R,) the next token of every row, noted; -1 where its answer has ended."""
        if self.writer.vocabulary is not None and self.writer.vocabulary < z.shape[1]:
            z[:, self.writer.vocabulary :] = -torch.inf
        tokens, values = self._drawn(z)
        for i, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
            ask, answer = self.asks[row.ask], self.found[row.ask][row.number]
            answer.tokens.append(token)
            if values is not None:
                answer.logprobs.append(float(values[i]))
            if token in self.writer.stop_ids or (
                ask.on_token is not None and not ask.on_token(row.number, token)
            ):
                answer.end = "stop"
            elif len(answer.tokens) < ask.limit:
                self.tokens += 1
                continue
            self.tokens += 1
            self.most -= ask.limit - len(answer.tokens)
            self.done += 1
            tokens[i] = -1
            if self.on_end is not None:
                self.on_end(row.ask, answer)
        return tokens

    def _drawn(self, z_RV: Tensor) -> tuple[Tensor, Tensor | None]:
        """(tokens, their log-probabilities where somebody asked)."""
        hows = [self.asks[row.ask].sampling for row in self.rows]
        if all(how.temperature <= 0 for how in hows) and not self.logprobs:
            return z_RV.argmax(-1).cpu(), None
        token_R = torch.zeros(len(hows), dtype=torch.long)
        value_R = torch.zeros(len(hows), dtype=z_RV.dtype)
        for how in dict.fromkeys(hows):
            mine = torch.tensor([i for i, one in enumerate(hows) if one == how])
            z = z_RV if len(mine) == len(hows) else z_RV[mine.to(z_RV.device)]
            luck = torch.tensor([self._luck(self.rows[int(i)]) for i in mine], dtype=torch.float64)
            taken, value = draw(z, luck.to(z.device), how)
            token_R[mine], value_R[mine] = taken.cpu(), value.cpu()
        return token_R, value_R if self.logprobs else None

    def _luck(self, row: _Row) -> float:
        ask = self.asks[row.ask]
        if ask.luck is None:
            assert ask.sampling.temperature <= 0, "a draw needs luck"
            return 0.0
        written = len(self.found[row.ask][row.number].tokens)
        return float(ask.luck[row.number, written])


class _Room:
    """How many answers have room in the memory for keys and values."""

    def __init__(self, writer: Writer, asks: Sequence[Ask]) -> None:
        self.asks = asks
        self.column = column_bytes(writer.policy)
        self.bytes = writer.cache_bytes
        if self.bytes is None:
            device = str(writer.policy.device)
            self.bytes = int(MEMORY_SHARE * free_bytes(device))

    def has(self, rows: Sequence[int], chosen: Sequence[int]) -> bool:
        """Whether the rows that are there (by ask) and the chosen asks have room together: as many
        columns for each as the longest may get."""
        assert self.bytes is not None
        here = [*rows, *chosen]
        longest = max(len(self.asks[i].prompt) + self.asks[i].limit for i in here)
        count = len(rows) + sum(self.asks[i].answers for i in chosen)
        return count * longest * self.column <= self.bytes


def column_bytes(policy: Policy) -> int:
    """Bytes of the keys and values of one token, as the configuration says."""
    causal = policy.causal[0]
    config = causal.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    kept = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    item = next(causal.parameters()).element_size()
    return int(2 * config.num_hidden_layers * kept * size * item)


def _worth_packing(policy: Policy) -> bool:
    """Whether there is memory for the weights a second time."""
    causal = policy.causal[0]
    size = sum(p.numel() * p.element_size() for p in causal.parameters())
    return 3 * size <= free_bytes(str(policy.device))


def draw(z_RV: Tensor, luck_R: Tensor, how: Sampling) -> tuple[Tensor, Tensor]:
    """(tokens, their log-probabilities), (R,) each, from logits in float32 or wider, which are
    overwritten: the first token whose summed probability passes `luck`, a number in [0, 1); the
    likeliest at temperature 0."""
    if how.temperature <= 0:
        token = z_RV.argmax(-1)
        return token, z_RV.gather(1, token[:, None])[:, 0] - torch.logsumexp(z_RV, -1)
    if how.temperature != 1:
        z_RV = z_RV.div_(how.temperature)
    most = z_RV.amax(-1, keepdim=True)
    chance = z_RV.sub_(most).exp_()
    total = _chunks(chance).sum(-1)
    token = _place(_some(chance, how, total), luck_R)
    return token, (chance.gather(1, token[:, None])[:, 0] / total).log()


def pick(logprob_RV: Tensor, luck_R: Tensor, how: Sampling) -> Tensor:
    """(R,) token ids drawn as `draw` does, from log-probabilities."""
    return draw(logprob_RV.clone(), luck_R, how)[0]


def _some(chance_RV: Tensor, how: Sampling, total_R: Tensor) -> Tensor:
    """Probabilities (times `total`) of the tokens that may be drawn, 0 of the others. A token stays
    while what is likelier than it sums to less than top_p: the likeliest always stays."""
    if not how.top_k and how.top_p >= 1:
        return chance_RV
    count = min(how.top_k or chance_RV.shape[1], chance_RV.shape[1])
    sorted_, index = chance_RV.sort(dim=-1, descending=True, stable=True)
    before = sorted_.cumsum(-1) - sorted_
    place = torch.arange(chance_RV.shape[1], device=chance_RV.device)
    kept = (before < how.top_p * total_R[:, None]) & (place < count)
    return torch.zeros_like(chance_RV).scatter(1, index, sorted_ * kept)


def _chunks(chance_RV: Tensor) -> Tensor:
    """(R, chunks): sums of `CHUNK` tokens side by side, which take a tenth of the time of running
    sums over a whole vocabulary."""
    whole = chance_RV.shape[1] // CHUNK * CHUNK
    sums = chance_RV[:, :whole].unflatten(1, (-1, CHUNK)).sum(-1) if whole else None
    if whole == chance_RV.shape[1] and sums is not None:
        return sums
    rest = chance_RV[:, whole:].sum(-1, keepdim=True)
    return rest if sums is None else torch.cat([sums, rest], 1)


def _place(chance_RV: Tensor, luck_R: Tensor) -> Tensor:
    """The first token whose summed chance passes `luck` times the whole: its chunk, then its place
    there."""
    sums = _chunks(chance_RV).cumsum(-1)
    goal = luck_R.to(sums.dtype)[:, None] * sums[:, -1:]
    chunk = torch.searchsorted(sums, goal, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(chunk > 0, sums.gather(1, (chunk - 1).clamp(min=0)), 0)
    V = chance_RV.shape[1]
    places = chunk * CHUNK + torch.arange(CHUNK, device=sums.device)
    own = chance_RV.gather(1, places.clamp(max=V - 1)).masked_fill(places >= V, 0)
    inner = torch.searchsorted(own.cumsum(-1), goal - before, right=True)
    token = (chunk * CHUNK + inner)[:, 0].clamp_(max=V - 1)
    # Rounding may carry the last place past the end, or to a token whose probability is 0.
    lost = chance_RV.gather(1, token[:, None])[:, 0] <= 0
    if bool(lost.any()):
        rest = chance_RV[lost]
        token[lost] = V - 1 - (rest.flip(1) > 0).to(torch.uint8).argmax(1)
    return token
