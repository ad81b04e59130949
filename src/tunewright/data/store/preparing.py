"""Some rows of a file shaped, encoded and checked, in whichever process: values in, bytes out."""

from __future__ import annotations

import marshal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tunewright.core.types import Message, Origin, PlainText, Preference, Row
from tunewright.data.checks import Check, all_checks
from tunewright.data.files.source import RawRow
from tunewright.data.formats.ledger import Ledger
from tunewright.data.formats.shaping import Dropped, Shaper
from tunewright.data.labels import EncodedRow, encode_rows
from tunewright.data.store import columns as token_store
from tunewright.data.store.documents import windows
from tunewright.data.store.good_answers import only_good
from tunewright.data.store.learnt_turns import with_turns
from tunewright.data.store.splitting import keys_of
from tunewright.text.renderer import Renderer


@dataclass(frozen=True)
class Recipe:
    """What is done to every row. Plain values, so that a worker can be told."""

    tokenizer: dict[str, Any] | None = None
    """`Light.state` of the tokenizer; None: rows are not encoded."""
    stop_ids: list[int] = field(default_factory=list)
    max_tokens: int | None = None
    oversize: Literal["drop", "truncate"] = "drop"
    system: str | None = None
    wording: str | None = None
    labels: list[str] | None = None
    control: list[str] = field(default_factory=list)
    """Control tokens, for the checks."""
    words: list[str] = field(default_factory=list)
    """Added tokens that are no control tokens: written in a row, they are those tokens."""
    check: bool = True
    documents: bool = False
    """Running text longer than `max_tokens` is cut into windows."""
    thinking: dict[str, Any] = field(default_factory=dict)
    """The renderer's `Thinking`."""
    questions_only: bool = False
    """Only the questions of rows become tokens: the model will write the answers."""
    good_only: bool = False
    """Only good answers stay (`good_answers`)."""
    turns: str = "all"
    """Which turns of a dialogue are learnt (`learnt_turns`)."""


@dataclass(frozen=True)
class Job:
    """Some rows of one file. `items` are (value, line, row) for a format, or (kind, JSON, line,
    row) for rows that a catalogue's converter made."""

    file: str
    format: str | None
    columns: dict[str, str]
    weight: float
    items: list[Any]


@dataclass
class Prepared:
    """What became of a job. `columns`, `keys` and `features` are bytes, kept as they are until they
    are needed."""

    columns: dict[str, bytes]
    kept: int
    keys: bytes
    dropped: list[Dropped]
    notes: dict[str, int]
    seen: set[str]
    """The columns that were named in the run and that some row has."""
    features: bytes
    ledger: dict[str, Any]
    """`Ledger.plain` of the rows."""


@dataclass
class _Rows:
    """Rows on their way through a job, each beside the value it was made from."""

    rows: list[Row] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)
    ledger: Ledger = field(default_factory=Ledger)


class Preparer:
    """Does jobs by a recipe. Keeps the tokenizer and the checks between them."""

    def __init__(self, recipe: Recipe, renderer: Renderer | None):
        self.recipe, self.renderer = recipe, renderer
        self.checks: list[Check] = all_checks(recipe.control, recipe.words) if recipe.check else []

    def do(self, job: Job) -> Prepared:
        """Shape, encode and check the rows of a job."""
        found = _Rows()
        for made, value in self._shaped(job, found):
            self._take(made, value, job.weight, found)
        encoded = self._encoded(found) if self.renderer is not None else None
        return Prepared(
            token_store.pack(found.rows, encoded, 0, 0),
            len(found.rows),
            keys_of(found.rows, found.values),
            found.dropped,
            dict(found.notes),
            found.seen,
            marshal.dumps(self._features(found.rows, encoded)),
            found.ledger.plain(),
        )

    def _shaped(self, job: Job, found: _Rows) -> Iterator[tuple[Row | Dropped, Any]]:
        """Each row, or why there is none, with the value it was made from."""
        if job.format is None:
            for kind, data, line, number in job.items:
                yield token_store.row_of(kind, data, Origin(job.file, line, number)), None
            return
        recipe = self.recipe
        shaper = Shaper([], job.format, job.columns, wording=recipe.wording, labels=recipe.labels)
        found.notes, found.ledger = shaper.notes, shaper.ledger
        wanted = set(job.columns.values())
        for value, line, number in job.items:
            if wanted and isinstance(value, dict):
                found.seen |= wanted & value.keys()
            yield shaper.row(RawRow(value, Origin(job.file, line, number))), value

    def _take(self, made: Row | Dropped, value: Any, weight: float, found: _Rows) -> None:
        """Put a row, finished, to the others, or to those that were dropped."""
        if self.recipe.good_only and not isinstance(made, Dropped):
            before, made = made, only_good(made)
            found.notes["good_only"] += made is not before and not isinstance(made, Dropped)
        if isinstance(made, Dropped):
            found.dropped.append(made)
        else:
            if self.recipe.turns != "all":
                made, count = with_turns(made, self.recipe.turns)
                if count:
                    found.notes["turns_unlearnt"] += count
            found.rows.append(_finished(made, self.recipe.system, weight))
            found.values.append(value)

    def _encoded(self, found: _Rows) -> list[EncodedRow]:
        """The tokens of the rows; those that have none are dropped, documents become windows."""
        recipe, renderer = self.recipe, self.renderer
        assert renderer is not None
        made = encode_rows(
            found.rows,
            renderer,
            max_tokens=recipe.max_tokens,
            oversize=recipe.oversize,
            documents=recipe.documents,
            questions_only=recipe.questions_only,
        )
        encoded: list[EncodedRow] = []
        rows, values = found.rows, found.values
        found.rows, found.values = [], []
        for row, value, one in zip(rows, values, made, strict=True):
            if isinstance(one, Dropped):
                found.dropped.append(one)
                continue
            pieces: list[tuple[Row, EncodedRow]] = [(row, one)]
            if recipe.documents and isinstance(row, PlainText):
                pieces = [*windows(row, one, recipe.max_tokens, renderer)]
            for piece, part in pieces:
                found.rows.append(piece)
                found.values.append(value)
                encoded.append(part)
                found.notes.update(part.notes)
                if part.thought_tokens:
                    found.notes["thought_tokens"] += part.thought_tokens
        return encoded

    def _features(self, rows: list[Row], encoded: list[EncodedRow] | None) -> list[list[Any]]:
        found = []
        for i, row in enumerate(rows if self.checks else ()):
            sample = encoded[i].sample(i, row.origin) if encoded is not None else None
            found.append([check.feature(row, sample) for check in self.checks])
        return found


def _finished(row: Row, system: str | None, weight: float) -> Row:
    """The row with the run's system prompt where it has turns and brings none, and its source's
    weight."""
    if system is not None and not isinstance(row, PlainText):
        row = (
            replace(row, prompt=_begun(row.prompt, system))
            if isinstance(row, Preference)
            else replace(row, messages=_begun(row.messages, system))
        )
    return replace(row, weight=row.weight * weight) if weight != 1 else row


def _begun(messages: list[Message], system: str) -> list[Message]:
    return (
        messages
        if messages and messages[0].role == "system"
        else [Message("system", system), *messages]
    )
