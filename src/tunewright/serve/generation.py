"""One request under way: its tokens become pieces of text in the worker's thread, and events for
whoever waits."""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunewright.engine.decoding.answers import Pieces
from tunewright.engine.decoding.batch import Ask, Score, Written
from tunewright.engine.decoding.drawing import Sampling
from tunewright.serve.grammar import Form
from tunewright.serve.pool import Served
from tunewright.serve.speech import Kind, Parts
from tunewright.serve.worker import Ticket


@dataclass
class Wanted:
    """What is asked of the generator."""

    prompt: list[int]
    limit: int
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    stops: list[str] = field(default_factory=list)
    alternatives: int | None = None
    biases: dict[int, float] = field(default_factory=dict)
    presence: float = 0.0
    frequency: float = 0.0
    form: Form | None = None
    opened: bool = False
    """The question ends inside a thought."""
    tools: frozenset[str] = frozenset()
    """Names of the tools that the answer may call."""
    one_call: bool = False
    """Of several calls in an answer the first alone is told."""
    bare: bool = False
    """The text is told as it is."""


@dataclass(frozen=True)
class Said:
    """A piece of answer `index`, with the tokens that were written since the last one."""

    index: int
    kind: Kind
    text: str
    tokens: list[tuple[int, Score]] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """Answer `index` is done. `tokens` were not told with a piece."""

    index: int
    reason: str
    """`stop` or `length`."""
    count: int
    """Tokens that were written."""
    tokens: list[tuple[int, Score]]
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Calls of tools, {"name", "arguments"}."""


@dataclass(frozen=True)
class Failed:
    """Nothing more comes."""

    error: Exception


Event = Said | Ended | Failed


class _Answer:
    """One answer: tokens in, events out."""

    def __init__(self, index: int, served: Served, wanted: Wanted, tell: Callable[[Event], None]):
        self.index, self.wanted, self.tell = index, wanted, tell
        self.parts = Parts(wanted.opened, wanted.tools, wanted.bare)
        self.pieces = Pieces(
            served.model.renderer,
            served.model.writer.stop_ids,
            lambda piece: self._say(self.parts.add(piece)),
            wanted.stops,
            specials=bool(wanted.tools),
        )
        self.form = wanted.form.another() if wanted.form is not None else None
        self.counts: Counter[int] = Counter()
        self.fresh: list[tuple[int, Score]] = []

    def take(self, token: int, score: Score | None) -> bool:
        """Whether the answer goes on."""
        if score is not None and token not in self.pieces.stop_ids:
            self.fresh.append((token, score))
        goes_on = self.pieces.take(token)
        if self.wanted.presence or self.wanted.frequency:
            self.counts[token] += 1
        if self.form is not None and not self.form.take(token):
            return False
        return goes_on

    def adjust(self, z_V: Tensor) -> None:
        """Biases, penalties and the form on the logits of the next token."""
        for token, bias in self.wanted.biases.items():
            z_V[token] += bias
        if self.counts:
            ids = torch.tensor(list(self.counts), device=z_V.device)
            times = torch.tensor(list(self.counts.values()), device=z_V.device, dtype=z_V.dtype)
            z_V[ids] -= self.wanted.presence + self.wanted.frequency * times
        if self.form is not None:
            self.form.bar(z_V)

    def end(self, answer: Written) -> None:
        self.pieces.end()
        self._say(self.parts.end())
        reason = "length" if answer.end == "limit" else "stop"
        calls = self.parts.calls()[: 1 if self.wanted.one_call else None]
        self.tell(Ended(self.index, reason, len(answer.tokens), self._fresh(), calls))

    def _say(self, new: list[tuple[Kind, str]]) -> None:
        for kind, text in new:
            self.tell(Said(self.index, kind, text, self._fresh()))

    def _fresh(self) -> list[tuple[int, Score]]:
        found, self.fresh = self.fresh, []
        return found


class Generation:
    """A request in the hands of the worker. `tell` gets its events, in the worker's thread."""

    def __init__(self, served: Served, wanted: Wanted, tell: Callable[[Event], None]) -> None:
        self.served, self.wanted, self.tell = served, wanted, tell
        self.began = time.perf_counter()
        self.first: float | None = None
        """Seconds until the first token."""
        self.answers = [_Answer(i, served, wanted, tell) for i in range(wanted.n)]
        self._error: Exception | None = None
        changes = wanted.biases or wanted.presence or wanted.frequency or wanted.form is not None
        self.ticket = Ticket(
            served,
            Ask(
                wanted.prompt,
                wanted.limit,
                wanted.n,
                wanted.sampling,
                _luck(wanted),
                on_token=self._token,
                adjust=self._adjust if changes else None,
                alternatives=wanted.alternatives,
            ),
            self._end,
            lambda error: tell(Failed(error)),
        )

    def _token(self, number: int, token: int) -> bool:
        if self.first is None:
            self.first = time.perf_counter() - self.began
        if self._error is not None:
            return False
        job = self.ticket.job
        scores = job.written[number].scores if job is not None else []
        try:
            with self.served.words:
                return self.answers[number].take(token, scores[-1] if scores else None)
        except Exception as error:  # of this request alone: the others in the batch go on
            self._error = error
            return False

    def _adjust(self, number: int, z_V: Tensor) -> None:
        try:
            self.answers[number].adjust(z_V)
        except Exception as error:
            self._error = error

    def _end(self, number: int, answer: Written) -> None:
        if self._error is not None:
            self.tell(Failed(self._error))
            return
        try:
            with self.served.words:
                self.answers[number].end(answer)
        except Exception as error:
            self._error = error
            self.tell(Failed(error))


def _luck(wanted: Wanted) -> Tensor | None:
    """A number for every draw: the same for the same seed, whatever the number of answers."""
    if wanted.sampling.temperature <= 0:
        return None
    seed = secrets.randbits(63) if wanted.seed is None else wanted.seed % 2**63
    rows: list[Any] = []
    for i in range(wanted.n):
        own = random.Random(f"{seed}/{i}").getrandbits(63)
        generator = torch.Generator().manual_seed(own)
        rows.append(torch.rand(wanted.limit, generator=generator, dtype=torch.float64))
    return torch.stack(rows)
