"""Answers that are being written together: they join, take a token each, and leave.

Asks wait in a queue until there is a free row and memory for their columns; answers that end leave
the batch at once, and the next asks join it (continuous batching, Yu et al. 2022, "Orca"). Asks may
be added and cancelled between any two steps. What an answer says depends on its prompt and its own
luck alone, never on its company.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tunewright.core.machine import free_bytes
from tunewright.core.pace import Pace
from tunewright.engine.decoding.drawing import Sampling, draw
from tunewright.engine.decoding.lookup import Lookup
from tunewright.engine.decoding.ways import Way
from tunewright.engine.policy import Policy
from tunewright.models.load import size_of

End = Literal["stop", "limit", "context", "no_room"]
"""How an answer ended: by a stop token or a stop text; at the most tokens asked for; at the end of
the context; before it began, because the question fills the context."""
READ_ROWS = 2048
"""Tokens of prompts that are read at once; a longer prompt is read alone."""
WEIGHT_ROWS = 16
"""Rows whose arithmetic takes about as long as reading the weights does."""
MEMORY_SHARE = 0.25
"""Share of the free memory that keys and values may take; more prompts wait in the queue."""


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
    adjust: Callable[[int, Tensor], None] | None = None
    """Changes the logits (V,) of the next token of answer i in place before that is taken: the mask
    of a grammar, biases, penalties."""
    alternatives: int | None = None
    """So many of the likeliest tokens are noted beside each that is taken (`Written.scores`); None:
    nothing is noted."""


class Score(NamedTuple):
    """What the model said about one token, at temperature 1 and before `Ask.adjust`, in nats."""

    logprob: float
    likeliest: list[tuple[int, float]]
    """(token, log-probability), the likeliest first."""


@dataclass
class Written:
    """One answer. `tokens` include the stop token where `end` is "stop" and it was one; `logprobs`
    (if asked for) are those of the model at the temperature, in nats."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end: End = "limit"
    scores: list[Score] = field(default_factory=list)
    """One for each token, where the ask has `alternatives`."""


@dataclass(eq=False)
class Job:
    """An ask in a batch, and what has been written to it."""

    ask: Ask
    on_end: Callable[[int, Written], None] | None = None
    """Gets the number of an answer and the answer, as soon as it has ended."""
    written: list[Written] = field(default_factory=list)
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.written = [Written() for _ in range(self.ask.answers)]


class _Row(NamedTuple):
    """An answer that is being written: answer `number` of `job`."""

    job: Job
    number: int

    @property
    def answer(self) -> Written:
        return self.job.written[self.number]


@dataclass
class _Ahead:
    """Tokens that were guessed after the last one, how many were right so far, and (1 + guessed,
    vocabulary) logits of what follows each."""

    guessed: list[int]
    logits: Tensor
    right: int = 0


