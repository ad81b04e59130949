"""What a model is asked in each way: the question alone, after examples, after passages.

The wording is plain and follows the language of the rows. Passages stand before the question, the
best one last, next to it; solved examples come first, so that all prompts of a way begin alike and
their beginning is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tunewright.commands.advising.passages import Index
from tunewright.commands.advising.rows import Rows, asked
from tunewright.core.seeds import permutation
from tunewright.core.types import Conversation, Message

EXAMPLES = 4
SOLVED = 2
"""Solved examples with passages: each brings its own."""
DEPTHS = (1, 2, 4)
"""Numbers of passages that are tried on training rows, without a model."""
ENOUGH_OF_FOUND = 0.95
"""Fewer passages are taken where they hold this share of what the most passages hold: each further
one costs tokens, and a small model reads the wrong one."""
LOOKED_AT = 64
"""Training rows on which the number of passages is chosen."""
LONGEST_EXAMPLE = 1_200
"""Characters of an example's question and answer; longer rows are passed over."""

WORDING = {
    "en": {
        "read": "Answer the question from these passages.\n\n{passages}\n\nQuestion: {question}",
        "sql": "{schema}\n\nWrite one SQLite query for the question.\nQuestion: {question}",
        "pair": "Question: {question}\nAnswer: {answer}",
    },
    "zh": {
        "read": "请根据以下资料回答问题。\n\n{passages}\n\n问题：{question}",
        "sql": "{schema}\n\n请写一条回答该问题的 SQLite 查询语句。\n问题：{question}",
        "pair": "问题：{question}\n答案：{answer}",
    },
}


def language_of(rows: Sequence[Conversation]) -> str:
    """`zh` where at least a fifth of the questions' letters are Chinese, else `en`."""
    text = "".join(asked(row) for row in rows[:200])
    signs = sum("\u4e00" <= c <= "\u9fff" for c in text)
    return "zh" if 5 * signs >= max(1, sum(c.isalpha() for c in text)) else "en"


@dataclass(frozen=True)
class Way:
    """One way to ask. `build(row, shrink)` gives the messages; a larger `shrink` leaves examples
    and passages out, for a context that is too small."""

    name: str
    build: Callable[[Conversation, int], list[Message]]
    most_shrink: int = 0


