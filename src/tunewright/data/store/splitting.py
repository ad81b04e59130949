"""Which rows are held out: by a hash of the question, so that rows that belong together never stand
on both sides.

Together belong: rows whose first question (with its system prompt) is the same up to case and white
space, which covers duplicates and the growing copies of one dialogue, and rows with the same
conversation id where the data has one. The order in which such groups are chosen depends on the
seed and the question alone, not on the other rows. Groups are taken in that order as long as they
fit, so the count is met exactly unless large groups make that impossible. Rows for training always
remain.

Keys are 64-bit hashes, so that two million rows take 64 MB: two of so many texts collide with a
chance of one in nine million, and then two questions merely stand on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import DataError
from tunewright.core.seeds import stream_seed
from tunewright.core.types import (
    Conversation,
    Judged,
    Message,
    PlainText,
    Preference,
    Row,
    turns_of,
)

if TYPE_CHECKING:
    import numpy as np

DEFAULT_SHARE = 0.1
FEWEST_ROWS = 20
KEYS = ("question", "group", "whole", "conversation")
CONVERSATION_IDS = tuple(
    "conversation_id dialogue_id dialog_id conv_id thread_id session_id".split()
)
"""Columns that say which rows are parts of one dialogue."""


# ---- keys of a row


def normalised(text: str) -> str:
    """`text` without differences of case and white space."""
    return " ".join(text.casefold().split())


def question_key(row: Row) -> str:
    """What makes two rows ask the same: the turns before the last answer, or a text itself. Weights
    do not count."""
    if isinstance(row, PlainText):
        return row.text
    return "\x1e".join(f"{m.role}\x1f{m.content}" for m in row.question())


def normalised_question(row: Row) -> str:
    """`question_key` up to case and white space."""
    if isinstance(row, PlainText):
        return normalised(row.text)
    return "\x1e".join(f"{m.role}\x1f{normalised(m.content)}" for m in row.question())


def group_key(row: Row) -> str:
    """What holds rows together: the system prompt and the first question, or a text, up to case and
    white space."""
    if isinstance(row, PlainText):
        return normalised(row.text)
    asked = row.prompt if isinstance(row, Preference) else row.messages
    first = next((i for i, m in enumerate(asked) if m.role == "user"), len(asked) - 1)
    return "\x1e".join(f"{m.role}\x1f{normalised(m.content)}" for m in asked[: first + 1])


def _asks_once(row: Row) -> bool:
    """Whether the first question is the whole question, so that `group_key` and
    `normalised_question` are the same text."""
    if not isinstance(row, (Conversation, Judged)):
        return False
    asked = row.question()
    return bool(asked) and asked[-1].role == "user" and all(m.role != "user" for m in asked[:-1])


def whole_key(row: Row) -> str:
    """Everything two exact duplicates share."""
    if isinstance(row, PlainText):
        return row.text
    turns = turns_of(row)
    if isinstance(row, Preference):
        turns.insert(len(turns) - len(row.rejected), Message("rejected", ""))
    label = f"{row.good}{getattr(row, 'steps', '')}" if isinstance(row, Judged) else ""
    texts = [f"{m.role}\x1f{m.content}\x1f{m.tool_calls or ''}" for m in turns]
    return "\x1e".join([*texts, label])


def hash64(text: str) -> bytes:
    """A hash that is the same in every process and run, 64 bits: two of two million texts collide
    with a chance of one in nine million."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def key_of(text: str) -> int:
    """`hash64` as a number."""
    return int.from_bytes(hash64(text), "little")


def keys_of(rows: Sequence[Row], raw: Sequence[Any]) -> bytes:
    """Four 64-bit hashes for each row, in the order of KEYS. `raw[i]` is what row i was made from;
    without a conversation id the last is 0."""
    found = []
    for row, value in zip(rows, raw, strict=True):
        ids = (value.get(name) for name in CONVERSATION_IDS if isinstance(value, dict))
        named = next((one for one in ids if isinstance(one, (str, int))), None)
        question = normalised_question(row)
        group = question if _asks_once(row) else group_key(row)
        first = hash64(question)
        found += [first, first if group == question else hash64(group), hash64(whole_key(row))]
        found.append(b"\0" * 8 if named is None else hash64(f"{type(named).__name__}:{named}"))
    return b"".join(found)


# ---- the split


def wanted_rows(held_out: float | None, num_rows: int) -> int:
    """How many rows a share, a count or None (0.1, and 0 under 20 rows) asks for. Raises DataError
    for what cannot be done."""
    if held_out is None:
        return round(DEFAULT_SHARE * num_rows) if num_rows >= FEWEST_ROWS else 0
    # 1 is one row; 1.0 would be a share of everything.
    whole = float(held_out).is_integer() and not (isinstance(held_out, float) and held_out == 1)
    if held_out < 0 or (held_out >= 1 and (not whole or held_out >= num_rows)):
        raise DataError.of("E-DATA-15", "data.held_out", value=held_out, rows=num_rows)
    if held_out >= 1 or held_out == 0:
        return int(held_out)
    return min(max(1, round(held_out * num_rows)), num_rows - 1)


def split_groups(groups: np.ndarray, held_out: float | None, seed: int) -> np.ndarray:
    """Indices of the held-out rows, ascending. Rows with the same number in `groups` (uint64) stay
    on one side."""
    import numpy as np

    wanted = wanted_rows(held_out, len(groups))
    if not wanted:
        return np.empty(0, "<i8")
    names, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rank = np.array([stream_seed(seed, f"held_out:{name:016x}") for name in names.tolist()], "<u8")
    chosen = np.zeros(len(names), bool)
    count = 0
    for group in np.lexsort((names, rank)).tolist():
        size = int(sizes[group])
        if count + size <= wanted:
            chosen[group] = True
            count += size
        if count == wanted:
            break
    return np.flatnonzero(chosen[which])


def joined(groups: np.ndarray, conversations: np.ndarray) -> np.ndarray:
    """`groups`, where rows of one conversation (0: none) and rows of one group have one number,
    also through a chain of others."""
    import numpy as np

    if not conversations.any():
        return groups
    names, group = np.unique(groups, return_inverse=True)
    _, conversation = np.unique(conversations, return_inverse=True)
    has = conversations != 0
    label = np.arange(len(names))
    while True:
        before = label
        lowest = np.full(int(conversation.max()) + 1, len(label))
        np.minimum.at(lowest, conversation[has], label[group[has]])
        label = label.copy()
        np.minimum.at(label, group[has], lowest[conversation[has]])
        label = label[label]  # a label's own label: chains shorten by half each round
        if np.array_equal(label, before):
            break
    return names[label][group]