class Batch:
    """Answers that are written by one model on one way. `check` is called at every step and may
    raise. `logprobs`: those of every token at its temperature are noted."""

    def __init__(
        self,
        policy: Policy,
        way: Way,
        stop_ids: frozenset[int],
        *,
        rows: int,
        vocabulary: int | None = None,
        cache_bytes: int | None = None,
        pace: Pace | None = None,
        logprobs: bool = False,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.way, self.stop_ids, self.vocabulary = way, stop_ids, vocabulary
        self.most_rows, self.logprobs, self.check = rows, logprobs, check
        self.queue: deque[Job] = deque()
        self.rows: list[_Row] = []
        self.pace = pace if pace is not None else Pace(())
        self.room = _Room(policy, cache_bytes)
        self.tokens = 0
        """Written so far by all answers."""
        self._hidden: Tensor | None = None
        """(R, D) from which the next token of every row is taken."""
        self._logits: Tensor | None = None
        """(R, V) in its place: once a token was guessed, and until the next step after that."""
        self._lookup: Lookup | None = None
        self._ahead: _Ahead | None = None
        """Set from the first guess on: an answer that is alone is written that way."""

    def add(self, ask: Ask, on_end: Callable[[int, Written], None] | None = None) -> Job:
        """Let an ask wait for its turn; it needs a prompt and room for a token."""
        job = Job(ask, on_end)
        self.queue.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Write no more of it: `on_end` is called for answers that were being written, and for none
        of a job that still waits."""
        job.cancelled = True
        if job in self.queue:
            self.queue.remove(job)

    def step(self) -> bool:
        """Read who may join, then take one token of every row. False once nothing is left."""
        self._admit()
        if not self.rows:
            return False
        self._token()
        return bool(self.rows or self.queue)

    # ---- one token of every row

    def _token(self) -> None:
        logits, self._logits = self._logits, None
        if logits is None:
            assert self._hidden is not None
            logits = self.way.logits(self._hidden)
        ids = self._take(logits)
        going = [i for i in range(len(self.rows)) if ids[i] >= 0]
        if len(going) < len(self.rows):
            order = self.way.keep(going)
            ids = ids[torch.tensor(order, dtype=torch.long)]
            self.rows = [self.rows[i] for i in order]
        if self.check is not None:
            self.check()
        device, self._hidden = logits.device, None
        if not self.rows:
            self._lookup = self._ahead = None
            self.way.clear()
        elif self._guessing():
            self._logits = self._copied(int(ids[0]), device)
        else:
            self._lookup = self._ahead = None
            self._hidden = self._step(ids.to(device))

    def _step(self, ids: Tensor) -> Tensor:
        """The way's step, with the threads that fit it now: it reads every weight once, whatever
        the rows."""
        with self.pace.unit(len(ids) + WEIGHT_ROWS):
            return self.way.step(ids)

    def _guessing(self) -> bool:
        """Whether the only answer is one whose next tokens may be guessed."""
        if len(self.rows) > 1 or self.queue or self.logprobs or not self.way.guesses:
            return False
        ask = self.rows[0].job.ask
        return ask.sampling.temperature <= 0 and ask.adjust is None and ask.alternatives is None

    def _copied(self, token: int, device: torch.device) -> Tensor:
        """(1, vocabulary) logits of what follows `token`: from the guesses of an earlier step where
        they were right so far, else from a step with new ones."""
        if self._lookup is None:
            row = self.rows[0]
            self._lookup = Lookup([*row.job.ask.prompt, *row.answer.tokens[:-1]])
        self._lookup.add(token)
        if self._ahead is not None and token in self._ahead.guessed[self._ahead.right :][:1]:
            self._ahead.right += 1
            self.way.accept()
        else:
            if self._ahead is not None and self._ahead.guessed:
                self._lookup.learn(len(self._ahead.guessed), self._ahead.right)
            guessed = self._lookup.guess()
            ids = torch.tensor([token, *guessed], device=device)
            self._ahead = _Ahead(guessed, self.way.logits(self._step(ids)))
        right = self._ahead.right
        return self._ahead.logits[right : right + 1]

    # ---- joining

    def _admit(self) -> None:
        """Read the next prompts where rows are free."""
        while self.queue and self._may_join():
            chosen = self._next()
            if not chosen:
                break
            group = chosen[0].ask.answers
            new = self.way.read([job.ask.prompt for job in chosen], group)
            self.rows += [_Row(job, n) for job in chosen for n in range(group)]
            if self._logits is not None:
                # The answer that was alone is no more: what was guessed beyond its next token goes.
                self._logits = torch.cat([self._logits, self.way.logits(new)])
            else:
                self._hidden = new if self._hidden is None else torch.cat([self._hidden, new])
            if self.check is not None:
                self.check()

    def _may_join(self) -> bool:
        if not self.rows:
            return True
        if not self.way.joins:
            return False
        free = self.most_rows - len(self.rows)
        # Reading a few prompts costs nearly as much as reading many: they are read together.
        waiting = sum(job.ask.answers for job in self.queue)
        return free >= min(waiting, max(1, self.most_rows // 4))

    def _next(self) -> list[Job]:
        """The prompts that are read now: as many as rows, memory and a pass allow."""
        chosen: list[Job] = []
        rows, tokens = len(self.rows), 0
        first = self.queue[0].ask
        while self.queue:
            ask = self.queue[0].ask
            alone = not self.rows and not chosen
            if not alone and (
                rows + ask.answers > self.most_rows
                or tokens + len(ask.prompt) > READ_ROWS
                or ask.answers != first.answers
                or not self.room.has(self.rows, [*chosen, self.queue[0]])
                or (not self.way.joins and len(ask.prompt) != len(first.prompt))
            ):
                break
            chosen.append(self.queue.popleft())
            rows, tokens = rows + ask.answers, tokens + len(ask.prompt)
        return chosen

    # ---- taking

    def _take(self, z: Tensor) -> Tensor:
        """(R,) the next token of every row, noted; -1 where its answer has ended."""
        if self.vocabulary is not None and self.vocabulary < z.shape[1]:
            z[:, self.vocabulary :] = -torch.inf
        seen = self._seen(z)
        tokens, values = self._drawn(z)
        for i, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
            ask, answer = row.job.ask, row.answer
            answer.tokens.append(token)
            self.tokens += 1
            if values is not None:
                answer.logprobs.append(float(values[i]))
            if i in seen:
                own, likeliest = seen[i]
                answer.scores.append(Score(float(own[token]), likeliest))
            if (
                token in self.stop_ids
                or row.job.cancelled
                or (ask.on_token is not None and not ask.on_token(row.number, token))
            ):
                answer.end = "stop"
            elif len(answer.tokens) < ask.limit:
                continue
            tokens[i] = -1
            if row.job.on_end is not None:
                row.job.on_end(row.number, answer)
        return tokens

    def _seen(self, z_RV: Tensor) -> dict[int, tuple[Tensor, list[tuple[int, float]]]]:
        """What the model says itself, of the rows that want to know: row -> (log-probabilities
        (V,), the likeliest). Then the logits are changed for those who asked for that."""
        found = {}
        for i, row in enumerate(self.rows):
            count = row.job.ask.alternatives
            if count is not None:
                own = torch.log_softmax(z_RV[i], -1)
                top = own.topk(min(count, len(own)))
                found[i] = own, list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        for i, row in enumerate(self.rows):
            if row.job.ask.adjust is not None:
                row.job.ask.adjust(row.number, z_RV[i])
        return found

    def _drawn(self, z_RV: Tensor) -> tuple[Tensor, Tensor | None]:
        """(tokens, their log-probabilities where somebody asked)."""
        hows = [row.job.ask.sampling for row in self.rows]
        if all(how.temperature <= 0 for how in hows) and not self.logprobs:
            return z_RV.argmax(-1).cpu(), None
        token_R = torch.zeros(len(hows), dtype=torch.long)
        value_R = torch.zeros(len(hows), dtype=z_RV.dtype)
        for how in dict.fromkeys(hows):
            mine = torch.tensor([i for i, one in enumerate(hows) if one == how])
            z = z_RV if len(mine) == len(hows) else z_RV[mine.to(z_RV.device)]
            luck = torch.tensor([_luck(self.rows[int(i)]) for i in mine], dtype=torch.float64)
            taken, value = draw(z, luck.to(z.device), how)
            token_R[mine], value_R[mine] = taken.cpu(), value.cpu()
        return token_R, value_R if self.logprobs else None


def _luck(row: _Row) -> float:
    ask = row.job.ask
    if ask.luck is None:
        assert ask.sampling.temperature <= 0, "a draw needs luck"
        return 0.0
    return float(ask.luck[row.number, len(row.answer.tokens)])


class _Room:
    """How many answers have room in the memory for keys and values."""

    def __init__(self, policy: Policy, cache_bytes: int | None) -> None:
        self.column = column_bytes(policy)
        if cache_bytes is None:
            cache_bytes = int(MEMORY_SHARE * free_bytes(str(policy.device)))
        self.bytes = cache_bytes

    def has(self, rows: Sequence[_Row], chosen: Sequence[Job]) -> bool:
        """Whether the rows that are there and the chosen asks have room together: as many columns
        for each as the longest may get."""
        asks = [*(row.job.ask for row in rows), *(job.ask for job in chosen)]
        longest = max(len(ask.prompt) + ask.limit for ask in asks)
        count = len(rows) + sum(job.ask.answers for job in chosen)
        return count * longest * self.column <= self.bytes


def column_bytes(policy: Policy) -> int:
    """Bytes of the keys and values of one token, as the configuration says."""
    causal = policy.causal[0]
    config = causal.config.get_text_config()
    heads = size_of(config, "num_attention_heads") or 1
    kept = size_of(config, "num_key_value_heads") or heads
    size = size_of(config, "head_dim") or size_of(config, "hidden_size", "d_model") // heads
    item = next(causal.parameters()).element_size()
    return 2 * size_of(config, "num_hidden_layers") * kept * size * item
