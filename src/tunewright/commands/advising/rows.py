"""The rows of an advice: those that are measured on, and those that may be learnt from.

Held out are 24 to 48 rows, an even draw of the seed in which equal questions stay on one side (the
split of a training, `data/store/splitting.py`). What is learnt from is written into the folder of
the advice, so that a training there never sees a held-out row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tunewright.commands.advising.passages import terms
from tunewright.core.comparing import folded, normalised
from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError, problem
from tunewright.core.files import write_text
from tunewright.core.seeds import permutation
from tunewright.core.types import Conversation, Message
from tunewright.data import inspect

LEAST_ROWS, LEAST_HELD_OUT, MOST_HELD_OUT = 16, 24, 48
HELD_OUT_SHARE = 0.2
MOST_ROWS = 5_000
"""Rows that examples are retrieved from and baselines learn from."""
TEMPLATE_SHARE = 0.2
"""A word of so many answers belongs to their form and says nothing about one of them."""
MOST_LABELS, LONGEST_LABEL = 10, 40


@dataclass(frozen=True)
class Rows:
    """Questions with their answers."""

    train: list[Conversation]
    held_out: list[Conversation]
    report: dict[str, Any]

    @property
    def expected(self) -> list[str]:
        """The held-out rows' answers."""
        return [row.answer() for row in self.held_out]

    @property
    def questions(self) -> list[str]:
        """The held-out rows' questions as text."""
        return [asked(row) for row in self.held_out]

    @cached_property
    def labels(self) -> list[str]:
        """The answers where they are a few labels, else empty: 2 to 10 different ones, short, each
        in at least two rows."""
        counts = Counter(row.answer().strip() for row in [*self.train, *self.held_out])
        is_few = 2 <= len(counts) <= MOST_LABELS and min(counts.values()) >= 2
        is_short = all(len(text) <= LONGEST_LABEL and "\n" not in text for text in counts)
        return sorted(counts) if is_few and is_short else []

    @cached_property
    def template(self) -> frozenset[str]:
        """Terms that many answers share."""
        counts = Counter(term for row in self.train for term in set(terms(row.answer())))
        least = max(2.0, TEMPLATE_SHARE * len(self.train))
        return frozenset(term for term, count in counts.items() if count >= least)

    def beyond(self, row: Conversation, answer: str | None = None) -> set[str]:
        """Terms of the row's answer that stand neither in its question nor in the form that answers
        share: what must be known."""
        text = row.answer() if answer is None else answer
        return set(terms(text)) - set(terms(everything_asked(row))) - self.template


def asked(row: Conversation) -> str:
    """The question as text: the last turn of a person."""
    return next((m.content for m in reversed(row.question()) if m.role == "user"), "")


def everything_asked(row: Conversation) -> str:
    """All turns before the answer but the system prompt."""
    return "\n".join(m.content for m in row.question() if m.role != "system")


def read_rows(
    data: str,
    *,
    seed: int,
    held_out: int | None = None,
    columns: dict[str, str] | None = None,
    data_format: str = "auto",
    system: str | None = None,
) -> Rows:
    """The rows of `data`, split. Raises DataError for files that cannot be read, and where fewer
    than `LEAST_ROWS` different questions have an answer (E-ADVISE-01)."""
    config = DataConfig(
        train=data,
        held_out=0,
        format=data_format,
        columns=columns or {},
        system=system,
        accept=["empty", "dropped"],
    )
    found = inspect(config, None, needs_tokens=False, wants=("conversation",), seed=seed)
    rows = [row for row in found.train_rows if isinstance(row, Conversation) and _is_asked(row)]
    if system is not None:
        rows = [_under(system, row) for row in rows]
    different = {normalised(everything_asked(row)) for row in rows}
    if len(different) < LEAST_ROWS:
        kinds = ", ".join(sorted({type(row).__name__.lower() for row in found.train_rows})) or "-"
        raise DataError(
            problem("E-ADVISE-01", data, rows=len(different), least=LEAST_ROWS, kinds=kinds)
        )
    count = held_out or round(HELD_OUT_SHARE * len(rows))
    count = count if held_out else min(MOST_HELD_OUT, max(LEAST_HELD_OUT, count))
    train, held = _split(rows, min(count, len(rows) // 2), seed)
    return Rows(train[:MOST_ROWS], held, found.report)


def _is_asked(row: Conversation) -> bool:
    return bool(asked(row).strip()) and bool(row.answer().strip())


def _under(system: str, row: Conversation) -> Conversation:
    if row.messages and row.messages[0].role == "system":
        return row
    return replace(row, messages=[Message("system", system), *row.messages])


def _split(
    rows: list[Conversation], count: int, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(train, held-out): whole groups of equal questions, in an order of the seed, until `count`
    rows are held out."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        key = normalised(everything_asked(row)) or folded(everything_asked(row))
        groups.setdefault(key, []).append(i)
    names = list(groups)
    held: list[int] = []
    for place in permutation(seed, "advise", len(names)):
        group = groups[names[place]]
        # A question that is asked again and again would be most of what is measured.
        if len(held) < count and len(group) <= max(1, count // 8):
            held += group
    chosen = set(held)
    order = permutation(seed, "advise-train", len(rows))
    return [rows[i] for i in order if i not in chosen], [rows[i] for i in held]


def write_rows(path: Path, rows: Sequence[Conversation]) -> None:
    """Rows as JSONL of messages."""
    lines = []
    for row in rows:
        messages = [
            {key: value for key, value in vars(m).items() if value is not None and key != "weight"}
            for m in row.messages
        ]
        value: dict[str, Any] = {"messages": messages}
        if row.tools:
            value["tools"] = row.tools
        lines.append(json.dumps(value, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
