"""Answers as text: many questions at once, or one that is read while it is made.

Whoever wants an answer, in whatever command, gives an `AnsweringModel`, and `answering` alone makes
one: it puts the method where it generates and knows the stops and the room of the context, so no
command can ask the base in place of the run, run past a stop or past the end of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from tunewright.core.errors import ModelError, problem
from tunewright.core.types import Attached
from tunewright.engine.decoding.batch import Ask, End, Written
from tunewright.engine.decoding.drawing import Sampling
from tunewright.engine.decoding.writer import Writer
from tunewright.engine.policy import Policy
from tunewright.models.kernels.packed import Packs
from tunewright.models.load import room_of

GENERATOR = 1
"""Changes whenever the same question to the same model may get another answer: answers that are
kept for later are kept under it."""


@dataclass(frozen=True)
class Answer:
    """One answer, without its stop token, and how it ended."""

    text: str
    end: End
    tokens: list[int] = field(default_factory=list)
    """The token ids written, without the stop token."""


@dataclass(frozen=True)
class AnsweringModel:
    """What answers: the model with its method on it, and the form in which it is asked. Made by
    `answering` only."""

    causal: Any
    attached: Attached | None
    renderer: Any
    """Template, tokenizer and stop tokens."""
    vocabulary: int | None = None
    """Ids from here on are never written: rows that a method added to the base, when the base
    itself is asked."""
    packs: Packs | None = None
    """Packed weights that it shares with others on the same base; None: its own."""

    @property
    def tokenizer(self) -> Any:
        return self.renderer.tokenizer

    @property
    def stop_ids(self) -> list[int]:
        return list(self.renderer.stop_ids)

    @property
    def model(self) -> Any:
        """The object that has the method in it."""
        return self.causal if self.attached is None else self.attached.model

    @cached_property
    def writer(self) -> Writer:
        """What writes its answers."""
        return Writer(
            Policy(self.model, self.causal, "tree"),
            frozenset(self.stop_ids),
            needs_layout="any" if self.attached is None else self.attached.needs.layout,
            vocabulary=self.vocabulary,
            packs=self.packs,
        )

    def forget(self) -> None:
        """Free what is kept for the next answer (packed weights), where others need the memory."""
        if "writer" in vars(self):
            self.writer.forget()

    def room(self, asked: int) -> int | None:
        """Tokens that an answer may have after a question of `asked` tokens; None where the model
        names no limit."""
        context = room_of(self.causal, self.model)
        return None if context is None else max(0, context - asked)


def answering(
    causal: Any,
    attached: Attached | None,
    renderer: Any,
    *,
    vocabulary: int | None = None,
    packs: Packs | None = None,
) -> AnsweringModel:
    """The causal model with the method on it, ready to be asked: the one way to an answer."""
    return AnsweringModel(causal, attached, renderer, vocabulary, packs)


def answer(
    model: AnsweringModel,
    prompts: list[list[int]],
    *,
    max_new_tokens: int | Sequence[int] = 64,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    check: Callable[[], None] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    on_answer: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """Answers to `prompts` (token ids that end where the answer begins), in their order: greedy, or
    drawn at `temperature` with one seed for each prompt.

    `max_new_tokens` is the most tokens of an answer, one number or one for each prompt. An answer
    ends at the end of the context; a question that fills the context gets an empty one. `progress`
    is called about once a decoding step with (answers done, tokens written so far, most tokens that
    may be written in all); `check` as often, and may raise; `on_answer` gets the place of a prompt
    and its answer as soon as that has ended.
    """
    wanted = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    whole = model.room(0)
    rooms = [
        most if whole is None else max(0, min(most, whole - len(prompt)))
        for prompt, most in zip(prompts, wanted, strict=True)
    ]
    writer = model.writer
    writer.check = check

    def ended(i: int, written: Written) -> None:
        if on_answer is not None:
            on_answer(i, _answer(model, written, rooms[i], wanted[i]))

    for i, room in enumerate(rooms):
        if room == 0:
            ended(i, Written())
    try:
        written = writer.write(
            [
                Ask(prompt, room, sampling=Sampling(temperature), luck=luck)
                for prompt, room, luck in zip(prompts, rooms, _luck(rooms, seeds), strict=True)
            ],
            progress=progress,
            on_end=ended,
        )
    finally:
        writer.check = None
    return [
        _answer(model, one, room, most)
        for (one,), room, most in zip(written, rooms, wanted, strict=True)
    ]


def _luck(rooms: Sequence[int], seeds: Sequence[int] | None) -> list[torch.Tensor | None]:
    """What each answer of at most so many tokens is drawn with; nothing without seeds."""
    if seeds is None:
        return [None] * len(rooms)
    return [
        torch.rand(1, room, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for room, seed in zip(rooms, seeds, strict=True)
    ]


def _answer(model: AnsweringModel, written: Written, room: int, wanted: int) -> Answer:
    """What was written as text; `room` of the `wanted` tokens were there."""
    if room == 0:
        return Answer("", "no_room")
    tokens = [token for token in written.tokens if token not in model.writer.stop_ids]
    end = "context" if written.end == "limit" and room < wanted else written.end
    return Answer(model.renderer.read(tokens).strip(), end, tokens)


def stream(
    model: AnsweringModel,
    prompt: list[int],
    on_piece: Callable[[str], None],
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop_texts: Sequence[str] = (),
    check: Callable[[], None] | None = None,
) -> Answer:
    """One answer; `on_piece` gets it in pieces as they are made. `seed` None: other draws at every
    call. The answer ends before the first of `stop_texts`. `check` is called before every token and
    may raise. Raises ModelError for a question that fills the context."""
    room = model.room(len(prompt))
    if room == 0:
        raise ModelError(
            problem("E-MODEL-57", "", tokens=f"{len(prompt):,}", context=f"{model.room(0):,}")
        )
    most = max_new_tokens if room is None else min(room, max_new_tokens)
    draws = torch.Generator()
    if seed is None:
        draws.seed()
    else:
        draws.manual_seed(seed)
    pieces = Pieces(model.renderer, model.writer.stop_ids, on_piece, stop_texts)
    ask = Ask(
        prompt,
        most,
        sampling=Sampling(temperature, top_p, top_k),
        luck=torch.rand(1, most, generator=draws, dtype=torch.float64),
        on_token=lambda _, token: pieces.take(token),
    )
    writer = model.writer
    writer.check = check
    try:
        written = writer.write([ask])[0][0]
    finally:
        writer.check = None
    found = _answer(model, written, most, max_new_tokens)
    pieces.end()
    return Answer(pieces.text.strip(), found.end, found.tokens) if stop_texts else found


class Pieces:
    """The text of an answer as its tokens come, without the stop token, which need not be a special
    one. What may be the beginning of a stop text, or of a character, waits for what follows.
    `specials`: control tokens are shown."""

    def __init__(
        self,
        renderer: Any,
        stop_ids: frozenset[int],
        on_piece: Callable[[str], None],
        stop_texts: Sequence[str] = (),
        *,
        specials: bool = False,
    ) -> None:
        self.renderer, self.stop_ids, self.specials = renderer, stop_ids, specials
        self.has_marks = renderer.reads_marks and not specials
        """Control tokens are shown until the marks of thoughts are found among them."""
        self.on_piece, self.stop_texts = on_piece, [text for text in stop_texts if text]
        self.tokens: list[int] = []
        """Since the last line that is whole."""
        self.before = ""
        """The text before them."""
        self.said = 0
        self.text = ""
        self.is_stopped = False
        """Before a stop text."""

    def take(self, token: int) -> bool:
        """Whether the answer goes on after `token`."""
        if token in self.stop_ids:
            return True
        self.tokens.append(token)
        shown = self.specials or self.has_marks
        line = str(self.renderer.tokenizer.decode(self.tokens, skip_special_tokens=not shown))
        self.text = self._read(self.before + line, whole=False)
        where = [i for i in (self.text.find(stop) for stop in self.stop_texts) if i >= 0]
        if where:
            self.text, self.is_stopped = self.text[: min(where)], True
            self.end()
            return False
        if line.endswith("\n"):
            self.before, self.tokens = self.before + line, []
        self._say(len(self.text) - self._waiting())
        return True

    def _waiting(self) -> int:
        """Characters at the end that are not sure yet."""
        if self.text.endswith("\ufffd"):
            return len(self.text) - len(self.text.rstrip("\ufffd"))
        return max(
            (
                n
                for stop in self.stop_texts
                for n in range(1, len(stop))
                if self.text.endswith(stop[:n])
            ),
            default=0,
        )

    def _say(self, until: int) -> None:
        if until > self.said:
            self.on_piece(self.text[self.said : until])
            self.said = until

    def _read(self, raw: str, *, whole: bool) -> str:
        if not self.has_marks:
            return raw
        return str(self.renderer.read_marks(raw, whole=whole))

    def end(self) -> None:
        """Say what waited."""
        if self.has_marks and not self.is_stopped:
            shown = self.renderer.tokenizer.decode(self.tokens, skip_special_tokens=False)
            self.text = self._read(self.before + str(shown), whole=True)
        self._say(len(self.text))
