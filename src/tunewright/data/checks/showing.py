"""The tokens of one row with what is learnt of them: for a terminal, for JSON, and as pieces for a
page.

A character may be spread over several tokens (a Chinese character over three bytes). Its text
belongs to the token that completes it, the tokens before it show nothing, and `start` says with
which token the character began; so the texts of all tokens joined are the text of the row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.core.types import ROW_KINDS, PlainText, Row, Sample, turns_of
from tunewright.core.words import say
from tunewright.data.checks.columns import column_findings
from tunewright.data.checks.opening import Opened
from tunewright.data.formats.shaping import Dropped
from tunewright.data.inspecting import inspect
from tunewright.data.labels import encode_rows
from tunewright.data.reporting import GREEN, PLAIN, reason_text, safe
from tunewright.text.renderer import Renderer

OPEN, CLOSE = "[[", "]]"
UNDERLINED_GREEN = "\x1b[4m" + GREEN
MOST_TOKENS = 20_000
"""Longer branches are shown up to here, and it is said."""
INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Token:
    """One token. `text` is what it completes; `start` is the index of the first token of that text;
    `weight` is 0 where it is not learnt."""

    id: int
    text: str
    learnt: bool
    weight: float
    start: int


@dataclass(frozen=True)
class ShownBranch:
    """One sequence of a row: the dialogue, or the chosen or the rejected way of a preference."""

    role: str
    tokens: list[Token]
    length: int

    @property
    def learnt(self) -> int:
        """How many tokens are learnt."""
        return sum(token.learnt for token in self.tokens)

    @property
    def head(self) -> str:
        """Its role and its numbers of tokens, as people read them."""
        return say(
            "show.branch",
            role=say(f"show.role.{self.role}"),
            tokens=f"{self.length:,}",
            learnt=f"{self.learnt:,}",
        )


@dataclass(frozen=True)
class Shown:
    """A row as it would be trained on. Without tokens `branches` is empty and `turns` holds the
    texts."""

    row: int
    origin: str
    kind: str
    branches: list[ShownBranch]
    turns: list[tuple[str, str]]
    parts: list[str] = field(default_factory=list)
    """What becomes of the parts of the folder that the row comes from, in sentences."""
    unused: list[dict[str, Any]] = field(default_factory=list)
    """The columns of the set that are not used, as the data report names them; `columns` is how
    many it has."""
    columns: int = 0
    rows: int = 0
    """Usable rows of the set."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        branches = [
            {
                "role": b.role,
                "length": b.length,
                "learnt": b.learnt,
                "tokens": [asdict(t) for t in b.tokens],
            }
            for b in self.branches
        ]
        return {
            "row": self.row,
            "origin": self.origin,
            "kind": self.kind,
            "branches": branches,
            "turns": [{"role": r, "text": t} for r, t in self.turns],
            "parts": self.parts,
            "unused_columns": self.unused,
        }


def show_row(config: DataConfig, opened: Opened | None, number: int | None) -> Shown:
    """Row `number` (from 1, in the order of the file) of the usable rows, or one at random. Raises
    DataError for a row that is not there or cannot be encoded."""
    data = inspect(config, None, needs_tokens=False, check=False)
    rows, ledger = data.train_rows, data.report["columns"]
    more = {"parts": data.report["parts"], "unused": ledger["unused"], "columns": ledger["found"]}
    more["rows"] = len(rows)
    number = random.SystemRandom().randint(1, len(rows)) if number is None else number
    if number > len(rows):
        raise DataError.of("E-DATA-53", str(config.train), row=number, rows=len(rows))
    row = rows[number - 1]
    if opened is None:
        return replace(shown(number, row, None, None), **more)
    opened.renderer.thinking = replace(opened.renderer.thinking, mode=config.thinking)
    (made,) = encode_rows([row], opened.renderer, max_tokens=None)
    if isinstance(made, Dropped):
        raise DataError.of("E-DATA-57", str(row.origin), reason=reason_text(made.reason))
    return replace(shown(number, row, made.sample(0, row.origin), opened.renderer), **more)


def shown(number: int, row: Row, sample: Sample | None, renderer: Renderer | None) -> Shown:
    """Row `number` (from 1) with its tokens; without a renderer its turns."""
    turns = (
        [("text", row.text)]
        if isinstance(row, PlainText)
        else [(m.role, m.content) for m in turns_of(row)]
    )
    branches = []
    if sample is not None and renderer is not None:
        for branch in sample.branches:
            weights = dict(zip(branch.learnt, branch.weights, strict=True))
            tokens = tokens_of(branch.tokens[:MOST_TOKENS], weights, renderer)
            branches.append(
                ShownBranch(
                    "text" if isinstance(row, PlainText) else branch.role,
                    tokens,
                    len(branch.tokens),
                )
            )
    return Shown(number, str(row.origin), ROW_KINDS[type(row)], branches, turns)


def tokens_of(ids: Sequence[int], weights: dict[int, float], renderer: Renderer) -> list[Token]:
    """Each id with the text it completes. `weights` maps the indices that are learnt to their
    weights."""
    out: list[Token] = []
    # Tokens are decoded behind a few known ones, because the first token of a text may lose its
    # space.
    anchor, start = 0, 0
    before = ""
    for index, token in enumerate(ids):
        text = renderer.decode(ids[anchor : index + 1])
        complete = not text.endswith(INCOMPLETE) or index - start >= 8
        piece = text[len(before) :] if complete or index + 1 == len(ids) else ""
        out.append(Token(token, piece, index in weights, weights.get(index, 0.0), start))
        if complete:
            anchor, start = start, index + 1
            before = renderer.decode(ids[anchor : index + 1])
    return out


def runs(tokens: Sequence[Token]) -> list[tuple[bool, str]]:
    """Neighbouring tokens of one kind as one text. A character spread over tokens is learnt where
    the token that completes it is."""
    found: list[tuple[bool, str]] = []
    for token in tokens:
        if not token.text:
            continue
        if found and found[-1][0] == token.learnt:
            found[-1] = (token.learnt, found[-1][1] + token.text)
        else:
            found.append((token.learnt, token.text))
    return found


def describe_row(row: Shown, colour: bool = False) -> str:
    """The row for a terminal; what is learnt is green and underlined, or in double brackets."""
    lines = [
        say("show.head", row=row.row, origin=row.origin, kind=say(f"rows.kind.{row.kind}")),
        *row.parts,
    ]
    lines += [
        ("! " if one.severity == "warn" else "") + one.what()
        for one in column_findings({"columns": {"found": row.columns, "unused": row.unused}})
    ]
    if not row.branches:
        lines.append(say("show.no_model"))
        return "\n".join([*lines, *(f"\n{role}:\n{safe(text)}" for role, text in row.turns)])
    lines.append(say("show.legend_colour" if colour else "show.legend"))
    begin, end = (UNDERLINED_GREEN, PLAIN) if colour else (OPEN, CLOSE)
    for branch in row.branches:
        text = "".join(
            f"{begin}{safe(piece)}{end}" if learnt else safe(piece)
            for learnt, piece in runs(branch.tokens)
        )
        lines += ["", branch.head, text + (" ..." if branch.length > len(branch.tokens) else "")]
    return "\n".join(lines)