@dataclass
class Prompts:
    """The ways to ask for the rows of an advice. `passages` are texts that may hold answers:
    documents, or the training rows with their answers."""

    rows: Rows
    passages: list[str]
    of_rows: bool
    """The passages are the training rows themselves."""
    seed: int
    language: str = "en"
    depth: int = 1
    _index: Index = field(init=False)
    _examples: Index = field(init=False)
    _usable: list[Conversation] = field(init=False)

    def __post_init__(self) -> None:
        short = [row for row in self.rows.train if _length(row) <= LONGEST_EXAMPLE]
        self._usable = short or self.rows.train[:EXAMPLES]
        self._examples = Index([asked(row) for row in self._usable])
        self._places = {id(row): i for i, row in enumerate(self._usable)}
        self._train_places = {id(row): i for i, row in enumerate(self.rows.train)}
        self._index = Index(self.passages)
        self.depth = self._chosen_depth()

    @classmethod
    def of(cls, rows: Rows, documents: Sequence[str] | None, seed: int) -> Prompts:
        """With passages of documents, or of the training rows where there are none."""
        language = language_of(rows.train)
        pair = WORDING[language]["pair"]
        texts = (
            list(documents)
            if documents is not None
            else [pair.format(question=asked(row), answer=row.answer()) for row in rows.train]
        )
        return cls(rows, texts, documents is None, seed, language)

    # ---- passages

    def found(self, row: Conversation, count: int | None = None) -> list[str]:
        """The passages for a row's question, best first; a training row does not find itself."""
        own = self._train_places.get(id(row)) if self.of_rows else None
        places = self._index.search(asked(row), self.depth if count is None else count, without=own)
        return [self.passages[i] for i in places]

    def held(
        self, row: Conversation, answer: str | None = None, count: int | None = None
    ) -> float | None:
        """Share of what the answer says beyond the question that the found passages hold; None
        where it says nothing beyond."""
        from tunewright.commands.advising.passages import terms

        wanted = self.rows.beyond(row, answer)
        if not wanted:
            return None
        there = {term for text in self.found(row, count) for term in terms(text)}
        return len(wanted & there) / len(wanted)

    def _chosen_depth(self) -> int:
        """The fewest passages that hold about as much as the most would."""
        looked = self.rows.train[:LOOKED_AT]
        means = []
        for depth in DEPTHS:
            shares = [s for row in looked if (s := self.held(row, count=depth)) is not None]
            means.append(sum(shares) / len(shares) if shares else 0.0)
        return next(
            depth
            for depth, mean in zip(DEPTHS, means, strict=True)
            if mean >= ENOUGH_OF_FOUND * means[-1]
        )

    # ---- ways

    def ways(self) -> dict[str, Way]:
        """The ways in which the model itself is asked, by name."""
        made = (
            Way("base", lambda row, shrink: row.question()),
            Way("few_fixed", self._few_fixed, EXAMPLES),
            Way("few_retrieved", self._few_retrieved, EXAMPLES),
            Way("rag", self._reading, SOLVED + 2),
        )
        return {way.name: way for way in made}

    def fixed(self, count: int = EXAMPLES) -> list[Conversation]:
        """The examples that stand before every question: different answers where there are labels,
        else an even draw."""
        order = permutation(self.seed, "examples", len(self._usable))
        if self.rows.labels:
            seen: set[str] = set()
            first = []
            for i in order:
                if (label := self._usable[i].answer().strip()) not in seen:
                    seen.add(label)
                    first.append(i)
            order = [*first, *[i for i in order if i not in set(first)]]
            count = max(count, min(len(first), 2 * EXAMPLES))
        return [self._usable[i] for i in order[:count]]

    def _few_fixed(self, row: Conversation, shrink: int) -> list[Message]:
        examples = [one for one in self.fixed() if one is not row]
        return _after(examples[: max(0, len(examples) - shrink)], row)

    def _few_retrieved(self, row: Conversation, shrink: int) -> list[Message]:
        own = self._places.get(id(row))
        places = self._examples.search(asked(row), EXAMPLES, without=own)
        chosen = [self._usable[i] for i in places] or self.fixed()
        # The most similar one stands next to the question.
        return _after(chosen[: max(0, EXAMPLES - shrink)][::-1], row)

    def _reading(self, row: Conversation, shrink: int) -> list[Message]:
        solved = [one for one in self.fixed(SOLVED)[:SOLVED] if one is not row]
        solved = solved[: max(0, SOLVED - shrink)]
        turns = [
            m for one in solved for m in (*self._read(one, 1), Message("assistant", one.answer()))
        ]
        depth = max(1, self.depth - max(0, shrink - SOLVED))
        return [*_system(row), *turns, *self._read(row, depth, whole=True)]

    def _read(self, row: Conversation, count: int, *, whole: bool = False) -> list[Message]:
        """The row's last question after its passages; `whole` with its earlier turns."""
        passages = "\n\n".join(self.found(row, count)[::-1])
        text = WORDING[self.language]["read"].format(passages=passages, question=asked(row))
        messages = [m for m in row.question() if m.role != "system"]
        last = max(i for i, m in enumerate(messages) if m.role == "user")
        turn = replace(messages[last], content=text if passages else asked(row))
        return [*messages[:last], turn] if whole else [turn]


def _length(row: Conversation) -> int:
    return sum(len(m.content) for m in row.messages)


def _system(row: Conversation) -> list[Message]:
    return [m for m in row.question() if m.role == "system"]


def _after(examples: Sequence[Conversation], row: Conversation) -> list[Message]:
    """The row's question after solved examples, under its own system prompt."""
    turns = [
        Message(m.role, m.content)
        for one in examples
        for m in one.messages
        if m.role in ("user", "assistant")
    ]
    return [*_system(row), *turns, *[m for m in row.question() if m.role != "system"]]
