"""Questions with expected answers, read from data of any format, and put to a subject.

Rows are read without a tokenizer, because several subjects with tokenizers of their own are asked
the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError, problem
from tunewright.core.seeds import permutation
from tunewright.core.telling import Tell, telling_answers
from tunewright.core.types import Conversation, Message, Row, asks
from tunewright.core.words import say
from tunewright.data import inspect
from tunewright.evaluate.subjects import OnReply, Reply, Subject

LONGEST_ROOM, LEAST_ROOM, ROOM_WITHOUT_ANSWER = 512, 48, 256
"""Tokens of an answer: at most, at least, and where nobody knows how long it should be."""


@dataclass(frozen=True)
class Question:
    """What is asked, and what should be answered; `expected` may be empty."""

    messages: list[Message]
    expected: str
    origin: str
    tools: list[dict[str, Any]] | None = None
    row: Row | None = None

    @property
    def text(self) -> str:
        """The last thing that the user says."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    def under(self, system: str | None) -> Question:
        """The same under a system prompt, where it has none."""
        if system is None or any(m.role == "system" for m in self.messages):
            return self
        first, row = Message("system", system), self.row
        if isinstance(row, Conversation):
            row = replace(row, messages=[first, *row.messages])
        return replace(self, messages=[first, *self.messages], row=row)


@dataclass(frozen=True)
class Read:
    """The questions of some data. `rows` is how many it has in all, `left_out` how many cannot be
    asked."""

    questions: list[Question]
    rows: int
    left_out: int


def read_questions(
    data: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    data_format: str = "auto",
    columns: dict[str, str] | None = None,
    data_dir: str | None = None,
) -> Read:
    """The rows of `data` that ask something, at most `limit`, drawn with the seed and in the order
    of the data. Raises DataError for data of which nothing can be asked (E-EVAL-40)."""
    settings = {
        "train": data,
        "held_out": 0,
        "format": data_format,
        "columns": columns or {},
        "dir": data_dir,
        "accept": ["empty", "dropped"],
    }
    found = inspect(
        DataConfig.model_validate(settings), None, needs_tokens=False, to_train=False, check=False
    )
    rows = found.train_rows
    asking = [i for i in range(len(rows)) if asks(rows[i])]
    if not asking:
        raise DataError(problem("E-EVAL-40", data, rows=len(rows)))
    chosen = asking
    if limit is not None and limit < len(asking):
        chosen = sorted(asking[i] for i in permutation(seed, "questions", len(asking))[:limit])
    return Read([_question(rows[i]) for i in chosen], len(rows), len(rows) - len(asking))


def _question(row: Any) -> Question:
    return Question(list(row.question()), row.answer(), str(row.origin), row.tools, row)


def room_for(questions: Sequence[Question], tokenizer: Any = None) -> int:
    """The most tokens of an answer: a quarter more than the longest expected one has, by the
    tokenizer of a subject, else by its bytes."""
    longest = 0
    for question in questions:
        if not question.expected.strip():
            longest = max(longest, ROOM_WITHOUT_ANSWER)
        elif tokenizer is not None:
            longest = max(longest, len(tokenizer(question.expected)["input_ids"]) * 5 // 4 + 8)
        else:
            longest = max(longest, len(question.expected.encode()) // 2 + 8)
    return min(LONGEST_ROOM, max(LEAST_ROOM, longest))


def put(
    subject: Subject,
    questions: Sequence[Question],
    tell: Tell,
    *,
    max_new_tokens: int | Sequence[int],
    temperature: float = 0.0,
    seed: int = 0,
    on_reply: OnReply | None = None,
    lucks: Sequence[int] | None = None,
) -> list[Reply]:
    """The replies of `subject`, told while they come; `on_reply` and `lucks` as `Subject.ask` has
    them."""
    limits = max_new_tokens
    most = limits * len(questions) if isinstance(limits, int) else sum(limits)
    what = say("beside.asking", name=subject.name)
    told = telling_answers(tell, what, len(questions), most)
    more: dict[str, Any] = {} if on_reply is None else {"on_reply": on_reply}
    more |= {} if lucks is None else {"lucks": lucks}
    replies = subject.ask(
        [question.messages for question in questions],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        expected=[question.expected for question in questions],
        tools=[question.tools for question in questions],
        progress=told,
        **more,
    )
    tell.finish()
    return replies
